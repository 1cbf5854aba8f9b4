"""Configuration: layers, modes, and messages that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.configuration_page import PAGE, page
from triptych.config import DeploymentConfig, Mode
from triptych.errors import ConfigurationError
from triptych.switch import SWITCH, is_multimodal_disaggregated


def test_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "triptych.yaml"
    file.write_text("stages:\n  encoder: {replicas: 2, cache_bytes: 1024}\n  decode: {replicas: 5}\n")
    environment = {"TRIPTYCH_STAGES__ENCODER__REPLICAS": "3", "TRIPTYCH_STAGES__DECODE__REPLICAS": "6", "PATH": "/bin"}
    config = DeploymentConfig.from_sources(file, {"stages": {"decode": {"replicas": 7}}}, environment)
    assert config.stages.encoder.replicas == 3
    assert config.stages.encoder.cache_bytes == 1024
    assert config.stages.decode.replicas == 7


def test_mode_colocated_alone_is_complete() -> None:
    config = DeploymentConfig.from_sources(overrides={"mode": "colocated"}, environment={})
    assert config.mode is Mode.COLOCATED
    stages = config.stages
    assert (stages.encoder.replicas, stages.prefill.replicas, stages.decode.replicas) == (0, 0, 0)
    assert stages.prefill_decode.replicas == 1


def test_a_key_of_prefill_decode_does_not_start_one() -> None:
    config = DeploymentConfig.from_sources(overrides={"stages": {"prefill_decode": {"page_size": 32}}}, environment={})
    assert config.stages.prefill_decode.replicas == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"stages": {"encoder": {"replicas": -1}}}, "stages.encoder.replicas"),
        ({"stages": {"encodr": {}}}, "stages.encodr"),
        ({"mode": "both"}, "mode"),
        ({"stages": {"encoder": {"replicas": 0}}}, "stages.encoder.replicas >= 1"),
        ({"stages": {"decode": {"replicas": 0}}}, "prefill and decode replicas >= 1"),
        ({"stages": {"decode": {"page_size": 32}}}, "page_size=16 and stages.decode.page_size=32 differ"),
    ],
)
def test_bad_values_name_their_key(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match="(?s).*" + words.replace("=", "[=]")):
        DeploymentConfig.from_sources(overrides=overrides, environment={})


def test_an_unknown_key_says_what_was_meant_and_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "triptych.yaml"
    file.write_text("stages:\n  encoders: {replicas: 2}\n")
    environment = {"TRIPTYCH_STAGES__DECODE__REPLICA": "2"}
    with pytest.raises(ConfigurationError) as raised:
        DeploymentConfig.from_sources(file, {"router": {"port": "x"}, "stages": {"prefill": 3}}, environment)
    text = str(raised.value)
    unknown = f"stages.encoders (from file {file}): unknown key, expected one of encoder, prefill, decode, "
    assert unknown + "prefill_decode; did you mean stages.encoder?" in text
    assert "stages.decode.replica (from environment variable TRIPTYCH_STAGES__DECODE__REPLICA): unknown key" in text
    assert "did you mean stages.decode.replicas?" in text
    assert "router.port (from command line): found 'x', expected a valid integer" in text
    assert "stages.prefill (from command line): found 3, expected a mapping of keys" in text


def test_no_word_of_the_validation_library_reaches_the_operator() -> None:
    for overrides in (
        {"nothing": 1},
        {"stages": {"encoder": {"replicas": -1}}},
        {"stages": {"encoder": {"replicas": 0}}},
    ):
        with pytest.raises(ConfigurationError) as raised:
            DeploymentConfig.from_sources(overrides=overrides, environment={})
        for words in ("Value error", "Extra inputs", "Input should"):
            assert words not in str(raised.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "mode: [", "\x00"])
def test_unreadable_file_is_a_configuration_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "triptych.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="configuration file"):
        DeploymentConfig.from_sources(file, environment={})


def test_an_unreadable_environment_variable_is_named() -> None:
    with pytest.raises(ConfigurationError, match="TRIPTYCH_MODE="):
        DeploymentConfig.from_sources(environment={"TRIPTYCH_MODE": "{"})


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), (" 1 ", True)])
def test_switch_reads_zero_and_one(value: str, expected: bool) -> None:
    assert is_multimodal_disaggregated({SWITCH: value}) is expected


def test_switch_is_off_when_unset_and_refuses_anything_else() -> None:
    assert not is_multimodal_disaggregated({})
    with pytest.raises(ConfigurationError, match="expected 0"):
        is_multimodal_disaggregated({SWITCH: "true"})


def test_page_in_docs_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tools.configuration_page` and commit"
