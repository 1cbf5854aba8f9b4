"""How much memory the batches in work may take."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from triptych.errors import RequestTooLarge

SETTING = "stages.encoder.activation_bytes"


@dataclass(eq=False)
class Reservation:
    """One batch's share. `resident_bytes`: patches and embeddings; `media_bytes`: decoded pixels, until it is packed;
    `activation_bytes`: what the forward pass takes for itself, one batch at a time."""

    resident_bytes: int
    media_bytes: int
    activation_bytes: int


class MemoryBudget:
    """At most `max_bytes` by the estimates of engine and loader. Lives on the event loop; not thread-safe.

    `activation_bytes(num_patches)` is the engine's estimate for one forward pass. Passes run one after another, so the
    largest one in work counts, and everything else as a sum. A batch's pixels are decoded in parts of at most
    `max_media_bytes`.
    """

    def __init__(
        self,
        max_bytes: int,
        bytes_per_patch: int,
        activation_bytes: Callable[[int], int],
        max_media_bytes: float = math.inf,
    ) -> None:
        self.max_bytes = max_bytes
        self._max_media_bytes = max_media_bytes
        self._bytes_per_patch = bytes_per_patch
        self._activation_bytes = activation_bytes
        self._reservations: set[Reservation] = set()

    @property
    def held_bytes(self) -> int:
        return self._held_bytes(*self._reservations)

    def fits(self, num_patches: int, media_bytes: int) -> bool:
        """Whether a batch fits beside those in work."""
        return self._held_bytes(*self._reservations, self._of(num_patches, media_bytes)) <= self.max_bytes

    def check_alone(self, num_patches: int, media_bytes: int, field: str) -> None:
        """Raises RequestTooLarge when an item does not fit even when nothing else is in work."""
        wanted = self._held_bytes(self._of(num_patches, media_bytes))
        if wanted > self.max_bytes:
            raise RequestTooLarge(
                f"{field} with {num_patches} patches needs {wanted} bytes to encode, "
                f"expected at most {self.max_bytes} ({SETTING})",
                field=field,
            )

    def reserve(self, num_patches: int, media_bytes: int) -> Reservation:
        reservation = self._of(num_patches, media_bytes)
        self._reservations.add(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        self._reservations.discard(reservation)

    def _of(self, num_patches: int, media_bytes: int) -> Reservation:
        return Reservation(
            num_patches * self._bytes_per_patch,
            int(min(media_bytes, self._max_media_bytes)),
            self._activation_bytes(num_patches),
        )

    @staticmethod
    def _held_bytes(*reservations: Reservation) -> int:
        largest = max((reservation.activation_bytes for reservation in reservations), default=0)
        return largest + sum(reservation.resident_bytes + reservation.media_bytes for reservation in reservations)
