"""Try every adapter on every backbone family and quantization, and write what works into the README.

    python scripts/write_method_table.py              # tries all cells: tests/method_table.json and README.md
    python scripts/write_method_table.py siglip llava # tries these again, keeps the others
    python scripts/write_method_table.py --readme     # tries nothing, writes README.md from the JSON

Families and kinds are found from the folders; tiny twins with random weights stand for the real models. Exit code 1
when a cell that is not refused fails.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scripts.method_cells import QUANTIZED, ROUNDING, ROWS, STAGES, Twin, try_cell  # noqa: E402
from scripts.method_subjects import ANSWER_ROWS, ANSWERING, embedding_families  # noqa: E402

TABLE = ROOT / "tests" / "method_table.json"
README = ROOT / "README.md"
BEGIN = "<!-- method table: written by scripts/write_method_table.py -->"
END = "<!-- method table ends -->"

Table = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""Row -> family (or what else is tried) -> quantization -> a cell's record."""


def columns(row: str) -> list[str]:
    """What a row is tried on: every family that embeds, and for some rows everything that answers."""
    return [*embedding_families(), *(ANSWERING if row in ANSWER_ROWS else ())]


def try_names(names: list[str], table: Table, scratch: Path) -> Table:
    """The table with the cells of these names tried, and names and rows that are gone left out."""
    tried: Table = {row: {name: table.get(row, {}).get(name, {}) for name in columns(row)} for row in ROWS}
    for name in names:
        twin = Twin(name, scratch / name)
        for row in (row for row in ROWS if name in tried[row]):
            tried[row][name] = {quantize: try_cell(twin, row, quantize).record() for quantize in QUANTIZED}
            print(name, row, *(short(record) for record in tried[row][name].values()), sep=", ")
    return tried


def short(record: dict[str, Any]) -> str:
    """One cell in a word."""
    if "refused" in record:
        return "refused"
    return "works" if works(record) else f"FAILED ({record.get('failed')})"


SHOWN = {"none": "fp32"}
"""How the README calls it: a lone "none" in a table reads like "nothing works"."""


def works(record: dict[str, Any]) -> bool:
    """Whether a cell went through all stages."""
    return all(record.get(stage) is True for stage in STAGES)


def render(table: Table) -> str:
    """The table of the families that embed, and its footnotes, in Markdown."""
    names, reasons = embedding_families(), []  # type: tuple[list[str], list[str]]
    lines = [f"| adapter | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for row, cells in table.items():
        lines.append(f"| {row} | {' | '.join(render_cell(cells[name], reasons) for name in names)} |")
    return "\n".join(lines + render_notes(reasons))


def render_answering(table: Table) -> str:
    """The table of what answers, a line each, and its footnotes, in Markdown."""
    reasons: list[str] = []
    lines = [f"| model | {' | '.join(ANSWER_ROWS)} | 8bit merge |", "|---|" + "---|" * (len(ANSWER_ROWS) + 1)]
    for name in ANSWERING:
        cells = [table[row][name] for row in ANSWER_ROWS]
        rounding = max(cell["8bit"].get(ROUNDING, 0.0) for cell in cells)
        shown = " | ".join(render_cell(cell, reasons) for cell in cells)
        lines.append(f"| {name} | {shown} | {rounding:.1%} |")
    return "\n".join(lines + render_notes(reasons))


def render_notes(reasons: list[str]) -> list[str]:
    """The reasons with their numbers."""
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return ["", "Refused, before anything is loaded:", "", *notes] if notes else []


def render_cell(cell: dict[str, dict[str, Any]], reasons: list[str]) -> str:
    """``all`` where every quantization works, else those that do, and the numbers of the reasons."""
    done = [SHOWN.get(quantize, quantize) for quantize in QUANTIZED if works(cell[quantize])]
    numbers = []
    for record in cell.values():
        if "refused" in record:
            if record["refused"] not in reasons:
                reasons.append(record["refused"])
            numbers.append(str(reasons.index(record["refused"]) + 1))
    text = "all" if len(done) == len(QUANTIZED) else ", ".join(done) or "-"
    return f"{text} ({', '.join(dict.fromkeys(numbers))})" if numbers else text


def section(table: Table) -> str:
    """What stands in the README between the markers, with them."""
    said = [
        "Every adapter on a tiny twin of every family, in full precision (fp32), 4 bit and 8 bit. What a cell names",
        "attaches, learns in every part, is restored bit for bit, merges into the same model (8 bit: but for the",
        "rounding of activations) and is reloaded by peft or transformers alone; `all` is `fp32`, `4bit` and `8bit`.",
        "ALIGN's image tower is made of convolutions: rows above `layernorm` are its text tower (`lora` takes",
        "convolutions too, by their names).",
    ]
    answering = [
        "The same for what generates, matches or classifies, with the adapter in every part (`head_only`: in the part",
        "that has a head). The last column is the largest distance that was measured between a merged 8-bit run and",
        "the run itself, as a share of the range of its outputs, on these random twins; in fp32 and 4 bit it is below",
        "0.002%. The tests try every cell of the first table again, and of this one `lora` in 8 bit, DoRA and `ia3` in",
        "4 bit; `scripts/write_method_table.py` tries all.",
    ]
    parts = ["", *said, "", render(table), "", *answering, "", render_answering(table), ""]
    return "\n".join([BEGIN, *parts, END])


def write_json(table: Table) -> None:
    """One line per row and family, so that a change is seen where it is."""
    rows = []
    for row, cells in table.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(cell)}" for name, cell in sorted(cells.items())]
        rows.append(f" {json.dumps(row)}: {{\n" + ",\n".join(lines) + "\n }")
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def write_readme(table: Table) -> None:
    """Put the table between the README's markers."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(before + section(table) + rest.split(END)[1], encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Try, write, and say whether all went well."""
    table: Table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    if arguments != ["--readme"]:
        with tempfile.TemporaryDirectory() as scratch:
            table = try_names(arguments or columns(ANSWER_ROWS[0]), table, Path(scratch))
        write_json(table)
    write_readme(table)
    cells = [cell for row in table.values() for family in row.values() for cell in family.values()]
    return 0 if all("refused" in cell or works(cell) for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
