"""RoleSwitch: a running actor takes work of another role, with the same weights, pages and captured graphs."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import torch

from llm_service.admission import TokenAdmission
from llm_service.calls import CallRegistry
from llm_service.device_defaults import resolve_section
from llm_service.engine import Engine
from llm_service.role import Role
from llm_service.role_gate import RoleGate
from triptych.config import DeploymentConfig, LanguageSection
from triptych.errors import FailedPrecondition, Unavailable

logger = logging.getLogger(__name__)

# What a step may hold is bounded by the memory, and the graphs, that the actor took when it started.
_BOUNDED = ("max_running_requests", "max_step_tokens", "prefill_chunk_tokens", "mixed_prefill_tokens")


class RoleSwitch:
    """`to` at any time, `close` at the end. Lives on the stage's event loop."""

    def __init__(
        self,
        gate: RoleGate,
        config: DeploymentConfig,
        device: torch.device,
        engine: Engine,
        admission: TokenAdmission,
        calls: CallRegistry,
    ) -> None:
        self._gate = gate
        self._config = config
        self._device = device
        self._engine = engine
        self._admission = admission
        self._calls = calls
        self._started_with = engine.scheduler.section
        self._handing_over: asyncio.Task[None] | None = None

    def to(self, role: Role, drain_s: float) -> None:
        """Takes work of `role` from now on; what runs goes on for `drain_s` and is ended with Unavailable then.

        A step under way ends with the budgets it began with. Raises FailedPrecondition when the KV pages of the new
        stage have another size.
        """
        if role is self._gate.role:
            return
        section = self._section_of(role)
        logger.info("role %s instead of %s", role, self._gate.role)
        self._gate.switch(role)
        self._admission.max_waiting_tokens = section.max_waiting_tokens
        # Between two steps: a step is scheduled with one set of budgets.
        self._engine.call(partial(setattr, self._engine.scheduler, "section", section))
        if self._handing_over is not None:
            self._handing_over.cancel()
        self._handing_over = asyncio.create_task(self._hand_over_after(drain_s), name="llm-role-switch")

    async def close(self) -> None:
        """Idempotent."""
        if self._handing_over is not None:
            self._handing_over.cancel()
            await asyncio.gather(self._handing_over, return_exceptions=True)

    def _section_of(self, role: Role) -> LanguageSection:
        """The settings of the new stage, within what this actor was started with."""
        section: LanguageSection = getattr(self._config.stages, role)
        started_with = self._started_with
        if section.page_size != started_with.page_size:
            raise FailedPrecondition(
                f"stages.{role}.page_size is {section.page_size}, but the pages of this actor hold "
                f"{started_with.page_size} tokens: set them equal for actors that are to change between stages",
                field="stage",
            )
        section = resolve_section(section, self._device)
        limits = {name: min(getattr(section, name), getattr(started_with, name)) for name in _BOUNDED}
        return section.model_copy(update=limits)

    async def _hand_over_after(self, drain_s: float) -> None:
        await asyncio.sleep(drain_s)
        for request_id in self._gate.misplaced():
            logger.info("request %s is handed over: it ran for %g s after the role had changed", request_id, drain_s)
            self._calls.end(
                request_id,
                Unavailable(f"the actor has the role {self._gate.role} now; the request can go on elsewhere"),
            )
