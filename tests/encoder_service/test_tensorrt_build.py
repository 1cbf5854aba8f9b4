"""Real engines by TensorRT for RTX, whose parser and builder need no GPU. Running one does: not here."""

import logging
from pathlib import Path

import pytest
import torch
from tensorrt_samples import write_wide_checkpoint

from encoder_service.engines.tensorrt.ahead import build_ahead
from encoder_service.engines.tensorrt.builder import EngineRequest, compile_graph
from encoder_service.engines.tensorrt.library import TensorRTLibrary, checked_target, find_library
from encoder_service.engines.tensorrt.preparing import engine_request
from triptych.config import DeploymentConfig, TensorRTSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig

pytest.importorskip("onnx", reason="the optional package onnx is not installed")
pytest.importorskip("tensorrt_rtx", reason="the optional package tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_wide_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def rtx() -> TensorRTLibrary:
    library = find_library()
    if not library.is_rtx:
        pytest.skip("tensorrt is installed too, and goes first")
    return library


def deployment(checkpoint: Path, folder: Path, **section: object) -> DeploymentConfig:
    tensorrt = {"cache_folder": str(folder), **section}
    return DeploymentConfig.model_validate(
        {"model": {"path": str(checkpoint)}, "stages": {"encoder": {"tensorrt": tensorrt}}}
    )


@pytest.mark.parametrize("precision", ["auto", "float32", "float16"])
def test_an_engine_is_built_for_a_gpu_that_is_not_here(
    rtx: TensorRTLibrary, checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    engine = build_ahead(deployment(checkpoint, tmp_path / "engines", precision=precision), "8.9")
    config = ModelConfig.from_folder(checkpoint).vision
    # auto is bfloat16, as on the GPU that it is for; at least the weights of the blocks' linears are in there.
    num_weights = config.depth * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
    assert len(engine.data) > num_weights * (4 if precision == "float32" else 2)
    assert engine.build_s > 0 and engine.path.stat().st_size > len(engine.data)


def test_what_was_built_is_taken_from_the_folder_until_it_is_damaged(
    rtx: TensorRTLibrary, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = deployment(checkpoint, tmp_path / "engines")
    first = build_ahead(config, "8.9")
    second = build_ahead(config, "8.9")
    assert second.build_s == 0 and second.data == first.data and second.path == first.path
    first.path.write_bytes(first.path.read_bytes()[:-100])
    third = build_ahead(config, "8.9")
    assert third.build_s > 0 and "is damaged" in caplog.text
    assert build_ahead(config, "8.9").data == third.data
    assert build_ahead(config, "8.6").path != first.path


def test_the_library_has_nothing_to_complain_about(
    rtx: TensorRTLibrary, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build_ahead(deployment(checkpoint, tmp_path / "engines"), "12.0")
    assert not caplog.records


def test_a_graph_that_the_parser_refuses_is_told_in_its_words(
    rtx: TensorRTLibrary, checkpoint: Path, tmp_path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("patches", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["patches"], ["y"])], "g", [value], [])
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    with pytest.raises(ConfigurationError, match=r"its parser refuses the vision tower's graph: .*NoSuchOperator"):
        compile_graph(rtx, tmp_path / "g.onnx", _request(rtx, checkpoint))


def test_a_graph_of_other_inputs_is_not_built(rtx: TensorRTLibrary, checkpoint: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Erf", ["other"], ["y"])], "g", [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    with pytest.raises(ConfigurationError, match=r"cannot build the vision tower for sm_89: .+") as raised:
        compile_graph(rtx, tmp_path / "g.onnx", _request(rtx, checkpoint))
    assert "no reason given" not in raised.value.message


def _request(library: TensorRTLibrary, checkpoint: Path) -> EngineRequest:
    config = ModelConfig.from_folder(checkpoint).vision
    return engine_request(TensorRTSection(), checkpoint, config, torch.bfloat16, checked_target(library, (8, 9)))
