"""Try every adapter on every backbone family and quantization, and write what works into the README.

    python scripts/write_method_table.py              # tries all cells: tests/method_table.json and README.md
    python scripts/write_method_table.py siglip clap  # tries these families again, keeps the others
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

from mmtune.ground.kind_folder import kinds  # noqa: E402
from scripts.method_cells import QUANTIZED, ROWS, STAGES, Twin, try_cell  # noqa: E402

TABLE = ROOT / "tests" / "method_table.json"
README = ROOT / "README.md"
BEGIN = "<!-- method table: written by scripts/write_method_table.py -->"
END = "<!-- method table ends -->"

Table = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""Row -> family -> quantization -> a cell's record."""


def families() -> list[str]:
    """Every backbone family, by name."""
    return sorted(kinds("backbones"))


def try_families(names: list[str], table: Table, scratch: Path) -> Table:
    """The table with the cells of these families tried, and families and rows that are gone left out."""
    tried: Table = {row: {name: table.get(row, {}).get(name, {}) for name in families()} for row in ROWS}
    for name in names:
        twin = Twin(name, scratch / name)
        for row in ROWS:
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
    """The table and its footnotes in Markdown."""
    columns = sorted({name for row in table.values() for name in row})
    reasons: list[str] = []
    lines = [f"| adapter | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row, cells in table.items():
        lines.append(f"| {row} | {' | '.join(render_cell(cells[name], reasons) for name in columns)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "Refused, before anything is loaded:", "", *notes] if notes else lines)


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
    return "\n".join([BEGIN, "", *said, "", render(table), "", END])


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
            table = try_families(arguments or families(), table, Path(scratch))
        write_json(table)
    write_readme(table)
    cells = [cell for row in table.values() for family in row.values() for cell in family.values()]
    return 0 if all("refused" in cell or works(cell) for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
