"""Layers that stand-ins are made for, and the reason for everything else."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, adapted_of, backbone_of, disturb, samples, section

from mmtune.adapters import Adapted, attach
from mmtune.backbones import Backbone, Section, load, tiny_folder
from mmtune.backbones._tiny_encoders import tiny_pair
from mmtune.fused_layers import FusedLayer, fused_layers, pooled_places, reading_at, why_not_fused
from mmtune.merge_proof import encode_samples
from mmtune.trunk_cuts import standing_in

EXACT = 1e-10
"""Largest difference in float64, as a share of the largest gradient: the same sums in another order."""


def layers_of(backbone: Backbone, part: str = "vision") -> Any:
    """The list of layers of a part."""
    return backbone.model.get_submodule(backbone.traits.layers[part])


def lora_of(adapted: Adapted) -> dict[str, Any]:
    """The trained weights of LoRA."""
    return {name: value for name, value in adapted.trainable().items() if "lora_" in name}


def through(layers: Any, states: torch.Tensor, parameters: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What layers make of states, and the gradients of a sum over the first place of it."""
    for parameter in parameters.values():
        parameter.grad = None
    torch.manual_seed(0)
    for layer in layers:
        states = layer(states, attention_mask=None)
    (states[:, 0] ** 2).sum().backward()
    return {"": states[:, 0].detach(), **{name: one.grad for name, one in parameters.items() if one.grad is not None}}


PAIRED = ("vit", "deit", "dinov2", "dinov2_with_registers", "clip_vision_model")
OTHERS = ("chinese_clip", "blip", "siglip2", *PAIRED)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapted]:
    """Backbones whose image tower is adapted, by family or model type, in float64."""

    @functools.cache
    def adapted(name: str) -> Adapted:
        folder = tmp_path_factory.mktemp("others") / name
        if name in PAIRED:
            backbone = load(Section(**tiny_pair(name, "bert", folder)))
        else:
            family = "siglip" if name == "siglip2" else name
            backbone = load(Section(id=str(tiny_folder(family, folder, model_type=name))))
        made = disturb(attach(backbone, section(**{**LORA, "parts": ["vision"], "dropout": 0.3})))
        made.model.double()
        return made

    return adapted


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("read", [None, 0])
@pytest.mark.parametrize("name", OTHERS)
def test_vision_layers_of_other_families(
    others: Callable[[str], Adapted], name: str, read: int | None, training: bool
) -> None:
    """In training with the masks of LoRA's dropout."""
    adapted = others(name)
    adapted.model.train(training)
    backbone, parameters = adapted.backbone, lora_of(adapted)
    fused = fused_layers(backbone, "vision", 0)
    assert fused, why_not_fused(backbone, "vision", 0)
    assert list(fused) == [f"{backbone.traits.layers['vision']}.{n}" for n in range(len(layers_of(backbone)))]
    width = next(value.shape[1] for name, value in parameters.items() if "lora_A" in name)
    states = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stock = through(layers_of(backbone), states, parameters)
    with reading_at(fused, read):
        new = through(fused.values(), states, parameters)
    assert len(stock) > 4 and stock.keys() == new.keys()
    largest = max(float(value.abs().max()) for value in stock.values())
    assert max(float((stock[name] - new[name]).abs().max()) for name in stock) < EXACT * largest


@pytest.mark.parametrize("name", OTHERS)
def test_embeddings_are_read_where_the_places_say(others: Callable[[str], Adapted], name: str) -> None:
    """States that are not read are zeros, so an embedding that read them would be another."""
    backbone = others(name).backbone
    backbone.model.eval()
    inputs = encode_samples(backbone, samples(2))
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    fused = fused_layers(backbone, "vision", 0)
    read = pooled_places(backbone.model, backbone.traits, "vision", inputs)
    assert (read is None) == name.startswith("siglip")
    with torch.no_grad():
        stock = backbone.family.embed_media(backbone.model, inputs)
        with standing_in(backbone.model, fused), reading_at(fused, read):
            assert torch.allclose(stock, backbone.family.embed_media(backbone.model, inputs), atol=EXACT)


def trained_norm(backbone: Backbone) -> None:
    layers_of(backbone)[1].layer_norm2.weight.requires_grad_(True)


def trained_weight(backbone: Backbone) -> None:
    layers_of(backbone)[0].mlp.fc1.weight.requires_grad_(True)


def hooked(backbone: Backbone) -> None:
    layers_of(backbone)[0].self_attn.q_proj.register_forward_hook(lambda *_: None)


def eager(backbone: Backbone) -> None:
    backbone.model.set_attn_implementation("eager")  # type: ignore[operator]


def attention_dropout(backbone: Backbone) -> None:
    layers_of(backbone)[1].self_attn.dropout = 0.1


def activation(backbone: Backbone) -> None:
    layers_of(backbone)[0].mlp.activation_fn = torch.nn.PReLU()


def checkpointing(backbone: Backbone) -> None:
    backbone.model.activation_checkpointing_enable()  # type: ignore[operator]


def subclass(backbone: Backbone) -> None:
    layers = layers_of(backbone)
    layers[0].__class__ = type("Other", (type(layers[0]),), {})


def another_linear(backbone: Backbone) -> None:
    class Linear4bit(torch.nn.Linear):
        pass

    layers_of(backbone)[0].mlp.fc2.__class__ = Linear4bit


def another_forward(backbone: Backbone) -> None:
    attention = layers_of(backbone)[1].self_attn
    attention.forward = attention.forward


def another_encoder(backbone: Backbone) -> None:
    encoder = backbone.model.get_submodule("vision_model.encoder")
    encoder.__class__ = type("Other", (type(encoder),), {})


def second_adapter(backbone: Backbone) -> None:
    layer = layers_of(backbone)[0].self_attn.q_proj
    layer.lora_A["b"], layer.lora_B["b"] = layer.lora_A["default"], layer.lora_B["default"]
    layer.set_adapter(["default", "b"])


REFUSED: dict[str, tuple[Callable[[Backbone], None], str]] = {
    "a trained norm": (trained_norm, "2 of 2 layers: layer_norm2: the norm is trained"),
    "a trained weight": (trained_weight, "mlp.fc1: its own weights are trained"),
    "a hook": (hooked, "hooks on self_attn.q_proj"),
    "eager attention": (eager, "attention is computed by eager"),
    "dropout in attention": (attention_dropout, "2 of 2 layers: attention has dropout"),
    "an activation": (activation, "the activation PReLU is not known"),
    "checkpointing": (checkpointing, "activation_checkpointing"),
    "several classes": (subclass, "several classes"),
    "another linear layer": (another_linear, "neither nn.Linear nor peft's LoRA layer"),
    "a forward of its own": (another_forward, "hooks on self_attn"),
    "another encoder": (another_encoder, "called by"),
    "a second adapter": (second_adapter, "2 active adapters"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_has_no_stand_in_and_a_reason(tiny_clip_folder: Path, what: str) -> None:
    backbone = adapted_of(tiny_clip_folder, {**LORA, "targets": ["q_proj"]}).backbone
    assert why_not_fused(backbone, "vision", 0) is None
    change, reason = REFUSED[what]
    change(backbone)
    assert reason in (why_not_fused(backbone, "vision", 0) or "")
    assert fused_layers(backbone, "vision", 0) == {}


def test_a_class_that_computes_another_formula(tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(tiny_clip_folder)
    attention = type(layers_of(backbone)[0].self_attn)
    stock = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **given: (stock(*args, **given)[0] * 1.01, None))
    assert "1 of 2 layers: it computes something else than is known" in (why_not_fused(backbone, "vision", 0) or "")
    assert fused_layers(backbone, "vision", 0) == {}


def test_dora_and_parts_and_layers_that_are_not_there(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, {**LORA, "use_dora": True}).backbone
    assert "DoRA" in (why_not_fused(backbone, "text", 0) or "")
    assert "no list of layers in part 'qformer'" in (why_not_fused(backbone, "qformer", 0) or "")
    assert "no layer from there up" in (why_not_fused(backbone, "text", 2) or "")


def test_a_class_that_is_not_listed(tmp_path: Path) -> None:
    backbone = backbone_of(tiny_folder("chinese_clip", tmp_path / "chinese_clip"))
    assert "ChineseCLIPTextLayer is no layer that is known" in (why_not_fused(backbone, "text", 0) or "")


def test_trying_the_layers_draws_nothing_from_the_random_numbers_of_a_run(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, {**LORA, "dropout": 0.5}).backbone
    backbone.model.train()
    before = torch.get_rng_state()
    assert fused_layers(backbone, "vision", 0)
    assert torch.equal(before, torch.get_rng_state())


def test_places_that_are_read(tiny_clip_folder: Path, tiny_siglip_folder: Path) -> None:
    clip, siglip = (backbone_of(folder) for folder in (tiny_clip_folder, tiny_siglip_folder))
    end = clip.model.text_model.eos_token_id  # type: ignore[union-attr]
    ids = torch.tensor([[1, 7, end, end], [1, 2, 3, end]])

    def places(backbone: Backbone, part: str, **batch: torch.Tensor) -> Any:
        return pooled_places(backbone.model, backbone.traits, part, batch)

    assert places(clip, "vision") == 0
    assert places(clip, "text", input_ids=ids).tolist() == [2, 3]
    assert places(clip, "text") is None
    clip.model.text_model.eos_token_id = 2  # type: ignore[union-attr]
    assert places(clip, "text", input_ids=torch.tensor([[1, 9, 7]])).tolist() == [1]
    assert places(siglip, "text", input_ids=ids) == 3
    assert places(siglip, "vision") is None


def test_what_was_told_is_forgotten(tiny_clip_folder: Path) -> None:
    fused = fused_layers(backbone_of(tiny_clip_folder), "vision", 0)
    layer = next(iter(fused.values()))
    assert isinstance(layer, FusedLayer)
    with pytest.raises(KeyError), reading_at(fused, 0):
        assert layer.chain.told == 0
        raise KeyError
    assert layer.chain.told is None
