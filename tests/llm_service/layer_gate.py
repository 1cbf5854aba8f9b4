"""A forward pass that stops in front of a layer until it is let on; and, run as a script, a prefill actor in a process
of its own whose passes never get past that layer: `python layer_gate.py CONFIG LAYER` prints the actor's ActorInfo."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from service_helpers import TIMEOUT_S

from llm_service.actor import LlmActor
from triptych.config import DeploymentConfig
from triptych.switch import SWITCH


class LayerGate:
    """Closed from the beginning, for every pass of the actor."""

    def __init__(self, actor: LlmActor, layer_index: int) -> None:
        assert actor._model is not None
        self._is_open = threading.Event()
        self._hook = actor._model.language.layers[layer_index].register_forward_pre_hook(self._pass)

    def open(self) -> None:
        self._is_open.set()
        self._hook.remove()

    def _pass(self, *arguments: object) -> None:
        assert self._is_open.wait(TIMEOUT_S), "nobody opened the gate"


async def main() -> None:
    os.environ[SWITCH] = "1"
    actor = LlmActor(DeploymentConfig.model_validate_json(sys.argv[1]), "prefill")
    info = await actor.start()
    LayerGate(actor, int(sys.argv[2]))
    print(info.hex(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
