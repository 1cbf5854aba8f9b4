"""The optional packages: TensorRT in one of its two forms, and onnx."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from triptych.errors import ConfigurationError

# TensorRT itself first: it serves the GPUs of data centres. Both have the same API.
MODULE_NAMES = ("tensorrt", "tensorrt_rtx")
ENGINE_FIELD = "stages.encoder.engine"
OTHER_ENGINES = f"or set {ENGINE_FIELD} to torch, or to auto, which takes TensorRT only where it can be used"


@dataclass(frozen=True)
class TensorRTLibrary:
    """What could be imported. `module` is tensorrt or tensorrt_rtx, `name` says which."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Builds without a GPU, for the compute capabilities it names; kernels are compiled where the engine runs."""
        return hasattr(self.module, "ComputeCapability")

    def compute_capabilities(self) -> dict[tuple[int, int], Any]:
        """The GPUs that a library for named ones knows, by (major, minor), as members of its ComputeCapability."""
        return dict(self._named_capabilities()) if self.is_rtx else {}

    def _named_capabilities(self) -> Iterator[tuple[tuple[int, int], Any]]:
        for name, member in self.module.ComputeCapability.__members__.items():
            number = name.removeprefix("SM")
            if number.isdecimal():
                yield divmod(int(number), 10), member


@dataclass(frozen=True)
class Target:
    """The GPU that an engine is for. `gpu_name` is empty when it is built for every GPU of its compute capability."""

    compute_capability: tuple[int, int]
    gpu_name: str

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"sm_{major}{minor}" + (f" {self.gpu_name}" if self.gpu_name else "")


def find_library() -> TensorRTLibrary:
    """Raises ConfigurationError when neither package can be imported, with the reason of each."""
    reasons = []
    for name in MODULE_NAMES:
        try:
            return TensorRTLibrary(name, importlib.import_module(name))
        except (ImportError, OSError, RuntimeError) as error:
            # A wheel whose shared libraries are missing or unfit fails in its own ways.
            reasons.append(f"{name}: {error}")
    raise ConfigurationError(
        f"the TensorRT engine needs the package tensorrt or tensorrt_rtx ({'; '.join(reasons)}): install one "
        f"(pip install 'triptych[tensorrt]' or 'triptych[tensorrt-rtx]'), {OTHER_ENGINES}",
        field=ENGINE_FIELD,
    )


def require_onnx() -> None:
    """Raises ConfigurationError without the package onnx: building an engine needs it, running one does not."""
    try:
        importlib.import_module("onnx")
    except ImportError as error:
        raise ConfigurationError(
            f"building the TensorRT engine needs the package onnx ({error}): install it "
            f"(pip install 'triptych[tensorrt]' or 'triptych[tensorrt-rtx]'), {OTHER_ENGINES}",
            field=ENGINE_FIELD,
        ) from None


def require_gpu(device: torch.device) -> None:
    """Raises ConfigurationError for any other device."""
    if device.type != "cuda":
        raise ConfigurationError(
            f"the TensorRT engine needs a CUDA device, but the encoder runs on {device.type!r} (model.device, "
            f"stages.encoder.num_gpus): give it a GPU, {OTHER_ENGINES}",
            field=ENGINE_FIELD,
        )


def target_of_device(library: TensorRTLibrary, device: torch.device) -> Target:
    """The GPU of this process. Raises ConfigurationError for one that the library does not serve."""
    name = torch.cuda.get_device_name(device)
    target = checked_target(library, torch.cuda.get_device_capability(device), name)
    # An engine of tensorrt_rtx holds no kernels for one model of GPU.
    return Target(target.compute_capability, "") if library.is_rtx else target


def checked_target(library: TensorRTLibrary, compute_capability: tuple[int, int], gpu_name: str = "") -> Target:
    """Raises ConfigurationError for a compute capability that the library says it has no engine for."""
    supported = sorted(library.compute_capabilities())
    if supported and compute_capability not in supported:
        known = ", ".join(f"{major}.{minor}" for major, minor in supported)
        major, minor = compute_capability
        raise ConfigurationError(
            f"{library.name} {library.version} does not support compute capability {major}.{minor}"
            f"{f' ({gpu_name})' if gpu_name else ''}, only {known}: install tensorrt instead, {OTHER_ENGINES}",
            field=ENGINE_FIELD,
        )
    return Target(compute_capability, gpu_name)
