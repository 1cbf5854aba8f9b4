"""Who and where: host ids (may two actors share memory?) and incarnation ids (is it still the same actor?)."""

from __future__ import annotations

import os
import re
import socket
import uuid
from pathlib import Path

SHARED_MEMORY_FOLDER = Path("/dev/shm")
BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def host_id(boot_id_file: Path = BOOT_ID_FILE, shared_memory_folder: Path = SHARED_MEMORY_FOLDER) -> str:
    """Equal for two processes exactly when they run on one kernel boot and see the same /dev/shm.

    Two containers of one machine with a /dev/shm of their own differ. Without either file the id is the host's name
    with a mark that nothing can be shared.
    """
    try:
        boot_id = boot_id_file.read_text(encoding="ascii").strip()
        device = os.stat(shared_memory_folder).st_dev
    except OSError:
        return f"{socket.gethostname()}-no-shared-memory-{os.getpid()}"
    return f"{boot_id}-{device:x}"


def new_incarnation_id(stage_name: str) -> str:
    """A readable, unique id for one start of an actor, like "encoder-3f9a1c0b72de"; only letters, digits and "-"."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', stage_name).strip('-')}-{uuid.uuid4().hex[:12]}"
