"""`mmtune merge`: the exit code says whether the proof held, and every file beside the weights is the original's."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from adapter_examples import LORA, backbone_of, make_run, samples

from mmtune import command_line, merge_building, merge_proof
from mmtune.ground.errors import CheckpointError
from mmtune.ground.safe_files import file_hash

ADDED = {
    "chat_template.jinja": "{% for m in messages %}{{ m }}{% endfor %}\r\nend \u00e9\n",
    "generation_config.json": '{"max_length":   7,\n\t"transformers_version": "4.0.0"}',
}
"""Files that transformers would write in another way: other spaces, other line ends."""


@pytest.fixture
def backbone(tiny_clip_folder: Path, tmp_path: Path) -> Path:
    """A twin with a chat template and a generation configuration."""
    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "backbone"))
    for name, text in ADDED.items():
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture
def run(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(merge_building, "open_samples", lambda *_: (samples(), "drawn"))
    return make_run(tmp_path / "run", {"id": str(backbone)}, LORA)


def prove_here(monkeypatch: pytest.MonkeyPatch, *, disturbance: float = 0.0) -> None:
    """Embed in this process instead of a fresh one, with an error added."""

    def reload(cases: list[merge_proof.Case], scratch: Path) -> list[dict[str, torch.Tensor]]:
        embedded = [merge_proof.embed(backbone_of(case.folder), case.inputs) for case in cases]
        return [{name: value + disturbance for name, value in each.items()} for each in embedded]

    monkeypatch.setattr(merge_proof, "reload_elsewhere", reload)


def merge_by_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """``mmtune merge ARGUMENTS`` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mmtune", "merge", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its hash."""
    return {str(path.relative_to(folder)): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def test_files_beside_the_weights_are_copied_byte_for_byte(
    run: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prove_here(monkeypatch)
    assert merge_by_command(monkeypatch, run) == 0
    assert f"wrote {run / 'merged'}" in capsys.readouterr().out
    merged, original = content(run / "merged"), content(backbone)
    weights = {"config.json", "model.safetensors"}
    assert set(ADDED) < set(original) - weights
    assert {name: merged[name] for name in set(original) - weights} == {
        name: original[name] for name in set(original) - weights
    }
    assert set(merged) - set(original) == {"merge_report.json"}
    assert merged["model.safetensors"] != original["model.safetensors"]
    copied = json.loads((run / "merged" / "merge_report.json").read_text())["copied"]
    assert copied == {name: original[name] for name in set(original) - weights}


def test_a_folder_written_elsewhere_says_where_its_run_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove_here(monkeypatch)
    elsewhere = tmp_path / "models" / "mine"
    assert merge_by_command(monkeypatch, run, "-o", elsewhere) == 0
    assert (elsewhere / merge_building.RUN_NOTE).read_text() == f"../../run\n{run}\n"
    assert str(tmp_path) not in (elsewhere / "merge_report.json").read_text()
    assert merge_by_command(monkeypatch, run, "-o", elsewhere) == 0, "and is no reason not to replace it"


def test_a_proof_that_fails_is_a_non_zero_exit_and_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(run)
    prove_here(monkeypatch, disturbance=1e-3)
    for arguments in ((run,), (run, "-o", tmp_path / "elsewhere")):
        assert merge_by_command(monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert "is not the adapted model" in err and "Traceback" not in err and "wrote" not in out
    assert content(run) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "run"], "nothing half-made lies about"


def test_an_earlier_merge_survives_a_proof_that_fails(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prove_here(monkeypatch)
    assert merge_by_command(monkeypatch, run) == 0
    before = content(run)

    def refuse(*_: object) -> None:
        raise CheckpointError("refused")

    monkeypatch.setattr(merge_building, "prove", refuse)
    assert merge_by_command(monkeypatch, run, "--scale", "0.5") == 2
    assert content(run) == before
