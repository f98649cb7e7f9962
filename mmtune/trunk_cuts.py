"""Where the frozen part of a model ends, what it makes of an input, and how that is fed back above the cut.

The *trunk* of a part is what lies below its lowest trained layer. Nothing in it is random: what is not trained runs in
eval mode. So its *states* for one image or text are always the same, and can be kept.

Four kinds of cuts:

- ``layers``: inside a tower. Below the cut are the tower's embeddings (``Family.stems``) and its first layers. To feed
  states, those modules are stood in for by pass-throughs for one forward call, at the same paths; outside of that call
  the model is untouched, so neither saving nor merging nor scoring meets anything unusual.
- ``whole``: nothing on the way of an embedding is trained: the embedding itself is the trunk's state.
- ``pixels``: nothing is below the cut but the preparation of an image: its pixels are kept as bytes, as the model takes
  them, so that it is read and resized once.
- ``image_side``: everything that turns images into what a language model reads is frozen; its states go in through
  transformers' own argument (``backbones._image_side``).

Letters: B samples, T places (patches or tokens), D width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

MEDIA, TEXT = "media", "text"
"""The two sides of a sample: its image or sound, and its words."""


@dataclass(frozen=True)
class Cut:
    """Where the trunk of one side ends.

    Attributes:
        side: ``media`` or ``text``.
        kind: see the heading of this file.
        part: the tower that is cut; of ``whole`` and ``image_side`` the parts, joined by ``+``.
        depth: of ``layers``: how many layers are below the cut.
        roots: paths of the modules that are below the cut, as far as they have weights.
    """

    side: str
    kind: Literal["layers", "whole", "image_side", "pixels"]
    part: str
    depth: int
    roots: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "layers":
            return f"{self.part} below layer {self.depth}"
        if self.kind == "pixels":
            return "reading and resizing of images"
        return f"{self.part.replace('+', ' and ')}, all of it"


PIXELS = Cut(MEDIA, "pixels", "", 0, ())
"""The cut above the preparation of images."""


def find_cuts(model: "nn.Module", traits: Any, ability: str, touched: Iterable[str]) -> dict[str, "Cut | str"]:
    """The cut of each side, or why there is none.

    Args:
        model: adapted or plain.
        traits: the family's record for the ability.
        ability: what the task uses.
        touched: names of trained parameters, and of modules that an adapter changed.
    """
    names = list(touched)
    if ability == "generate" and traits.image_side:
        found = _image_side(model, traits, names)
        return {MEDIA: found if isinstance(found, Cut) else _media_tower(model, traits, ability, names, found)}
    sides: dict[str, Cut | str] = {MEDIA: _media_tower(model, traits, ability, names)}
    if ability == "embed":
        sides[TEXT] = _side(model, traits, TEXT, names)
    return sides


def _loose(model: "nn.Module", traits: Any) -> list[str]:
    """Names of weights that are in no part, such as query tokens: any side may read them."""
    roots = [*traits.parts.values(), *(root for heads in traits.heads.values() for root in heads), *traits.temperature]
    names = [name for name, _ in model.named_parameters()]
    inside = set(below([*roots, *([traits.head] if traits.head else [])], names))
    return [name for name in names if name not in inside]


def _image_side(model: "nn.Module", traits: Any, touched: list[str]) -> "Cut | str":
    roots, loose = [traits.parts[part] for part in traits.image_side], _loose(model, traits)
    if below([*roots, *loose], touched):
        return "its image side is trained"
    return Cut(MEDIA, "image_side", "+".join(traits.image_side), 0, (*roots, *loose))


def _media_tower(model: "nn.Module", traits: Any, ability: str, touched: list[str], why: str = "") -> "Cut | str":
    """The image tower's cut; where the task does not embed, its last states go into what reads the text."""
    if ability == "embed":
        return _side(model, traits, MEDIA, touched)
    part = traits.sides[MEDIA][0]
    if part not in traits.parts:
        return f"family {traits.name} has no {part} tower of its own"
    found = _tower(model, traits, MEDIA, part, touched)
    return f"{why}, and {found}" if why and isinstance(found, str) else found


def _side(model: "nn.Module", traits: Any, side: str, touched: list[str]) -> "Cut | str":
    """Of what embeds: all of it where nothing on its way is trained, else the first tower's lower layers."""
    parts = traits.sides[side]
    roots = [root for part in parts for root in (traits.parts[part], *traits.heads.get(part, ()))]
    loose = _loose(model, traits)
    if not below([*roots, *loose], touched):
        return Cut(side, "whole", "+".join(parts), 0, (*roots, *loose))
    return _tower(model, traits, side, parts[0], touched)


def _tower(model: "nn.Module", traits: Any, side: str, part: str, touched: list[str]) -> "Cut | str":
    stems, layers = traits.stems.get(part), traits.layers.get(part)
    if not stems or not layers:
        return f"the {part} of family {traits.name} declares no cut"
    if below(stems, touched):
        return f"what stands before the {part}'s layers is trained"
    number = len(model.get_submodule(layers))  # type: ignore[arg-type]
    depth = next((n for n in range(number) if below([f"{layers}.{n}"], touched)), number)
    if depth == 0:
        return f"the first layer of the {part} is trained"
    return Cut(side, "layers", part, depth, (*stems, *(f"{layers}.{n}" for n in range(depth))))


def is_cut_of(model: "nn.Module", traits: Any, ability: str, cut: Cut) -> bool:
    """Whether a cut that was noted of a model is one that this model has: the same modules are below it."""
    if cut.kind != "layers":
        return find_cuts(model, traits, ability, []).get(cut.side) == cut
    layers = traits.layers.get(cut.part)
    return layers is not None and _tower(model, traits, cut.side, cut.part, [f"{layers}.{cut.depth}"]) == cut


def below(roots: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that are one of the paths or lie under one."""
    roots = list(roots)
    return [name for name in names if any(name == root or name.startswith(f"{root}.") for root in roots)]


# --- standing in


@contextmanager
def standing_in(model: "nn.Module", modules: "Mapping[str, nn.Module]") -> Iterator[None]:
    """In this block other modules stand at the given paths of the model, of this instance alone; afterwards the old."""
    places: list[tuple[nn.Module, str, nn.Module | None]] = []
    try:
        for path, module in modules.items():
            owner, _, name = path.rpartition(".")
            parent = model.get_submodule(owner)
            places.append((parent, name, parent._modules[name]))
            parent._modules[name] = module
        yield
    finally:
        for parent, name, old in reversed(places):
            parent._modules[name] = old


def pass_throughs(model: "nn.Module", stems: tuple[str, ...], states: "Tensor") -> "dict[str, nn.Module]":
    """What stands in for a tower's stems while it is fed ``states`` float[B, T, D]."""
    given = {stems[0]: _given(model.get_submodule(stems[0]), states)}
    return given | {path: _same(model.get_submodule(path)) for path in stems[1:]}


def _given(module: "nn.Module", states: "Tensor") -> "nn.Module":
    """Gives the states; where beam search shows each image several times, one after the other, as often."""

    def forward(*args: Any, **named: Any) -> "Tensor":
        shown = next((one for one in (*args, *named.values()) if hasattr(one, "shape")), states)
        return states.repeat_interleave(len(shown) // len(states), 0) if len(shown) > len(states) else states

    stands = _stand_in(module)
    stands.forward = forward
    return stands


def _same(module: "nn.Module") -> "nn.Module":
    stands = _stand_in(module)
    stands.forward = lambda states, *_, **__: states
    return stands


def _stand_in(module: "nn.Module") -> "nn.Module":
    """An empty module that answers for another one's attributes: some towers ask their embeddings for a dtype."""
    from torch import nn

    class StandIn(nn.Module):
        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

    return StandIn()


class _CutReachedError(Exception):
    """Ends a forward pass at the cut; holds what the layer below it made."""

    def __init__(self, made: Any) -> None:
        super().__init__("the cut is reached")
        self.made = made


@dataclass(frozen=True)
class Tower:
    """One tower of a model, cut.

    Attributes:
        model: it belongs to.
        layers: path of its list of layers.
        stems: see ``Family.stems``.
        cut: where.
    """

    model: "nn.Module"
    layers: str
    stems: tuple[str, ...]
    cut: Cut

    def below(self, forward: "Callable[[], Any]") -> "Tensor":
        """What the trunk makes of an input: float[B, T, D], states that go into the layer at the cut.

        Nothing above the cut runs: it would draw random numbers that the real forward pass is to draw, and under
        autocast its trained weights would be kept in half precision without a way back to them.

        Args:
            forward: runs the tower on the input; it does not come back.
        """
        import torch

        def stop(module: "nn.Module", given: Any, made: Any) -> None:
            raise _CutReachedError(made)

        last = list(self.model.get_submodule(self.layers).children())[self.cut.depth - 1]
        hook = last.register_forward_hook(stop)
        try:
            with torch.no_grad():
                forward()
        except _CutReachedError as reached:
            states: Tensor = reached.made[0] if isinstance(reached.made, tuple) else reached.made
            return states
        finally:
            hook.remove()
        raise AssertionError(f"{self.cut} was not reached")

    def above(self, states: "Tensor", others: "Mapping[str, nn.Module]") -> "dict[str, nn.Module]":
        """What stands in for the tower's modules while it is fed ``states``.

        Args:
            states: float[B, T, D].
            others: path of a layer above the cut -> what computes the same in its place.
        """
        from torch import nn

        layers = list(self.model.get_submodule(self.layers).children())
        upper = [others.get(f"{self.layers}.{n}", layers[n]) for n in range(self.cut.depth, len(layers))]
        return {**pass_throughs(self.model, self.stems, states), self.layers: nn.ModuleList(upper)}


def tower_of(model: "nn.Module", traits: Any, cut: Cut) -> Tower:
    """The tower that a cut of kind ``layers`` goes through."""
    return Tower(model, traits.layers[cut.part], traits.stems[cut.part], cut)
