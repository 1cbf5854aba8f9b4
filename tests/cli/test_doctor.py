"""What doctor finds, and what it takes for a reason not to start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from router.cli import checks
from router.cli.checks import Finding, Level
from router.cli.doctor import as_text, examine, run_doctor
from triptych.config import DeploymentConfig


def make_config(model: Path, **overrides: object) -> DeploymentConfig:
    values: dict[str, object] = {"model": {"path": str(model)}, "router": {"port": 0, "http_port": 0}}
    return DeploymentConfig.from_sources(overrides=values | overrides, environment={})


def found(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_a_good_machine_has_nothing_wrong(random_model_folder: Path) -> None:
    findings = examine(make_config(random_model_folder))
    assert [finding for finding in findings if finding.level is Level.BAD] == []
    assert found(findings, "model").found == str(random_model_folder)


def test_a_missing_model_is_wrong_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(None, str(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "config.json" in printed and "1 thing" in printed


def test_a_bad_configuration_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("stages: {encoder: {replicas: -1}}\n")
    assert run_doctor(file, None) == 1
    assert "stages.encoder.replicas" in capsys.readouterr().out


def test_a_taken_port_is_wrong(random_model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = found(examine(make_config(random_model_folder, router={"port": port})), "router port")
    assert finding.level is Level.BAD and f"127.0.0.1:{port}" in finding.found and "--port 0" in finding.remedy


def test_gpus_that_are_not_there_are_wrong_only_when_asked_for(
    random_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_num_gpus", lambda: 0)
    assert found(examine(make_config(random_model_folder)), "GPUs").level is Level.NOTE
    stages = {"decode": {"num_gpus": 1}}
    finding = found(examine(make_config(random_model_folder, stages=stages)), "GPUs")
    assert finding.level is Level.BAD and "stages.*.num_gpus" in finding.remedy
    elsewhere = make_config(random_model_folder, stages=stages, control={"address": "127.0.0.1:1"})
    assert found(examine(elsewhere), "GPUs").level is Level.NOTE, "the cluster's nodes may have them"


def test_small_shared_memory_is_a_note(random_model_folder: Path) -> None:
    config = make_config(random_model_folder, transport={"shared_memory_bytes": 10**15})
    finding = found(examine(config), "lane shm")
    assert finding.level is Level.NOTE and "--shm-size" in finding.remedy


def test_an_address_without_a_cluster_is_wrong(random_model_folder: Path) -> None:
    finding = found(examine(make_config(random_model_folder, control={"address": "127.0.0.1:1"})), "Ray cluster")
    assert finding.level is Level.BAD and "ray start --head" in finding.remedy


def test_a_check_that_breaks_is_itself_a_finding(random_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_shared_memory_check", lambda config: 1 / 0)
    findings = examine(make_config(random_model_folder))
    assert any("ZeroDivisionError" in finding.found for finding in findings)
    assert found(findings, "model").level is Level.GOOD


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [("protobuf<8,>=6.31", ("protobuf", "6.31")), ("torch>=2.11", ("torch", "2.11")), ("rich", ("rich", "0"))],
)
def test_requirements_have_a_floor(requirement: str, expected: tuple[str, str]) -> None:
    assert checks.parse_requirement(requirement) == expected


def test_versions_compare_as_numbers() -> None:
    assert checks.version_numbers("2.13.0+cpu") > checks.version_numbers("2.9")
    assert checks.version_numbers("2.11") <= checks.version_numbers("2.11.0")
    assert checks.version_numbers("unknown") == ()


def test_paths_and_commands_stay_whole() -> None:
    long = "/a/very/long/path" * 12
    assert long in as_text(Finding("model", Level.BAD, long, "do this"))
