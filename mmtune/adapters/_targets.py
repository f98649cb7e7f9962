"""Which modules a recipe means: tower-aware, found by structure, with full names.

``attention`` and ``mlp`` are the linear layers whose nearest enclosing module with Attention or MLP in its class name
says so. Parts that are made of convolutions have none; there ``lora`` takes convolutions by their names. Linear layers
inside torch's own ``nn.MultiheadAttention`` are left out: it reads their weights without calling them, so an adapter
there would never run.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtune.adapters._layer_choice import Choice, choose_layers
from mmtune.ground.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from mmtune.backbones import Family

STRUCTURES = {"attention": re.compile("attention", re.I), "mlp": re.compile("mlp", re.I)}
"""Target words that are found by structure: word -> what an enclosing class is called."""


CONNECTOR = "connector"
"""The part between an image tower and a language model."""


@dataclass(frozen=True)
class Candidate:
    """A linear layer of a part: its full name, its own name, its structure word and its layer (None: outside them)."""

    name: str
    own_name: str
    structure: str | None
    layer: int | None


def part_problems(parts: list[str], family: "Family") -> list[str]:
    """Parts the family does not have, as messages."""
    there = ", ".join(family.parts)
    absent = [part for part in parts if part not in family.parts]
    return [f"adapter.parts: {family.name} has no part {part!r}; there are {there}" for part in absent]


def layers_of(section: Any, part: str) -> Choice:
    """The choice of layers that holds for one part."""
    layers: Choice | dict[str, Choice] = section.layers
    return layers[part] if isinstance(layers, dict) else layers


def layer_problems(section: Any, family: "Family", num_layers: Mapping[str, int]) -> list[str]:
    """Choices of layers that reach beyond their tower, and target words that a part cannot have, as messages."""
    found = []
    for part in section.parts:
        found += _made_otherwise(section, family, part)
        choice = layers_of(section, part)
        if part not in num_layers:
            if part in family.parts and choice != "all":
                found.append(f"adapter.layers: part {part!r} has no list of layers to choose from; write layers: all")
            continue
        try:
            choose_layers(choice, num_layers[part])
        except ValueError as error:
            found.append(f"adapter.layers: part {part!r}: {error}")
    return found


def _made_otherwise(section: Any, family: "Family", part: str) -> list[str]:
    """Words such as attention for a part that is made of something else: known before any weight is loaded."""
    words = [word for word in getattr(section, "targets", ()) if word in STRUCTURES]
    if part not in family.made_of or not words or any(part in family.targets.get(word, {}) for word in words):
        return []
    others = [name for name in section.parts if name not in family.made_of]
    instead = f"write parts: [{', '.join(others or [p for p in family.parts if p not in family.made_of])}]"
    return [
        f"adapter.targets: part {part!r} of {family.name} is made of {family.made_of[part]}, there is no "
        f"{' or '.join(words)} in it; {instead}, or name layers of it (kind: lora), or train it whole (kind: full)"
    ]


def is_idle(name: str, family: "Family") -> bool:
    """Whether a module or parameter belongs to what no ability of the family runs."""
    return any(re.match(rf"(?:{pattern})(\.|$)", name) for pattern in family.idle)


def in_part(name: str, family: "Family", part: str) -> bool:
    """Whether a module or parameter is a part's: at or below its tower or heads, and in no part that lies inside it."""
    own = [family.parts[part], *family.heads.get(part, ())]
    inside = [path for path in family.parts.values() if path.startswith(f"{family.parts[part]}.")]
    return _below(name, own) and not _below(name, inside)


def _below(name: str, paths: list[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def submodule(model: "nn.Module", path: str) -> "nn.Module | None":
    """The module at a path, None where there is none."""
    return dict(model.named_modules()).get(path)


def candidates(model: "nn.Module", family: "Family", part: str, *, convolutions: bool = False) -> list[Candidate]:
    """Every linear layer of a part, its heads included, in the model's order.

    With ``convolutions`` those of a part that is made of them too, depthwise ones excepted: they have one input each,
    so an update of any rank would be a full one.
    """
    from torch import nn

    modules = dict(model.named_modules())
    found = []
    for name, module in modules.items():
        if not in_part(name, family, part) or is_idle(name, family):
            continue
        is_convolution = convolutions and isinstance(module, nn.Conv2d) and module.groups == 1
        if not isinstance(module, nn.Linear) and not (is_convolution and part in family.made_of):
            continue
        enclosing = [modules[path] for path in _enclosing_paths(name)]
        if any(isinstance(one, nn.MultiheadAttention) for one in enclosing):
            continue
        layer = layer_number(name, family.layers.get(part))
        found.append(Candidate(name, name.rpartition(".")[2], _structure(enclosing), layer))
    return found


def _enclosing_paths(name: str) -> Iterator[str]:
    """``a.b.c`` -> ``a.b``, ``a``: nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _structure(enclosing: "list[nn.Module]") -> str | None:
    for module in enclosing:
        for word, pattern in STRUCTURES.items():
            if pattern.search(type(module).__name__):
                return word
    return None


def layer_number(name: str, layer_list: str | None) -> int | None:
    """Which layer of a tower a module is in, None outside its list of layers."""
    match = re.match(rf"{re.escape(layer_list)}\.(\d+)(\.|$)", name) if layer_list else None
    return int(match[1]) if match else None


def find_targets(
    model: "nn.Module", family: "Family", section: Any, *, convolutions: bool = False
) -> dict[str, list[str]]:
    """Full names of the linear layers that a recipe's parts, targets and layers choose, per part.

    With ``layers: all`` a structure word takes a tower's pooling layers too; with fewer layers it takes those alone.
    A layer that is named (``visual_projection``) is taken wherever it is, and by ``layers`` if it is in one.

    Raises:
        RecipeError: a part, a word or a layer that hits nothing; the message says what is there, all at once.
    """
    found = part_problems(section.parts, family)
    parts = [part for part in section.parts if part in family.parts]
    missing = [p for p in (family.parts[part] for part in parts) if submodule(model, p) is None]
    if missing:
        raise RecipeError(f"adapter.parts: the loaded {type(model).__name__} has no module {', '.join(missing)}")
    everything = {part: candidates(model, family, part, convolutions=convolutions) for part in parts}
    num_layers = {part: _count_layers(model, family.layers[part]) for part in parts if part in family.layers}
    problems = layer_problems(section, family, num_layers)
    found += problems
    hits: dict[str, list[str]] = {part: [] for part in parts}
    if not problems:
        found += _collect_hits(section, family, everything, num_layers, hits)
    if found:
        raise RecipeError("\n".join(found))
    return hits


def _count_layers(model: "nn.Module", path: str) -> int:
    layers = submodule(model, path)
    return len(layers) if layers is not None else 0  # type: ignore[arg-type]


def _collect_hits(
    section: Any,
    family: "Family",
    everything: dict[str, list[Candidate]],
    num_layers: Mapping[str, int],
    hits: dict[str, list[str]],
) -> list[str]:
    """Fill ``hits`` in the model's order; give the words and parts that hit nothing, as messages."""
    problems = []
    hit_words = set()
    for part, there in everything.items():
        choice = layers_of(section, part)
        chosen = set(choose_layers(choice, num_layers[part])) if part in num_layers else set()
        taken = set()
        for word in section.targets:
            matched = [one for one in there if _matches(one, word, family.targets.get(word, {}).get(part))]
            kept = {one.name for one in matched if _in_layers(one, word, choice, chosen)}
            taken |= kept
            if kept:
                hit_words.add(word)
            elif part != CONNECTOR and (word in STRUCTURES or word in family.targets):
                problems.append(_no_hit(word, f"part {part!r}", there, bool(matched), choice))
        hits[part] = [one.name for one in there if one.name in taken]
        # a connector is a few linear layers: it is enough that one word means them
        if not taken and (part == CONNECTOR or not any(word in STRUCTURES for word in section.targets)):
            problems.append(_no_hit(", ".join(section.targets), f"part {part!r}", there, False, choice))
    names = [one for there in everything.values() for one in there]
    for word in section.targets:
        if everything and word not in hit_words and word not in STRUCTURES:
            problems.append(_no_hit(word, f"parts {', '.join(everything)}", names, False, section.layers))
    return problems


def _matches(one: Candidate, word: str, correction: str | None) -> bool:
    if correction is not None:
        return re.fullmatch(correction, one.name) is not None
    return one.structure == word if word in STRUCTURES else word in (one.own_name, one.name)


def _in_layers(one: Candidate, word: str, choice: Choice, chosen: set[int]) -> bool:
    if one.layer is not None:
        return one.layer in chosen
    return choice == "all" or word not in STRUCTURES


def _no_hit(word: str, where: str, there: list[Candidate], outside: bool, choice: Any) -> str:
    if outside:
        return f"adapter.targets: {word!r} hits no linear layer of {where} in layers {choice!r}"
    names = sorted({one.own_name for one in there})
    words = sorted({one.structure for one in there if one.structure})
    if not names:
        return f"adapter.targets: {where} has no linear layers at all, so {word!r} hits nothing there"
    near = difflib.get_close_matches(word, [*STRUCTURES, *names], n=1)
    hint = f"; did you mean {near[0]!r}?" if near and near[0] != word else ""
    return f"adapter.targets: {word!r} hits no linear layer of {where}; there are {', '.join(words + names)}{hint}"
