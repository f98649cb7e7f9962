"""Find out what each family's frozen layers leave to be kept, and write it into the README.

    python scripts/write_trunk_table.py            # rewrites README.md between the two markers
    python scripts/write_trunk_table.py --check    # changes nothing; exit code 1 when the table is stale

Families are found from the folders; tiny twins with random weights stand for the real models. Each is asked where its
trunks end while nothing of a side is trained, while its tower's last layer is, and while all of the tower is.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scripts.method_subjects import ANSWERING, embedding_families, subject  # noqa: E402

BEGIN = "<!-- trunk table: written by scripts/write_trunk_table.py -->"
END = "<!-- trunk table ends -->"
README = ROOT / "README.md"

Row = dict[str, Any]
"""``ability``, and per side (``media``, ``text``) what is kept while so much of it is trained (``TRAINED``)."""

TRAINED = ("none", "last", "all")
"""What of a side is trained: nothing, its tower's last layer, all of its tower."""

SAID = """\
What is kept goes by how much of a side is trained: nothing (its `embedding`, or the `whole side` of what answers), only
what comes after its tower (the `whole tower`), or its upper layers (what lies `inside the tower` below the lowest
trained one); where nothing lies below, the prepared `pixels`. Texts with `-` are read together with the image."""

WORDS = {
    "whole": "embedding",
    "image_side": "whole side",
    "tower": "whole tower",
    "layers": "inside the tower",
    "pixels": "pixels",
}
"""Kind of what is kept -> what the table calls it."""


def ask(name: str, scratch: Path) -> Row:
    """What one model's sides keep."""
    from mmtune.backbones import Section, load
    from mmtune.ground.image_augmentation import AugmentSection
    from mmtune.trunk_cache import why_random

    one = subject(name)
    backbone = load(Section(id=str(one.write(scratch))), ability=one.ability or "embed")
    row: Row = {"ability": one.ability or "embed"}
    for side in ("media", "text"):
        row[side] = {trained: kept(backbone, row["ability"], side, trained) for trained in TRAINED}
    if why := why_random(backbone, [AugmentSection()]):
        row["media"] = dict.fromkeys(TRAINED, why)
    return row


def kept(backbone: Any, ability: str, side: str, trained: str) -> str | None:
    """The kind of a side's cut, or why there is none; None where the side has no states of its own."""
    from mmtune.trunk_cache import keeps_pixels
    from mmtune.trunk_cuts import Cut, find_cuts

    traits = backbone.traits
    tower = next((part for part in traits.sides[side] if part in traits.parts), next(iter(traits.parts)))
    found = find_cuts(backbone.model, traits, ability, touched(backbone, tower, trained)).get(side)
    if isinstance(found, Cut):
        layers = traits.layers.get(found.part) if found.kind == "layers" else None
        return "tower" if layers and found.depth == len(backbone.model.get_submodule(layers)) else found.kind
    return "pixels" if side == "media" and found is not None and keeps_pixels(backbone, ability) else found


def touched(backbone: Any, tower: str, trained: str) -> list[str]:
    """Names of weights that are trained."""
    path, layers = backbone.traits.parts[tower], backbone.traits.layers.get(tower)
    names = [name for name, _ in backbone.model.named_parameters() if name == path or name.startswith(f"{path}.")]
    if trained == "last" and layers:
        last = len(backbone.model.get_submodule(layers)) - 1
        names = [name for name in names if name.startswith(f"{layers}.{last}.")]
    return names if trained != "none" else []


def ask_all() -> dict[str, Row]:
    """A row for every family that embeds and everything that answers."""
    with tempfile.TemporaryDirectory() as scratch:
        return {name: ask(name, Path(scratch) / name) for name in [*embedding_families(), *ANSWERING]}


def render(table: dict[str, Row]) -> str:
    """The table and its footnotes in Markdown, with the markers."""
    reasons: list[str] = []
    lines = ["| model | used to | images or sounds | texts |", "|---|---|---|---|"]
    for name, row in table.items():
        cells = (render_cell(row[side], reasons) for side in ("media", "text"))
        lines.append(f"| {name} | {row['ability']} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    pair = (
        f"A pair's encoders of these types are kept only whole: {', '.join(f'`{name}`' for name in uncut_encoders())}."
    )
    return "\n".join([BEGIN, "", SAID, "", *lines, "", "Not kept, and why:", "", *notes, "", pair, "", END])


def render_cell(side: dict[str, str | None], reasons: list[str]) -> str:
    """What a side keeps, in the order of ``TRAINED``, and the numbers of reasons where it keeps nothing."""
    kinds = dict.fromkeys(WORDS[kind] for kind in side.values() if kind in WORDS)
    numbers = []
    for reason in (each for each in side.values() if each is not None and each not in WORDS):
        if reason.endswith("layers is trained"):  # all of it is, since that was asked
            continue
        if reason not in reasons:
            reasons.append(reason)
        numbers.append(str(reasons.index(reason) + 1))
    text = ", ".join(kinds) or "-"
    return f"{text} ({', '.join(dict.fromkeys(numbers))})" if numbers else text


def uncut_encoders() -> list[str]:
    """Types of encoders of a pair that are not cut between layers."""
    from mmtune.backbones._encoder_table import TABLES

    return sorted(name for table in TABLES.values() for name, one in table.items() if not one.stems)


def place(text: str, made: str) -> str:
    """A README with the table between its markers."""
    before, rest = text.split(BEGIN)
    return before + made + rest.split(END)[1]


def main(arguments: list[str], say: Callable[[str], None] = print) -> int:
    """Ask and write, and say whether the README was right."""
    text = README.read_text(encoding="utf-8")
    wanted = place(text, render(ask_all()))
    if wanted == text:
        return 0
    if "--check" in arguments:
        say("README.md: the table of what is kept is stale; run python scripts/write_trunk_table.py")
        return 1
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
