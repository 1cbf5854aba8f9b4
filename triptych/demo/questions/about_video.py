"""Questions about a video."""

from random import Random

from triptych.demo.pictures import Movie
from triptych.demo.questions.question import Question
from triptych.demo.questions.words import sentence, with_article


def direction(rng: Random, movie: Movie) -> Question | None:
    noun = rng.choice((movie.shape.kind, "shape", "it"))
    noun = noun if noun == "it" else f"the {noun}"
    text = rng.choice(
        (
            f"Which way does {noun} move?",
            f"Which way is {noun} moving?",
            f"In which direction does {noun} move?",
            f"What direction does {noun} move?",
            f"Where does {noun} go?",
            f"Where is {noun} going?",
        )
    )
    return Question("video_direction", text, f"The {movie.shape.kind} moves {movie.direction}.")


def what_moves(rng: Random, movie: Movie) -> Question | None:
    text = rng.choice(
        (
            "What is in the video?",
            "What do you see in the video?",
            "What happens in the video?",
            "What happens in this video?",
            "What does the video show?",
            "What moves in the video?",
            "Describe the video.",
            "Describe this video.",
            "What is moving?",
        )
    )
    return Question("video_what", text, sentence(f"{with_article(movie.shape.name)} moves {movie.direction}"))


def colour_in_video(rng: Random, movie: Movie) -> Question | None:
    noun = rng.choice((f"the {movie.shape.kind}", "the shape", "it"))
    word = rng.choice(("colour", "colour", "color"))
    text = rng.choice(
        (
            f"What {word} is {noun}?",
            f"Which {word} is {noun}?",
            f"Which {word} does {noun} have?",
            f"What {word} does {noun} have?",
        )
    )
    return Question("video_colour", text, f"The {movie.shape.kind} is {movie.shape.colour}.")
