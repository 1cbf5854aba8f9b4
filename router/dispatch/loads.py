"""What this router has given to each actor and not got back yet."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class Load:
    """Outstanding work of one actor in the units of its stage: patches (encode), prompt tokens (prefill), tokens that
    its KV pages are to hold and requests (decode)."""

    num_patches: int = 0
    num_prompt_tokens: int = 0
    num_kv_tokens: int = 0
    num_requests: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.num_patches + other.num_patches,
            self.num_prompt_tokens + other.num_prompt_tokens,
            self.num_kv_tokens + other.num_kv_tokens,
            self.num_requests + other.num_requests,
        )

    def __sub__(self, other: Load) -> Load:
        return self + Load(-other.num_patches, -other.num_prompt_tokens, -other.num_kv_tokens, -other.num_requests)


NO_LOAD = Load()


class LoadLedger:
    """Load by actor id. Kept by the router itself: exact for its own requests, without a question to any actor."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}

    def of(self, actor_id: str) -> Load:
        """What is outstanding at an actor; nothing for an unknown one."""
        return self._loads.get(actor_id, NO_LOAD)

    def take(self, actor_id: str, load: Load) -> LoadHold:
        """Adds `load` to an actor until the hold is released."""
        self._loads[actor_id] = self.of(actor_id) + load
        return LoadHold(self, actor_id, load)

    def give_back(self, actor_id: str, load: Load) -> None:
        """Takes `load` off an actor; one without any is forgotten."""
        rest = self.of(actor_id) - load
        if rest == NO_LOAD:
            self._loads.pop(actor_id, None)
        else:
            self._loads[actor_id] = rest


class LoadHold:
    """A load on an actor that is given back once: by `release`, or at the end of a `with` block."""

    def __init__(self, ledger: LoadLedger, actor_id: str, load: Load) -> None:
        self._ledger = ledger
        self._actor_id = actor_id
        self._load = load
        self._is_held = True

    def release(self) -> None:
        """Gives the load back; the second call does nothing."""
        if self._is_held:
            self._is_held = False
            self._ledger.give_back(self._actor_id, self._load)

    def __enter__(self) -> LoadHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
