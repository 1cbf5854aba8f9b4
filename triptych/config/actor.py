"""What every actor of a stage asks the cluster for."""

from __future__ import annotations

from pydantic import Field

from triptych.config.section import Section


class ActorSection(Section):
    """What every actor of a stage asks the cluster for, and how many there are."""

    replicas: int = Field(1, ge=0, le=1024, description="Actors of this stage at the start.")
    num_cpus: float = Field(
        0.5, gt=0, description="Logical CPUs a Ray actor holds; above 0, or the node counts as idle."
    )
    num_gpus: float = Field(0, ge=0, description="GPUs a Ray actor holds.")
    accelerator_type: str = Field(
        "", description="Only on nodes with this GPU, by Ray's name (H200, A100-80G); empty: any."
    )
    labels: dict[str, str] = Field(
        {},
        description="Only on nodes with these Ray labels; values as in Ray's label selectors (!a, in(a, b)).",
    )
    num_threads: int = Field(1, ge=1, description="Threads of the stage's CPU arithmetic (OMP_NUM_THREADS).")
