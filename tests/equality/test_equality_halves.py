"""Nobody holds the other's weights: encoder actors no language model, LLM actors under the switch no vision tower."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import grpc
import pytest
from equality_cases import Case
from equality_runs import ask_together
from harness import COLOCATED, ONE_OF_EACH, ONE_OF_TWO, InProcessSystem, Topology
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from encoder_service.actor import EncoderActor
from llm_service.actor import LlmActor
from router.control.colocated import build_embedder
from router.control.membership import StageName
from triptych.config import DeploymentConfig
from triptych.errors import ModelError
from triptych.models.qwen2_5_vl.vision import VisionTower
from triptych.models_folder import BUILT_IN_FOLDER
from triptych.switch import SWITCH
from triptych.v1 import admin_pb2, admin_pb2_grpc


@pytest.fixture(scope="module")
def num_parameters() -> dict[str, int]:
    """Of each half, by the header of the checkpoint's file."""
    with safe_open(BUILT_IN_FOLDER / "model.safetensors", "pt") as file:
        sizes = {name: prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    counts = {"visual": 0, "language": 0}
    for name, size in sizes.items():
        counts["visual" if name.startswith("visual.") else "language"] += size
    assert counts["visual"] > 100_000 and counts["language"] > 100_000
    return counts


@pytest.fixture(scope="module")
def half_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built-in checkpoint without its other tensors."""
    tensors = load_file(BUILT_IN_FOLDER / "model.safetensors")
    folders = {}
    for half in ("visual", "language"):
        folders[half] = tmp_path_factory.mktemp(half)
        for path in BUILT_IN_FOLDER.glob("*.json"):
            shutil.copy(path, folders[half])
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith("visual.") == (half == "visual")}
        save_file(kept, folders[half] / "model.safetensors")
    return folders


@pytest.mark.parametrize("topology", [ONE_OF_TWO, ONE_OF_EACH], ids=str)
async def test_each_actor_holds_its_half(topology: Topology, num_parameters: dict[str, int]) -> None:
    """Asked of the running actor itself, and looked up in its live modules."""
    async with InProcessSystem(BUILT_IN_FOLDER, topology) as system:
        for member in system.membership.all_members():
            info = await ask_actor(member.endpoint)
            assert info.actor_id == member.actor_id
            modules = modules_of(system.actors[member.actor_id])
            # By where they lie: a recording of a step holds the parameters of the model once more, not their memory.
            live = {parameter.data_ptr(): parameter.numel() for module in modules for parameter in module.parameters()}
            num_live = sum(live.values())
            towers = [part for module in modules for part in module.modules() if isinstance(part, VisionTower)]
            if member.stage is StageName.ENCODER:
                assert not info.multimodal_disaggregated and len(towers) == 1
                assert info.weights.num_language_parameters == 0
                assert info.weights.num_visual_parameters == num_live == num_parameters["visual"]
                continue
            assert info.multimodal_disaggregated and not towers
            assert info.weights.num_visual_parameters == 0
            assert info.weights.num_language_parameters == num_live == num_parameters["language"]
            names = [name for module in modules for name, _ in module.named_modules()]
            assert "layers.0.mlp" in names and not [name for name in names if "visual" in name]


async def test_colocated_holds_both_halves(num_parameters: dict[str, int], cases: tuple[Case, ...]) -> None:
    async with InProcessSystem(BUILT_IN_FOLDER, COLOCATED) as system:
        await ask_together(system, cases[6:9], max_tokens=2)
        [member] = system.membership.all_members()
        info = await ask_actor(member.endpoint)
        assert not info.multimodal_disaggregated
        assert info.weights.num_visual_parameters == num_parameters["visual"]
        assert info.weights.num_language_parameters == num_parameters["language"]
        assert info.encoder.accepted_items == sum(len(case.media) for case in cases[6:9]) > 0


async def test_a_checkpoint_of_one_half_is_enough(
    half_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads the tensors of the other half: without them the actor starts all the same."""
    monkeypatch.setenv(SWITCH, "1")
    encoder = EncoderActor(config_of(half_checkpoints["visual"]))
    language = LlmActor(config_of(half_checkpoints["language"]), "prefill_decode", no_tower)
    try:
        info = admin_pb2.ActorInfo.FromString(await encoder.start())
        assert info.weights.num_visual_parameters > 0 and info.weights.num_language_parameters == 0
        info = admin_pb2.ActorInfo.FromString(await language.start())
        assert info.weights.num_visual_parameters == 0 and info.weights.num_language_parameters > 0
    finally:
        await encoder.stop()
        await language.stop()


async def test_a_missing_half_is_noticed(half_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever needs it: the encoder actor, the LLM actor, and the colocated one for its tower."""
    monkeypatch.setenv(SWITCH, "0")
    visual, language = (config_of(half_checkpoints[half]) for half in ("visual", "language"))
    for actor in (
        EncoderActor(language),
        LlmActor(visual, "prefill_decode", build_embedder),
        LlmActor(language, "prefill_decode", build_embedder),
    ):
        with pytest.raises(ModelError, match="missing"):
            await actor.start()


async def ask_actor(endpoint: str) -> admin_pb2.ActorInfo:
    """The actor's own answer, not the router's."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        return (await stub.GetActorInfo(admin_pb2.GetActorInfoRequest(), timeout=10)).info


def modules_of(actor: Any) -> list[nn.Module]:
    """Every torch module that an actor's object holds, however deep."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting = [actor]
    while waiting:
        held = waiting.pop()
        if id(held) in seen:
            continue
        seen.add(id(held))
        if isinstance(held, nn.Module):
            found.append(held)
        elif isinstance(held, dict):
            waiting += held.values()
        elif isinstance(held, list | tuple | set):
            waiting += held
        elif type(held).__module__.startswith(("encoder_service", "llm_service", "router", "triptych")):
            waiting += vars(held).values() if hasattr(held, "__dict__") else ()
    return found


async def no_tower(config: DeploymentConfig, actor_id: str) -> Any:
    raise AssertionError("an LLM actor under the switch builds no tower")


def config_of(folder: Path) -> DeploymentConfig:
    model = {"path": str(folder), "dtype": "float32", "device": "cpu"}
    return DeploymentConfig.from_sources(overrides={"model": model}, environment={})
