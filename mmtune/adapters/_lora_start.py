"""LoRA that starts in the weights themselves (PiSSA, OLoRA) and still leaves the backbone untouched.

Formula: the published methods split a weight W into s B0 A0 and the rest, hold the rest frozen and train B, A from
B0, A0. Here W stays, and a second, frozen adapter ``initial`` holds A0 and -B0 beside the trained one:
W x + s B A x - s B0 A0 x is the same layer. Saved as one plain LoRA of twice the rank, [A; A0] and [B, -B0].
A is float[rank, in], B float[out, rank].
Source: PiSSA arXiv:2404.02948, section 3; OLoRA arXiv:2406.01775, section 3; fast SVD: Halko et al., arXiv:0909.4061.
"""

import re
from typing import TYPE_CHECKING, Any

from mmtune.ground.errors import RecipeError
from mmtune.ground.process_group import broadcast_object
from mmtune.ground.seeding import seed_for

if TYPE_CHECKING:
    from torch import Tensor, nn

INITIAL = "initial"
"""peft's name for the frozen adapter."""

JOINED_AT = {"lora_A": 0, "lora_B": 1}
"""Dimension in which the two adapters' factors are joined: their ranks."""


def starts_in_weights(init: str) -> bool:
    """Whether a start takes directions out of the weights."""
    return init == "olora" or init.startswith("pissa")


def refuse_rank_beyond_layers(model: "nn.Module", targets: dict[str, list[str]], ranks: dict[str, int]) -> None:
    """See that every chosen layer has as many directions as its rank asks for.

    Raises:
        RecipeError: one has fewer.
    """
    for part, names in targets.items():
        for name in names:
            layer: Any = model.get_submodule(name)
            most = min(layer.in_features, layer.out_features)
            if ranks[part] > most:
                raise RecipeError(
                    f"adapter.rank: {ranks[part]} is more than the {most} directions that {name} has to start from; "
                    f"write at most {most}, or init: default"
                )


def add_initial(peft_model: Any) -> None:
    """Add the frozen adapter that takes the start out again; both are active then."""
    import copy

    import torch

    config = copy.copy(peft_model.peft_config["default"])
    config.lora_dropout, config.init_lora_weights = 0.0, True
    with torch.random.fork_rng(devices=[]):
        peft_model.add_adapter(INITIAL, config)
    peft_model.base_model.set_adapter(["default", INITIAL])


def fill_from_weights(peft_model: Any, targets: dict[str, list[str]], init: str, seed: int) -> None:
    """Set both adapters' factors in the chosen layers to their start.

    Every rank takes the main rank's factors: the signs of a decomposition may differ between machines.
    """
    import torch

    model = peft_model.base_model.model
    layers = {name: model.get_submodule(name) for names in targets.values() for name in names}
    found = {name: _decompose(layer, init, seed_for(seed, "adapter", name)) for name, layer in layers.items()}
    found = broadcast_object(found)
    with torch.no_grad():
        for name, (a, b) in found.items():
            for adapter, sign in (("default", 1.0), (INITIAL, -1.0)):
                layers[name].lora_A[adapter].weight.copy_(a)
                layers[name].lora_B[adapter].weight.copy_(sign * b)


def _decompose(layer: Any, init: str, seed: int) -> "tuple[Tensor, Tensor]":
    """A0 float32[rank, in] and B0 float32[out, rank], on the CPU; quantized weights are dequantized for it."""
    import torch

    from mmtune.backbones._quantization import is_quantized, layer_values

    rank, scale = layer.r["default"], layer.scaling["default"]
    base = layer.get_base_layer()  # peft's own dequantizing leaves an 8-bit layer that cannot run
    weight = (layer_values(base) if is_quantized(base) else base.weight).detach().float()
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank].cpu(), q[:, :rank].cpu()
    iterations = re.fullmatch(r"pissa_niter_(\d+)", init)
    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            torch.manual_seed(seed)
            left, values, right = torch.svd_lowrank(weight, rank, niter=int(iterations[1]))
            right = right.T
    root = (values / scale).sqrt()
    return (root[:, None] * right).cpu(), (left * root).cpu()


def has_initial(peft_model: Any) -> bool:
    """Whether a peft model holds the frozen adapter."""
    return INITIAL in peft_model.peft_config


def as_plain_lora(config: Any) -> Any:
    """The config of the two adapters as one plain LoRA of the untouched backbone: twice the rank, the same scale."""
    import copy

    plain = copy.copy(config)
    wider = 2**0.5 if config.use_rslora else 2  # alpha / sqrt(2 r) or alpha / (2 r) must stay what it was
    plain.r, plain.rank_pattern = 2 * config.r, {name: 2 * rank for name, rank in config.rank_pattern.items()}
    plain.lora_alpha = wider * config.lora_alpha
    plain.alpha_pattern = {name: wider * alpha for name, alpha in config.alpha_pattern.items()}
    plain.init_lora_weights = True
    return plain
