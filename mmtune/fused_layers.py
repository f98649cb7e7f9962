"""Stand-ins for transformers' layers that compute the same with less work, for the stretch of layers that is trained.

    layers = fused_layers(backbone, "text", 8)                  # {"text_model.encoder.layers.8": module, ...}, or {}
    read = pooled_places(model, backbone.traits, "text", batch) # where embed_text reads; None: everywhere
    with standing_in(model, layers), reading_at(layers, read):
        ...                                                     # one forward call; the backward pass may come later

Three things save time: LoRA inside the matrix products (``fused_projection``); a last layer that computes only the
place that is read (``row_attention``); and causal text without its padding (``packed_rows``). What is computed is what
transformers' layers and peft compute, up to the order of sums; where LoRA's dropout draws, it draws the same masks.
Parameters stay the layers' own; a stand-in holds none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtune.fused_projection import project, reader_of
from mmtune.known_layers import LayerShape, shape_of, why_not_chain
from mmtune.packed_rows import Rows, packed_causal, spread, take
from mmtune.row_attention import Heads, Source

if TYPE_CHECKING:
    from mmtune.backbones import Backbone, Family

QUICK = 1.702
"""quick_gelu(x) = x sigmoid(QUICK x), which is silu(QUICK x) / QUICK."""

PROOF = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far a layer and its stand-in may be apart on random states, as a share of the largest number: some hundred
roundings of the format, and far below what another formula would give."""

READ_FIRST = frozenset(
    ("CLIPVisionModel", "ChineseCLIPVisionModel", "BlipVisionModel", "ViTModel", "DeiTModel", "Dinov2Model")
    + ("Dinov2WithRegistersModel",)
)
READ_LAST = frozenset({"SiglipTextModel", "Siglip2TextModel"})
"""Towers of which an embedding reads the first place, and those of which it reads the last."""

KNOWN = frozenset({"is_causal", "return_dict", "use_cache"})
"""Arguments that a layer may get beside states and mask: the first is heeded, nothing depends on the others."""


class _Chain:
    """What the stand-ins of one part share.

    Attributes:
        told: the places that are read, see ``reading_at``.
        rows: how the rows of the call that is running stand for its states.
    """

    def __init__(self) -> None:
        self.told: Tensor | int | None = None
        self.rows = Rows(0, 0)


class FusedLayer(nn.Module):
    """One layer of a chain: states float[B, T, D] to states of the same shape.

    Between the layers of a chain packed states are float[N, D]; the first packs, the last unpacks. Rows of the last
    one's states that are not read are zeros where ``reading_at`` told which are.
    """

    def __init__(self, layer: nn.Module, shape: LayerShape, chain: _Chain, *, first: bool, last: bool) -> None:
        super().__init__()
        pieces = {path: layer.get_submodule(path) for path in shape.pieces}
        self.held = (layer, shape, pieces)  # a tuple, so that nothing of the layer is a submodule here
        self.readers = {path: reader_of(pieces[path]) for path in shape.projections}
        self.heads = Heads(shape.num_heads(layer), shape.scale(layer))
        self.chain = chain
        self.first, self.last = first, last

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **given: Any) -> Tensor:
        """As transformers' layer."""
        chain = self.chain
        if self.first:
            chain.rows = self._rows(hidden_states, attention_mask, given)
            if chain.rows.packed is not None:
                hidden_states = take(hidden_states.reshape(-1, hidden_states.shape[-1]), chain.rows.packed)
        rows, shape = chain.rows, hidden_states.shape
        states = hidden_states.reshape(-1, shape[-1])
        if not self.last:
            return self._compute(states, rows).view(shape)
        if rows.read is None:
            return self._compute(states, rows).view(rows.batch, rows.length, -1)
        read = self._compute_read(states, rows)
        return spread(read, rows.read_places, rows.batch * rows.length).view(rows.batch, rows.length, -1)

    def _rows(self, states: Tensor, mask: Tensor | None, given: Mapping[str, Any]) -> Rows:
        unknown = sorted(set(given) - KNOWN - {key for key, value in given.items() if value is None or value is False})
        if unknown:
            raise TypeError(f"a fused layer was given {', '.join(unknown)}, which it does not know")
        batch, length, _ = states.shape
        layer, shape, _ = self.held
        causal = bool(given.get("is_causal") if given.get("is_causal") is not None else shape.is_causal(layer))
        if self.chain.told is None:
            return Rows(batch, length, mask, causal and mask is None)
        told = torch.as_tensor(self.chain.told, device=states.device).expand(batch)
        rows = Rows(batch, length, mask, causal and mask is None, read=told)
        return packed_causal(rows) if causal else rows

    def _queries_keys_values(self, normed: Tensor, rows: Rows) -> list[Source]:
        """How each is made of rows float[N, D], and what its update reads instead, where its dropout draws."""
        _, shape, _ = self.held
        found = [self._source(path, normed, rows, read=False) for path in shape.inward]
        if not shape.joint:
            return found
        ((joint, dropped),) = found
        return [(one, dropped) for one in joint.split(3)]

    def _source(self, path: str, x: Tensor, rows: Rows, *, read: bool) -> Source:
        """A projection as it is now, and its input after dropout, where it draws: as x float[N, in], or float[B, in] of
        the read rows.
        """
        one = self.readers[path]()
        if one.down is None or one.dropout == 0:
            return one, None
        return one, rows.dropped(x.to(one.down.dtype), one.dropout, read=read)

    def _compute(self, states: Tensor, rows: Rows) -> Tensor:
        """All rows float[N, D]."""
        _, shape, pieces = self.held
        normed = pieces[shape.norms[0]](states)
        projections, dropped = zip(*self._queries_keys_values(normed, rows), strict=True)
        mixed = self.heads.attend(rows, *project(normed, projections, dropped))
        return self._rest(states, mixed, rows, read=False)

    def _compute_read(self, states: Tensor, rows: Rows) -> Tensor:
        """The read rows float[B, D] of states float[N, D]."""
        _, shape, pieces = self.held
        normed = pieces[shape.norms[0]](states)
        (of_query, dropped), of_key, of_value = self._queries_keys_values(normed, rows)
        asked = rows.read_rows
        (queries,) = project(take(normed, asked), [of_query], [None if dropped is None else take(dropped, asked)])
        mixed = self.heads.attend_read(rows, queries, normed, of_key, of_value)
        return self._rest(take(states, asked), mixed, rows, read=True)

    def _rest(self, states: Tensor, mixed: Tensor, rows: Rows, *, read: bool) -> Tensor:
        """What comes after attention, row by row."""
        _, shape, pieces = self.held

        def through(path: str, x: Tensor, factor: float = 1.0) -> Tensor:
            one, dropped = self._source(path, x, rows, read=read)
            return project(x, [one], [dropped], factor)[0]

        states = states + self._scaled(0, through(shape.outward, mixed))
        normed = pieces[shape.norms[1]](states)
        activation = pieces[shape.activation]
        if type(activation).__name__ == "QuickGELUActivation":
            narrow = through(shape.down, nn.functional.silu(through(shape.up, normed, QUICK)), 1 / QUICK)
        else:
            narrow = through(shape.down, activation(through(shape.up, normed)))
        return states + self._scaled(1, narrow)

    def _scaled(self, place: int, added: Tensor) -> Tensor:
        _, shape, pieces = self.held
        return pieces[shape.scales[place]](added) if shape.scales else added


def why_not_fused(backbone: "Backbone", part: str, first_layer: int) -> str | None:
    """Why ``fused_layers`` has no stand-ins for a part; None: it has."""
    path = backbone.traits.layers.get(part)
    if path is None:
        return f"{backbone.traits.name} has no list of layers in part {part!r}"
    layers = list(backbone.model.get_submodule(path).children())[first_layer:]
    encoder = backbone.model.get_submodule(path.rpartition(".")[0])
    return why_not_chain(encoder, layers) or _why_not_proven(layers)


def fused_layers(backbone: "Backbone", part: str, first_layer: int) -> dict[str, FusedLayer]:
    """Path -> stand-in for the layers of a part from ``first_layer`` up; empty where ``why_not_fused`` says why.

    To be made once the adapter is attached and its modes are set, and anew after either changes; what the layers hold
    is read anew in every call.
    """
    if why_not_fused(backbone, part, first_layer) is not None:
        return {}
    path = backbone.traits.layers[part]
    layers = list(backbone.model.get_submodule(path).children())[first_layer:]
    return {f"{path}.{first_layer + place}": one for place, one in enumerate(_chain_of(layers))}


def _chain_of(layers: list[nn.Module]) -> list[FusedLayer]:
    chain, last = _Chain(), len(layers) - 1
    return [
        FusedLayer(layer, shape_of(layer), chain, first=place == 0, last=place == last)
        for place, layer in enumerate(layers)
    ]


def _why_not_proven(layers: list[nn.Module]) -> str | None:
    """Why the stand-ins do not compute what the layers do, tried on a few random states: a version of transformers or
    peft may have changed what a class computes.
    """
    for place, layer in enumerate(layers, start=1):
        stock, fused = (_tried(module, layer) for module in (layer, *_chain_of([layer])))
        apart = float((stock - fused).abs().max() / stock.abs().max().clamp_min(1e-30))
        if not apart <= PROOF.get(stock.dtype, 0.0):
            return f"{place} of {len(layers)} layers: it computes something else than is known, {apart:.1e} apart"
    return None


@torch.no_grad()
def _tried(module: nn.Module, layer: nn.Module) -> Tensor:
    """What a module makes of random states float[2, 3, D] that are in the format of a layer."""
    weight = next(layer.parameters())
    norm = layer.get_submodule(shape_of(layer).norms[0])
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 3, *norm.normalized_shape, generator=generator)  # type: ignore[misc]
    with torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else []):
        torch.manual_seed(0)
        result: Tensor = module(states.to(weight.device, weight.dtype), attention_mask=None)
    return result


@contextmanager
def reading_at(layers: Mapping[str, nn.Module], places: Tensor | int | None) -> Iterator[None]:
    """Tell the stand-ins of one part, for the calls inside, which places are read: int64[B], or one for all sequences.

    Args:
        layers: what ``fused_layers`` made; nothing is told to an empty dict.
        places: as ``pooled_places`` says; None: all places are read.
    """
    chains = {id(layer.chain): layer.chain for layer in layers.values() if isinstance(layer, FusedLayer)}.values()
    before = [chain.told for chain in chains]
    for chain in chains:
        chain.told = places
    try:
        yield
    finally:
        for chain, told in zip(chains, before, strict=True):
            chain.told = told


def pooled_places(model: nn.Module, traits: "Family", part: str, batch: Mapping[str, Tensor]) -> Tensor | int | None:
    """Where the family's ``embed_media`` (part vision) or ``embed_text`` (part text) reads the last layer's states:
    int64[B], or one place for all; None: everywhere, or not known.

    Of ``READ_FIRST`` the class token, of CLIP's texts the end-of-text token of ``batch["input_ids"]`` int64[B, T], of
    SigLIP's the last place. SigLIP's images are pooled by attention over all tokens.
    """
    tower: Any = model.get_submodule(traits.parts[part])
    name, ids = type(tower).__name__, batch.get("input_ids")
    if name in READ_FIRST:
        return 0
    if ids is None or part != "text":
        return None
    if name in READ_LAST:
        return ids.shape[1] - 1
    return _end_of_text(ids, tower.eos_token_id) if name == "CLIPTextModel" else None


def _end_of_text(ids: Tensor, end: int) -> Tensor:
    """int64[B], as transformers' ``CLIPTextModel`` finds it: the first end token, of old checkpoints (2, which is
    wrong) the largest token.
    """
    return ids.int().argmax(-1) if end == 2 else (ids.int() == end).int().argmax(-1)
