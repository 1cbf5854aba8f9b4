"""Built engines on disk: what is read, what is not trusted, and that one of many builds."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from encoder_service.engines.tensorrt.builder import EngineRequest
from encoder_service.engines.tensorrt.cache import EngineCache, EngineKey
from encoder_service.engines.tensorrt.library import Target, TensorRTLibrary
from encoder_service.engines.tensorrt.profile import engine_profile
from triptych.config import TensorRTSection
from triptych.errors import ConfigurationError
from triptych.models.qwen2_5_vl.config import ModelConfig
from triptych.models_folder import BUILT_IN_FOLDER

ENGINE = bytes(range(256)) * 40


def library(name: str = "tensorrt_rtx", version: str = "1.7.1") -> TensorRTLibrary:
    return TensorRTLibrary(name, SimpleNamespace(__version__=version))


def request() -> EngineRequest:
    config = ModelConfig.from_folder(BUILT_IN_FOLDER).vision
    profile = engine_profile(TensorRTSection(), config, 256)
    return EngineRequest(BUILT_IN_FOLDER, config, torch.bfloat16, profile, Target((8, 9), ""))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(str(tmp_path / "engines"))


def test_an_engine_comes_back_whole(cache: EngineCache) -> None:
    key = EngineKey(library(), request())
    assert cache.load(key) is None
    path = cache.store(key, ENGINE)
    assert cache.load(key) == ENGINE
    assert path.stat().st_mode & 0o777 == 0o600 and cache.folder.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in cache.folder.iterdir()] == [path.name]


def test_everything_that_decides_an_engine_is_in_its_key(tmp_path: Path) -> None:
    base = request()
    other_model = tmp_path / "model"
    other_model.mkdir()
    (other_model / "config.json").write_bytes((BUILT_IN_FOLDER / "config.json").read_bytes())
    narrower = engine_profile(TensorRTSection(opt_patches=64), base.config, 256)
    keys = [
        EngineKey(library(), base),
        EngineKey(library(version="1.8.0"), base),
        EngineKey(library(name="tensorrt"), base),
        EngineKey(library(), replace(base, precision=torch.float16)),
        EngineKey(library(), replace(base, profile=narrower)),
        EngineKey(library(), replace(base, target=Target((8, 6), ""))),
        EngineKey(library(), replace(base, target=Target((8, 9), "NVIDIA L4"))),
        EngineKey(library(), replace(base, folder=other_model)),
    ]
    assert len({key.file_name for key in keys}) == len(keys)
    assert EngineKey(library(), request()).file_name == keys[0].file_name


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"\0",
        lambda content: content + b"more",
        lambda content: content.replace(b"sm_89", b"sm_90"),
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"triptych-engine\n{\n",
        lambda content: b"triptych-engine\nnull\n",
        lambda content: b"x" * len(content),
    ],
    ids=["cut", "bit", "longer", "other-target", "short", "empty", "no-json", "no-object", "no-engine"],
)
def test_a_damaged_or_unfit_file_counts_as_none(
    cache: EngineCache, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    key = EngineKey(library(), request())
    path = cache.store(key, ENGINE)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(key) is None
    assert "built again" in caplog.text
    cache.store(key, ENGINE)
    assert cache.load(key) == ENGINE


def test_a_file_that_others_may_write_is_not_run(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    key = EngineKey(library(), request())
    cache.store(key, ENGINE).chmod(0o666)
    assert cache.load(key) is None
    assert "may be written by others (mode 666)" in caplog.text


def test_a_link_is_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    key = EngineKey(library(), request())
    path = cache.store(key, ENGINE)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.load(key) is None


def test_a_file_that_is_no_file_is_not_read(cache: EngineCache) -> None:
    key = EngineKey(library(), request())
    cache.path(key).mkdir()
    assert cache.load(key) is None


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"may be written by others \(mode {mode:o}\)") as raised:
        EngineCache(str(folder))
    assert raised.value.field == "stages.encoder.tensorrt.cache_folder"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12_345, -1)
    with pytest.raises(ConfigurationError, match="belongs to uid 12345"):
        EngineCache(str(folder))


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cache_folder .* cannot be used"):
        EngineCache(str(tmp_path / "file" / "engines"))


def test_of_several_that_start_together_one_builds(cache: EngineCache) -> None:
    key = EngineKey(library(), request())
    builds: list[int] = []
    found: list[bytes | None] = []
    start = threading.Barrier(4)

    def prepare(number: int) -> None:
        start.wait()
        with cache.building(key):
            if cache.load(key) is None:
                builds.append(number)
                cache.store(key, ENGINE)
            found.append(cache.load(key))

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1 and found == [ENGINE] * 4


def test_a_failed_write_leaves_nothing(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        cache.store(EngineKey(library(), request()), ENGINE)
    assert not list(cache.folder.iterdir())
