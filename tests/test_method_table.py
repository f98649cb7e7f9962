"""What the README says works with what is what happens: every cell is tried again."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtune.ground.kind_folder import kinds

sys.path.append(str(Path(__file__).resolve().parents[1]))

from scripts import method_cells  # noqa: E402
from scripts.method_cells import QUANTIZED, ROWS, STAGES, Twin, try_cell  # noqa: E402
from scripts.write_method_table import README, TABLE, Table, families, render, section  # noqa: E402

TOLD: Table = json.loads(TABLE.read_text(encoding="utf-8"))
CELLS = [(family, row, quantize) for family in families() for row in ROWS for quantize in QUANTIZED]


@pytest.fixture(scope="module")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twin]:
    """Each family's tiny twin, made once."""
    made: dict[str, Twin] = {}

    def twin(family: str) -> Twin:
        if family not in made:
            made.clear()  # cells come family by family; loaded copies of the last one are not needed any more
            made[family] = Twin(family, tmp_path_factory.mktemp("twins") / family)
        return made[family]

    return twin


@pytest.mark.parametrize(("family", "row", "quantize"), CELLS)
def test_the_cell_does_what_the_table_says(twin_of: Any, family: str, row: str, quantize: str) -> None:
    found = try_cell(twin_of(family), row, quantize).record()
    assert "refused" in found or found == dict.fromkeys(STAGES, True), found
    assert found == TOLD[row][family][quantize], f"run scripts/write_method_table.py {family}"


def test_every_kind_and_every_family_has_its_cells() -> None:
    assert {values["kind"] for values in ROWS.values()} == set(kinds("adapters")), "give the new kind a row in ROWS"
    assert list(TOLD) == list(ROWS), "run scripts/write_method_table.py"
    assert {name for row in TOLD.values() for name in row} == set(families()), "run scripts/write_method_table.py"


def test_the_readme_holds_the_table() -> None:
    assert section(TOLD) in README.read_text(encoding="utf-8"), "run scripts/write_method_table.py --readme"
    assert render(TOLD).count("\n| ") == len(ROWS)


@pytest.fixture
def clip(tmp_path: Path) -> Iterator[Twin]:
    yield Twin("clip", tmp_path / "clip")


def test_a_refused_cell_loads_nothing(clip: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.adapter("loha")
    monkeypatch.setattr(method_cells, "load", lambda *_, **__: pytest.fail("loaded"))
    assert "4bit" in try_cell(clip, "loha", "4bit").record()["refused"]


@pytest.mark.parametrize(
    ("broken", "last", "said"),
    [
        ("optimizer_groups", "attaches", "no gradient|did not move|moved"),
        ("restore", "learns", "not restored bit for bit"),
        ("merge_into", "saves", "no plain one"),
    ],
)
def test_a_broken_stage_is_seen(clip: Twin, monkeypatch: pytest.MonkeyPatch, broken: str, last: str, said: str) -> None:
    instead = {"optimizer_groups": lambda adapted, *_: _groups_without_text(adapted)}
    monkeypatch.setattr(method_cells, broken, instead.get(broken, lambda *_, **__: None))
    cell = try_cell(clip, "lora", "none")
    assert cell.stages[-1] == last and cell.failed and re.search(said, cell.failed), cell


@pytest.mark.parametrize("quantize", ["none", "8bit"])
def test_an_adapter_that_peft_does_not_read_is_seen(clip: Twin, monkeypatch: pytest.MonkeyPatch, quantize: str) -> None:
    """VeRA's effect is below what 8 bit rounds, so only the same sums tell it from nothing."""
    import peft

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", lambda *_, **__: None)
    cell = try_cell(clip, "vera", quantize)
    assert cell.stages[-1] == "merges" and "peft alone reloads another model" in str(cell.failed), cell


def _groups_without_text(adapted: Any) -> list[dict[str, Any]]:
    """What an optimizer holds that forgot one part."""
    return [{"params": [value for name, value in adapted.trainable().items() if adapted.part_of[name] != "text"]}]
