"""From weights on the host to an engine that is ready: the first row, and what all others run on."""

from __future__ import annotations

import platform
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.llm_bench.driver import EngineDriver
from benchmarks.llm_bench.group import start_group
from benchmarks.llm_bench.rows import Measured
from benchmarks.model_folders import write_model_folder
from llm_service.loading import LoadedModel
from triptych.config import LanguageSection
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models.qwen2_5_vl.weights import random_language_model


def section_of() -> LanguageSection:
    """The defaults of the stage, but for a context that keeps block tables small."""
    return LanguageSection(max_context_tokens=32_768)


def environment() -> dict[str, object]:
    """Versions, the GPU, and how fast this host is: they differ by a factor of two and more."""
    properties = torch.cuda.get_device_properties(0)
    import triton

    return {
        "host_launch_us": host_launch_us(),
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def host_launch_us(num_launches: int = 1_000) -> float:
    """Microseconds of this host's time to launch one small operation of torch."""
    value = torch.zeros(1, device="cuda")
    for _ in range(num_launches):
        value.add_(1.0)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_launches):
        value.add_(1.0)
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return round(1e6 * seconds / num_launches, 2)


def measure_start(name: str, quantization: str) -> tuple[EngineDriver, Measured]:
    """Seconds from weights in the host's memory to ready. Kernels are compiled unless Triton's disk cache has them."""
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        config = ModelConfig.from_folder(write_model_folder(name, Path(folder)))
    language = random_language_model(config, torch.bfloat16, device, seed=0).cpu()
    torch.cuda.empty_cache()
    started = time.perf_counter()
    language = language.to(device)
    if quantization == "fp8":
        from triptych.models.qwen2_5_vl.quantization import quantize_language_model

        quantize_language_model(language)
    torch.cuda.synchronize()
    copied = time.perf_counter()
    model = LoadedModel(config, language, "random", torch.bfloat16, device)
    driver = EngineDriver(model, section_of())
    ready = time.perf_counter()
    pool = driver.engine.scheduler.pool
    details: dict[str, object] = {"copy_s": copied - started, "engine_s": ready - copied, "num_pages": pool.num_pages}
    return driver, Measured([ready - started], details)


def measure_group_start(name: str, size: int) -> tuple[EngineDriver, Measured]:
    """Seconds that `size` GPUs, with random weights of a rank each, take to be ready together."""
    model, link = start_group(name, size)
    started = time.perf_counter()
    driver = EngineDriver(model, section_of(), link)
    ready = time.perf_counter()
    return driver, Measured([ready - started], {"num_pages": driver.engine.scheduler.pool.num_pages})
