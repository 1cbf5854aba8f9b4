"""Equal content has equal keys, and nothing else has."""

from triptych.media import content_key
from triptych.v1 import common_pb2


def media(**changes: object) -> common_pb2.Media:
    message = common_pb2.Media(
        kind=common_pb2.MEDIA_KIND_VIDEO,
        options=common_pb2.ProcessingOptions(min_pixels=1, max_pixels=2, frames_per_second=2.0),
    )
    message.MergeFrom(common_pb2.Media(**changes))  # type: ignore[arg-type]
    return message


def frames(*parts: bytes, rate: float = 0.0) -> common_pb2.VideoFrames:
    return common_pb2.VideoFrames(frames=parts, frames_per_second=rate)


def test_keys_differ_exactly_where_content_differs() -> None:
    contents = [
        media(data=b"abc"),
        media(data=b"abd"),
        media(data=b""),
        media(data=b"abc", kind=common_pb2.MEDIA_KIND_IMAGE),
        media(data=b"abc", options=common_pb2.ProcessingOptions(max_pixels=3)),
        media(data=b"abc", options=common_pb2.ProcessingOptions(frames_per_second=1.0)),
        media(data=b"abc", options=common_pb2.ProcessingOptions(min_frames=1)),
        media(data=b"abc", options=common_pb2.ProcessingOptions(max_frames=1)),
        media(frames=frames(b"abc")),
        media(frames=frames(b"ab", b"c")),
        media(frames=frames(b"a", b"bc")),
        media(frames=frames(b"ab", b"c", rate=1.0)),
        media(frames=frames()),
    ]
    keys = [content_key(content) for content in contents]
    assert len(set(keys)) == len(contents)
    assert keys == [content_key(common_pb2.Media.FromString(content.SerializeToString())) for content in contents]
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_the_key_of_a_version_stays() -> None:
    """Caches and routing tables of two versions meet while a deployment is being renewed."""
    assert content_key(media(data=b"abc")) == "79ab0a7046c2e4317443320a5f164594"
