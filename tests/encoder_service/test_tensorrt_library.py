"""What is said where TensorRT, onnx or a fitting GPU is missing, and what `auto` makes of it. Fake packages stand in
for GPUs and libraries that this machine has not; where tensorrt_rtx is installed it speaks for itself."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from encoder_service.engines import EngineSource, load_engine
from encoder_service.engines.tensorrt import engine as engine_module
from encoder_service.engines.tensorrt import library as library_module
from encoder_service.engines.tensorrt.ahead import build_ahead
from encoder_service.engines.tensorrt.library import (
    TensorRTLibrary,
    checked_target,
    find_library,
    require_onnx,
    target_of_device,
)
from encoder_service.engines.torch import TorchVisionEngine
from triptych.config import DeploymentConfig, EncoderSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models_folder import BUILT_IN_FOLDER

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
H200 = ("NVIDIA H200", (9, 0))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`without("onnx", "tensorrt")`: as if they were not installed."""

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: H200[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H200[1])


@pytest.fixture
def fake_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def install(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        module.__dict__.update(__version__="10.9.0", **contents)
        monkeypatch.setitem(sys.modules, name, module)

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    yield install


def rtx(*names: str) -> TensorRTLibrary:
    members = {name: name for name in ("NONE", "CURRENT", *names)}
    module = SimpleNamespace(__version__="1.7.1", ComputeCapability=SimpleNamespace(__members__=members))
    return TensorRTLibrary("tensorrt_rtx", module)


def source(engine: str, device: torch.device = CPU, cache_folder: str = "unused") -> EngineSource:
    section = EncoderSection.model_validate({"engine": engine, "tensorrt": {"cache_folder": cache_folder}})
    return EngineSource(BUILT_IN_FOLDER, ModelConfig.from_folder(BUILT_IN_FOLDER), torch.float32, device, section)


def assert_names_the_way_out(error: ConfigurationError) -> None:
    assert error.field == "stages.encoder.engine"
    assert "set stages.encoder.engine to torch" in error.message and "auto" in error.message
    assert "\n" not in error.message


def test_neither_package_installed(without: Callable[..., None]) -> None:
    without("tensorrt", "tensorrt_rtx")
    with pytest.raises(ConfigurationError, match=r"needs the package tensorrt or tensorrt_rtx") as raised:
        find_library()
    assert_names_the_way_out(raised.value)
    assert "pip install 'triptych[tensorrt]'" in raised.value.message


def test_tensorrt_itself_goes_first(fake_packages: Callable[..., None]) -> None:
    fake_packages("tensorrt_rtx", ComputeCapability=SimpleNamespace(__members__={}))
    assert find_library().name == "tensorrt_rtx" and find_library().is_rtx
    fake_packages("tensorrt")
    assert find_library().name == "tensorrt" and not find_library().is_rtx


def test_a_library_that_does_not_load_gives_its_reason(
    fake_packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError(f"{name}: libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(library_module.importlib, "import_module", broken)
    with pytest.raises(ConfigurationError, match=r"tensorrt: tensorrt: libnvinfer\.so\.10: cannot open") as raised:
        find_library()
    assert_names_the_way_out(raised.value)


def test_onnx_missing(without: Callable[..., None]) -> None:
    without("onnx")
    with pytest.raises(ConfigurationError, match="needs the package onnx") as raised:
        require_onnx()
    assert_names_the_way_out(raised.value)


def test_h200_is_refused_by_the_library_for_other_gpus(h200: None) -> None:
    library = rtx("SM75", "SM89", "SM120")
    with pytest.raises(ConfigurationError) as raised:
        target_of_device(library, CUDA)
    assert "compute capability 9.0 (NVIDIA H200), only 7.5, 8.9, 12.0" in raised.value.message
    assert_names_the_way_out(raised.value)


def test_h200_is_taken_by_tensorrt_itself(h200: None) -> None:
    target = target_of_device(TensorRTLibrary("tensorrt", SimpleNamespace(__version__="10.9.0")), CUDA)
    assert str(target) == "sm_90 NVIDIA H200"


def test_an_engine_for_a_capability_serves_each_gpu_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert target_of_device(rtx("SM89"), CUDA) == checked_target(rtx("SM89"), (8, 9))


def test_no_gpu_is_told_before_any_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_library", lambda: pytest.fail("looked for a library"))
    with pytest.raises(ConfigurationError, match=r"needs a CUDA device, but the encoder runs on 'cpu'") as raised:
        load_engine(source("tensorrt"))
    assert_names_the_way_out(raised.value)


def test_auto_takes_torch_and_says_why_in_one_line(
    h200: None, without: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("tensorrt", "tensorrt_rtx", "triton")
    on_gpu = source("auto", CUDA)
    # The torch engine itself has to load somewhere.
    load = TorchVisionEngine.load
    monkeypatch.setattr(TorchVisionEngine, "load", lambda asked: load(replace(asked, device=CPU)))
    with caplog.at_level(logging.INFO, "encoder_service"):
        engine = load_engine(on_gpu)
    assert isinstance(engine, TorchVisionEngine)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "auto does not take tensorrt" in lines[0] and "needs the package tensorrt or tensorrt_rtx" in lines[0]


def test_the_real_library_cannot_run_without_a_gpu_and_says_so() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the optional package tensorrt_rtx is not installed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from encoder_service.engines.tensorrt.runner import TensorRTRunner

    with pytest.raises(ConfigurationError, match="cannot load the vision engine on this GPU: ") as raised:
        TensorRTRunner(find_library(), b"\0" * 4096, CUDA)
    assert "no reason given" not in raised.value.message
    assert_names_the_way_out(raised.value)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("", "no CUDA device to build for: name the GPU with --compute-capability"),
        ("nine", "expected major.minor, such as 8.9"),
        ("9.0", "does not support compute capability 9.0, only "),
    ],
)
def test_building_ahead_says_what_it_needs(flag: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the optional package tensorrt_rtx is not installed")
    config = DeploymentConfig.model_validate({"model": {"device": "cpu"}})
    with pytest.raises(ConfigurationError) as raised:
        build_ahead(config, flag)
    assert message in raised.value.message


def test_building_for_another_gpu_needs_the_library_that_can(fake_packages: Callable[..., None]) -> None:
    fake_packages("tensorrt")
    with pytest.raises(ConfigurationError, match="builds for the GPU it runs on alone"):
        build_ahead(DeploymentConfig(), "9.0")
