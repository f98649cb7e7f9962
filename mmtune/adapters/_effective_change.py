"""How far a layer that peft wrapped has moved, for every method alike: what it computes, not what its tensors are."""

import copy
import importlib
from typing import TYPE_CHECKING, Any

from mmtune.backbones._quantization import is_quantized, layer_values

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_PROBES = 64
"""Inputs beyond which a layer is measured in drawn directions: the norm is then known to some per cent, and a change
from none exactly, for a small part of the time."""


def effective_change(layer: "nn.Module", name: str, start: "dict[str, Tensor]") -> tuple[float, float]:
    """Frobenius norms of the change of a linear layer's effective weight and bias, and of its own weight.

    A copy of the layer on the CPU, in eval mode and float64, over the base weights (dequantized), is given the same
    inputs twice, with the trained tensors as they are and as they were: half precision and rounding would hide the
    small changes of the first steps.

    Args:
        layer: as peft wrapped it, anywhere.
        name: of the layer in the model.
        start: name in the model -> value of every trained tensor before training.
    """
    import torch

    with torch.no_grad():
        twin, weight = _float64_twin(layer)
        now = _matrix(twin, weight.shape[1])
        own = dict(twin.named_parameters())
        for key, value in start.items():
            if key.startswith(f"{name}."):
                own[key.removeprefix(f"{name}.")].copy_(value)
        return float((now - _matrix(twin, weight.shape[1])).norm()), float(weight.norm())


def _float64_twin(layer: Any) -> "tuple[nn.Module, Tensor]":
    import torch

    base = layer.get_base_layer()
    weight = plain_weight(layer).to("cpu", torch.float64)
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=base.bias is not None, dtype=torch.float64)
    plain.weight.copy_(weight)
    if base.bias is not None:
        plain.bias.copy_(base.bias)
    twin: Any = copy.deepcopy(layer, {id(base): plain}).to("cpu", torch.float64).eval()
    _forget_quantization(twin)
    return twin, weight


def plain_weight(layer: Any) -> "Tensor":
    """The values of the weight below what peft added, float[out, in].

    peft's own ``dequantize_module_weight`` takes the scales away from an 8-bit layer on the CPU.
    """
    base = layer.get_base_layer()
    weight: Tensor = layer_values(base) if is_quantized(base) else base.weight
    return weight.detach()


def _forget_quantization(twin: Any) -> None:
    """A copy that stands over plain weights now: peft has other classes, or another path, for quantized ones."""
    if hasattr(twin, "quantization_backend"):
        twin.quantization_backend = None
    module = type(twin).__module__
    if module.endswith(".bnb"):
        twin.__class__ = importlib.import_module(module.removesuffix("bnb") + "layer").Linear
        twin.fan_in_fan_out = False


def _matrix(layer: "nn.Module", inputs: int) -> "Tensor":
    """What the layer makes of zero and of every probe: float64[1 + probes, out].

    The probes are the unit vectors, of a wide layer normal directions instead: the squared norm of what a linear map
    makes of them is, on average, that of its matrix.
    """
    import torch

    probes = torch.eye(inputs, dtype=torch.float64)
    if inputs > NUM_PROBES:
        drawn = torch.Generator().manual_seed(0)
        probes = torch.randn(NUM_PROBES, inputs, dtype=torch.float64, generator=drawn) / NUM_PROBES**0.5
    outputs: Tensor = layer(torch.cat([torch.zeros(1, inputs, dtype=torch.float64), probes])).double()
    outputs[1:] -= outputs[0].clone()
    return outputs
