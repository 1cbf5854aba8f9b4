"""Several GPUs of this host under one engine, each rank a process with random weights of its own.

Run as a module it is a follower: `python -m benchmarks.llm_bench.group RANK SIZE MODEL RENDEZVOUS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.model_folders import write_model_folder
from llm_service.device_defaults import resolve_section
from llm_service.loading import LoadedModel, build_computation
from llm_service.parallel.collectives import TorchCollectives
from llm_service.parallel.follower import Follower
from llm_service.parallel.frames import Frame, FrameKind
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.rank_info import describe_rank
from llm_service.parallel.rendezvous import Rendezvous, RendezvousAddress, join
from llm_service.parallel.step_reader import StepReader
from triptych.config import DefaultsSection, LimitsSection
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.sharded import ShardedLanguageModel
from triptych.models.qwen2_5_vl.weights import random_language_model

HOST = "127.0.0.1"
TIMEOUT_S = 120.0


def start_group(name: str, size: int) -> tuple[LoadedModel, LeaderLink]:
    """The leader's part on this process's GPU, and followers on the `size` - 1 after it."""
    rendezvous = Rendezvous(HOST)
    for rank in range(1, size):
        command = [sys.executable, "-m", "benchmarks.llm_bench.group", str(rank), str(size), name]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(rank)}
        subprocess.Popen([*command, rendezvous.address.to_text()], env=environment)
    device = torch.device("cuda")
    link = LeaderLink.gather(rendezvous, size, device, TIMEOUT_S)
    model = random_part(name, link.collectives)
    link.wait_loaded()
    return model, link


def random_part(name: str, collectives: TorchCollectives) -> LoadedModel:
    """A rank's part of the model. One seed: what is whole on every rank has to be equal."""
    with tempfile.TemporaryDirectory() as folder:
        config = ModelConfig.from_folder(write_model_folder(name, Path(folder)))
    language = random_language_model(config, torch.bfloat16, collectives.device, 0, collectives)
    assert isinstance(language, ShardedLanguageModel)
    language.sum_over_ranks()
    return LoadedModel(config, language, "random", torch.bfloat16, collectives.device)


def follow(rank: int, size: int, name: str, address: RendezvousAddress) -> None:
    """Until the leader ends."""
    # Imported here: `start` imports this module.
    from benchmarks.llm_bench.start import section_of

    stream = join(address, rank, size, TIMEOUT_S)
    device = torch.device("cuda")
    collectives = TorchCollectives.connect(
        address.host, address.store_port, rank, size, device, TIMEOUT_S, own_host=HOST
    )
    model = random_part(name, collectives)
    stream.sendall(Frame.of(FrameKind.LOADED, data=describe_rank(rank, model).SerializeToString()).pack())
    section = resolve_section(section_of(), device)
    reader = StepReader(DefaultsSection(), LimitsSection())
    follower = Follower(stream, collectives, model.dtype, reader, lambda: build_computation(model, section))
    follower.start()
    follower.ended.result()


if __name__ == "__main__":
    follow(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], RendezvousAddress.from_text(sys.argv[4]))
