"""The language model against transformers, packed against single, and with media in the prompt."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.grid import Grid, MediaGrid
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.rope import mrope_positions
from triptych.models.qwen2_5_vl.weights import load_language_model, load_vision_tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> LanguageModel:
    return load_language_model(checkpoint, ModelConfig.from_folder(checkpoint), torch.float32, CPU)


def text_tokens(length: int, seed: int) -> Tensor:
    return torch.randint(0, 100, (length,), generator=torch.Generator().manual_seed(seed))


def text_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    positions = torch.arange(len(tokens)).expand(3, -1)
    hidden = model(model.embed(tokens), positions, DenseCausalAttention([len(tokens)]))
    return model.logits(hidden)


def test_text_equals_transformers(model: LanguageModel, reference: Qwen2_5_VLForConditionalGeneration) -> None:
    tokens = text_tokens(70, seed=0)
    with torch.no_grad():
        expected = reference(input_ids=tokens[None]).logits[0]
    logits = text_logits(model, tokens)
    assert logits.dtype == torch.float32
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_untied_output_matrix(untied_checkpoint: tuple[Path, Qwen2_5_VLForConditionalGeneration]) -> None:
    folder, reference = untied_checkpoint
    model = load_language_model(folder, ModelConfig.from_folder(folder), torch.float32, CPU)
    assert model.lm_head is not None
    tokens = text_tokens(20, seed=1)
    with torch.no_grad():
        expected = reference(input_ids=tokens[None]).logits[0]
    torch.testing.assert_close(text_logits(model, tokens), expected, atol=1e-4, rtol=0)


def test_packed_equals_singles(model: LanguageModel) -> None:
    sequences = [text_tokens(length, seed=length) for length in (1, 17, 40, 5)]
    positions = torch.cat([torch.arange(len(tokens)) for tokens in sequences]).expand(3, -1)
    attention = DenseCausalAttention([len(tokens) for tokens in sequences])
    packed = model.logits(model(model.embed(torch.cat(sequences)), positions, attention))
    singles = torch.cat([text_logits(model, tokens) for tokens in sequences])
    torch.testing.assert_close(packed, singles, atol=1e-5, rtol=0)


def test_pictures_and_video_equal_transformers(
    model: LanguageModel, reference: Qwen2_5_VLForConditionalGeneration, checkpoint: Path
) -> None:
    """Both halves together: tower, placeholders, mRoPE with a fractional time step, logits."""
    config = ModelConfig.from_folder(checkpoint)
    media = [
        MediaGrid("image", Grid(1, 4, 10)),
        MediaGrid("video", Grid(4, 6, 4), second_per_grid_t=1.3),
        MediaGrid("image", Grid(1, 8, 2)),
    ]
    pads = {"image": config.image_token_id, "video": config.video_token_id}
    tokens = [5, 6]
    for item in media:
        tokens += [config.vision_start_token_id, *[pads[item.kind]] * item.grid.num_tokens(2)]
        tokens += [config.vision_end_token_id, 7, 8]
    ids = torch.tensor(tokens)
    patches = {kind: [torch.randn(item.grid.num_patches, 1176) for item in media if item.kind == kind] for kind in pads}
    grids = {kind: [item.grid for item in media if item.kind == kind] for kind in pads}
    types = (ids == pads["image"]).int() + 2 * (ids == pads["video"]).int()
    with torch.no_grad():
        expected = reference(
            input_ids=ids[None],
            pixel_values=torch.cat(patches["image"]),
            pixel_values_videos=torch.cat(patches["video"]),
            image_grid_thw=torch.tensor([[grid.t, grid.h, grid.w] for grid in grids["image"]]),
            video_grid_thw=torch.tensor([[grid.t, grid.h, grid.w] for grid in grids["video"]]),
            second_per_grid_ts=torch.tensor([1.3]),
            mm_token_type_ids=types[None],
        ).logits[0]

    tower = load_vision_tower(checkpoint, config, torch.float32, CPU)
    embeddings = model.embed(ids)
    for kind, pad in pads.items():
        embeddings[ids == pad] = tower(torch.cat(patches[kind]), grids[kind])
    positions, _ = mrope_positions(tokens, media, config)
    logits = model.logits(model(embeddings, positions, DenseCausalAttention([len(tokens)])))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_bfloat16_stays_near_float32(checkpoint: Path, model: LanguageModel) -> None:
    narrow = load_language_model(checkpoint, ModelConfig.from_folder(checkpoint), torch.bfloat16, CPU)
    tokens = text_tokens(30, seed=3)
    wide_logits, narrow_logits = text_logits(model, tokens), text_logits(narrow, tokens)
    assert narrow_logits.dtype == torch.float32
    assert (wide_logits - narrow_logits).abs().mean() < 0.05 * wide_logits.std()
