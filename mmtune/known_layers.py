"""The transformer layers whose computation is known, by the classes of transformers that they are, and where each
keeps its pieces. All are of one form: x + attention(norm(x)), then x + MLP(norm(x)), what is added scaled in some.

A class that is not listed is unknown, however much it looks alike: subclasses may compute anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mmtune.fused_projection import why_not_projection

ACTIVATIONS = frozenset({"QuickGELUActivation", "GELUActivation", "GELUTanh", "SiLUActivation", "GELU", "ReLU"})
"""Activations that work number by number and hold nothing."""


@dataclass(frozen=True)
class LayerShape:
    """Where a layer keeps its pieces, as paths from the layer.

    Attributes:
        encoder: the class that calls the layers one after another.
        inward: the layers that make queries, keys and values; one where they are made together.
        outward: what follows attention.
        up, activation, down: the MLP.
        norms: before attention, before the MLP.
        attention: the module that holds heads, scale and dropout.
        num, scaled, dropped: what they are called there.
        chooses: whether the model's config says what computes attention; else it is the plain formula.
        scales: modules that scale what is added, number by number; none where it is added as it is.
        idle: modules that must do nothing: dropout with a share of 0, or nothing at all.
    """

    encoder: str
    inward: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    outward: str = "self_attn.out_proj"
    up: str = "mlp.fc1"
    activation: str = "mlp.activation_fn"
    down: str = "mlp.fc2"
    norms: tuple[str, str] = ("layer_norm1", "layer_norm2")
    attention: str = "self_attn"
    num: str = "num_heads"
    scaled: str = "scale"
    dropped: str = "dropout"
    chooses: bool = True
    scales: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    @property
    def joint(self) -> bool:
        """Whether one layer makes queries, keys and values."""
        return len(self.inward) == 1

    @property
    def projections(self) -> tuple[str, ...]:
        """All linear layers."""
        return (*self.inward, self.outward, self.up, self.down)

    @property
    def pieces(self) -> tuple[str, ...]:
        """All modules that compute something with the states."""
        return (*self.projections, self.activation, *self.norms, *self.scales)

    def num_heads(self, layer: nn.Module) -> int:
        """Heads of attention."""
        return int(getattr(self._attention(layer), self.num))

    def scale(self, layer: nn.Module) -> float:
        """What the products of queries and keys are multiplied with."""
        return float(getattr(self._attention(layer), self.scaled))

    def is_causal(self, layer: nn.Module) -> bool:
        """Whether attention is causal where the call does not say."""
        return bool(getattr(self._attention(layer), "is_causal", False))

    def dropout(self, layer: nn.Module) -> float:
        """Share of the attention weights that are dropped in training."""
        dropout = getattr(self._attention(layer), self.dropped)
        return float(dropout.p if isinstance(dropout, nn.Dropout) else dropout)

    def _attention(self, layer: nn.Module) -> Any:
        return layer.get_submodule(self.attention)


PLAIN = LayerShape("CLIPEncoder")
VIT = LayerShape(
    "ViTModel",
    inward=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    outward="attention.o_proj",
    attention="attention",
    num="num_attention_heads",
    scaled="scaling",
    dropped="attention_dropout",
    norms=("layernorm_before", "layernorm_after"),
    idle=("dropout",),
)
DINO = replace(
    VIT,
    encoder="Dinov2Encoder",
    norms=("norm1", "norm2"),
    scales=("layer_scale1", "layer_scale2"),
    idle=("drop_path",),
)

SHAPES = {
    "clip.modeling_clip.CLIPEncoderLayer": PLAIN,
    "siglip.modeling_siglip.SiglipEncoderLayer": replace(PLAIN, encoder="SiglipEncoder"),
    "siglip2.modeling_siglip2.Siglip2EncoderLayer": replace(PLAIN, encoder="Siglip2Encoder"),
    "chinese_clip.modeling_chinese_clip.ChineseCLIPVisionLayer": replace(PLAIN, encoder="ChineseCLIPVisionEncoder"),
    "blip.modeling_blip.BlipEncoderLayer": replace(
        PLAIN, encoder="BlipEncoder", inward=("self_attn.qkv",), outward="self_attn.projection", chooses=False
    ),
    "vit.modeling_vit.ViTLayer": VIT,
    "deit.modeling_deit.DeiTLayer": replace(VIT, encoder="DeiTModel"),
    "dinov2.modeling_dinov2.Dinov2Layer": DINO,
    "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersLayer": replace(
        DINO, encoder="Dinov2WithRegistersEncoder"
    ),
}
"""Class of a layer, under ``transformers.models`` -> its pieces."""


def shape_of(layer: nn.Module) -> LayerShape:
    """The pieces of a layer that ``why_not_chain`` has nothing against."""
    return SHAPES[_class_of(layer)]


def why_not_chain(encoder: nn.Module, layers: Sequence[nn.Module]) -> str | None:
    """Why layers that follow each other in an encoder are not known for certain; None: they are."""
    if not layers:
        return "there is no layer from there up"
    if len({type(layer) for layer in layers}) > 1:
        return "the layers are of several classes"
    if _class_of(layers[0]) not in SHAPES:
        return f"{_class_of(layers[0])} is no layer that is known"
    shape = shape_of(layers[0])
    if _class_of(encoder) != f"{_class_of(layers[0]).rpartition('.')[0]}.{shape.encoder}":
        return f"the layers are called by {_class_of(encoder)}, which is not known"
    for place, layer in enumerate(layers):
        if reason := _why_not_layer(layer, shape):
            return f"{place + 1} of {len(layers)} layers: {reason}"
    return None


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("transformers.models.")


def _why_not_layer(layer: nn.Module, shape: LayerShape) -> str | None:
    if hooked := [name or "the layer" for name, module in layer.named_modules() if _has_hooks(module)]:
        return f"hooks on {', '.join(hooked)}"
    if getattr(layer, "gradient_checkpointing", False):
        return "train.activation_checkpointing is on"
    for path in shape.projections:
        if reason := why_not_projection(layer.get_submodule(path)):
            return f"{path}: {reason}"
    for path in shape.norms:
        if reason := _why_not_norm(layer.get_submodule(path)):
            return f"{path}: {reason}"
    if reason := _why_not_beside(layer, shape):
        return reason
    activation = layer.get_submodule(shape.activation)
    if type(activation).__name__ not in ACTIVATIONS:
        return f"the activation {type(activation).__name__} is not known"
    return _why_not_attention(layer, shape)


def _why_not_attention(layer: nn.Module, shape: LayerShape) -> str | None:
    if shape.chooses:
        chosen = layer.get_submodule(shape.attention).config._attn_implementation  # type: ignore[union-attr]
        if chosen != "sdpa":
            return f"attention is computed by {chosen}, not by sdpa"
    if shape.dropout(layer) > 0:
        return "attention has dropout"
    return None


def _why_not_beside(layer: nn.Module, shape: LayerShape) -> str | None:
    for path in shape.scales:
        if any(value.requires_grad for value in layer.get_submodule(path).parameters()):
            return f"{path}: it is trained"
    for path in shape.idle:
        module = layer.get_submodule(path)
        if type(module) is not nn.Identity and (type(module) is not nn.Dropout or module.p > 0):
            return f"{path}: it drops something in training"
    return None


def _why_not_norm(norm: nn.Module) -> str | None:
    if type(norm) is not nn.LayerNorm:
        return f"a {type(norm).__name__}, not a LayerNorm"
    own = [value for value in (norm.weight, norm.bias) if value is not None]
    if any(value.requires_grad for value in own):
        return "the norm is trained"
    if any(type(value.data) is not Tensor for value in own):
        return "its weights are no plain tensors"
    return None


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds) or "forward" in vars(module)
