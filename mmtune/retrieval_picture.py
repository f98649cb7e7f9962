"""``retrievals.png``: a few texts of a split and the images (or sounds, as spectrograms) that each model finds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.records import MEDIA_WORDS
from mmtune.ground.seeding import generator_for
from mmtune.ground.sound_reading import Sound
from mmtune.metrics._ranking import ranks_of_embeddings
from mmtune.run_report import FAINT, SOFT, STYLE, save_picture
from mmtune.scored_split import SplitEmbeddings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIT = "#1a9850"
TEXT, HEAD, GAP, PAD = 2.6, 0.75, 0.3, 0.05
"""Width of the text column, height of the head, space between models and around an image, in image widths."""
INCHES = 0.95
"""One image's width."""
MOMENTS, BANDS, WINDOW = 72, 56, 0.04
"""Columns and rows of a spectrogram, and the seconds that each column hears."""
LOWEST, HIGHEST, RANGE = 60.0, 12_000.0, 55.0
"""Bands from and to, in hertz, equally spaced on a logarithmic scale; decibels below the loudest that are drawn."""
NAME = 13
"""Letters of a sound's name that have room below it."""


def draw_retrievals(
    path: Path, embeds: Mapping[str, SplitEmbeddings], *, seed: int, num_queries: int = 6, num_images: int = 5
) -> Path:
    """Draw each model's first images for some texts of a split; right ones have a green frame.

    The texts are drawn by ``seed``, not chosen, so that the picture is a fair sample.

    Args:
        path: the PNG to write.
        embeds: model name, such as ``base`` and ``tuned`` -> the split as it sees it; one split for all.
        seed: of the draw.
        num_queries: how many texts.
        num_images: how many images for each.

    Returns:
        ``path``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    split = next(iter(embeds.values()))
    generator = generator_for(seed, "retrievals")
    queries = generator.choice(len(split.texts), size=min(num_queries, len(split.texts)), replace=False)
    num_images = min(num_images, len(split.images))
    width = TEXT + len(embeds) * (num_images + GAP)
    height = HEAD + len(queries)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(INCHES * width, INCHES * height), dpi=96)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        words = MEDIA_WORDS[split.modality]
        note = f"texts drawn at random, the first {num_images} of {len(split.images):,} {words}"
        axes.text(0.1, 0.22, f"{note}; green frame: right; rank: of the first right one", fontsize=8.5, color=FAINT)
        for row, query in enumerate(queries):
            ranks = [_rank(embedded, query) for embedded in embeds.values()]
            _draw_text(axes, HEAD + row, split.texts[query], ranks)
            for block, embedded in enumerate(embeds.values()):
                for place, image in enumerate(first_images(embedded, query, num_images)):
                    _draw_image(axes, TEXT + block * (num_images + GAP) + place, HEAD + row, embedded, query, image)
        for block, name in enumerate(embeds):
            x = TEXT + block * (num_images + GAP) + PAD
            axes.text(x, HEAD - 0.06, name, fontsize=11, fontweight="bold", va="bottom")
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
        save_picture(figure, path)
    return path


def first_images(embedded: SplitEmbeddings, query: int, num_images: int) -> np.ndarray:
    """The images nearest to a text, best first: int64[num_images]."""
    similarities = embedded.image_embeds @ embedded.text_embeds[query]
    similarities = similarities if similarities.ndim == 1 else similarities.max(axis=1)  # several vectors per image
    return np.argsort(-similarities, kind="stable")[:num_images]


def _rank(embedded: SplitEmbeddings, query: int) -> float:
    """Rank of the best right image of one text."""
    one = embedded.text_to_image.between(query, query + 1)
    return float(ranks_of_embeddings(embedded.text_embeds[query : query + 1], embedded.image_embeds, one)[0])


def _draw_text(axes: "Axes", top: float, text: str, ranks: Sequence[float]) -> None:
    """The text, and below it the rank of the best right image under each model."""
    import textwrap

    lines = textwrap.wrap(text, 26) or [""]
    shown = "\n".join(lines[:3]) + (" …" if len(lines) > 3 else "")
    facts = "rank " + " → ".join(f"{rank:g}" for rank in ranks)
    axes.text(0.1, top + 0.56, shown, va="bottom", fontsize=9.5, parse_math=False)
    axes.text(0.1, top + 0.66, facts, va="top", fontsize=8.5, color=FAINT)


def _draw_image(axes: "Axes", left: float, top: float, embedded: SplitEmbeddings, query: int, image: int) -> None:
    """One image in a square of width 1 whose corner is (left, top), never stretched, and its frame."""
    from matplotlib.patches import Rectangle

    shown: Any = embedded.images[image].read()
    room = 1 - 2 * PAD
    if isinstance(shown, Sound):
        _draw_sound(axes, left + PAD, top + PAD, room, shown, embedded.image_ids[image])
    else:
        shown.thumbnail((160, 160))
        wide, high = (room * side / max(shown.size) for side in shown.size)
        x, y = left + (1 - wide) / 2, top + (1 - high) / 2
        axes.imshow(np.asarray(shown), extent=(x, x + wide, y + high, y), interpolation="bilinear")
    right = image in embedded.text_to_image[query]
    colour, thickness = (HIT, 3.0) if right else (SOFT, 0.8)
    axes.add_patch(Rectangle((left + PAD, top + PAD), room, room, fill=False, edgecolor=colour, linewidth=thickness))


def _draw_sound(axes: "Axes", left: float, top: float, room: float, sound: Sound, name: str) -> None:
    """What is heard when, high above low, and below it the sound's name and its length."""
    high = 0.78 * room
    extent = (left, left + room, top + high, top)
    shown = spectrogram(sound)[::-1]
    axes.imshow(shown, extent=extent, cmap="magma", vmin=-RANGE, vmax=0, interpolation="bilinear", aspect="auto")
    seconds = f"{sound.seconds:.1f} s"
    shade = {"boxstyle": "square,pad=0.15", "facecolor": "black", "alpha": 0.6, "linewidth": 0}
    axes.text(left + room - 0.05, top + 0.05, seconds, ha="right", va="top", fontsize=6.5, color="white", bbox=shade)
    below: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5}
    axes.text(left + room / 2, top + (high + room) / 2, _elided(name), **below, color=FAINT, parse_math=False)


def spectrogram(sound: Sound) -> np.ndarray:
    """Loudness float32[BANDS, MOMENTS] in decibels below the sound's loudest, low bands first, silence ``-RANGE``."""
    size = max(16, round(WINDOW * sound.rate))
    starts = np.linspace(0, max(0, len(sound.waveform) - size), MOMENTS).round().astype(int)
    padded = np.pad(sound.waveform, (0, max(0, size - len(sound.waveform))))
    pieces = padded[starts[:, None] + np.arange(size)] * np.hanning(size)
    num_bins = 4 * size  # padded with silence, so that low bands differ
    power = np.abs(np.fft.rfft(pieces, num_bins)) ** 2
    edges = np.geomspace(LOWEST, min(HIGHEST, sound.rate / 2), BANDS + 1) * num_bins / sound.rate
    first = np.minimum(edges[:-1].astype(int), power.shape[1] - 1)
    last = np.minimum(np.maximum(edges[1:].astype(int), first + 1), power.shape[1])
    bands = np.array([power[:, low:high].max(axis=1) for low, high in zip(first, last, strict=True)])
    loudest = max(float(bands.max()), 1e-12)
    return np.maximum(10 * np.log10(np.maximum(bands / loudest, 1e-12)), -RANGE).astype(np.float32)


def _elided(name: str) -> str:
    """The last part of a name, with its middle left out where it is long."""
    last = name.rstrip("/").rpartition("/")[2] or name
    return last if len(last) <= NAME else f"{last[: NAME // 2]}…{last[-(NAME - NAME // 2 - 1) :]}"
