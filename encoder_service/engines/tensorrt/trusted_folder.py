"""The folder of built engines. An engine is code that runs with the actor's rights: only its own user may write it."""

import os
import stat
from pathlib import Path

from triptych.errors import ConfigurationError

CACHE_FIELD = "stages.encoder.tensorrt.cache_folder"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def trusted_folder(path: str) -> Path:
    """The folder, made for this user alone where it is missing.

    Raises ConfigurationError when somebody else owns it or may write it.
    """
    folder = Path(path).expanduser().resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = distrust(folder.stat())
    except OSError as error:
        raise ConfigurationError(f"{CACHE_FIELD} {folder} cannot be used: {error}", field=CACHE_FIELD) from None
    if problem:
        raise ConfigurationError(
            f"{CACHE_FIELD} {folder} {problem}: built engines are code, so this folder must belong to the user that "
            f"runs the encoder (uid {os.geteuid()}) and be writable by nobody else (chmod 700)",
            field=CACHE_FIELD,
        )
    return folder


def distrust(status: os.stat_result) -> str:
    """Why a file or folder of this status is not to be trusted; empty when it is."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to uid {status.st_uid}"
    if status.st_mode & _OTHERS_MAY_WRITE:
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""
