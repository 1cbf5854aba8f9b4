"""The disaggregated system gives the tokens that transformers gives: preparation, towers, transport and all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import COLOCATED, ONE_OF_EACH, InProcessSystem, Topology
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from router.dispatch.preparation import Preparation
from triptych.client import image, user, video
from triptych.client.content import to_messages
from triptych.config import DeploymentConfig
from triptych.media.layout import MediaProcessing, media_layout
from triptych.v1 import common_pb2, inference_pb2

NUM_NEW_TOKENS = 64


def noise(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 7, width // 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


CHATS = {
    "text": [user("what is a red circle?")],
    "picture": [user(image(noise(84, 56, 1)), "what is it?")],
    "two pictures": [user(image(noise(140, 56, 2)), "and", image(noise(56, 84, 3)), "which has more?")],
    "video": [user(video([noise(56, 84, seed) for seed in range(8)], frames_per_second=3.3), "which way?")],
}


class Reference:
    """transformers on the same checkpoint; prompt and pixels are as router and encoder prepare them."""

    def __init__(self, folder: Path) -> None:
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._preparation = Preparation(DeploymentConfig(), "tiny", folder)
        self._processing = MediaProcessing.from_folder(folder)
        self._limits = DeploymentConfig().limits

    def tokens(self, messages: Sequence[inference_pb2.ChatMessage]) -> tuple[int, ...]:
        prepared = self._preparation.prepare_now(inference_pb2.GenerateRequest(messages=to_messages(messages, (), ())))
        prompt = torch.tensor([prepared.token_ids])
        config = self._model.config
        types = (prompt == config.image_token_id).int() + 2 * (prompt == config.video_token_id).int()
        inputs: dict[str, object] = {"mm_token_type_ids": types}
        for name, kind in (("image", common_pb2.MEDIA_KIND_IMAGE), ("video", common_pb2.MEDIA_KIND_VIDEO)):
            items = [item for item in prepared.media if item.media.kind == kind]
            if not items:
                continue
            pixels = "pixel_values" if name == "image" else "pixel_values_videos"
            inputs[pixels] = torch.cat([self._patches(item.media) for item in items])
            inputs[f"{name}_grid_thw"] = torch.tensor([[item.grid.t, item.grid.h, item.grid.w] for item in items])
            if name == "video":
                inputs["second_per_grid_ts"] = torch.tensor([item.second_per_grid_t for item in items])
        output = self._model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            **inputs,
        )
        return tuple(output[0, prompt.shape[1] :].tolist())

    def _patches(self, media: common_pb2.Media) -> torch.Tensor:
        from encoder_service.items import MediaItem
        from encoder_service.media import prepare_patches
        from triptych.media import content_key

        layout = media_layout(media, self._processing, self._limits, "media")
        item = MediaItem(content_key(media), layout.grid, media, "media")
        return prepare_patches(item, self._processing, self._limits)


@pytest.fixture(scope="module")
def expected(random_model_folder: Path) -> dict[str, tuple[int, ...]]:
    reference = Reference(random_model_folder)
    return {name: reference.tokens(chat) for name, chat in CHATS.items()}


@pytest.mark.parametrize("topology", [ONE_OF_EACH, COLOCATED], ids=str)
async def test_tokens_are_those_of_transformers(
    random_model_folder: Path, topology: Topology, expected: dict[str, tuple[int, ...]]
) -> None:
    async with InProcessSystem(random_model_folder, topology) as system:
        options = {"max_tokens": NUM_NEW_TOKENS, "min_tokens": NUM_NEW_TOKENS}
        answers = await asyncio.gather(*(system.client.chat(chat, **options) for chat in CHATS.values()))
        assert {name: answer.token_ids for name, answer in zip(CHATS, answers, strict=True)} == expected
    assert len(set(expected.values())) == len(CHATS)
