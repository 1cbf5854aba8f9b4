"""What a request may ask for, and what it gets when it does not say."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section
from triptych.config.units import MIB


class LimitsSection(Section):
    max_message_bytes: int = Field(64 * MIB, ge=4096, description="One gRPC message, both directions.")
    max_image_bytes: int = Field(32 * MIB, ge=1, description="One image file, or one frame.")
    max_video_bytes: int = Field(56 * MIB, ge=1, description="One video file, or all frames of one.")
    max_image_pixels: int = Field(
        64_000_000, ge=1, description="Width times height in the file's header, before anything is decoded."
    )
    max_video_frames: int = Field(
        4_096, ge=1, description="Frames in the file; how many are sampled is the model's choice."
    )
    max_video_pixels: int = Field(
        10_000_000_000, ge=1, description="Frames in the file times the pixels of one, before anything is decoded."
    )
    max_media_items: int = Field(64, ge=0, description="Pictures and videos of one request.")
    max_messages: int = Field(1_024, ge=1, description="Messages of one request.")
    max_text_bytes: int = Field(4 * MIB, ge=1, description="All text of one request.")
    max_stop_strings: int = Field(16, ge=0, description="Stop strings of one request.")
    max_new_tokens: int = Field(32_768, ge=1, description="Most that sampling.max_tokens may ask for.")
    max_choices: int = Field(16, ge=1, le=1024, description="Most that sampling.n may ask for: answers of one prompt.")
    max_logprobs: int = Field(
        20, ge=0, le=1024, description="Most that sampling.logprobs may ask for: likeliest tokens told with each token."
    )
    max_logit_biases: int = Field(1_024, ge=0, description="Entries of sampling.logit_bias.")
    max_constraint_bytes: int = Field(
        65_536, ge=1, description="JSON schema, regular expression or list of texts that an answer is held to."
    )
    max_pending_requests: int = Field(512, ge=1, description="Requests inside the router; over it RESOURCE_EXHAUSTED.")
    max_pending_bytes: int = Field(
        1_024 * MIB,
        ge=4096,
        description="Text, pictures and videos of all requests inside a router process; over it RESOURCE_EXHAUSTED.",
    )


class DefaultsSection(Section):
    """What a request gets when it does not say."""

    max_tokens: int = Field(512, ge=1, description="sampling.max_tokens.")
    temperature: float = Field(0.0, ge=0, le=2, description="sampling.temperature; 0 is greedy.")
    timeout_s: float = Field(
        120.0, gt=0, description="Deadline of a request that brings none; also the longest one accepted."
    )
