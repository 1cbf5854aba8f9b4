"""`python -m router.processes FOLDER NUMBER LOG_LEVEL`: what the first router process runs for each of the others.

Its configuration comes as one line of JSON on standard input, which then stays open for as long as the first process
lives: when it ends, so does this process, however the first one died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from router import event_loop
from router.processes.child import RouterChild
from router.processes.router_processes import READY
from triptych.config import DeploymentConfig
from triptych.errors import TriptychError

logger = logging.getLogger(__name__)

EXIT_FAILED, EXIT_ORPHANED = 1, 3


def main() -> int:
    folder, number, log_level = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Ctrl-C goes to every process of a terminal; the first one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        level=log_level,
        format=f"%(asctime)s %(levelname)s router process {number}: %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    config = DeploymentConfig.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    try:
        event_loop.run(_serve(config, folder, number))
    except TriptychError as error:
        logger.error("%s", error)
        return EXIT_FAILED
    return 0


def _end_with_parent(folder: Path) -> None:
    """Reads what never comes: the end of the pipe is that of the first process. A thread, as the loop may hang."""
    while sys.stdin.buffer.read(1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(EXIT_ORPHANED)


async def _serve(config: DeploymentConfig, folder: Path, number: int) -> None:
    child = RouterChild(config, folder, number)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        following = await child.start()
        sys.stdout.write(READY)
        sys.stdout.flush()
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait((following, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if following.done():
            following.result()
        following.cancel()
    finally:
        await child.stop()


if __name__ == "__main__":
    sys.exit(main())
