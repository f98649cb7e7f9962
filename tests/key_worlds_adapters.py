"""How an adapter is looked at in `test_key_effects`: what it trains, and what it computes in training and outside."""

import hashlib
from typing import Any

from key_worlds import World

from mmtune.recipe_schema import Recipe


def acted(world: World, recipe: Recipe) -> Any:
    """What an adapter trains, from which values, and the embeddings with every trained weight moved."""
    import torch
    from adapter_examples import disturb, embeddings, inputs_of

    from mmtune.adapters import attach, set_modes
    from mmtune.backbones import load

    made = attach(load(recipe.backbone), recipe.adapter, seed=recipe.seed)
    start = {name: digest(value) for name, value in made.trainable().items()}
    disturb(made)
    inputs = inputs_of(made.backbone)
    seen = [embeddings(made.backbone, inputs)]
    set_modes(made)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        seen += [embeddings(made.backbone, inputs) for _ in range(3)]
    return start, [digest(one) for one in seen]


def digest(tensor: Any) -> tuple[tuple[int, ...], str]:
    """Shape and content."""
    return tuple(tensor.shape), hashlib.sha256(tensor.detach().cpu().float().numpy().tobytes()).hexdigest()
