"""Two encoders as one backbone: what is read, drawn and refused, and that the towers are the encoders themselves."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.backbones import Section, component_files, describe, load, original_weight_names, tiny_section
from mmtune.backbones._encoder_table import TEXT, VISION
from mmtune.backbones._tiny_encoders import tiny_encoder, tiny_pair
from mmtune.ground.errors import BackboneError

PAIRS = [
    ("vit", "bert"),
    ("dinov2", "roberta"),
    ("convnext", "mpnet"),
    ("clip_vision_model", "clip_text_model"),
    ("siglip_vision_model", "xlm-roberta"),
    ("dinov3_vit", "camembert"),
    ("swin", "ernie"),
    ("beit", "megatron-bert"),
    *((vision, "bert") for vision in ("deit", "dinov2_with_registers", "swinv2", "convnextv2")),
]
STAGED = {"convnext", "convnextv2", "swin", "swinv2"}
PROJECTIONS = ("visual_projection.weight", "text_projection.weight")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, str]]:
    """The keys ``vision`` and ``text`` of every pair. Read only."""
    root = tmp_path_factory.mktemp("pairs")
    return {pair: tiny_pair(*pair, root / "-".join(pair)) for pair in PAIRS}


@pytest.fixture
def dino(folders: Any, tmp_path: Path) -> dict[str, str]:
    """A pair whose folders may be changed."""
    for part, folder in folders["dinov2", "roberta"].items():
        shutil.copytree(folder, tmp_path / part)
    return {part: str(tmp_path / part) for part in ("vision", "text")}


def change(folder: str, **keys: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def batch_of(backbone: Any, texts: tuple[str, ...] = ("the lion", "a line, and another line", "ox")) -> Any:
    family, processor = backbone.family, backbone.processor
    numbers = np.random.default_rng(0)
    encoded = []
    for text in texts:
        image = Image.fromarray(numbers.integers(0, 255, (40, 50, 3), dtype=np.uint8))
        encoded.append({**family.encode_media(processor, image), **family.encode_text(processor, text)})
    return family.pad(processor, encoded)


def test_every_known_encoder_is_tried() -> None:
    assert {vision for vision, _ in PAIRS} == set(VISION) and {text for _, text in PAIRS} == set(TEXT)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_towers_are_the_encoders_and_the_rest_is_drawn(folders: Any, pair: tuple[str, str]) -> None:
    backbone = load(Section(**folders[pair], projection_dim=16))
    for part, model_type in zip(("vision", "text"), pair, strict=True):
        alone = tiny_encoder(model_type)[0].state_dict()
        tower = backbone.model.get_submodule(f"{part}_model").state_dict()
        assert tower.keys() == alone.keys() and all(torch.equal(tower[name], alone[name]) for name in alone)
    assert backbone.fresh == PROJECTIONS
    batch = batch_of(backbone)
    with torch.no_grad():
        image, text = (
            embed(backbone.model, batch) for embed in (backbone.family.embed_media, backbone.family.embed_text)
        )
        logits = backbone.model(**batch).logits_per_image
    # One matrix product in float32 on logits near 10: a few units in the last place.
    torch.testing.assert_close(image @ text.T * backbone.model.logit_scale.exp(), logits, rtol=1e-5, atol=1e-5)
    assert image.shape == text.shape == (3, 16)
    for embeds in (image, text):
        assert (embeds @ embeds.T - torch.eye(3)).max() < 0.999, "the twin tells inputs apart"
    layered = {"text": 2} if pair[0] in STAGED else {"vision": 2, "text": 2}
    assert backbone.description.num_layers == layered == dict.fromkeys(backbone.traits.layers, 2)


@pytest.mark.parametrize("pair", PAIRS[:4], ids="-".join)
def test_padding_changes_no_embedding(folders: Any, pair: tuple[str, str]) -> None:
    backbone = load(Section(**folders[pair]))
    texts = ("the lion", "a line, and another line", "ox")
    family, processor = backbone.family, backbone.processor
    with torch.no_grad():
        together = family.embed_text(backbone.model, batch_of(backbone, texts))
        alone = [
            family.embed_text(backbone.model, family.pad(processor, [family.encode_text(processor, text)]))
            for text in texts
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)  # another order of summation


def test_what_is_drawn_is_the_same_every_time_and_no_two_are_equal(folders: Any) -> None:
    keys = folders["vit", "bert"]
    torch.manual_seed(1)
    one = load(Section(**keys))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = load(Section(**keys))
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the run's own numbers"
    visual, text = (one.model.get_parameter(name) for name in PROJECTIONS)
    assert torch.equal(visual, two.model.get_parameter(PROJECTIONS[0])) and visual.shape == (512, 32)
    assert not torch.equal(visual, text) and abs(float(visual.std()) * 32**0.5 - 1) < 0.05
    assert one.weight_hash == two.weight_hash == load(Section(**keys, dtype="bfloat16")).weight_hash
    assert one.weight_hash != load(Section(**keys, projection_dim=16)).weight_hash
    other = load(Section(vision=keys["vision"], text=folders["dinov2", "roberta"]["text"]))
    assert one.weight_hash != other.weight_hash


def test_the_limit_of_texts_leaves_out_robertas_first_positions(folders: Any) -> None:
    """RoBERTa's 514 positions hold 512 tokens: they are counted from the padding id + 1."""
    backbone = load(Section(**folders["dinov2", "roberta"]))
    ids = backbone.family.encode_text(backbone.processor, "over " * 99)["input_ids"]
    assert len(ids) == 30 and backbone.model.config.text_config.max_position_embeddings == 32
    assert ids[-1] == backbone.processor.tokenizer.sep_token_id
    batch = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    backbone.family.embed_text(backbone.model, batch)
    longer = {name: torch.cat([value, value[:, 1:2]], dim=1) for name, value in batch.items()}
    with pytest.raises((IndexError, RuntimeError)):
        backbone.family.embed_text(backbone.model, longer)


def test_checkpoints_with_heads_and_without_poolers(folders: Any, dino: dict[str, str], tmp_path: Path) -> None:
    """As hubs hold them: a classifier on the ViT, a language-model head on the RoBERTa, and no poolers."""
    import transformers as hf

    vit = tmp_path / "vit"
    shutil.copytree(folders["vit", "bert"]["vision"], vit)
    tower, _ = tiny_encoder("vit")
    classifier = hf.ViTForImageClassification(tower.config)
    classifier.vit.load_state_dict(tower.state_dict(), strict=False)
    classifier.save_pretrained(vit)
    roberta, _ = tiny_encoder("roberta")
    masked = hf.RobertaForMaskedLM(roberta.config)
    masked.roberta.load_state_dict(roberta.state_dict(), strict=False)
    masked.save_pretrained(dino["text"])
    backbone = load(Section(vision=str(vit), text=dino["text"]))
    poolers = [f"{part}_model.pooler.dense.{name}" for part in ("vision", "text") for name in ("bias", "weight")]
    assert backbone.fresh == (*PROJECTIONS, *poolers)
    assert torch.equal(backbone.model.get_parameter(poolers[0]), torch.zeros(32))
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(backbone.model.text_model.get_parameter(word), roberta.get_parameter(word))
    again = load(Section(vision=str(vit), text=dino["text"]))
    assert all(torch.equal(backbone.model.get_parameter(n), again.model.get_parameter(n)) for n in poolers)
    assert saved_names(backbone, tmp_path) == original_weight_names(backbone.description)


def test_one_tower_of_a_clip_is_taken(
    tiny_clip_folder: Path, tiny_siglip_folder: Path, folders: Any, tmp_path: Path
) -> None:
    clip = load(Section(id=str(tiny_clip_folder))).model
    backbone = load(Section(vision=str(tiny_clip_folder), text=str(tiny_clip_folder)))
    for part in ("vision", "text"):
        tower = clip.get_submodule(f"{part}_model").state_dict()
        assert all(torch.equal(backbone.model.state_dict()[f"{part}_model.{name}"], tower[name]) for name in tower)
    assert saved_names(backbone, tmp_path) == original_weight_names(backbone.description)
    siglip = load(Section(vision=str(tiny_siglip_folder), text=folders["vit", "bert"]["text"]))
    assert siglip.traits.layers["vision"] == "vision_model.encoder.layers"
    assert "vision_model.head" in siglip.traits.full_precision


def saved_names(backbone: Any, folder: Path) -> set[str]:
    from safetensors import safe_open

    backbone.model.save_pretrained(folder / "saved")
    with safe_open(folder / "saved" / "model.safetensors", "np") as opened:
        return set(opened.keys())


@pytest.mark.parametrize("pair", PAIRS[:6], ids="-".join)
def test_weights_are_named_as_a_checkpoint_names_them(folders: Any, pair: tuple[str, str], tmp_path: Path) -> None:
    backbone = load(Section(**folders[pair]))
    assert saved_names(backbone, tmp_path) == original_weight_names(backbone.description)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_attention_and_mlp_are_found_in_both_towers(folders: Any, pair: tuple[str, str]) -> None:
    from mmtune.adapters._targets import candidates, find_targets

    backbone = load(Section(**folders[pair]))
    words = ["mlp"] if pair[0].startswith("convnext") else ["attention", "mlp"]
    for word in words:
        chosen = SimpleNamespace(parts=["vision", "text"], targets=[word], layers="all")
        hits = find_targets(backbone.model, backbone.traits, chosen)
        assert all(len(names) >= 2 for names in hits.values())
        chosen.layers = {part: "last 1" if part in backbone.traits.layers else "all" for part in hits}
        fewer = find_targets(backbone.model, backbone.traits, chosen)
        assert len(fewer["text"]) * 2 == len(hits["text"]) and set(fewer["text"]) < set(hits["text"])
    found = {one.structure for part in ("vision", "text") for one in candidates(backbone.model, backbone.traits, part)}
    assert "attention" in found


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_weight_is_learned_but_those_that_never_run(folders: Any, pair: tuple[str, str]) -> None:
    """A mask token that only pretraining uses would have no gradient, and a run that trains it would be stopped."""
    from mmtune.adapters._targets import is_idle

    backbone = load(Section(**folders[pair]))
    backbone.model.requires_grad_(True)
    batch, family = batch_of(backbone), backbone.family
    cosines = family.embed_media(backbone.model, batch) @ family.embed_text(backbone.model, batch).T
    (cosines * family.temperature(backbone.model)[0].exp()).log_softmax(-1)[0, 0].backward()
    still = {name for name, parameter in backbone.model.named_parameters() if parameter.grad is None}
    assert still == {name for name, _ in backbone.model.named_parameters() if is_idle(name, backbone.traits)}
    assert still or not pair[0].startswith("dinov")


# --- precision, the tiny world, one whole model


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
@pytest.mark.parametrize("pair", [("vit", "bert"), ("swin", "ernie"), ("siglip_vision_model", "xlm-roberta")])
def test_towers_are_quantized_and_projections_are_not(folders: Any, pair: tuple[str, str], quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    from mmtune.backbones._quantization import quantized_names

    section = Section(**folders[pair], projection_dim=16, quantize=quantize)
    backbone, plain = load(section), load(Section(**folders[pair], projection_dim=16))
    names = quantized_names(backbone.model)
    assert {name.split("_")[0] for name in names} == {"vision", "text"}
    assert not any("projection" in name or "pooler" in name or ".head." in name for name in names)
    assert backbone.weight_hash == plain.weight_hash
    batch = batch_of(plain)
    back = load(section, dequantize=True)
    with torch.no_grad():
        embeds = [one.family.embed_text(one.model, batch) for one in (plain, backbone, back)]
    assert (embeds[0] - embeds[1]).abs().max() > 1e-4
    # nf4 computes with the dequantized values; LLM.int8 rounds activations too.
    torch.testing.assert_close(embeds[1], embeds[2], rtol=0, atol=1e-5 if quantize == "4bit" else 0.1)
    assert not quantized_names(back.model) and not hasattr(back.model.config, "quantization_config")


def test_a_convnext_in_8_bit_is_refused(folders: Any) -> None:
    """Its layers are given [B, H, W, C], which bitsandbytes' 8-bit product cannot read."""
    with pytest.raises(BackboneError, match="quantize: 8bit does not work: .* write 4bit"):
        describe(Section(**folders["convnext", "mpnet"], quantize="8bit"))
    pytest.importorskip("bitsandbytes")
    backbone = load(Section(**folders["convnext", "mpnet"], quantize="4bit"))
    with torch.no_grad():
        assert backbone.family.embed_media(backbone.model, batch_of(backbone)).isfinite().all()


def test_the_tiny_world_of_a_pair(dino: dict[str, str], tmp_path: Path) -> None:
    near = tiny_section(Section(**dino, projection_dim=24, dtype="bfloat16"), tmp_path / "near")
    assert describe(near).config["vision_config"]["model_type"] == "dinov2"
    assert (near.projection_dim, near.dtype, near.vision) == (24, "bfloat16", str(tmp_path / "near" / "vision"))
    far = Section(vision="someone/dino", text="someone/bert", text_revision="main")
    assert describe(tiny_section(far, tmp_path / "far")).config["vision_config"]["model_type"] == "vit"
    change(dino["text"], model_type="distilbert")
    with pytest.raises(BackboneError, match="no pooled state"):
        tiny_section(Section(**dino), tmp_path / "refused")


def test_a_pair_has_no_components_of_its_own_and_names_both(folders: Any) -> None:
    description = describe(Section(**folders["vit", "bert"]))
    assert component_files(description) == [] and description.short_id == "vision + text"
    assert description.commits == {"commit": None, "vision_commit": None, "text_commit": None}


def test_a_whole_dual_encoder_from_the_hub_is_read_for_its_encoders(tmp_path: Path, changed_copy: Any) -> None:
    from mmtune.backbones import tiny_folder

    folder = tiny_folder("dual_encoder", tmp_path / "whole")
    assert load(Section(id=str(folder))).fresh == ()
    tiny_dual = tiny_section(Section(id=str(folder), dtype="float16"), tmp_path / "tiny")
    assert describe(tiny_dual).config["text_config"]["model_type"] == "bert" and tiny_dual.dtype == "float16"
    unknown = changed_copy(folder, vision_config={"model_type": "resnet"})
    with pytest.raises(BackboneError, match="'resnet' cannot be paired"):
        describe(Section(id=str(unknown)))
    shallow = changed_copy(folder, text_config={"num_hidden_layers": 1}, name="shallow")
    with pytest.raises(BackboneError, match="hold weights that the model does not have"):
        load(Section(id=str(shallow)))
