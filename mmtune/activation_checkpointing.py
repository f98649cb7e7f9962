"""Less memory for more arithmetic: layers forget what they computed and compute it again in the backward pass.

transformers' layers do so where they are in train mode, which ``set_modes`` gives to every layer at or above the lowest
one with something trained; layers below have no backward pass and keep nothing anyway. Dropout draws the same masks
again. The checkpoint is the non-reentrant kind, so a layer whose input needs no gradient still gets its own.
Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mmtune.adapters._targets import CONNECTOR
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.backbones import Backbone


def checkpoint_activations(backbone: "Backbone", parts: Collection[str]) -> None:
    """Switch it on for the towers of a backbone.

    Args:
        backbone: loaded, adapted or not.
        parts: those that are trained; what the others support does not matter.

    Raises:
        RecipeError: the model's class cannot do it, or some part's layers would not.
    """
    model: Any = backbone.model
    name = type(model).__name__
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise RecipeError(f"train.activation_checkpointing: {name} cannot do it; write false, or a smaller micro_batch")
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": True})
    # Embeddings were made to ask for gradients, as the reentrant kind needs; GIT adds to them in place and would fail.
    model.disable_input_require_grads()
    deaf = [part for part in backbone.traits.parts if part in parts and not _forgets(backbone, part)]
    if deaf:
        raise RecipeError(
            f"train.activation_checkpointing: the layers of {', '.join(deaf)} of {name} do not support it; "
            "write false, or a smaller micro_batch"
        )


def _forgets(backbone: "Backbone", part: str) -> bool:
    """Whether the layers of a part listen; where there is no list of them, whether anything in it does. A connector is
    a few linear layers and has nothing to forget.
    """
    model, traits = backbone.model, backbone.traits
    if part in traits.layers:
        layers = model.get_submodule(traits.layers[part]).children()
        return all(getattr(layer, "gradient_checkpointing", False) for layer in layers)
    inside = model.get_submodule(traits.parts[part]).modules()
    return part == CONNECTOR or any(getattr(module, "gradient_checkpointing", False) for module in inside)
