"""Kinds that train a few of the backbone's own values: norms, and the embeddings of chosen tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import (
    BOTH,
    KINDS,
    adapted_of,
    backbone_of,
    embeddings,
    inputs_of,
    section,
    train_steps,
)
from pydantic import ValidationError

from mmtune.adapters import Adapted, attach, merge_into, merged_names, optimizer_groups, save, set_modes
from mmtune.backbones import tiny_folder
from mmtune.ground.errors import RecipeError
from mmtune.ground.safe_files import load_tensors

NORMS: dict[str, Any] = {"kind": "layernorm", "parts": BOTH}
TOKENS: dict[str, Any] = {"kind": "trainable_tokens", "tokens": ["e", 8, "n"]}
PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(params=["clip", "siglip"])
def tiny(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"tiny_{request.param}_folder")


def fresh(folder: Path, values: dict[str, Any], **options: Any) -> Adapted:
    return attach(backbone_of(folder, **options), section(**values))


# --- layernorm


def test_exactly_the_norms_are_trained(tiny: Path) -> None:
    from torch import nn

    adapted = fresh(tiny, {**NORMS, "temperature": False})
    norms = {name for name, module in adapted.model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert set(adapted.trainable()) == {f"{name}.{which}" for name in norms for which in ("weight", "bias")}
    assert {name for names in adapted.modules.values() for name in names} == norms
    set_modes(adapted)
    assert all(adapted.model.get_submodule(name).training for name in norms)


def test_norms_of_chosen_layers(tiny_clip_folder: Path) -> None:
    some = fresh(tiny_clip_folder, {**NORMS, "layers": {"vision": "last 1", "text": "all"}})
    layer = "vision_model.encoder.layers.1"
    assert some.modules["vision"] == [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    assert "text_model.final_layer_norm" in some.modules["text"] and len(some.modules["text"]) == 5


def test_norms_train_beside_quantized_layers_but_not_in_half_precision(tiny_clip_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapted = fresh(tiny_clip_folder, NORMS, quantize="4bit")
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-2, 0.1)), inputs_of(adapted.backbone), 1)
    with pytest.raises(RecipeError, match="layernorm trains the backbone's own weights, which bfloat16 is too coarse"):
        fresh(tiny_clip_folder, NORMS, dtype="bfloat16")
    with pytest.raises(RecipeError, match="adapter.layers: part 'vision': '5' is beyond the tower"):
        fresh(tiny_clip_folder, {**NORMS, "layers": "5"})


def test_a_part_without_norms(tiny_clip_folder: Path) -> None:
    backbone = backbone_of(tiny_clip_folder)
    for layer in backbone.model.text_model.encoder.layers:
        layer.layer_norm1 = layer.layer_norm2 = torch.nn.Identity()
    with pytest.raises(RecipeError, match="adapter.layers: text has no normalisation layers .* in layers 'last 1'"):
        attach(backbone, section(**{**NORMS, "layers": "last 1"}))


@pytest.mark.parametrize("careless", [False, True])
def test_batch_norms_train_and_their_statistics_stay(tiny_clip_folder: Path, careless: bool) -> None:
    backbone = backbone_of(tiny_clip_folder)
    tower = backbone.model.vision_model
    tower.pre_layrnorm = torch.nn.BatchNorm1d(tower.embeddings.num_positions)
    adapted = attach(backbone, section(**NORMS))
    norm = tower.pre_layrnorm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    set_modes(adapted)
    if careless:
        norm.train()
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-2, 0.1)), inputs_of(backbone), 1)
    moved = {name for name, value in norm.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert moved == {"weight", "bias"} | (statistics if careless else set())


# --- trainable_tokens


def test_exactly_the_chosen_rows_move(tiny: Path) -> None:
    adapted = fresh(tiny, TOKENS)
    name = adapted.modules["text"][0]
    tokenizer = adapted.backbone.processor.tokenizer
    ids = {8, *(tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("e", "n"))}
    assert set(adapted.trainable()) - set(adapted.modules["temperature"]) == {f"{name}.trainable_tokens_delta.default"}
    assert adapted.parts[0].num_trainable == 3 * 32
    base = backbone_of(tiny).model.state_dict()[f"{name}.weight"]
    set_modes(adapted)
    optimizer = torch.optim.AdamW(optimizer_groups(adapted, 1e-2, 0.1))
    train_steps(adapted, optimizer, inputs_of(adapted.backbone), 2)
    merged = merge_into(adapted).get_parameter(f"{name}.weight")
    moved = {row for row in range(len(base)) if not torch.equal(base[row], merged[row])}
    assert moved == ids


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_alone_loads_the_rows(tiny: Path, tmp_path: Path, dtype: str) -> None:
    from peft import PeftModel

    adapted = adapted_of(tiny, TOKENS, dtype=dtype)
    assert {value.dtype for value in adapted.trainable().values()} == {torch.float32}
    inputs = inputs_of(adapted.backbone)
    save(adapted, tmp_path)
    (tensor,) = load_tensors(tmp_path / "adapter" / "adapter_model.safetensors").values()
    assert tensor.shape == (3, 32)
    plain = backbone_of(tiny, dtype=dtype)
    bare = embeddings(plain, inputs)
    PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter"))
    assert torch.equal(embeddings(plain, inputs), embeddings(adapted.backbone, inputs))
    assert not torch.equal(embeddings(plain, inputs), bare)


def test_tokens_train_beside_quantized_layers(tiny_clip_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    adapted = fresh(tiny_clip_folder, TOKENS, quantize="4bit")
    start = [value.detach().clone() for value in adapted.trainable().values()]
    train_steps(adapted, torch.optim.AdamW(optimizer_groups(adapted, 1e-2, 0.1)), inputs_of(adapted.backbone), 1)
    assert not any(torch.equal(a, b) for a, b in zip(start, adapted.trainable().values(), strict=True))


def test_words_resolve_as_texts_are_split(tiny_clip_folder: Path) -> None:
    tokenizer = backbone_of(tiny_clip_folder).processor.tokenizer
    for words in (["the</w>"], ["the"], [tokenizer("the", add_special_tokens=False)["input_ids"][0]]):
        adapted = fresh(tiny_clip_folder, {**TOKENS, "tokens": words})
        config = adapted.peft_model.peft_config["default"]
        assert tokenizer.convert_ids_to_tokens(config.token_indices) == ["the</w>"]


def test_everything_wrong_with_tokens_is_said_at_once(tiny_clip_folder: Path, tiny_siglip_folder: Path) -> None:
    backbone = backbone_of(tiny_clip_folder)
    with pytest.raises(RecipeError) as caught:
        attach(backbone, section(**{**TOKENS, "tokens": ["zoo", "e", 9999, "E ", "☃"]}))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("adapter.tokens: 'zoo' is 3 tokens (z o o</w>); name a word that is one token")
    assert lines[1].startswith("adapter.tokens: 9999 is no id: they go from 0 to ")
    assert "'E ' and 'e' are the same token" in lines[2] and "☃" in lines[3] and len(lines) == 4
    assert not any("trainable_tokens" in name for name, _ in backbone.model.named_parameters())
    with pytest.raises(RecipeError, match="vision of clip reads no tokens"):
        attach(backbone, section(**{**TOKENS, "parts": ["vision"]}))
    backbone.model.text_model.embeddings.token_embedding.padding_idx = 8
    with pytest.raises(RecipeError, match="8 is what texts are padded with"):
        attach(backbone, section(**TOKENS))
    other = backbone_of(tiny_siglip_folder)
    with pytest.raises(RecipeError, match="no part 'sound'"):
        attach(other, section(**{**TOKENS, "parts": ["sound"]}))


@pytest.mark.parametrize("values", [{"tokens": []}, {"tokens": ["a", "a"]}, {"tokens": [1.5]}, {"parts": BOTH}])
def test_sections_refuse(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section(**{**TOKENS, **values})
    assert section(**KINDS["trainable_tokens"]).parts == ["text"]
    assert section(**{**TOKENS, "tokens": ["8", 8]}).tokens == ["8", 8], "a word and an id"


# --- what is frozen above what is trained


@pytest.mark.parametrize("layers", ["first 1", "last 1"])
def test_attention_of_torch_is_the_same_with_and_without_gradients(tiny_siglip_folder: Path, layers: str) -> None:
    """SigLIP pools with nn.MultiheadAttention, which has a second way to compute where nothing needs a gradient."""
    values = {"kind": "lora", "parts": ["vision"], "layers": layers}
    adapted = adapted_of(tiny_siglip_folder, values)
    inputs = inputs_of(adapted.backbone)
    set_modes(adapted)
    pooling = [module for module in adapted.model.modules() if isinstance(module, torch.nn.MultiheadAttention)]
    assert pooling and not any(parameter.requires_grad for module in pooling for parameter in module.parameters())
    without = embeddings(adapted.backbone, inputs)
    image = adapted.backbone.family.embed_media(adapted.model, inputs)
    text = adapted.backbone.family.embed_text(adapted.model, inputs)
    assert torch.equal(torch.cat([image, text]).detach(), without)
    image.sum().backward()
    gradients = [value.grad for name, value in adapted.trainable().items() if "lora_A" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients), "it passes them on"
    adapted.model.eval()
    assert torch.equal(embeddings(adapted.backbone, inputs), without), "and no dropout of its own was at work"


# --- heads that are the word embeddings


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3, whose head is its word embeddings."""
    return tiny_folder("chat", tmp_path_factory.mktemp("tied") / "gemma3", model_type="gemma3")


def test_a_head_that_is_the_word_embeddings_is_trained_as_these(tied: Path) -> None:
    adapted = fresh(tied, {"kind": "head_only", "parts": ["text"]})
    words = "model.language_model.embed_tokens.weight"
    assert list(adapted.trainable()) == [words] and adapted.parts[0].num_trainable > 0
    model: Any = adapted.model
    assert model.get_parameter("lm_head.weight") is model.get_parameter(words)
    with torch.no_grad():
        adapted.trainable()[words].add_(1.0)
    assert set(merged_names(adapted)) == {words, "lm_head.weight"}


def test_tokens_of_a_head_with_a_bias_are_refused(tied: Path, tmp_path: Path) -> None:
    """peft computes a head that is the embedding without the head's bias; Gemma's has none."""
    spoken = tiny_folder("blip", tmp_path / "blip", architecture="BlipForConditionalGeneration")
    with pytest.raises(RecipeError, match="cls.predictions.decoder has the embedding's weight and a bias, which peft"):
        fresh(spoken, {"kind": "trainable_tokens", "tokens": [5, 6]})
    words = fresh(tied, {"kind": "trainable_tokens", "tokens": [5, 6]})
    head: Any = words.model.get_submodule("lm_head")
    states = torch.randn(3, head.base_layer.in_features)
    assert torch.equal(head(states), head.base_layer(states)), "untrained, it is the head as it was"


def test_what_both_parts_hold_is_trained_once(tied: Path) -> None:
    adapted = fresh(tied, {"kind": "full", "parts": ["vision", "connector", "text"]})
    wanted = {name for name, value in adapted.model.named_parameters() if value.requires_grad}
    assert wanted == set(adapted.trainable()) and sum(row.num_trainable for row in adapted.parts) == sum(
        value.numel() for value in adapted.trainable().values()
    )


def test_a_part_with_nothing_to_train_is_refused(tied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(tied)
    idle = replace(backbone.traits, idle=(r"lm_head", r"model\.language_model\.embed_tokens"))
    monkeypatch.setattr(type(backbone.description), "traits", idle)
    with pytest.raises(RecipeError, match="there is nothing to train in lm_head of part 'text'"):
        attach(backbone, section(kind="head_only", parts=["text"]))
    assert not any(value.requires_grad for value in backbone.model.parameters())
