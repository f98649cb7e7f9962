"""What the kinds that train plain tensors (no peft) share."""

from typing import TYPE_CHECKING

from mmtune.adapters._adapted import Inserted
from mmtune.adapters._targets import in_part, is_idle, submodule
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from mmtune.backbones import Backbone
    from mmtune.backbones import Section as BackboneSection


def precision_problems(kind: str, backbone: "BackboneSection") -> list[str]:
    """Weights that are trained themselves must be float32: small steps vanish in half precision."""
    if backbone.dtype == "float32":
        return []
    return [
        f"adapter.kind: {kind} trains the backbone's own weights, which {backbone.dtype} is too coarse for; "
        "write backbone.dtype: float32 (train.precision: bf16 still computes in bfloat16)"
    ]


def insert_plain(backbone: "Backbone", roots: dict[str, list[str]]) -> Inserted:
    """Train every parameter at or below the given paths of each part, the temperature and what never runs excepted.

    A tensor that the model holds twice (a head tied to the word embeddings) is trained under the first of its names.

    Raises:
        RecipeError: a path that the loaded model does not have, or a part without parameters.
    """
    model = backbone.model
    temperature = set(backbone.traits.temperature)
    first = {id(value): name for name, value in model.named_parameters()}
    there = {name: first[id(value)] for name, value in model.named_parameters(remove_duplicate=False)}
    names = [name for name in there if name not in temperature and not is_idle(name, backbone.traits)]
    parameters: dict[str, list[str]] = {}
    for part, paths in roots.items():
        absent = [path for path in paths if submodule(model, path) is None and path not in names]
        if absent:
            raise RecipeError(f"adapter.parts: the loaded {type(model).__name__} has no {', '.join(absent)}")
        below = [name for name in names if any(name == p or name.startswith(p + ".") for p in paths)]
        taken = {name for others in parameters.values() for name in others}
        own = dict.fromkeys(there[name] for name in below if in_part(name, backbone.traits, part))
        parameters[part] = [name for name in own if name not in taken]
        if not parameters[part]:
            raise RecipeError(f"adapter.parts: there is nothing to train in {', '.join(paths)} of part {part!r}")
    modules = {part: list(dict.fromkeys(n.rpartition(".")[0] or n for n in own)) for part, own in parameters.items()}
    return Inserted(modules, parameters)
