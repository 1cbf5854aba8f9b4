"""Scenes of coloured shapes: what is in them, and how they are drawn.

A `Scene` holds the truth (which shapes, where); `draw` turns it into a picture. A `Movie` is a scene whose only shape
moves. Positions are fractions of the width and height, radii fractions of the shorter side: any size can be drawn.
"""

import colorsys
import io
import math
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]

SHAPE_KINDS = ("circle", "square", "triangle")
# Hue in degrees, then saturation and value in 0..1: what people mean by each name, with gaps between the names.
COLOUR_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-8.0, 6.0), (0.78, 1.0), (0.68, 1.0)),
    "orange": ((22.0, 39.0), (0.85, 1.0), (0.90, 1.0)),
    "yellow": ((50.0, 61.0), (0.75, 1.0), (0.88, 1.0)),
    "green": ((97.0, 142.0), (0.65, 1.0), (0.40, 1.0)),
    "blue": ((211.0, 241.0), (0.72, 1.0), (0.50, 1.0)),
    "purple": ((269.0, 301.0), (0.60, 1.0), (0.42, 0.80)),
}
COLOURS = tuple(COLOUR_RANGES)
BACKGROUNDS: tuple[Rgb, ...] = (
    (255, 255, 255),
    (245, 245, 245),
    (225, 225, 225),
    (200, 200, 205),
    (250, 243, 224),
    (222, 235, 247),
    (235, 226, 240),
    (90, 92, 96),
    (52, 54, 60),
    (28, 32, 48),
    (10, 10, 12),
    (0, 0, 0),
)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "to the left": (-1.0, 0.0),
    "to the right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
MAX_SHAPES = 5
# How far a shape's corners reach past its nominal radius; used to keep shapes apart and inside the picture.
_REACH = 1.14
_MIN_RADIUS_PIXELS = 8.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One coloured shape: centre and radius as fractions, rotation in degrees, stretch = width over height."""

    kind: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    radius: float
    rotation: float = 0.0
    stretch: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's content; `width` and `height` in pixels are the size it is drawn at."""

    width: int
    height: int
    background: Rgb
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Movie:
    """A scene whose only shape moves; `path` is its centre in each frame, as fractions."""

    scene: Scene
    direction: str
    path: tuple[tuple[float, float], ...]

    @property
    def shape(self) -> Shape:
        return self.scene.shapes[0]


@dataclass(frozen=True, slots=True)
class Style:
    """How a scene becomes pixels: drawn `scale` times larger and resampled down, outlined, or passed through JPEG."""

    scale: float = 4.0
    resample: Image.Resampling = Image.Resampling.BOX
    outline: bool = False
    jpeg_quality: int | None = None


PLAIN = Style()


def random_rgb(rng: Random, colour: str) -> Rgb:
    """A tone that anybody would call by this name."""
    (hue_low, hue_high), saturation, value = COLOUR_RANGES[colour]
    hue = rng.uniform(hue_low, hue_high) % 360.0 / 360.0
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value))
    return round(red * 255), round(green * 255), round(blue * 255)


def random_scene(rng: Random, width: int, height: int, count: int, background: Rgb | None = None) -> Scene:
    """`count` shapes (1..5) that do not touch; small pictures get fewer when they do not fit."""
    shorter = min(width, height)
    largest = (0.36, 0.32, 0.25, 0.21, 0.18)[count - 1]
    smallest = max(_MIN_RADIUS_PIXELS / shorter, 0.55 * largest if count > 2 else 0.11)
    shapes: list[Shape] = []
    for _ in range(count):
        shape = _place(rng, width, height, shapes, smallest, max(largest, smallest))
        if shape is not None:
            shapes.append(shape)
    rng.shuffle(shapes)
    return Scene(width, height, background or random_background(rng), tuple(shapes))


def random_background(rng: Random) -> Rgb:
    red, green, blue = rng.choice(BACKGROUNDS)
    if rng.random() < 0.4:
        return red, green, blue
    return tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in (red, green, blue))  # type: ignore[return-value]


def random_movie(rng: Random, width: int, height: int, num_frames: int) -> Movie:
    """One shape that crosses a good part of the picture in a straight line."""
    direction = rng.choice(tuple(DIRECTIONS))
    step_x, step_y = DIRECTIONS[direction]
    scene = random_scene(rng, width, height, 1)
    shorter = min(width, height)
    radius = rng.uniform(max(_MIN_RADIUS_PIXELS / shorter, 0.12), 0.24)
    shape = replace(scene.shapes[0], radius=radius)
    margin_x, margin_y = radius * _REACH * shorter / width, radius * _REACH * shorter / height
    along = margin_x if step_x else margin_y
    length = rng.uniform(0.55, 1.0) * (1.0 - 2.0 * along)
    start = rng.uniform(along, 1.0 - along - length)
    across_margin = margin_y if step_x else margin_x
    across = rng.uniform(across_margin, 1.0 - across_margin)
    path = []
    for frame in range(num_frames):
        travelled = start + length * frame / (num_frames - 1)
        position = travelled if step_x + step_y > 0 else 2 * start + length - travelled
        path.append((position, across) if step_x else (across, position))
    return Movie(replace(scene, shapes=(shape,)), direction, tuple(path))


def draw(scene: Scene, style: Style = PLAIN) -> Image.Image:
    """The scene as an RGB picture of `scene.width` x `scene.height` pixels."""
    width, height = round(scene.width * style.scale), round(scene.height * style.scale)
    image = Image.new("RGB", (width, height), scene.background)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw_shape(pen, shape, width, height, style.outline)
    if style.resample == Image.Resampling.BOX and style.scale == int(style.scale) > 1:
        image = image.reduce(int(style.scale))
    elif (width, height) != (scene.width, scene.height):
        image = image.resize((scene.width, scene.height), style.resample)
    if style.jpeg_quality is None:
        return image
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=style.jpeg_quality)
    return Image.open(encoded).convert("RGB")


def draw_video(movie: Movie, style: Style = PLAIN) -> list[Image.Image]:
    """One picture for each point of the movie's path."""
    return [draw(frame, style) for frame in frames(movie)]


def frames(movie: Movie) -> list[Scene]:
    """The movie as a scene for each frame."""
    return [replace(movie.scene, shapes=(replace(movie.shape, x=x, y=y),)) for x, y in movie.path]


def _place(rng: Random, width: int, height: int, placed: list[Shape], smallest: float, largest: float) -> Shape | None:
    shorter = min(width, height)
    kind, colour = _random_name(rng, placed)
    radius = rng.uniform(smallest, largest)
    for _ in range(24):
        margin_x, margin_y = radius * _REACH * shorter / width, radius * _REACH * shorter / height
        x, y = rng.uniform(margin_x, 1.0 - margin_x), rng.uniform(margin_y, 1.0 - margin_y)
        if all(_apart(x, y, radius, other, width, height) for other in placed):
            same = next((other.rgb for other in placed if other.colour == colour), None)
            rgb = same if same is not None and rng.random() < 0.7 else random_rgb(rng, colour)
            rotation = rng.uniform(-12.0, 12.0) if rng.random() < 0.3 else 0.0
            stretch = rng.uniform(0.88, 1.12) if rng.random() < 0.4 else 1.0
            return Shape(kind, colour, rgb, x, y, radius, rotation, stretch)
        radius = max(smallest, radius * 0.94)
    return None


def _random_name(rng: Random, placed: list[Shape]) -> tuple[str, str]:
    """Kind and colour; often repeats what is there, so that counting and binding both matter."""
    kind, colour = rng.choice(SHAPE_KINDS), rng.choice(COLOURS)
    if not placed:
        return kind, colour
    other, dice = rng.choice(placed), rng.random()
    if dice < 0.28:
        return other.kind, other.colour
    if dice < 0.42:
        return kind, other.colour
    if dice < 0.56:
        return other.kind, colour
    return kind, colour


def _apart(x: float, y: float, radius: float, other: Shape, width: int, height: int) -> bool:
    shorter = min(width, height)
    distance = math.hypot((x - other.x) * width, (y - other.y) * height)
    return distance > (radius + other.radius) * _REACH * shorter + 2.0


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, width: int, height: int, outline: bool) -> None:
    radius = shape.radius * min(width, height)
    centre_x, centre_y = shape.x * width, shape.y * height
    half_width, half_height = radius * math.sqrt(shape.stretch), radius / math.sqrt(shape.stretch)
    edge = (20, 20, 20) if outline else None
    edge_width = max(1, round(radius * 0.07))
    if shape.kind == "circle":
        box = (centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height)
        pen.ellipse(box, fill=shape.rgb, outline=edge, width=edge_width)
        return
    angle = math.radians(shape.rotation)
    cosine, sine = math.cos(angle), math.sin(angle)
    points = []
    for x, y in _CORNERS[shape.kind]:
        x, y = x * half_width, y * half_height
        points.append((centre_x + x * cosine - y * sine, centre_y + x * sine + y * cosine))
    pen.polygon(points, fill=shape.rgb, outline=edge, width=edge_width)


_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "triangle": ((0.0, -1.0), (0.98, 0.8), (-0.98, 0.8)),
}
