"""The checked-in stubs are what `make protos` makes of the protos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "protos/triptych/v1").glob("*.proto"))


def test_checked_in_stubs_equal_generated_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *outputs, *map(str, PROTOS)], check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "triptych/v1").iterdir()}
    checked_in = {path.name: path.read_text() for path in (ROOT / "triptych/v1").glob("*_pb2*.py*")}
    assert sorted(checked_in) == sorted(generated)
    differing = [name for name, text in generated.items() if checked_in[name] != text]
    assert not differing, f"run `make protos` and commit: {differing}"


def test_stubs_run_on_the_declared_floor() -> None:
    """Generated code names the oldest runtime it accepts; it must not be newer than what pyproject.toml allows."""
    text = (ROOT / "triptych/v1/common_pb2.py").read_text()
    assert "Protobuf Python Version: 6.31" in text
    assert "GRPC_GENERATED_VERSION = '1.76" in (ROOT / "triptych/v1/tensor_pb2_grpc.py").read_text()


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_protos_pass_buf_lint(proto: Path) -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("buf"), "lint", "--path", str(proto)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
