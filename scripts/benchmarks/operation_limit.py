"""The limit: how many operations the trainable part alone needs for a step, and how long this machine takes for them.

Counted are matrix products, two operations per multiplication, forward and backward, in the layers from the lowest
adapted one upward: what a frozen weight's gradient would cost is not in it, nor what goes below that layer. Texts count
with the tokens they have, not with padding. ``strict`` also leaves out what nobody reads in the last layer of a tower
that is read at one token, and works out the keys and values of an image once for all its captions in a batch.

Letters: T tokens, S tokens of the image, D width, M width of the feed-forward layers, r rank of LoRA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.work_table import Work


@dataclass(frozen=True)
class Layer:
    """One transformer layer with LoRA in the projections of queries and values.

    Attributes:
        width, inner: D and M.
        matrices: D x M matrices of the feed-forward part, 2 or (gated) 3.
        lowest: nothing trained lies below it, so its inputs need no gradient.
        is_read_once: the last layer of a tower that is read at one token.
        seen: S for a layer with cross attention to an image of that many tokens, else 0.
    """

    width: int
    inner: int
    rank: int
    matrices: int = 2
    lowest: bool = False
    is_read_once: bool = False
    seen: int = 0

    def operations(self, tokens: int, *, strict: bool = False, shared: float = 1.0) -> float:
        """Of one sequence, forward and backward; ``shared``: an image's share of a caption."""
        read = 1 if strict and self.is_read_once else tokens
        total = self._attention(read, tokens, upward=not self.lowest, keys_upward=not self.lowest)
        if self.seen:
            total += self._attention(read, self.seen * (shared if strict else 1.0), upward=True, keys_upward=False)
            total += (1 - shared) * self._scores(read, self.seen, False) if strict else 0.0  # these are per caption
        return total + 2 * self.matrices * 2.0 * read * self.width * self.inner

    def _attention(self, queries: float, keys: float, *, upward: bool, keys_upward: bool) -> float:
        """``upward``: the gradient goes on to what the queries (or keys and values) are made from."""
        projected = self._projection(queries, upward) + self._lora(queries, upward)  # queries
        projected += self._projection(keys, keys_upward)  # keys
        projected += self._projection(keys, keys_upward) + self._lora(keys, keys_upward)  # values
        projected += self._projection(queries, True)  # the output
        return projected + self._scores(queries, keys, keys_upward)

    def _projection(self, rows: float, upward: bool) -> float:
        """A frozen D x D matrix: forward, and the gradient of its input where that is needed."""
        return 2.0 * rows * self.width**2 * (1 + upward)

    def _lora(self, rows: float, upward: bool) -> float:
        """Two factors forward, their gradients, that between them, and that of the input where it is needed."""
        return 2.0 * rows * self.width * self.rank * (5 + upward)

    def _scores(self, queries: float, keys: float, keys_upward: bool) -> float:
        """Scores and weighted sums forward; backward those of values, weights, queries, and keys where needed."""
        return 2.0 * queries * keys * self.width * (5 + keys_upward)


def head_operations(tokens: int, width: int, words: int, dense: bool) -> float:
    """Logits of the label tokens, forward and backward to the states."""
    return 2 * tokens * (2.0 * width * words + (2.0 * width * width if dense else 0))


def layers_of(config: Any, work: Work, part: str) -> list[Layer]:
    """The layers of a part from the lowest adapted one upward."""
    own = config.vision_config if part == "vision" else config.text_config
    count = own.num_hidden_layers
    first = 0 if work.layers == "all" else count - int(work.layers.removeprefix("last "))
    seen = 0
    if work.family == "blip":
        seen = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    is_read_once = work.family == "clip"
    return [
        Layer(
            width=own.hidden_size,
            inner=own.intermediate_size,
            rank=work.rank,
            matrices=3 if work.family == "llava" else 2,
            lowest=number == first,
            is_read_once=is_read_once and number == count - 1,
            seen=seen,
        )
        for number in range(first, count)
    ]


def lengths_of(config: Any, work: Work, part: str, texts: Sequence[int]) -> list[int]:
    """T of every item: of an image's patches, or of its text."""
    if part == "vision":
        return [(config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1] * len(texts)
    return list(texts)


def count_tokens(tokenizer: Any, config: Any, work: Work, caption: str) -> tuple[int, int]:
    """Tokens of an item's text as the model reads it, without padding, and how many of them must be said."""
    from scripts.benchmarks.peer_trainer import PROMPTS

    words = len(tokenizer(caption, add_special_tokens=False)["input_ids"])
    if work.family == "clip":
        return words + 2, 0
    asked = len(tokenizer(PROMPTS[work.family], add_special_tokens=False)["input_ids"]) + 1
    image = config.image_seq_length - 1 if work.family == "llava" else 0
    return image + asked + words + 1, words + 1


def operations_per_item(config: Any, work: Work, texts: Sequence[int], labels: float, *, strict: bool) -> float:
    """The mean over an epoch's items; ``labels`` is how many tokens of one must be said."""
    total = 0.0
    for part in work.parts:
        lengths, layers = lengths_of(config, work, part, texts), layers_of(config, work, part)
        shared = 1.0 / work.captions
        found = sum(layer.operations(one, strict=strict, shared=shared) for layer in layers for one in lengths)
        total += found / len(lengths)
    if work.family != "clip":
        own = config.text_config
        total += labels * head_operations(1, own.hidden_size, own.vocab_size, dense=work.family == "blip")
    return total


def product_sizes(config: Any, work: Work, texts: Sequence[int]) -> list[tuple[int, int, int]]:
    """The sizes of the products that a step is made of: (tokens of a batch, inner, columns)."""
    sizes = []
    for part in work.parts:
        layer = layers_of(config, work, part)[0]
        rows = round(work.batch * sum(lengths_of(config, work, part, texts)) / len(texts))
        sizes += [(rows, layer.width, layer.width)] * 4
        sizes += [(rows, layer.width, layer.inner), (rows, layer.inner, layer.width)]
        sizes += [(work.batch * layer.seen, layer.width, layer.width)] * (2 if layer.seen else 0)
    return sizes


def measure_limit(folder: Path, work: Work, rate: float | None = None) -> dict[str, Any]:
    """Operations of a step, the machine's rate at the sizes of the work unless given, seconds at that rate."""
    import transformers

    from scripts.benchmarks.made_inputs import load_processor
    from scripts.benchmarks.paired_timing import measure_rate
    from scripts.benchmarks.peer_trainer import read_rows

    config = transformers.AutoConfig.from_pretrained(folder / "model")
    processor = load_processor(folder / "model", work.family)
    counts = [count_tokens(processor.tokenizer, config, work, row["caption"]) for row in read_rows(folder)]
    texts, said = [tokens for tokens, _ in counts], sum(labels for _, labels in counts) / len(counts)
    rate = rate or measure_rate(product_sizes(config, work, texts))
    found = {
        name: operations_per_item(config, work, texts, said, strict=name == "strict") * work.batch
        for name in ("layers", "strict")
    }
    return {
        "rate": rate,
        "operations": found,
        "seconds": {name: value / rate for name, value in found.items()},
        "tokens": sum(texts) / len(texts),
        "sizes": product_sizes(config, work, texts),
    }
