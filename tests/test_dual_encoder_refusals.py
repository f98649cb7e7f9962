"""Pairs of encoders that cannot be: each refusal names the encoder, what is wrong and what would be right."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmtune.backbones import Section, describe, load
from mmtune.backbones._tiny_encoders import tiny_pair
from mmtune.ground.errors import BackboneError


@pytest.fixture
def dino(tmp_path: Path) -> dict[str, str]:
    """A pair whose folders may be changed."""
    return tiny_pair("dinov2", "roberta", tmp_path)


def change(folder: str, **keys: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_what_is_wrong_is_found_without_torch(dino: dict[str, str]) -> None:
    code = (
        "import sys; from mmtune.backbones import Section, describe; "
        f"print(describe(Section(**{dino!r})).traits.layers['vision']); "
        "print(sorted({'torch', 'transformers', 'peft', 'PIL', 'huggingface_hub'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stdout.splitlines() == ["vision_model.encoder.layer", "[]"], done.stderr


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "names no model: write id"),
        ({"id": "a/b", "vision": "c/d", "projection_dim": 8}, "vision, projection_dim belong to a pair"),
        ({"vision": "a/b"}, "text is not given"),
        ({"projection_dim": 8}, "vision and text is not given"),
        ({"vision": "a/b", "text": "c/d", "revision": "main"}, "vision_revision and text_revision"),
        ({"vision": "a/b", "text": "c/d", "trust_remote_code": True}, "trust_remote_code is not for a pair"),
        ({"id": "a/b", "text_revision": "main"}, "text_revision belong to a pair"),
    ],
)
def test_the_section_is_one_model_or_two_encoders(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Section(**keys)


def test_encoders_in_the_wrong_place_are_all_named(tmp_path: Path) -> None:
    keys = tiny_pair("vit", "bert", tmp_path)
    with pytest.raises(BackboneError) as caught:
        describe(Section(vision=keys["text"], text=keys["vision"]))
    assert "vision: 'bert' is a text encoder, which belongs under text" in str(caught.value)
    assert "text: 'vit' is an image encoder, which belongs under vision" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "config", "said"),
    [
        ("text", {"model_type": "distilbert"}, "'distilbert' cannot be paired: it gives no pooled state"),
        ("vision", {"model_type": "resnet"}, r"'resnet' cannot be paired: .* \[B, C, 1, 1\]"),
        ("vision", {"model_type": "sam"}, "model_type 'sam' is not known here; vision can be vit, deit,"),
        ("text", {"model_type": "siglip"}, "'siglip' is not known here; text can be bert, .*clip"),
        ("text", {"is_decoder": True}, "take an encoder"),
        ("text", {"quantization_config": {"load_in_4bit": True}}, "is stored quantized"),
    ],
)
def test_encoders_that_cannot_be_paired_are_refused_from_config_json_alone(
    dino: dict[str, str], part: str, config: dict[str, Any], said: str
) -> None:
    change(dino[part], **config)
    for file in Path(dino[part]).glob("*.safetensors"):
        file.unlink()
    with pytest.raises(BackboneError, match=said):
        load(Section(**dino))


def test_transformers_cannot_use_them_either() -> None:
    """Should this ever pass, they need not be refused any more."""
    import torch
    import transformers as hf

    depths = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
    pooled = hf.ResNetModel(hf.ResNetConfig(**depths)).eval()(torch.zeros(1, 3, 32, 32)).pooler_output
    assert pooled.shape == (1, 8, 1, 1)
    tower = hf.DistilBertModel(hf.DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_heads=2, n_layers=1))
    assert not hasattr(tower(torch.zeros(1, 2, dtype=torch.long)), "pooler_output")


def test_a_missing_encoder_is_named(dino: dict[str, str]) -> None:
    with pytest.raises(BackboneError, match="hf download someone/dino(.|\n)*hf download someone/bert"):
        describe(Section(vision="someone/dino", text="someone/bert"))
    with pytest.raises(BackboneError, match="no such folder .*nowhere"):
        describe(Section(vision=dino["vision"], text=dino["text"] + "/nowhere"))
    with pytest.raises(BackboneError, match="'someone/bert'.*HF_HUB_OFFLINE is set: run `hf download someone/bert"):
        describe(Section(vision=dino["vision"], text="someone/bert"))
    (Path(dino["text"]) / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="text' has no model.safetensors in .*allow_pickle: true"):
        load(Section(**dino))


def test_weights_that_do_not_fit_are_named(dino: dict[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(dino["text"]) / "model.safetensors"
    tensors = load_file(path)
    tensors["strange"] = tensors.pop("encoder.layer.0.output.dense.bias")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack .*layer.0.output.dense.bias; the files hold .*: strange"):
        load(Section(**dino))


def test_tokenizer_and_pictures_must_belong_to_the_encoders(dino: dict[str, str], tmp_path: Path) -> None:
    keys = tiny_pair("vit", "bert", tmp_path / "vit")
    picture = Path(shutil.copytree(keys["vision"], Path(dino["vision"]).parent / "large")) / "preprocessor_config.json"
    picture.write_text(json.dumps({**json.loads(picture.read_text()), "size": {"height": 64, "width": 64}}))
    with pytest.raises(
        BackboneError, match=r"makes pictures of \[64, 64\] pixels, and the image tower takes \[32, 32\]"
    ):
        load(Section(vision=str(picture.parent), text=keys["text"]))
    tokenizer = Path(dino["text"]) / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "pad_token": "</s>"}))
    with pytest.raises(BackboneError, match="pads with id 2, but the text tower counts positions by pad_token_id 1"):
        load(Section(**dino))
