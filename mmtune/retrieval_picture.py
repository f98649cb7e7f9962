"""``retrievals.png``: a few texts of a split and the images that each model finds for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.ground.seeding import generator_for
from mmtune.metrics._ranking import ranks_of_embeddings
from mmtune.run_report import FAINT, INK, SOFT, STYLE, save_picture
from mmtune.scored_split import SplitEmbeddings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIT = "#1a9850"


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
    columns = len(embeds) * num_images + len(embeds) - 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 + 0.86 * columns, 0.62 + 1.0 * len(queries)), dpi=96)
        ratios = [3.0, *([1.0] * num_images + [0.35]) * len(embeds)][:-1]
        grid = figure.add_gridspec(
            len(queries), len(ratios), width_ratios=ratios, left=0.01, right=0.99, bottom=0.01,
            top=1 - 0.55 / figure.get_figheight(), wspace=0.08, hspace=0.08,
        )  # fmt: skip
        for row, query in enumerate(queries):
            ranks = {name: _rank(embedded, query) for name, embedded in embeds.items()}
            _draw_text(figure.add_subplot(grid[row, 0]), split.texts[query], ranks)
            for block, (name, embedded) in enumerate(embeds.items()):
                for place, image in enumerate(first_images(embedded, query, num_images)):
                    axes = figure.add_subplot(grid[row, 1 + block * (num_images + 1) + place])
                    _draw_image(axes, embedded, query, image)
                    if row == 0 and place == 0:
                        axes.set_title(name, fontsize=11, pad=6)
        note = f"texts drawn at random, the first {num_images} of {len(split.images):,} images"
        legend = f"{note}; green frame: right; rank: of the first right one"
        figure.text(0.01, 1 - 0.2 / figure.get_figheight(), legend, fontsize=8.5, color=INK, va="center")
        save_picture(figure, path)
    return path


def first_images(embedded: SplitEmbeddings, query: int, num_images: int) -> np.ndarray:
    """The images nearest to a text, best first: int64[num_images]."""
    similarities = embedded.image_embeds @ embedded.text_embeds[query]
    return np.argsort(-similarities, kind="stable")[:num_images]


def _rank(embedded: SplitEmbeddings, query: int) -> float:
    """Rank of the best right image of one text."""
    one = embedded.text_to_image.between(query, query + 1)
    return float(ranks_of_embeddings(embedded.text_embeds[query : query + 1], embedded.image_embeds, one)[0])


def _draw_text(axes: "Axes", text: str, ranks: Mapping[str, float]) -> None:
    """The text, and below it the rank of the best right image under each model."""
    import textwrap

    lines = textwrap.wrap(text, 26) or [""]
    shown = "\n".join(lines[:3]) + (" …" if len(lines) > 3 else "")
    facts = "rank " + " → ".join(f"{rank:g}" for rank in ranks.values())
    place: dict[str, Any] = {"ha": "left", "transform": axes.transAxes, "parse_math": False}
    axes.text(0.0, 0.48, shown, va="bottom", fontsize=9.5, **place)
    axes.text(0.0, 0.36, facts, va="top", fontsize=8.5, color=FAINT, **place)
    axes.set_axis_off()


def _draw_image(axes: "Axes", embedded: SplitEmbeddings, query: int, image: int) -> None:
    """One image with its frame; pictures are made square for the grid, never stretched."""
    picture: Any = embedded.images[image].read()
    picture.thumbnail((160, 160))
    axes.imshow(np.asarray(picture), interpolation="bilinear")
    right = image in embedded.text_to_image[query]
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(HIT if right else SOFT)
        spine.set_linewidth(3.0 if right else 0.8)
