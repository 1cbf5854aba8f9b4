"""Vision-language serving in three stages that scale apart: encode, prefill, decode."""

__version__ = "0.1.0"
