"""Which model is served, and in which precision."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from triptych.config.section import Section

BUILT_IN_MODEL = "tiny"


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    NONE = "none"
    FP8 = "fp8"


class ModelSection(Section):
    path: str = Field(
        BUILT_IN_MODEL, description=f"Checkpoint folder; '{BUILT_IN_MODEL}' is the small model in the package."
    )
    name: str = Field("", description="Name that clients may ask for; the folder's name when empty.")
    dtype: DType = Field(DType.AUTO, description="auto: bfloat16 on a GPU, float32 on a CPU.")
    device: str = Field("auto", description="auto | cpu | cuda")
    quantization: Quantization = Field(
        Quantization.NONE,
        description="fp8: linear layers of the language model in e4m3, one scale per output channel (GPU).",
    )
