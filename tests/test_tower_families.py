"""Chinese-CLIP, ALIGN, BLIP and BLIP-2: what each family does its own way."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import (
    KINDS,
    LORA,
    backbone_of,
    disturb,
    embeddings,
    inputs_of,
    loss_of,
    make_run,
    samples,
    section,
    train_steps,
)

from mmtune.adapter_liveness import Liveness
from mmtune.adapters import attach, optimizer_groups, problems, restore, save, set_modes
from mmtune.backbones import Section, clamp_temperature, describe, load, tiny_folder
from mmtune.backbones import Section as BackboneSection
from mmtune.ground.errors import BackboneError, RecipeError
from mmtune.merge_building import fold, prove_all, write_folder
from mmtune.model_loading import load_model, resolve

TEXT = {"chinese_clip": "text", "align": "text", "blip": "text", "blip2": "qformer"}
"""Family -> the part that reads texts."""

FAMILIES = tuple(TEXT)

ROUNDING = 1e-5
"""Embeddings of length 1 computed twice in float32, in other orders of summation."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny twin; read only."""
    folder = tmp_path_factory.mktemp("towers")
    return {name: tiny_folder(name, folder / name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def trained_names(folder: Path, **values: Any) -> set[str]:
    return set(attach(backbone_of(folder), section(**values)).trainable())


# --- embeddings


def test_padding_changes_no_embedding_and_without_its_mask_it_would(folder: Path) -> None:
    backbone = backbone_of(folder)
    family, processor = backbone.family, backbone.processor
    texts = ["a cat", "the lion on the line, over and over", "一只猫", "x"]
    encoded = [family.encode_text(processor, text) for text in texts]
    together = family.pad(processor, encoded)
    assert len({len(one["input_ids"]) for one in encoded}) == len(texts)
    with torch.no_grad():
        expected = torch.cat([family.embed_text(backbone.model, family.pad(processor, [one])) for one in encoded])
        found = family.embed_text(backbone.model, together)
        unmasked = {**together, "attention_mask": torch.ones_like(together["attention_mask"])}
        seen = family.embed_text(backbone.model, unmasked)
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert (seen - expected).abs().max() > 0.05


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_embeddings_have_float32_at_least(folder: Path, dtype: str) -> None:
    backbone, plain = load(Section(id=str(folder)), dtype=dtype), backbone_of(folder)
    found, expected = (embeddings(each, inputs_of(plain)) for each in (backbone, plain))
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    # 8 bits of mantissa through a few layers and, in ALIGN, batch norms.
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=ROUNDING if dtype == "float64" else 0.1)


def test_a_tokenizer_that_does_not_begin_with_the_class_token_is_refused(folder: Path) -> None:
    backbone = backbone_of(folder)
    backbone.processor.tokenizer.cls_token = "[MASK]"
    with pytest.raises(BackboneError, match=r"class token '\[MASK\]', but the tokenizer begins texts with"):
        backbone.family.check(backbone.model, backbone.processor)


# --- what is trained


def test_attention_and_mlp_of_the_text_tower_are_found(folder: Path) -> None:
    part = TEXT[folder.name]
    backbone = backbone_of(folder)
    tower = f"{backbone.traits.layers[part]}.1"
    inner, dense = ("self", ["intermediate", "output"]) if part == "text" else ("attention", ["intermediate", "output"])
    dense += [] if part == "text" else ["intermediate_query", "output_query"]
    linear = {f"{tower}.attention.{inner}.{name}" for name in ("query", "key", "value")}
    linear |= {f"{tower}.{name}.dense" for name in ("attention.output", *dense)}
    adapted = attach(backbone, section(**{**LORA, "parts": [part], "layers": "last 1"}))
    assert set(adapted.modules[part]) == linear
    named = attach(backbone_of(folder), section(**{**LORA, "parts": [part], "targets": ["query"], "layers": [1]}))
    assert named.modules[part] == [f"{tower}.attention.{inner}.query"]


def test_what_embedding_never_runs_is_never_trained(folders: dict[str, Path]) -> None:
    """BLIP's cross attention and ALIGN's pooler get no gradient, so training them could only wear them down."""
    for name, idle in (("blip", "crossattention"), ("align", "pooler")):
        backbone = backbone_of(folders[name])
        assert any(idle in each for each, _ in backbone.model.named_parameters())
        for values in (KINDS["full"], {**LORA, "parts": ["text"]}):
            adapted = attach(backbone_of(folders[name]), section(**values))
            assert adapted.trainable() and not [each for each in adapted.trainable() if idle in each]
            set_modes(adapted)
            train_steps(adapted, torch.optim.SGD(adapted.trainable().values(), 1e-3), inputs_of(adapted.backbone), 1)
            assert not [each for each, value in adapted.trainable().items() if value.grad is None]


def test_align_has_no_attention_for_images_and_the_recipe_is_told_before_weights_are_loaded(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, backbone = section(**LORA), BackboneSection(id=str(folders["align"]))
    found = problems(asked, backbone, describe(backbone))
    assert found == [
        "adapter.targets: part 'vision' of align is made of convolutions (expand_conv, project_conv, ...) and batch "
        "norms, there is no attention or mlp in it; write parts: [text], or name layers of it (kind: lora), or train "
        "it whole (kind: full)"
    ]
    with pytest.raises(RecipeError, match="made of convolutions"):
        attach(load(backbone), asked)
    with pytest.raises(RecipeError, match="part 'vision' of align has no head to train; parts with one: text"):
        attach(load(backbone), section(**KINDS["head_only"]))
    assert problems(section(**{**LORA, "parts": ["text"]}), backbone, describe(backbone)) == []


def test_heads_and_parts(folders: dict[str, Path]) -> None:
    assert trained_names(folders["align"], kind="head_only", parts=["text"]) == {
        "text_projection.weight",
        "text_projection.bias",
        "temperature",
    }
    heads = {f"{name}_proj.{kind}" for name in ("vision", "text") for kind in ("weight", "bias")}
    assert trained_names(folders["blip"], **KINDS["head_only"]) == heads | {"logit_scale"}
    vision = trained_names(folders["align"], kind="full", parts=["vision"], temperature=False)
    assert vision and all(name.startswith("vision_model.") for name in vision)


CONVOLUTIONS = {**LORA, "parts": ["vision"], "targets": ["project_conv", "convolution"]}


def test_convolutions_are_adapted_by_name(folders: dict[str, Path]) -> None:
    adapted = attach(backbone_of(folders["align"]), section(**CONVOLUTIONS))
    blocks = [f"vision_model.encoder.blocks.{number}.projection.project_conv" for number in (0, 1)]
    assert adapted.modules["vision"] == ["vision_model.embeddings.convolution", *blocks]
    last = attach(backbone_of(folders["align"]), section(**{**CONVOLUTIONS, "targets": blocks[:1], "layers": "last 2"}))
    assert last.modules["vision"] == blocks[:1]
    whole = adapted.model.state_dict()
    assert whole["vision_model.embeddings.convolution.lora_A.default.weight"].shape == (4, 3, 3, 3)
    with pytest.raises(RecipeError, match="'depthwise_conv' hits no linear layer of parts vision; there are .*expand"):
        attach(
            backbone_of(folders["align"]), section(**{**CONVOLUTIONS, "targets": ["project_conv", "depthwise_conv"]})
        )
    with pytest.raises(RecipeError, match=r"adapter.use_dora: part 'vision' .* for linear layers alone"):
        attach(backbone_of(folders["align"]), section(**{**CONVOLUTIONS, "use_dora": True}))
    with pytest.raises(RecipeError, match="no linear layers at all"):
        attach(backbone_of(folders["align"]), section(kind="loha", parts=["vision"], targets=["project_conv"]))


def test_a_convolution_that_is_trained_is_seen_to_move(folders: dict[str, Path]) -> None:
    adapted = attach(backbone_of(folders["align"]), section(**CONVOLUTIONS))
    liveness = Liveness(adapted)
    weights = {name: adapted.model.get_submodule(name).get_base_layer().weight for name in adapted.modules["vision"]}
    before = {name: weight.clone() for name, weight in weights.items()}
    set_modes(adapted)
    optimizer = torch.optim.SGD(adapted.trainable().values(), 1e-2)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss_of(adapted.backbone, inputs_of(adapted.backbone)).backward()
        liveness.after_backward()
        optimizer.step()
        liveness.after_step(step, lambda line: None)
    assert liveness.lives["vision"].num_moved == 3
    assert all(weights[name].equal(before[name]) for name in before)


# --- batch norms


@pytest.mark.parametrize("careless", [False, True])
def test_trained_batch_norms_keep_their_running_statistics(
    folders: dict[str, Path], tmp_path: Path, careless: bool
) -> None:
    values = {"kind": "full", "parts": ["vision"]}
    adapted = attach(backbone_of(folders["align"]), section(**values))
    inputs = inputs_of(adapted.backbone)
    buffers = {name: value.clone() for name, value in adapted.model.named_buffers()}
    norms = {name: value.detach().clone() for name, value in adapted.trainable().items() if "norm.weight" in name}
    assert any("running_var" in name for name in buffers) and norms
    set_modes(adapted)
    if careless:
        adapted.model.train()
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-3, 0.1)), inputs, 2)
    moved = {name.rpartition(".")[2] for name, value in adapted.model.named_buffers() if not value.equal(buffers[name])}
    assert moved == ({"running_mean", "running_var", "num_batches_tracked"} if careless else set())
    assert not [name for name, value in norms.items() if adapted.trainable()[name].equal(value)], "their weights move"
    save(adapted, tmp_path)
    again = attach(backbone_of(folders["align"]), section(**values))
    restore(again, tmp_path)
    adapted.model.eval()
    same = embeddings(again.backbone, inputs).equal(embeddings(adapted.backbone, inputs))
    assert same is not careless, "what is trained is all that a checkpoint has to hold"


def test_an_image_is_embedded_alone_while_batch_norms_are_trained(folders: dict[str, Path]) -> None:
    adapted = attach(backbone_of(folders["align"]), section(kind="full", parts=["vision"]))
    set_modes(adapted)
    for module in adapted.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    pixels = inputs_of(adapted.backbone)["pixel_values"]
    embed = lambda pixels: adapted.backbone.family.embed_media(adapted.model, {"pixel_values": pixels})  # noqa: E731
    torch.testing.assert_close(embed(pixels)[:1], embed(pixels[:1]), rtol=0, atol=ROUNDING)
    adapted.model.train()
    assert (embed(pixels)[:1] - embed(pixels[:1])).abs().max() > 0.01


# --- temperature


def test_the_temperature_is_clamped_where_it_is_kept(folders: dict[str, Path], tiny_siglip_folder: Path) -> None:
    for folder in (*folders.values(), tiny_siglip_folder):
        backbone = backbone_of(folder)
        read = lambda backbone=backbone: float(backbone.family.temperature(backbone.model)[0])  # noqa: E731
        start = read()
        clamp_temperature(backbone, start + 1)
        clamp_temperature(backbone, None)
        assert read() == start
        clamp_temperature(backbone, 1.5)
        assert read() == pytest.approx(1.5, rel=1e-6) and start > 1.5


def test_aligns_divisor_stays_positive_even_without_a_limit(folders: dict[str, Path]) -> None:
    backbone = backbone_of(folders["align"])
    with torch.no_grad():
        backbone.model.temperature.fill_(-0.5)
        assert not backbone.family.temperature(backbone.model)[0].isfinite()
        clamp_temperature(backbone, None)
        assert float(backbone.family.temperature(backbone.model)[0]) == pytest.approx(math.log(1000), rel=1e-5)


def test_blip_is_given_a_temperature_that_transformers_does_not_see(
    folders: dict[str, Path], changed_copy: Any
) -> None:
    backbone = backbone_of(folders["blip"])
    assert float(backbone.model.logit_scale) == pytest.approx(math.log(1 / 0.07), rel=1e-4)
    assert "logit_scale" not in backbone.model.state_dict()
    assert "logit_scale" in dict(backbone.model.named_parameters())
    other = backbone_of(changed_copy(folders["blip"], logit_scale_init_value=3.5))
    assert float(other.model.logit_scale) == 3.5
    absent = backbone_of(changed_copy(folders["blip"], name="absent", logit_scale_init_value=None))
    assert float(absent.model.logit_scale) == pytest.approx(math.log(1 / 0.07), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("blip", "BlipModel"),
        ("blip", None),
        ("blip2", "Blip2Model"),
    ],
)
def test_other_blip_models_are_refused_before_weights_are_loaded(
    folders: dict[str, Path], changed_copy: Any, family: str, named: str | None
) -> None:
    folder = changed_copy(folders[family], architectures=[named] if named else None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=f"names the architecture {(named or 'none')}, and .*Blip"):
        describe(Section(id=str(folder)))


# --- merging and quantizing


def test_merged_folders_reload_as_the_adapted_model(folders: dict[str, Path], tmp_path: Path) -> None:
    text, vision = {**LORA, "parts": ["text"]}, {"kind": "full", "parts": ["vision"]}
    asked = [("chinese_clip", LORA, 1.0), ("align", text, 1.0), ("align", vision, 1.0), ("blip", LORA, 1.0)]
    asked += [("blip", KINDS["head_only"], 0.5), ("blip2", {**LORA, "parts": ["vision", "qformer"]}, 1.0)]
    asked += [("blip2", {"kind": "full", "parts": ["qformer"]}, 1.0)]
    asked += [("align", CONVOLUTIONS, 1.0)]
    merges = []
    for number, (name, adapter, scale) in enumerate(asked):
        target = resolve(make_run(tmp_path / f"run{number}", {"id": str(folders[name])}, adapter))
        folded = fold(target, samples(), scale=scale, full=False, dtype="float32")
        (tmp_path / f"merged{number}").mkdir()
        write_folder(folded, tmp_path / f"merged{number}")
        merges.append((folded, tmp_path / f"merged{number}"))
    for report in prove_all(merges):
        assert report["reload"]["gap"] <= 1e-5 and report["tensors"]["changed"] > 0
        assert report["reload"]["difference_from_base"] > 0.01
    for number, (name, _, scale) in enumerate(asked):
        tuned, merged = load_model(tmp_path / f"run{number}"), load_model(tmp_path / f"merged{number}")
        base = backbone_of(folders[name])
        read = [each.family.temperature(each.model)[0] for each in (tuned, merged, base)]
        if scale == 1:
            assert read[1].equal(read[0]) and not read[1].equal(read[2])
        else:
            assert float(read[1]) == pytest.approx(float(read[0] + read[2]) / 2, rel=1e-6)
    config = json.loads((tmp_path / "merged3" / "config.json").read_text(encoding="utf-8"))
    assert config["logit_scale_init_value"] != pytest.approx(math.log(1 / 0.07), abs=1e-3)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantized_towers(folder: Path, quantize: str) -> None:
    pytest.importorskip("bitsandbytes")
    asked = Section(id=str(folder), quantize=quantize)  # type: ignore[arg-type]
    quantized, plain = load(asked), load(asked, dequantize=True)
    inputs = inputs_of(plain)
    gap = (embeddings(quantized, inputs) - embeddings(plain, inputs)).abs().max()
    assert gap < (ROUNDING if quantize == "4bit" else 0.1)  # LLM.int8 rounds activations
    assert (embeddings(plain, inputs) - embeddings(backbone_of(folder), inputs)).abs().max() > 1e-3
    adapted = disturb(attach(quantized, section(**{**LORA, "parts": [TEXT[folder.name]]})))
    set_modes(adapted)
    train_steps(adapted, torch.optim.SGD(adapted.trainable().values(), 1e-3), inputs, 1)
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in adapted.trainable().values())
