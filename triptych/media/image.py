"""Image files: opened through an allow-list of formats, measured from their headers."""

from PIL import Image, ImageFile

from triptych.config import LimitsSection
from triptych.errors import InvalidRequest, RequestTooLarge, TriptychError
from triptych.media.bounds import check_num_bytes, check_size
from triptych.media.jpeg import read_plain_jpeg
from triptych.media.metered_reader import MeteredReader
from triptych.media.orientation import QUARTER_TURNS, UPRIGHT
from triptych.media.png import move_metadata_first
from triptych.media.shapes import ImageShape
from triptych.media.webp import read_canvas_size

# Pillow's names. Phones' multi-picture files are opened as JPEG. Other formats are never tried: some run outside
# programs (EPS), some read whole files to find out what they are.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Each scan of a progressive JPEG costs a walk over all pixels, however few bytes it has. Encoders write about ten.
MAX_JPEG_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

# EXIF and TIFF tags.
_ORIENTATION = 0x0112
_IMAGE_WIDTH, _IMAGE_LENGTH = 0x0100, 0x0101


def probe_image(data: bytes, limits: LimitsSection, field: str) -> ImageShape:
    """Size of the picture as `transformers.image_utils.load_image` would give it, without decoding a pixel.

    Raises InvalidRequest for data that is no picture of an allowed format, RequestTooLarge over limits.max_image_bytes
    or limits.max_image_pixels. Data that is cut off after its header passes: only a decoder notices.
    """
    image = open_image(data, limits, field)
    try:
        return _oriented_shape(image)
    except Exception as error:
        raise unreadable_image(field, error) from error


def open_image(data: bytes, limits: LimitsSection, field: str) -> ImageFile.ImageFile:
    """Opens `data` lazily after all checks of `probe_image`; the pixels are still to be decoded."""
    check_num_bytes(len(data), limits.max_image_bytes, "limits.max_image_bytes", "an image file", field)
    try:
        image = _open(data, limits, field)
        shape = None if image is None else _oriented_shape(image)
    except TriptychError:
        raise
    except Image.DecompressionBombError as error:
        # A GIF frame that is larger than the screen in the file's header.
        raise RequestTooLarge(
            f"{field} has a frame that is too large ({error}), "
            f"expected at most {limits.max_image_pixels} pixels (limits.max_image_pixels)",
            field=field,
        ) from error
    except Exception as error:
        raise unreadable_image(field, error) from error
    if image is None or shape is None:
        raise InvalidRequest(
            f"{field} begins with {data[:8]!r}, expected an image file of a format in {', '.join(IMAGE_FORMATS)}",
            field=field,
        )
    check_size(shape.width, shape.height, limits, field)
    return image


def unreadable_image(field: str, error: Exception) -> InvalidRequest:
    """What a plugin's exception becomes. Malformed bytes lead plugins to raise nearly anything: callers catch all."""
    return InvalidRequest(f"{field} is not a readable image: {error or type(error).__name__}", field=field)


def _open(data: bytes, limits: LimitsSection, field: str) -> ImageFile.ImageFile | None:
    """The first format of the list that takes the data, or None.

    Image.open is not used: it raises on large pictures before it says their size, by a limit global to the process.
    """
    Image.init()
    for name in IMAGE_FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is not True:
            continue
        if name == "WEBP":
            # Opening one allocates its canvas, so that the size is read first.
            check_size(*read_canvas_size(data), limits, field)
        if name == "PNG":
            data = move_metadata_first(data)
        if name == "JPEG":
            _check_num_scans(data, field)
        reader = MeteredReader(data, field)
        image = factory(reader, "")
        reader.allow_pixels(image.width * image.height)
        return image
    return None


def _check_num_scans(data: bytes, field: str) -> None:
    jpeg = read_plain_jpeg(data)
    if jpeg is not None and not jpeg.is_progressive:
        # Its first scan has all there is; the bytes need not be searched.
        return
    num_scans = data.count(_START_OF_SCAN)
    if num_scans > MAX_JPEG_SCANS:
        raise InvalidRequest(f"{field} has {num_scans} scans, expected at most {MAX_JPEG_SCANS}", field=field)


def exif_orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation of an opened picture; 1, upright, where it has none or one that the standard lacks."""
    # The base class's getexif: PNG's own decodes the picture to look for metadata behind the pixels.
    orientation = Image.Image.getexif(image).get(_ORIENTATION, UPRIGHT)
    return int(orientation) if orientation in range(1, 9) else UPRIGHT


def _oriented_shape(image: ImageFile.ImageFile) -> ImageShape:
    orientation = exif_orientation(image)
    width, height = image.size
    if image.format == "TIFF":
        # Some versions of Pillow swap a TIFF's size by its orientation when they open it, others when they load it.
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags[_IMAGE_WIDTH], tags[_IMAGE_LENGTH]
    return ImageShape(height, width) if orientation in QUARTER_TURNS else ImageShape(width, height)
