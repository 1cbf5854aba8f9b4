"""The switch TLLM_MULTIMODAL_DISAGGREGATED: does an LLM actor live without a vision tower?

`1`: no vision tower is built, no `visual.*` tensor is read, raw pixels are refused, embeddings come from outside.
`0` (or unset): the actor carries its own tower. Read once, when an LLM actor starts; the router sets it from the
deployment's mode.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from triptych.errors import ConfigurationError

SWITCH = "TLLM_MULTIMODAL_DISAGGREGATED"


def is_multimodal_disaggregated(environment: Mapping[str, str] | None = None) -> bool:
    """The switch in `environment` (the process's by default). Raises ConfigurationError on anything but 0 and 1."""
    value = (os.environ if environment is None else environment).get(SWITCH, "0").strip()
    if value not in ("0", "1"):
        raise ConfigurationError(f"{SWITCH}={value!r}: expected 0 (LLM actors carry a vision tower) or 1", field=SWITCH)
    return value == "1"
