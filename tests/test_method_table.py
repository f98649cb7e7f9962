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
from scripts.method_cells import QUANTIZED, ROUNDED, ROUNDING, ROWS, STAGES, Twin, try_cell  # noqa: E402
from scripts.method_subjects import ANSWER_ROWS, ANSWERING, embedding_families  # noqa: E402
from scripts.write_method_table import README, TABLE, Table, columns, render, render_answering, section  # noqa: E402

TOLD: Table = json.loads(TABLE.read_text(encoding="utf-8"))
TRIED_EACH_TIME = (("lora, use_dora", "4bit"), ("ia3", "4bit"), ("lora", "8bit"))
"""What is tried on everything that answers; the rest of it by the script alone, which takes minutes."""
CELLS = [
    *((family, row, quantize) for family in embedding_families() for row in ROWS for quantize in QUANTIZED),
    *((name, row, quantize) for name in ANSWERING for row, quantize in TRIED_EACH_TIME),
]


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
    told = dict(TOLD[row][family][quantize])
    for record in (found, told):
        assert 0 <= record.pop(ROUNDING, 0.0) <= ROUNDED, record  # another machine rounds otherwise
    assert "refused" in found or found == dict.fromkeys(STAGES, True), found
    assert found == told, f"run scripts/write_method_table.py '{family}'"


def test_every_kind_and_every_family_has_its_cells() -> None:
    assert {values["kind"] for values in ROWS.values()} == set(kinds("adapters")), "give the new kind a row in ROWS"
    assert list(TOLD) == list(ROWS), "run scripts/write_method_table.py"
    for row, cells in TOLD.items():
        assert set(cells) == set(columns(row)), "run scripts/write_method_table.py"
        assert all(set(cell) == set(QUANTIZED) for cell in cells.values()), "run scripts/write_method_table.py"
    tried = {subject.family for subject in ANSWERING.values()} | set(embedding_families())
    assert tried == set(kinds("backbones")), "give the new family a line in method_subjects.ANSWERING"


def test_every_class_and_model_type_that_answers_has_its_line() -> None:
    answering = {
        name: {subject for subject in ANSWERING.values() if subject.family == name} for name in kinds("backbones")
    }
    for name, module in kinds("backbones").items():
        lines = {(subject.model_type, subject.architecture) for subject in answering[name]}
        if name == "chat":
            assert lines == {(model_type, None) for model_type in module.FAMILY.model_types}
        named = {architecture for _, architecture in lines if architecture}
        assert named <= set(getattr(module, "RECORDS", named)), f"{name} has no such class"
        if name in ("blip", "vilt"):
            assert named == set(module.RECORDS), f"{name}: a class has no line"


def test_nothing_that_the_table_tells_has_failed() -> None:
    """Cells that are not tried here too: what is not refused went through every stage."""
    for row, cells in TOLD.items():
        for name, cell in cells.items():
            for quantize, record in cell.items():
                done = {stage: record.get(stage) for stage in STAGES}
                assert "refused" in record or done == dict.fromkeys(STAGES, True), (row, name, quantize)
                assert ("refused" in record) == _is_refused(row, name, quantize), (row, name, quantize)


def _is_refused(row: str, name: str, quantize: str) -> bool:
    """By the kind alone, but for heads: rows of what answers."""
    if row not in ANSWER_ROWS or name not in ANSWERING:
        return "refused" in TOLD[row][name][quantize]
    if row == "head_only":
        return ANSWERING[name].family in ("blip", "git", "blip2", "instructblip") and not name.endswith("matching")
    return (row == "full" and quantize != "none") or (row == "lora, use_dora" and quantize == "8bit")


def test_the_readme_holds_the_table() -> None:
    assert section(TOLD) in README.read_text(encoding="utf-8"), "run scripts/write_method_table.py --readme"
    assert render(TOLD).count("\n| ") == len(ROWS) and render_answering(TOLD).count("\n| ") == len(ANSWERING)


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
