"""The vision tower of Qwen2.5-VL."""

from triptych.models.qwen2_5_vl.vision.attention import SegmentedAttention, VisionAttention
from triptych.models.qwen2_5_vl.vision.segments import Segments
from triptych.models.qwen2_5_vl.vision.tower import VisionTower

__all__ = ["SegmentedAttention", "Segments", "VisionAttention", "VisionTower"]
