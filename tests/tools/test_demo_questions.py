"""Scenes, their drawing, and the answers about them."""

from random import Random

import pytest
from PIL import Image

from triptych.demo import questions
from triptych.demo.pictures import DIRECTIONS, Scene, Shape, draw, draw_video, random_movie, random_scene

RED, BLUE = (230, 20, 20), (30, 60, 230)
SCENE = Scene(
    224,
    168,
    (255, 255, 255),
    (
        Shape("circle", "red", RED, 0.2, 0.2, 0.15),
        Shape("square", "blue", BLUE, 0.5, 0.5, 0.15),
        Shape("square", "blue", BLUE, 0.8, 0.8, 0.15),
    ),
)


def test_a_drawn_picture_has_its_shapes_where_the_scene_says() -> None:
    image = draw(SCENE)
    assert (image.size, image.mode) == ((224, 168), "RGB")
    assert image.getpixel((45, 34)) == RED
    assert image.getpixel((112, 84)) == BLUE
    assert image.getpixel((200, 20)) == (255, 255, 255)


@pytest.mark.parametrize("seed", range(20))
def test_shapes_do_not_touch_and_stay_inside(seed: int) -> None:
    rng = Random(seed)
    scene = random_scene(rng, 28 * rng.randint(3, 8), 28 * rng.randint(3, 8), 5)
    silhouettes = Image.new("L", (scene.width, scene.height))
    alone = 0
    for shape in scene.shapes:
        single = draw(Scene(scene.width, scene.height, (0, 0, 0), (shape,))).convert("L").point(lambda v: 255 * (v > 0))
        assert single.crop((0, 0, scene.width, 1)).getextrema() == (0, 0)
        assert single.crop((0, 0, 1, scene.height)).getextrema() == (0, 0)
        alone += single.histogram()[255]
        silhouettes.paste(255, mask=single)
    assert silhouettes.histogram()[255] == alone


@pytest.mark.parametrize("seed", range(8))
def test_a_movie_moves_the_way_it_says(seed: int) -> None:
    movie = random_movie(Random(seed), 112, 84, 6)
    pictures = draw_video(movie)
    assert len(pictures) == 6 and pictures[0] != pictures[-1]
    (first_x, first_y), (last_x, last_y) = movie.path[0], movie.path[-1]
    step_x, step_y = DIRECTIONS[movie.direction]
    assert (last_x - first_x) * step_x + (last_y - first_y) * step_y > 0.2


def test_a_description_groups_what_is_alike() -> None:
    assert questions.description(SCENE.shapes) == "a red circle and two blue squares"


@pytest.mark.parametrize(
    ("noun", "number"), [("shape", 3), ("square", 2), ("red shape", 1), ("blue square", 2), ("green circle", 0)]
)
def test_counts(noun: str, number: int) -> None:
    assert questions.count_of(SCENE, noun) == number


def test_places() -> None:
    places = [questions.place_of(shape) for shape in SCENE.shapes]
    assert places == ["in the top left corner", "in the middle", "in the bottom right corner"]
    assert questions.place_of(Shape("circle", "red", RED, 0.36, 0.5, 0.1)) is None


def test_colour_where_and_shape_are_asked_only_where_the_answer_is_clear() -> None:
    for seed in range(50):
        rng = Random(seed)
        colour, where, shape = (ask(rng, SCENE) for ask in (questions.colour, questions.where, questions.shape_of))
        assert colour is not None and colour.answer == "The circle is red."
        assert where is not None and where.answer.endswith("circle is in the top left corner.")
        assert shape is not None and shape.answer == "The red shape is a circle."


def test_yes_and_no_are_both_asked_and_right() -> None:
    seen = set()
    for seed in range(200):
        question = questions.yes_or_no(Random(seed), SCENE)
        assert question is not None
        said_yes = question.answer.startswith("Yes")
        seen.add(said_yes)
        thing = (
            question.answer.rstrip(".").split(" a " if said_yes else " no ", 1)[-1].removeprefix("Yes, there is an ")
        )
        assert said_yes == (questions.count_of(SCENE, thing) > 0), question
    assert seen == {True, False}


def test_which_picture_has_more() -> None:
    few = Scene(112, 112, (0, 0, 0), SCENE.shapes[:1])
    answers = set()
    for seed in range(100):
        question = questions.which_has_more(Random(seed), (few, SCENE))
        assert question is not None
        answers.add(question.answer)
    assert "The second picture has more shapes." in answers
    assert "Both pictures have the same number of circles." in answers
    assert not any(answer.startswith("The first") for answer in answers)


def test_every_kind_is_asked_in_several_wordings() -> None:
    rng = Random(0)
    scenes = (SCENE, random_scene(rng, 112, 112, 3))
    movie = random_movie(rng, 112, 112, 4)
    for kinds, subject in (
        (questions.PICTURE_QUESTIONS, SCENE),
        (questions.PAIR_QUESTIONS, scenes),
        (questions.VIDEO_QUESTIONS, movie),
    ):
        for kind, ask in kinds.items():
            asked = [ask(rng, subject) for _ in range(60)]  # type: ignore[operator]
            assert {question.kind for question in asked} == {kind}
            assert len({question.text for question in asked}) >= 4


def test_text_questions() -> None:
    for seed in range(50):
        rng = Random(seed)
        counting = questions.count_up(rng)
        numbers = [int(number) for number in counting.answer.rstrip(".").split(", ")]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)) and str(numbers[-1]) in counting.text
        left, right, total = (int(word) for word in questions.add(rng).answer.rstrip(".").split() if word.isdigit())
        assert left + right == total
