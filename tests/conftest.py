"""What every test stands on: no network, one thread, and tiny model folders made once."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


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
