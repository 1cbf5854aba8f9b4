"""Link: one end of a link; posts transfers in order and tells the event loop when they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from triptych.errors import TriptychError, Unavailable
from triptych.transport.links.backend import LinkBackend, LinkKey, LinkWork


class Link:
    """Belongs to one event loop, which never waits for the backend.

    Posts go through `launcher`, the one thread that launches for all links of a device; a thread of the link's own
    waits for what was posted, so that a peer that stopped holds up nobody else. Every wait ends after `timeout_s`.
    """

    def __init__(self, key: LinkKey, backend: LinkBackend, launcher: ThreadPoolExecutor, timeout_s: float) -> None:
        self.key = key
        self._backend = backend
        self._launcher = launcher
        self._timeout_s = timeout_s
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix=f"link-{key.lane}")
        self._is_ended = False

    async def open(self, store: Any, rank: int) -> None:
        """Meets the other end. Raises Unavailable; the link must be aborted then."""
        opening = self._waiter.submit(self._backend.open, store, rank, self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.wrap_future(opening)
        except TimeoutError:
            raise Unavailable(f"link {self.key}: not open within {self._timeout_s:g} s {_SETTING}") from None
        except RuntimeError as error:
            raise self._broken(error) from error

    def send(self, tensor: Tensor) -> asyncio.Future[None]:
        """Posts now; the future is done when the bytes are sent, or has Unavailable."""
        return self._post(self._backend.send, tensor)

    def recv(self, tensor: Tensor) -> asyncio.Future[None]:
        """Posts now; the future is done when the bytes are there, or has Unavailable."""
        return self._post(self._backend.recv, tensor)

    def abort(self) -> None:
        """Ends what is posted; returns at once. Idempotent."""
        if not self._is_ended:
            # The waiter may be busy with what shall be aborted.
            asyncio.get_running_loop().run_in_executor(None, self._backend.abort)
            self.close()

    def close(self) -> None:
        """Lets go of the backend once nothing is posted any more; returns at once. Idempotent."""
        if not self._is_ended:
            self._is_ended = True
            self._waiter.submit(self._backend.close)
            self._waiter.shutdown(wait=False)

    def _post(self, post: Callable[[Tensor], LinkWork], tensor: Tensor) -> asyncio.Future[None]:
        if self._is_ended:
            raise Unavailable(f"link {self.key} was closed")
        posted = self._launcher.submit(post, tensor)
        # `tensor` goes along: its memory must outlive the work, whatever becomes of who asked for it.
        return asyncio.wrap_future(self._waiter.submit(self._wait, posted, tensor))

    def _wait(self, posted: Future[LinkWork], tensor: Tensor) -> None:
        try:
            posted.result().wait(self._timeout_s)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> TriptychError:
        return Unavailable(f"link {self.key} is broken: {str(error)[:300]} {_SETTING}")


_SETTING = "(transport.link_timeout_s)"
