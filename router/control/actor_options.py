"""From the configuration to what Ray is asked for an actor. Plain values: tested without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from router.control.membership import StageName
from triptych.config import ActorSection, DeploymentConfig, LanguageSection, Mode
from triptych.switch import SWITCH

# What Ray itself takes of the resource that stands for a type of GPU, so that any number of actors may.
ACCELERATOR_SHARE = 0.001
# Set where the controller runs, these count for its actors too: not every host lets NCCL use NVLink multicast.
PASSED_ON = ("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST")


def actor_section(config: DeploymentConfig, stage: StageName) -> ActorSection:
    """The part of the configuration that `stage` is described in."""
    section: ActorSection = getattr(config.stages, stage)
    return section


def actor_environment(
    config: DeploymentConfig, stage: StageName, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Environment variables of an actor; the switch is set from the mode, on LLM actors only.

    In mode auto those that prefill carry a tower: decode actors never see a picture.
    """
    outside = os.environ if environment is None else environment
    variables = {name: outside[name] for name in PASSED_ON if name in outside}
    variables["OMP_NUM_THREADS"] = str(actor_section(config, stage).num_threads)
    if stage is not StageName.ENCODER or config.control.keep_both_halves:
        has_tower = config.mode is Mode.COLOCATED or (config.mode is Mode.AUTO and stage is not StageName.DECODE)
        variables[SWITCH] = "0" if has_tower else "1"
    return variables


def actor_options(
    config: DeploymentConfig, stage: StageName, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Keyword arguments of `.options(...)`. Ray never restarts an actor: the controller replaces it by a new one."""
    section = actor_section(config, stage)
    options: dict[str, Any] = {
        "num_cpus": section.num_cpus,
        "num_gpus": section.num_gpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": actor_environment(config, stage, environment)},
    }
    if section.accelerator_type:
        options["accelerator_type"] = section.accelerator_type
    if section.labels:
        options["label_selector"] = dict(section.labels)
    return options


def num_ranks(config: DeploymentConfig, stage: StageName) -> int:
    """Processes of one actor of `stage`."""
    section = actor_section(config, stage)
    return section.tensor_parallel if isinstance(section, LanguageSection) else 1


def rank_bundle(config: DeploymentConfig, stage: StageName) -> dict[str, float]:
    """What each process of an actor holds, as a bundle of its placement group."""
    section = actor_section(config, stage)
    needs = {"CPU": section.num_cpus, "GPU": section.num_gpus}
    if section.accelerator_type:
        needs[accelerator_resource(section.accelerator_type)] = ACCELERATOR_SHARE
    # Ray refuses a bundle that names a resource and wants none of it.
    return {name: need for name, need in needs.items() if need > 0}


def accelerator_resource(accelerator_type: str) -> str:
    """The resource that Ray gives nodes with such a GPU."""
    return f"accelerator_type:{accelerator_type}"


def placement_strategy(config: DeploymentConfig, stage: StageName) -> str:
    """Ray's word for how the processes of an actor are spread over nodes."""
    section = actor_section(config, stage)
    assert isinstance(section, LanguageSection)
    return section.tensor_parallel_placement.value.upper()


def logical_cpus(config: DeploymentConfig) -> int:
    """CPUs that a local cluster claims to have: bookkeeping only, so enough to scale every stage several times over."""
    sections = {stage: actor_section(config, stage) for stage in StageName}
    needed = sum(section.replicas * section.num_cpus * num_ranks(config, stage) for stage, section in sections.items())
    return max(os.cpu_count() or 1, 64, int(4 * needed) + 1)


def needed_gpus(config: DeploymentConfig) -> float:
    """GPUs that all configured actors hold together."""
    sections = {stage: actor_section(config, stage) for stage in StageName}
    return sum(section.replicas * section.num_gpus * num_ranks(config, stage) for stage, section in sections.items())
