"""Two GPUs, one model: tokens within bfloat16's rounding of float32, through captured steps with NCCL inside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA devices", allow_module_level=True)
pytest.importorskip("triton")

from gpu_helpers import CUDA, lost_margins, new_sequence
from safetensors.torch import save_file

from benchmarks.model_folders import write_model_folder
from llm_service.engine import Engine, StepOutput
from llm_service.loading import LoadedModel, build_engine
from llm_service.parallel.fused_runner import ShardedFusedRunner
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.rendezvous import Rendezvous
from llm_service.parallel.runner import ParallelRunner
from llm_service.sequence import Sequence
from triptych.config import DeploymentConfig
from triptych.errors import Unavailable
from triptych.models.qwen2_5_vl.attention import DenseCausalAttention
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.language import LanguageModel
from triptych.models.qwen2_5_vl.weights import random_language_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

# As in test_engine.py: what lies closer together may change places.
MARGIN = 0.1
HOST = "127.0.0.1"
TIMEOUT_S = 120.0


def write_checkpoint(folder: Path, config: ModelConfig) -> LanguageModel:
    """Random weights as a file that every rank reads its part of, and the same in float32."""
    language = random_language_model(config, torch.bfloat16, CUDA, seed=0)
    text, tensors = config.text, {}
    heads = [text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads]
    for name, tensor in language.state_dict().items():
        if ".qkv_proj." in name:
            parts = dict(zip("qkv", tensor.split([count * text.head_dim for count in heads]), strict=True))
            tensors |= {name.replace("qkv_proj", f"{part}_proj"): value for part, value in parts.items()}
        elif ".gate_up_proj." in name:
            parts = dict(zip(("gate", "up"), tensor.chunk(2), strict=True))
            tensors |= {name.replace("gate_up_proj", f"{part}_proj"): value for part, value in parts.items()}
        else:
            tensors[name] = tensor
    plain = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in tensors.items()}
    save_file({name: value.cpu().contiguous() for name, value in plain.items()}, folder / "model.safetensors")
    return language.float()


@dataclass
class Group:
    """Has the reference that `lost_margins` asks for. process: the follower's."""

    engine: Engine
    link: LeaderLink
    outputs: list[StepOutput]
    wide: LanguageModel
    process: subprocess.Popen[bytes]

    def run(self, sequences: list[Sequence]) -> None:
        self.engine.add(*sequences)
        self.outputs += self.engine._step()
        while self.engine.scheduler.has_work:
            self.outputs += self.engine._step()
        self.engine.scheduler.pool.check()

    @torch.inference_mode()
    def reference_logits(self, token_ids: list[int], num_last: int) -> torch.Tensor:
        ids = torch.tensor(token_ids, device=CUDA)
        positions = torch.arange(len(token_ids), device=CUDA).expand(3, -1)
        hidden = self.wide(self.wide.embed(ids), positions, DenseCausalAttention([len(token_ids)]))
        return self.wide.logits(hidden[-num_last:])


@pytest.fixture(scope="module", params=["3b", "7b"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """True layer shapes, two layers deep."""
    folder = write_model_folder(request.param, tmp_path_factory.mktemp(request.param), num_layers=2)
    model_config = ModelConfig.from_folder(folder)
    wide = write_checkpoint(folder, model_config)
    stage = {
        "tensor_parallel": 2, "max_context_tokens": 8_192, "kv_cache_bytes": 1 << 28, "max_running_requests": 64,
    }  # fmt: skip
    config = DeploymentConfig.from_sources(
        overrides={"model": {"path": str(folder)}, "stages": {"decode": stage}}, environment={}
    )
    rendezvous = Rendezvous(HOST)
    command = [sys.executable, str(Path(__file__).with_name("follower_on_gpu.py")), config.model_dump_json()]
    environment = {
        **os.environ, "CUDA_VISIBLE_DEVICES": "1", "NCCL_NVLS_ENABLE": "0", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    process = subprocess.Popen([*command, rendezvous.address.to_text()], env=environment)
    link = LeaderLink.gather(rendezvous, 2, CUDA, TIMEOUT_S)
    model = LoadedModel.load(config.model, link.collectives)
    link.wait_loaded()
    outputs: list[StepOutput] = []
    engine = build_engine(model, config.stages.decode, outputs.extend, link=link)
    engine.runner.prepare()
    yield Group(engine, link, outputs, wide, process)
    link.close()
    process.kill()
    process.wait()


def test_prompts_and_captured_decodes(group: Group) -> None:
    """Prompts of several lengths beside one another, then a batch through graphs of its bucket."""
    runner = group.engine.runner
    assert isinstance(runner, ParallelRunner) and isinstance(runner._local, ShardedFusedRunner)
    assert runner._local._graphs._buckets, "decodes are replayed, collectives included"
    sequences = [
        new_sequence(num_tokens, prompt_seed=num_tokens, max_tokens=24) for num_tokens in (1, 17, 300, 1_100, 4_500)
    ]
    group.run(sequences)
    for sequence in sequences:
        assert lost_margins(group, sequence).max() < MARGIN  # type: ignore[arg-type]


def test_draws_do_not_part_the_ranks(group: Group) -> None:
    """A follower holds its tokens against the leader's, and leaves the group when they differ."""
    sampling = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "max_tokens": 48, "min_tokens": 4}
    sequences = [new_sequence(100 + seed, prompt_seed=seed, seed=seed, **sampling) for seed in range(20)]
    group.run(sequences)
    assert not group.link.lost.done()
    assert all(sequence.num_generated_tokens == 48 for sequence in sequences)


def test_pages_leave_and_return(group: Group) -> None:
    prefill = new_sequence(700, prompt_seed=7, max_tokens=24)
    prefill.is_prefill_only = True
    group.run([prefill])
    pages = group.outputs[-1].kv_pages
    assert pages is not None and pages.shape[4] == group.wide.config.num_key_value_heads
    decode = Sequence("decode", prefill.prompt, prefill.sampling, embeddings=None)
    decode.take_over(prefill.token_ids[-1], pages)
    group.run([decode])
    assert lost_margins(group, decode).max() < MARGIN  # type: ignore[arg-type]


def test_a_killed_rank_frees_the_leader(group: Group) -> None:
    """The last test of each group: a leader that waits for the device is let go, and says what happened."""
    sequences = [new_sequence(200, prompt_seed=seed, max_tokens=4_000) for seed in range(4)]
    group.engine.add(*sequences)
    for _ in range(20):
        group.outputs += group.engine._step()
    group.process.kill()
    while group.engine.scheduler.has_work:
        group.outputs += group.engine._step()
    errors = {output.sequence: output.error for output in group.outputs if output.error is not None}
    assert all(isinstance(errors[sequence], Unavailable) for sequence in sequences)
