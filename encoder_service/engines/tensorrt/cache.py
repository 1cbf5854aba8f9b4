"""Built engines on disk: read where they fit, written in one step, never trusted further than their folder."""

import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from encoder_service.engines.tensorrt.builder import EngineRequest
from encoder_service.engines.tensorrt.library import TensorRTLibrary
from encoder_service.engines.tensorrt.trusted_folder import distrust, trusted_folder
from triptych.models.qwen2_5_vl.fingerprint import model_fingerprint

_log = logging.getLogger(__name__)

# Changes with the graph: an engine of another graph has other inputs.
GRAPH_VERSION = 1
MAGIC = b"triptych-engine\n"
MAX_HEADER_BYTES = 64 * 1024


class EngineKey:
    """What an engine was built from and for, and the name that follows from it."""

    def __init__(self, library: TensorRTLibrary, request: EngineRequest) -> None:
        self.fields: Mapping[str, object] = {
            "graph_version": GRAPH_VERSION,
            "model_fingerprint": model_fingerprint(request.folder),
            "library": library.name,
            "library_version": library.version,
            "target": str(request.target),
            "precision": str(request.precision).removeprefix("torch."),
            "profile": asdict(request.profile),
        }

    @property
    def file_name(self) -> str:
        text = json.dumps(self.fields, sort_keys=True).encode()
        return f"{hashlib.blake2b(text, digest_size=16).hexdigest()}.engine"


class EngineCache:
    """One folder of engines, shared by all encoders of a user on a host. A file is a header line and the engine.

    Nothing is ever removed: engines of former versions stay until the operator deletes them.
    """

    def __init__(self, folder: str) -> None:
        self.folder = trusted_folder(folder)

    def path(self, key: EngineKey) -> Path:
        return self.folder / key.file_name

    def load(self, key: EngineKey) -> bytes | None:
        """The engine of `key`, or None when there is none that is whole, of that key, and this user's own."""
        path = self.path(key)
        try:
            # A link could lead out of the folder that was looked at.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("the engine %s cannot be opened and is built again: %s", path, error)
            return None
        # Looked at through the descriptor: what is checked is what is read.
        try:
            status = os.fstat(descriptor)
            problem = distrust(status) if stat.S_ISREG(status.st_mode) else "is no file"
            data = None if problem else _checked(_read(descriptor, status.st_size), key)
        finally:
            os.close(descriptor)
        if data is None:
            _log.warning("the engine %s %s and is built again", path, problem or "is damaged or of another key")
        return data

    def store(self, key: EngineKey, engine: bytes) -> Path:
        """Writes beside the place and renames, so that a reader sees a whole file or none."""
        header = dict(key.fields, num_bytes=len(engine), sha256=hashlib.sha256(engine).hexdigest())
        path = self.path(key)
        # Made with mode 600.
        descriptor, scratch = tempfile.mkstemp(dir=self.folder, prefix=".building-")
        try:
            with open(descriptor, "wb") as file:
                file.write(MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n")
                file.write(engine)
                file.flush()
                os.fsync(descriptor)
            os.replace(scratch, path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
        return path

    @contextmanager
    def building(self, key: EngineKey) -> Iterator[None]:
        """Held while an engine is looked up and built: of several encoders that start together one builds."""
        lock = self.path(key).with_suffix(".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read(descriptor: int, num_bytes: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(num_bytes)


def _checked(content: bytes, key: EngineKey) -> bytes | None:
    """The engine inside a file's content, when the header fits the key and the engine fits the header."""
    end = content.find(b"\n", len(MAGIC), MAX_HEADER_BYTES)
    if not content.startswith(MAGIC) or end < 0:
        return None
    engine = content[end + 1 :]
    try:
        header = json.loads(content[len(MAGIC) : end])
    except ValueError:
        return None
    digest = hashlib.sha256(engine).hexdigest()
    return engine if header == dict(key.fields, num_bytes=len(engine), sha256=digest) else None
