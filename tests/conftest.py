"""What every test stands on: no network, one thread, and tiny model folders made once."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What frozen layers compute is kept in a folder of the tests' own, not in the user's."""
    os.environ["MMTUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of width 32 with random weights, as an ordinary model folder. Read only: copy it to change it."""
    from mmtune.backbones import tiny_folder

    return tiny_folder("clip", tmp_path_factory.mktemp("backbones") / "tiny_clip")


@pytest.fixture(scope="session")
def tiny_siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP of width 32 with random weights, as an ordinary model folder. Read only: copy it to change it."""
    from mmtune.backbones import tiny_folder

    return tiny_folder("siglip", tmp_path_factory.mktemp("backbones") / "tiny_siglip")


@pytest.fixture(scope="session")
def chat_backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``chat_backbone("llava")``: the tiny twin of a chat model, loaded once. Put back what you change."""
    from mmtune.backbones import Section, load, tiny_folder

    @functools.cache
    def loaded(model_type: str) -> Any:
        folder = tmp_path_factory.mktemp("backbones") / model_type
        return load(Section(id=str(tiny_folder("chat", folder, model_type=model_type))))

    return loaded


@pytest.fixture
def changed_copy(tmp_path: Path) -> Callable[..., Path]:
    """Copy a model folder and change its config.json: ``changed_copy(folder, name=..., text_config={...}, key=value)``.

    Dicts are merged into what is there; a value of None removes the key.
    """

    def copy(folder: Path, *, name: str = "changed", **changes: Any) -> Path:
        shutil.copytree(folder, tmp_path / name)
        file = tmp_path / name / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        for key, value in changes.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        kept = {key: value for key, value in config.items() if value is not None}
        file.write_text(json.dumps(kept), encoding="utf-8")
        return tmp_path / name

    return copy
