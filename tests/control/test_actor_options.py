"""What Ray is asked for an actor, and the environment that carries the switch."""

from __future__ import annotations

import pytest

from router.control.actor_options import actor_environment, actor_options, logical_cpus, needed_gpus, rank_bundle
from router.control.membership import StageName
from triptych.config import DeploymentConfig
from triptych.switch import SWITCH, is_multimodal_disaggregated

LLM_STAGES = (StageName.PREFILL, StageName.DECODE, StageName.PREFILL_DECODE)


def config(**overrides: object) -> DeploymentConfig:
    return DeploymentConfig.from_sources(overrides=overrides, environment={})


@pytest.mark.parametrize(("mode", "value"), [("disaggregated", True), ("colocated", False)])
@pytest.mark.parametrize("stage", LLM_STAGES)
def test_the_mode_sets_the_switch_of_llm_actors(mode: str, value: bool, stage: StageName) -> None:
    # What the controller's own environment says must not reach an actor.
    variables = actor_environment(config(mode=mode), stage, {SWITCH: "0" if value else "1"})
    assert is_multimodal_disaggregated(variables) is value


def test_encoder_actors_have_no_switch() -> None:
    assert SWITCH not in actor_environment(config(), StageName.ENCODER, {SWITCH: "1"})


def test_threads_and_nccl_settings_are_passed_on() -> None:
    outside = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "SECRET": "x"}
    variables = actor_environment(config(stages={"decode": {"num_threads": 3}}), StageName.DECODE, outside)
    assert variables == {
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "OMP_NUM_THREADS": "3",
        SWITCH: "1",
    }


def test_options_follow_the_stage_and_never_restart() -> None:
    stages = {"encoder": {"num_cpus": 0.25, "num_gpus": 0.5}}
    options = actor_options(config(stages=stages), StageName.ENCODER, {})
    assert (options["num_cpus"], options["num_gpus"]) == (0.25, 0.5)
    assert options["max_restarts"] == 0 and options["max_task_retries"] == 0
    assert options["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "1"}


def test_a_local_cluster_has_room_for_what_is_configured_and_more() -> None:
    stages = {"encoder": {"replicas": 100, "num_cpus": 2}, "decode": {"replicas": 2, "num_gpus": 1.5}}
    assert logical_cpus(config(stages=stages)) >= 4 * 200
    assert needed_gpus(config(stages=stages)) == 3.0


def test_gpu_type_and_labels_reach_ray() -> None:
    section = {"num_gpus": 1, "accelerator_type": "H200", "labels": {"pool": "encode"}}
    options = actor_options(config(stages={"encoder": section, "decode": section}), StageName.ENCODER, {})
    assert options["accelerator_type"] == "H200" and options["label_selector"] == {"pool": "encode"}
    bundle = rank_bundle(config(stages={"decode": section}), StageName.DECODE)
    assert bundle == {"CPU": 0.5, "GPU": 1, "accelerator_type:H200": 0.001}
    plain = actor_options(config(), StageName.ENCODER, {})
    assert "accelerator_type" not in plain and "label_selector" not in plain
