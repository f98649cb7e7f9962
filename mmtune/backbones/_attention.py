"""Which implementation of attention computes: transformers' choice where a recipe says nothing."""

from typing import Any

from mmtune.backbones._family import Section
from mmtune.ground.errors import BackboneError


def attention_options(section: Section, device: str) -> dict[str, Any]:
    """What ``from_pretrained`` is given for ``backbone.attention``.

    Raises:
        BackboneError: flash attention without its package, on a CPU, or with float32 weights.
    """
    if section.attention is None:
        return {}
    if section.attention == "flash_attention_2":
        _check_flash(section, device)
    return {"attn_implementation": section.attention}


def _check_flash(section: Section, device: str) -> None:
    from importlib.util import find_spec

    lacking = []
    if find_spec("flash_attn") is None:
        lacking.append("the package flash-attn (pip install flash-attn --no-build-isolation)")
    if device == "cpu":
        lacking.append("an NVIDIA GPU, and this runs on the CPU")
    if section.dtype == "float32":
        lacking.append("backbone.dtype bfloat16 or float16, and it is float32")
    if lacking:
        raise BackboneError(
            f"backbone.attention: flash_attention_2 needs {'; '.join(lacking)}. Write sdpa, torch's own, which is "
            "about as fast and needs nothing"
        )
