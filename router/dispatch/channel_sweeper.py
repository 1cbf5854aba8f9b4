"""Closes connections to actors that are gone: every restart has a new port, so they would pile up."""

from __future__ import annotations

import asyncio

from router.control.membership import Membership
from router.dispatch.loads import NO_LOAD, LoadLedger
from triptych.rpc.channels import ChannelPool


class ChannelSweeper:
    """Looks when the view of members changes. An actor that left but still works for this router keeps its channel
    until a later change."""

    def __init__(self, channels: ChannelPool, membership: Membership, loads: LoadLedger) -> None:
        self._channels = channels
        self._membership = membership
        self._loads = loads
        self._endpoints: dict[str, str] = {}
        self._drops: set[asyncio.Task[None]] = set()
        membership.on_change(self._sweep)

    async def close(self) -> None:
        """Waits for channels that are being closed."""
        await asyncio.gather(*self._drops, return_exceptions=True)

    def _sweep(self) -> None:
        present = {member.actor_id: member.endpoint for member in self._membership.all_members()}
        for actor_id, endpoint in list(self._endpoints.items()):
            if actor_id not in present and self._loads.of(actor_id) == NO_LOAD:
                del self._endpoints[actor_id]
                task = asyncio.create_task(self._channels.drop(endpoint))
                self._drops.add(task)
                task.add_done_callback(self._drops.discard)
        self._endpoints |= present
