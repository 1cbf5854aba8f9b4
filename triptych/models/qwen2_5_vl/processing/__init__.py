"""From pixels to patches: sizes, resizing, normalising and patch order of pictures and videos."""

from triptych.models.qwen2_5_vl.processing.image import ImageProcessing
from triptych.models.qwen2_5_vl.processing.resize import smart_resize
from triptych.models.qwen2_5_vl.processing.video import VideoProcessing

__all__ = ["ImageProcessing", "VideoProcessing", "smart_resize"]
