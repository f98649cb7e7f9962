"""A way to look at a recipe for `test_key_effects`: how the 4-bit layers of its backbone are held, and compute."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from key_worlds import World

    from mmtune.recipe_schema import Recipe


def packed(world: "World", recipe: "Recipe") -> Any:
    """Formats of the scales of 4-bit layers, and what they give."""
    import bitsandbytes
    import torch

    from mmtune.backbones import load

    modules = load(recipe.backbone).model.modules()
    layers = [module for module in modules if isinstance(module, bitsandbytes.nn.Linear4bit)]
    scales = {str(layer.weight.quant_state.absmax.dtype) for layer in layers}
    inputs = torch.linspace(-1, 1, layers[0].in_features).expand(2, -1)
    return sorted(scales), layers[0](inputs).tolist()
