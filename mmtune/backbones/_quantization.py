"""4-bit and 8-bit towers through bitsandbytes; heads, embeddings, norms and temperature stay as they are.

Source: Dettmers et al. 2023 (nf4), https://arxiv.org/abs/2305.14314; Dettmers et al. 2022 (LLM.int8),
https://arxiv.org/abs/2208.07339.
"""

import copy
from typing import TYPE_CHECKING, Any

from mmtune.backbones._family import Family, Section
from mmtune.ground.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_options(section: Section, family: Family, dtype: "torch.dtype", device: str) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` needs to quantize while it loads; ``dtype`` is that of all the rest.

    The list of modules to skip replaces transformers' own, so it names everything that the family keeps.

    Raises:
        BackboneError: bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise BackboneError("backbone.quantize needs bitsandbytes: pip install bitsandbytes")
    kept = list(family.full_precision)
    if section.quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=section.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, section.compute_dtype) if section.compute_dtype else dtype,
            llm_int8_skip_modules=kept,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return {"quantization_config": config, "device_map": {"": device}}


def quantized_names(model: "nn.Module") -> list[str]:
    """The names of the layers that are held in 4 or 8 bit."""
    return [name for name, module in model.named_modules() if is_quantized(module)]


def to_quantize(model: "nn.Module", family: Family) -> list[str]:
    """The names of the linear layers, quantized or not yet, that the family does not keep in full precision."""
    import torch

    linear = (name for name, it in model.named_modules() if type(it) is torch.nn.Linear or is_quantized(it))
    return [name for name in linear if not _is_kept(name, family)]


def keep_packing(model: "nn.Module") -> None:
    """Hold 4-bit weights as they were packed on loading.

    On a CPU that has avx512_bf16 bitsandbytes repacks them at the first forward in eval mode, in place, with the
    blocks' scales rounded to bfloat16, and from then on computes in bfloat16: the model would no longer be the one
    that was trained and dequantized, and rows that are no multiple of the block length fail.
    """
    for name in quantized_names(model):
        layer: Any = model.get_submodule(name)
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check(model: "nn.Module", family: Family) -> None:
    """See that exactly the linear layers outside ``family.full_precision`` were quantized.

    Raises:
        BackboneError: one was left out, or one was quantized that should not be.
    """
    wanted = set(to_quantize(model, family))
    found = set(quantized_names(model))
    problems = [f"{name} was not quantized" for name in sorted(wanted - found)]
    problems += [f"{name} was quantized, but the family keeps it" for name in sorted(found - wanted)]
    if problems or not found:
        raise BackboneError(
            f"quantizing family {family.name!r} went wrong: " + "; ".join(problems or ["no layer was quantized"])
        )


def dequantize(model: "nn.Module") -> None:
    """Turn quantized layers back, in place, into ``nn.Linear`` that hold exactly the quantized values, in float32.

    What was not quantized is cast to float32 too (exact from half precision), and the model is an ordinary one again.
    """
    for name in quantized_names(model):
        model.set_submodule(name, _plain(model.get_submodule(name)))
    _forget_quantization(model)
    model.float()
    _compute_again(model)


def _compute_again(model: Any) -> None:
    """Give buffers that no file holds the values they have in a float32 model: Gemma's scale of its words was rounded
    to the number format that the model was loaded in.
    """
    from accelerate import init_empty_weights

    saved = set(model.state_dict())
    unsaved = {
        name: values for name, values in model.named_buffers() if name not in saved and values.is_floating_point()
    }
    if not unsaved:
        return
    config = copy.deepcopy(model.config)
    for each in (config, *(getattr(config, name) for name in config.sub_configs)):
        if each is not None:
            each.dtype = "float32"
    with init_empty_weights(include_buffers=False):
        exact = dict(type(model)(config).named_buffers())
    for name, values in unsaved.items():
        if name in exact and exact[name].shape == values.shape:
            values.copy_(exact[name])


def _plain(layer: Any) -> "nn.Linear":
    import torch

    weight, bias = layer_values(layer), layer.bias
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(torch.float32), requires_grad=False)
    if bias is not None:
        plain.bias = torch.nn.Parameter(bias.data.to(torch.float32), requires_grad=False)
    return plain.train(layer.training)


def layer_values(layer: Any) -> "torch.Tensor":
    """The values that a quantized layer stands for, float[out, in].

    Source: bitsandbytes ``dequantize_4bit``; int8 with one scale per row, value = int8 x row maximum / 127.
    """
    import bitsandbytes as bnb
    import torch

    if isinstance(layer, bnb.nn.Linear4bit):
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32  # else the values come rounded to the backbone's dtype
        values: torch.Tensor = bnb.functional.dequantize_4bit(layer.weight.data, state)
        return values
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.to(torch.float32) * (scale.to(torch.float32).view(-1, 1) / 127)


def is_quantized(module: "nn.Module") -> bool:
    """Whether a layer is held in 4 or 8 bit."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _is_kept(name: str, family: Family) -> bool:
    return any(name == kept or name.startswith(kept + ".") for kept in family.full_precision)


def _forget_quantization(model: Any) -> None:
    """Remove what transformers notes on a quantized model, so that it saves and trains as an ordinary one."""
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_device_map"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
