"""A family that gives its model what the frozen trunk made of an input before, instead of the input.

``FedFamily`` stands in the place of a family's module. Nobody who calls it knows: tasks, losses, steps and the loop see
the same functions, and batches with a few more tensors. Encoding an item asks for its states first, and reads no image
where there are some. What has none travels as pixels and tokens; the forward pass that meets it runs the trunk on it,
once, and keeps what comes out.

Letters: B samples, T places, D width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from mmtune.backbones._dual_encoder import encode_bytes, encode_media
from mmtune.backbones._pixel_tables import expand_pixels
from mmtune.backbones._remembered_images import SHAPE, noting, remembering, stand_ins, without_pixels
from mmtune.fused_layers import fused_layers, pooled_places, reading_at, why_not_fused
from mmtune.shown_media import ShownMedia
from mmtune.stored_states import Stored
from mmtune.token_states import headless_states
from mmtune.trunk_batches import Feed, batch_states, is_fed, join_samples, note_key, states_of, without_ours
from mmtune.trunk_cuts import MEDIA, TEXT, standing_in, tower_of
from mmtune.trunk_images import feed_images, images_states, pad_images
from mmtune.trunk_keys import NO_KEY, media_key, read_content, recall_contents, tokens_key

if TYPE_CHECKING:
    from torch import Tensor, nn

    Inputs = Mapping[str, Tensor]


class FedFamily:
    """A family whose model is fed states."""

    reads = True
    """It takes references and reads them where it must; see ``shown_media.opened``."""

    def __init__(self, backbone: Any, ability: str, feeds: dict[str, Feed]) -> None:
        """Stand in for a backbone's family; ``feeds`` is kept: who gives it may take feeds out of it later."""
        self.family, self.traits, self.processor = backbone.family, backbone.traits, backbone.processor
        self.ability, self.feeds = ability, feeds
        self.fused: dict[str, Mapping[str, nn.Module]] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "family":  # an object that is just being unpickled has none
            raise AttributeError(name)
        return getattr(self.family, name)

    def fuse(self, backbone: Any) -> Iterator[str]:
        """From now on layers above the cuts are stood in for by fused ones; gives a line about each side.

        Args:
            backbone: adapted, in the modes that it trains in.
        """
        for side, parts in self.traits.sides.items():
            cut = self.feeds[side].cut if side in self.feeds else None
            if self.ability != "embed" or (cut is not None and cut.kind == "whole"):
                continue
            first = cut.depth if cut is not None else 0
            self.fused[side] = made = fused_layers(backbone, parts[0], first)
            found = f"from layer {first} up" if made else f"off, {why_not_fused(backbone, parts[0], first)}"
            yield f"fused layers: {parts[0]}: {found}"

    # --- in the loader's workers

    def encode_media(self, processor: Any, shown: Any) -> "dict[str, Tensor]":
        """Tensors of an image or a sound: its states where they are known, else as the family makes them."""
        feed = self.feeds.get(MEDIA)
        if feed is None or not isinstance(shown, ShownMedia):
            return self._prepare(processor, _read(shown))
        key, found, media = look_up(feed, [shown])
        if feed.cut.kind == "pixels":
            return self._keep_pixels(feed, processor, key, media[0]) if found is None else {feed.pixels: found.states}
        if found is not None:
            return {**found.beside, **note_key(MEDIA, key, found.states)}
        encoded = self._prepare(processor, media[0])
        beside = {name: value for name, value in encoded.items() if name != feed.pixels}
        return {**encoded, **note_key(MEDIA, key, None, beside)}

    def _prepare(self, processor: Any, media: Any) -> "dict[str, Tensor]":
        """Tensors of what was read, pixels as bytes where the family reads images in the plain way."""
        encode = encode_bytes if self.family.encode_media is encode_media else self.family.encode_media
        encoded: dict[str, Tensor] = encode(processor, media)
        return encoded

    def _keep_pixels(self, feed: Feed, processor: Any, key: bytes, media: Any) -> "dict[str, Tensor]":
        encoded = self._prepare(processor, media)
        if key != NO_KEY and is_bytes(encoded.get(feed.pixels)):
            feed.store.add([(key, Stored(encoded[feed.pixels]))])
        return encoded

    def encode_text(self, processor: Any, text: str) -> "dict[str, Tensor]":
        """Tokens of a text, with its states where they are known."""
        encoded: dict[str, Tensor] = self.family.encode_text(processor, text)
        feed = self.feeds.get(TEXT)
        if feed is None:
            return encoded
        key = tokens_key(encoded)
        found = feed.store.find(key)
        return {**encoded, **note_key(TEXT, key, None if found is None else found.states)}

    def encode_turns(self, processor: Any, turns: Sequence[Any], images: Sequence[Any]) -> "dict[str, Tensor]":
        """A conversation, with its images' states where they are known."""
        return self._encode_spoken(self.family.encode_turns, processor, turns, images)

    def encode_prompt(self, processor: Any, turns: Sequence[Any], images: Sequence[Any]) -> "dict[str, Tensor]":
        """What generation starts from, with its images' states where they are known."""
        return self._encode_spoken(self.family.encode_prompt, processor, turns, images)

    def _encode_spoken(
        self, encode: Callable[..., Any], processor: Any, turns: Sequence[Any], images: Sequence[Any]
    ) -> "dict[str, Tensor]":

        feed = self.feeds.get(MEDIA)
        if feed is None or not images or not all(isinstance(one, ShownMedia) for one in images):
            plain: dict[str, Tensor] = encode(processor, turns, [_read(one) for one in images])
            return plain
        key, found, media = look_up(feed, images)
        if found is not None:
            with remembering(processor, found.beside):
                encoded = without_pixels(encode(processor, turns, stand_ins(len(images))))
            return {**encoded, **note_key(MEDIA, key, found.states)}
        if feed.cut.kind == "layers":
            plain = encode(processor, turns, media)
            pixels = plain[feed.pixels]
            return {
                **plain,
                **note_key(MEDIA, key, None, {SHAPE + feed.pixels: pixels.new_tensor([1, *pixels.shape]).long()}),
            }
        with noting(processor) as beside:
            plain = encode(processor, turns, media)
        return {**plain, **note_key(MEDIA, key, None, beside)}

    def pad(self, processor: Any, encoded: "Sequence[Inputs]", **options: Any) -> "dict[str, Tensor]":
        """A batch: as the family pads it, with the states of those samples that have some and pixels of the others."""
        import torch

        feed = self.feeds.get(MEDIA)
        if feed is not None and feed.cut.kind == "image_side":
            return pad_images(self.family, processor, encoded, feed.model_type, **options)
        split = feed is not None and any(states_of(MEDIA) in one for one in encoded)
        main = feed.pixels if feed is not None and split else ""
        encoded = self._alike(processor, encoded)
        plain = [{name: value for name, value in without_ours(one).items() if name != main} for one in encoded]
        batch: dict[str, Tensor] = self.family.pad(processor, plain, **options)
        if pixels := [one[main] for one in encoded if main in one]:
            batch[main] = torch.stack(pixels)
        for side in self.feeds:
            batch |= join_samples(side, encoded)
        return batch

    def _alike(self, processor: Any, encoded: "Sequence[Inputs]") -> "Sequence[Inputs]":
        """All pixels as bytes or all as floats: an image that the table does not know comes as floats."""
        kinds = {is_bytes(one["pixel_values"]) for one in encoded if "pixel_values" in one}
        return encoded if len(kinds) < 2 else [expand_pixels(processor, one) for one in encoded]

    # --- the forward pass

    def embed_media(self, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """As the family's, of states."""
        return self._embed(MEDIA, model, inputs, self.family.embed_media)

    def embed_text(self, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """As the family's, of states."""
        return self._embed(TEXT, model, inputs, self.family.embed_text)

    def classify(self, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """As the family's, of states."""
        logits: Tensor = self._forward(model, inputs, self.family.classify)
        return logits

    def match(self, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """As the family's, of states."""
        states: Tensor = self._forward(model, inputs, self.family.match)
        return states

    def token_states(self, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """As the family's, of states."""
        own = getattr(self.family, "token_states", None)
        states: Tensor = self._forward(model, inputs, own or partial(headless_states, head=self.traits.head))
        return states

    def generate(self, model: "nn.Module", processor: Any, inputs: "Inputs", **options: Any) -> list[str]:
        """As the family's, of states."""
        generate = partial(self.family.generate, **options)
        said: list[str] = self._forward(
            model, inputs, lambda model, given: generate(model, processor, given), generating=True
        )
        return said

    def run_trunks(self, model: "nn.Module", inputs: "Inputs") -> None:
        """Run the trunks on a batch and nothing else; their stores keep what comes out."""
        inputs = expand_pixels(self.processor, inputs)
        for feed in self.feeds.values():
            if not is_fed(feed, inputs):
                continue
            if feed.cut.kind == "image_side":
                images_states(feed, model, inputs, partial(self.family.pad, self.processor))
            else:
                self._states(feed, model, inputs)

    def _embed(self, side: str, model: "nn.Module", inputs: "Inputs", embed: "Callable[..., Tensor]") -> "Tensor":
        feed = self.feeds.get(side)
        if side == MEDIA:
            inputs = expand_pixels(self.processor, inputs)
        fused, part = self.fused.get(side, {}), self.traits.sides[side][0]
        with reading_at(fused, pooled_places(model, self.traits, part, inputs) if fused else None):
            if feed is None or not is_fed(feed, inputs):
                with standing_in(model, fused):
                    return embed(model, without_ours(inputs))
            if feed.cut.kind == "whole":
                return self._states(feed, model, inputs)
            with self._fed(feed, model, inputs) as given:
                return embed(model, given)

    def _forward(
        self, model: "nn.Module", inputs: "Inputs", forward: Callable[..., Any], *, generating: bool = False
    ) -> Any:
        feed, inputs = self.feeds.get(MEDIA), expand_pixels(self.processor, inputs)
        if feed is None or not is_fed(feed, inputs):
            return forward(model, without_ours(inputs))
        if feed.cut.kind == "image_side":
            pad = partial(self.family.pad, self.processor)
            return feed_images(feed, model, inputs, pad, forward, generating=generating)
        with self._fed(feed, model, inputs) as given:
            return forward(model, given)

    @contextmanager
    def _fed(self, feed: Feed, model: "nn.Module", inputs: "Inputs") -> "Iterator[Inputs]":
        """In this block the model's tower goes on from states; gives the inputs that belong to it."""
        states = self._states(feed, model, inputs)
        given = without_ours(inputs)
        if feed.side == MEDIA:
            given[feed.pixels] = states.new_zeros(1).expand(len(states), 3, 1, 1)  # nobody looks at them
        with standing_in(model, tower_of(model, self.traits, feed.cut).above(states, self.fused.get(feed.side, {}))):
            yield given

    def _states(self, feed: Feed, model: "nn.Module", inputs: "Inputs") -> "Tensor":
        """States of a batch, from wherever they are."""
        run = self._runner(feed, model)
        if feed.cut.kind == "whole":
            return batch_states(feed, inputs, run)
        tower = tower_of(model, self.traits, feed.cut)
        return batch_states(feed, inputs, lambda given: tower.below(lambda: run(given)))

    def _runner(self, feed: Feed, model: "nn.Module") -> "Callable[[dict[str, Tensor]], Any]":
        """What runs a side's tower on inputs: of what embeds the whole embedding, which costs little more."""
        if self.ability == "embed":
            embed = getattr(self.family, f"embed_{feed.side}")
            return lambda given: embed(model, given)
        tower = model.get_submodule(self.traits.parts[feed.cut.part])
        return lambda given: tower(**{feed.pixels: given[feed.pixels]})


def is_bytes(pixels: "Tensor | None") -> bool:
    """Whether pixels wait to be made floats of."""
    return pixels is not None and pixels.element_size() == 1


def _read(shown: Any) -> Any:
    return shown.read() if isinstance(shown, ShownMedia) else shown


def look_up(feed: Feed, shown: Sequence[ShownMedia]) -> tuple[bytes, Stored | None, list[Any]]:
    """The key of what is shown, its states where they are known, and else the images or sounds themselves.

    Raises:
        DataError: one cannot be read.
    """
    if any(one.view is None for one in shown):
        return NO_KEY, None, [one.read() for one in shown]
    known = recall_contents(shown, feed.memory)
    if known is not None:
        key = media_key(shown, known)
        if (found := feed.store.find(key)) is not None:
            return key, found, []
    read = [read_content(one, feed.memory) for one in shown]  # it may have changed since: what is read decides
    key = media_key(shown, [content for _, content in read])
    return key, feed.store.find(key), [one.changed(media) for one, (media, _) in zip(shown, read, strict=True)]
