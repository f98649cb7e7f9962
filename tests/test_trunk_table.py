"""The README's table of what frozen layers leave to be kept is what the twins say."""

from pathlib import Path

import pytest

from scripts import write_trunk_table
from scripts.method_subjects import ANSWERING, embedding_families
from scripts.write_trunk_table import BEGIN, END, README, Row, ask_all, main, place, render


@pytest.fixture(scope="module")
def table() -> dict[str, Row]:
    return ask_all()


def test_the_table_in_the_readme(table: dict[str, Row]) -> None:
    text = README.read_text(encoding="utf-8")
    assert place(text, render(table)) == text, "run python scripts/write_trunk_table.py"


def test_every_family_and_what_is_promised_of_it(table: dict[str, Row]) -> None:
    assert set(table) == {*embedding_families(), *ANSWERING}
    for name in ("clip", "siglip", "chinese_clip", "dual_encoder", "blip"):
        assert table[name]["media"] == {"none": "whole", "last": "layers", "all": "pixels"}, name
        assert (table[name]["text"]["none"], table[name]["text"]["last"]) == ("whole", "layers"), name
    for name in ("llava", "llava_next", "qwen2_5_vl", "idefics3", "paligemma", "blip2 (OPT)"):
        assert table[name]["media"]["none"] == "image_side" and table[name]["text"]["none"] is None, name
    assert table["blip captioning"]["media"]["none"] == "tower"
    assert table["blip captioning"]["media"]["last"] == "layers"


def test_a_cell_names_its_reasons(table: dict[str, Row]) -> None:
    made = render(table)
    assert "| clap | embed | - (" in made and "a training sound is cut at random every time" in made
    assert made.startswith(BEGIN) and made.endswith(END)


def test_a_stale_table_is_seen_and_written_anew(
    table: dict[str, Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# Before\n\n{BEGIN}\n{END}\n\nAfter.\n")
    monkeypatch.setattr(write_trunk_table, "README", page)
    monkeypatch.setattr(write_trunk_table, "ask_all", lambda: {"clip": table["clip"]})
    assert main(["--check"]) == 1 and "clip" not in page.read_text()
    assert "README.md: the table of what is kept is stale" in capsys.readouterr().out
    assert main([]) == 0 and page.read_text().startswith("# Before\n") and page.read_text().endswith("\nAfter.\n")
    assert "| clip | embed | embedding, inside the tower, pixels |" in page.read_text()
    assert main(["--check"]) == 0 and capsys.readouterr().out == ""
