"""Small vision towers, and the exported graph run by onnxruntime where TensorRT would run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from triptych.models.qwen2_5_vl.grid import Grid

CPU = torch.device("cpu")
# One cell, whole windows, windows cut off on either side, strips, videos, a shape twice.
GRIDS = [Grid(1, 2, 2), Grid(1, 8, 8), Grid(1, 10, 14), Grid(3, 6, 10), Grid(1, 2, 30), Grid(1, 10, 14), Grid(2, 8, 4)]


def write_wide_checkpoint(folder: Path) -> None:
    """The published tower's head size (80), window (112) and odd widths, with few layers; no bias or norm neutral."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 128,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 2, 1]},
        "eos_token_id": 104,
        "bos_token_id": 104,
    }
    vision = {
        "depth": 4,
        "hidden_size": 240,
        "intermediate_size": 342,
        "num_heads": 3,
        "out_hidden_size": 48,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    tokens = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            is_matrix = parameter.ndim > 1
            noise = torch.randn_like(parameter) * (parameter[0].numel() ** -0.5 if is_matrix else 0.3)
            parameter.copy_(noise + (0.0 if is_matrix else 0.8))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 200704, "patch_size": 14}')
    (folder / "tokenizer.json").write_text("{}")


def random_patches(grids: Sequence[Grid], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(grid.num_patches for grid in grids), 1176, generator=generator)


class OnnxRuntimeRunner:
    """The graph on the CPU. Remembers how many frames and patches each call had."""

    def __init__(self, graph: Path) -> None:
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.calls: list[tuple[int, int]] = []

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        self.calls.append((inputs["frame_rows"].shape[0], inputs["patches"].shape[0]))
        outputs = self._session.run(["embeddings"], {name: tensor.numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(outputs[0])
