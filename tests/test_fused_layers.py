"""Stand-ins for transformer layers compute what the layers with peft's LoRA compute."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import LORA, adapted_of, inputs_of, loss_of

from mmtune import row_attention
from mmtune.adapters import Adapted
from mmtune.backbones import Backbone
from mmtune.fused_layers import FusedLayer, fused_layers, pooled_places, reading_at, why_not_fused
from mmtune.trunk_cuts import standing_in

BOTH = ("vision", "text")
EXACT = 1e-10
"""Largest difference in float64, as a share of the largest gradient: the same sums in another order."""
SINGLE = 1e-6
"""The same in float32."""
HALF = 3e-2
"""The same in bfloat16, whose numbers have 8 bits: a few roundings."""

TARGETS = {
    "q, v": ["q_proj", "v_proj"],
    "attention": ["attention"],
    "mlp": ["mlp"],
    "all": ["attention", "mlp"],
}


@contextmanager
def fused(backbone: Backbone, inputs: Any, *, read: bool, first: int = 0) -> Iterator[dict[str, dict[str, FusedLayer]]]:
    """The stand-ins of both towers in place, and told what is read where that is asked for."""
    chains = {part: fused_layers(backbone, part, first) for part in BOTH}
    assert all(chains.values()), [why_not_fused(backbone, part, first) for part in BOTH]
    with ExitStack() as stack:
        for part, layers in chains.items():
            stack.enter_context(standing_in(backbone.model, layers))
            stack.enter_context(
                reading_at(layers, pooled_places(backbone.model, backbone.traits, part, inputs) if read else None)
            )
        yield chains


def in_format(adapted: Adapted, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The model and the samples in a number format."""
    adapted.model.to(dtype)
    inputs = inputs_of(adapted.backbone)
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


def gradients(parameters: dict[str, Any], loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of every trained parameter, and the loss."""
    for parameter in parameters.values():
        parameter.grad = None
    value = loss()
    value.backward()
    return {"loss": value.detach(), **{name: one.grad for name, one in parameters.items() if one.grad is not None}}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference as a share of the largest gradient."""
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for name, value in one.items() if name != "loss")
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


def compared(adapted: Adapted, dtype: torch.dtype, *, read: bool, first: int = 0) -> float:
    """How far the gradients through the stand-ins are from those through the stock layers."""
    inputs, backbone = in_format(adapted, dtype), adapted.backbone
    parameters = dict(adapted.trainable())
    torch.manual_seed(0)
    stock = gradients(parameters, lambda: loss_of(backbone, inputs))
    assert any("lora_A" in name and value.abs().max() > 0 for name, value in stock.items())
    with fused(backbone, inputs, read=read, first=first):
        torch.manual_seed(0)
        return apart(stock, gradients(parameters, lambda: loss_of(backbone, inputs)))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("read", [False, True])
def test_losses_and_gradients_are_those_of_the_stock_layers(tiny_clip_folder: Path, targets: str, read: bool) -> None:
    adapted = adapted_of(tiny_clip_folder, {**LORA, "targets": TARGETS[targets]})
    assert compared(adapted, torch.float32, read=read) < SINGLE
    assert compared(adapted, torch.float64, read=read) < EXACT


@pytest.mark.parametrize("read", [False, True])
def test_the_layers_above_a_cut_alone(tiny_clip_folder: Path, read: bool) -> None:
    adapted = adapted_of(tiny_clip_folder, {**LORA, "layers": "last 1", "use_rslora": True})
    assert compared(adapted, torch.float64, read=read, first=1) < EXACT


def test_another_scaling_is_seen(tiny_clip_folder: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA)
    inputs, parameters = in_format(adapted, torch.float64), dict(adapted.trainable())
    stock = gradients(parameters, lambda: loss_of(adapted.backbone, inputs))
    with fused(adapted.backbone, inputs, read=True):
        scaled = adapted.model.vision_model.encoder.layers[0].held[0].self_attn.q_proj.scaling
        scaled["default"] *= 1.1
        assert apart(stock, gradients(parameters, lambda: loss_of(adapted.backbone, inputs))) > 1e-4


@pytest.mark.parametrize("read", [False, True])
def test_siglip_too(tiny_siglip_folder: Path, read: bool) -> None:
    adapted = adapted_of(tiny_siglip_folder, LORA)
    assert compared(adapted, torch.float64, read=read) < EXACT


def test_texts_read_at_another_place_are_others(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, LORA).backbone
    inputs = inputs_of(backbone)
    with torch.no_grad(), fused(backbone, inputs, read=True) as chains:
        right = backbone.family.embed_text(backbone.model, inputs)
        with reading_at(chains["text"], inputs["attention_mask"].sum(1) - 2):
            assert (right - backbone.family.embed_text(backbone.model, inputs)).abs().max() > 0.01


def test_packed_texts_where_attention_is_computed_with_padding(
    tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    monkeypatch.setattr(row_attention, "TEXT_BY_TEXT", frozenset())
    assert compared(adapted_of(tiny_clip_folder, LORA), torch.float64, read=True) < EXACT


def test_ragged_texts_are_packed_and_others_are_not(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, LORA).backbone
    inputs = inputs_of(backbone)
    whole = {"input_ids": inputs["input_ids"][:1], "attention_mask": inputs["attention_mask"][:1]}
    whole = {key: value[:, : int(inputs["attention_mask"][0].sum())] for key, value in whole.items()}
    with fused(backbone, inputs, read=True) as chains, torch.no_grad():
        backbone.family.embed_text(backbone.model, inputs)
        chain = next(iter(chains["text"].values())).chain
        assert chain.rows.packed is not None
        assert len(chain.rows.packed) == int(inputs["attention_mask"].sum()) < inputs["input_ids"].numel()
        with reading_at(chains["text"], pooled_places(backbone.model, backbone.traits, "text", whole)):
            backbone.family.embed_text(backbone.model, whole)
        assert chain.rows.packed is None


def test_texts_with_padding_on_the_left_are_not_packed(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, LORA).backbone
    ids = inputs_of(backbone)["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][0, :2] = 0
    with torch.no_grad():
        stock = backbone.family.embed_text(backbone.model, inputs)
        with fused(backbone, inputs, read=True) as chains:
            assert torch.allclose(stock, backbone.family.embed_text(backbone.model, inputs), atol=1e-5)
            assert next(iter(chains["text"].values())).chain.rows.packed is None


def test_states_that_are_not_read_are_zeros_only_where_places_were_told(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, LORA).backbone
    inputs = inputs_of(backbone)
    for read in (False, True):
        with fused(backbone, inputs, read=read), torch.no_grad():
            states = backbone.model.vision_model(inputs["pixel_values"]).last_hidden_state
            assert bool((states[:, 1:] == 0).all()) is read
            assert states[:, 0].abs().min() > 0


@pytest.mark.parametrize("read", [False, True])
def test_dropout_draws_the_same_masks(tiny_clip_folder: Path, read: bool) -> None:
    """Also where only some of the rows are computed: packed texts, and places that are read."""
    adapted = adapted_of(tiny_clip_folder, {**LORA, "dropout": 0.4})
    adapted.model.train()
    inputs = in_format(adapted, torch.float64)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(loss_of(adapted.backbone, inputs).item())
    assert drawn[0] != drawn[1]
    assert compared(adapted, torch.float64, read=read) < EXACT
    adapted.model.eval()
    assert compared(adapted, torch.float64, read=read) < EXACT


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_under_autocast(tiny_clip_folder: Path, dropout: float) -> None:
    adapted = adapted_of(tiny_clip_folder, {**LORA, "dropout": dropout})
    adapted.model.train()
    inputs, parameters = in_format(adapted, torch.float32), dict(adapted.trainable())

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(adapted.backbone, inputs)

    stock = gradients(parameters, loss)
    with fused(adapted.backbone, inputs, read=True):
        half = gradients(parameters, loss)
    assert SINGLE < apart(stock, half) < HALF
    assert all(value.dtype == torch.float32 for value in half.values())


def test_a_backward_pass_inside_autocast(tiny_clip_folder: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA)
    inputs, parameters = in_format(adapted, torch.float32), dict(adapted.trainable())
    with fused(adapted.backbone, inputs, read=True):
        outside = gradients(parameters, lambda: loss_of(adapted.backbone, inputs))
        loss = loss_of(adapted.backbone, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert apart(outside, gradients(parameters, lambda: loss)) < HALF  # what is not ours is cast there


def test_bfloat16_weights_beside_float32_adapters(tiny_clip_folder: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA, dtype="bfloat16")
    inputs, parameters = inputs_of(adapted.backbone), dict(adapted.trainable())
    assert {one.dtype for name, one in parameters.items() if "lora" in name} == {torch.float32}
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    stock = gradients(parameters, lambda: loss_of(adapted.backbone, inputs))
    with fused(adapted.backbone, inputs, read=True):
        assert apart(stock, gradients(parameters, lambda: loss_of(adapted.backbone, inputs))) < HALF


def test_micro_batches_add_up(tiny_clip_folder: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA)
    inputs, parameters = in_format(adapted, torch.float64), dict(adapted.trainable())
    halves = [{key: value[part] for key, value in inputs.items()} for part in (slice(0, 3), slice(3, 6))]

    def loss() -> torch.Tensor:
        return sum((loss_of(adapted.backbone, half) for half in halves), torch.zeros((), dtype=torch.float64))

    stock = gradients(parameters, loss)
    chains = {part: fused_layers(adapted.backbone, part, 0) for part in BOTH}
    with standing_in(adapted.model, {**chains["vision"], **chains["text"]}):
        assert apart(stock, gradients(parameters, loss)) < EXACT


@pytest.mark.parametrize("switched", ["off", "merged"])
def test_switched_off_and_merged_adapters(tiny_clip_folder: Path, switched: str) -> None:
    from peft.tuners.lora import LoraLayer

    adapted = adapted_of(tiny_clip_folder, LORA)
    backbone, inputs = adapted.backbone, in_format(adapted, torch.float64)
    with fused(backbone, inputs, read=True), torch.no_grad():
        trained = backbone.family.embed_text(backbone.model, inputs)
    for module in adapted.model.modules():
        if isinstance(module, LoraLayer) and isinstance(module, torch.nn.Module):
            module.enable_adapters(False) if switched == "off" else module.merge()  # type: ignore[operator]
    with torch.no_grad():
        stock = backbone.family.embed_text(backbone.model, inputs)
        with fused(backbone, inputs, read=True):
            assert torch.allclose(stock, backbone.family.embed_text(backbone.model, inputs), atol=EXACT)
    assert torch.allclose(trained, stock, atol=EXACT) is (switched == "merged")


def test_the_model_is_as_before_and_a_stand_in_holds_no_parameters(tiny_clip_folder: Path) -> None:
    adapted = adapted_of(tiny_clip_folder, LORA)
    inputs = inputs_of(adapted.backbone)
    modules, names = dict(adapted.model.named_modules()), list(adapted.model.state_dict())
    with fused(adapted.backbone, inputs, read=True) as chains:
        loss_of(adapted.backbone, inputs).backward()
    assert dict(adapted.model.named_modules()) == modules
    assert list(adapted.model.state_dict()) == names
    assert not any(list(layer.parameters()) for layers in chains.values() for layer in layers.values())


def test_an_argument_that_is_not_known_is_refused(tiny_clip_folder: Path) -> None:
    backbone = adapted_of(tiny_clip_folder, LORA).backbone
    layer = next(iter(fused_layers(backbone, "vision", 0).values()))
    states = torch.zeros(1, 2, 32)
    layer(states, None, is_causal=None, position_bias=None, output_attentions=False, return_dict=True)
    for unknown in ({"position_bias": torch.zeros(1)}, {"output_attentions": True}):
        with pytest.raises(TypeError, match=next(iter(unknown))):
            layer(states, None, **unknown)
