"""An adapter folded into the weights it was trained beside."""

from typing import TYPE_CHECKING

from mmtune.adapters._adapted import Adapted
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn


def merge_into(adapted: Adapted, *, scale: float = 1.0) -> "nn.Module":
    """Fold the adapter into the model and give the plain model back; the ``Adapted`` is used up.

    Formula: every tensor becomes base + scale (merged - base), log temperature included; scale 1 is the merged
    tensor itself, bit for bit.

    Raises:
        BackboneError: the model still has quantized layers (load it with ``dequantize=True``).
    """
    import torch

    model = adapted.model
    quantized = [name for name, value in model.named_parameters() if not value.is_floating_point()]
    if quantized:
        raise BackboneError(f"cannot merge into quantized weights ({quantized[0]}, ...): dequantize the backbone first")
    with torch.no_grad():
        base = {} if scale == 1.0 else {**_peft_bases(adapted), **adapted.start}
        if adapted.peft_model is not None:
            merged = adapted.peft_model.merge_and_unload()
            assert merged is model, "peft gave back another model"
        tensors = {**model.state_dict(keep_vars=True), **dict(model.named_parameters())}
        for name, value in tensors.items():
            if name in base:
                start = base[name].to(value.device)
                value.data.copy_(start + scale * (value.data - start))
    return model.eval().requires_grad_(False)


def merged_names(adapted: Adapted) -> list[str]:
    """Names, in the plain model's state, of the tensors that merging changes: ask before ``merge_into``.

    A temperature that transformers' class has no tensor for is not among them; it goes into the config. A tensor that
    the model holds twice (a head tied to the word embeddings) has both of its names.
    """
    state = adapted.model.state_dict()
    held = {state[name].data_ptr() for name in adapted.start if name in state and state[name].numel()}
    return [*_peft_bases(adapted, copies=False), *(name for name, value in state.items() if value.data_ptr() in held)]


def _peft_bases(adapted: Adapted, *, copies: bool = True) -> "dict[str, Tensor]":
    """The tensors that peft folds into, under the plain model's names: weights, and biases where peft trained them."""
    kept = {}
    for name, value in adapted.model.state_dict().items():
        plain = name.replace(".token_adapter.base_layer.", ".")  # an embedding that another method trains rows of
        plain = plain.replace(".base_layer.", ".").replace(".original_module.", ".")
        if plain != name and not (plain.endswith(".bias") and not _trains_bias(adapted) and ".base_layer." in name):
            kept[plain] = value.detach().clone() if copies else value
    return kept


def _trains_bias(adapted: Adapted) -> bool:
    """Added to by the method, or, in adapters made elsewhere, trained in place (peft's ``bias``)."""
    return any(
        getattr(config, "lora_bias", False)
        or getattr(config, "bias", "none") != "none"
        or config.peft_type in ("IA3", "ROAD")
        for config in adapted.peft_model.peft_config.values()
    )
