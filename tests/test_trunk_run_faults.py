"""Whole runs whose trunk cache is broken in every way: the losses are those without a cache, and the log says what was.

Where a test says nothing else, a run is two epochs of three steps over twelve images.
"""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_runs import write_pairs
from trunk_runs import OLD, Runs, at_step, cut_off, flip, num_run, refuse_writes, same

from mmtune.trunk_shelf import ABOUT, INDEX

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that all runs share, changed long ago."""
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder)
    for path in folder.glob("images/*.png"):
        os.utime(path, ns=(OLD, OLD))
    return folder


@pytest.fixture
def runs(tmp_path: Path, data: Path, tiny_clip_folder: Path) -> Runs:
    return Runs(tmp_path, data, tiny_clip_folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_clip_folder: Path) -> list[float]:
    """The losses without a cache."""
    bare = Runs(tmp_path_factory.mktemp("plain"), data, tiny_clip_folder)
    losses = bare.losses("off", cached="train.trunk_cache=off")
    assert not bare.root.exists() and "trunk cache" not in bare.said("off")
    return losses


# --- nothing is wrong


def test_with_a_cache_cold_and_warm(runs: Runs, plain: list[float]) -> None:
    assert same(runs.losses("cold"), plain) and same(runs.losses("warm"), plain)
    assert num_run(runs.said("cold"), "vision") == 12 and num_run(runs.said("warm"), "vision") == 0
    assert len(runs.trunks()) == 2, "one of each side"


# --- where it is kept


@pytest.mark.parametrize("place", ["a file", "below a file", "cannot be made"])
def test_a_folder_that_is_none(runs: Runs, plain: list[float], place: str) -> None:
    file = runs.folder / "file"
    file.write_text("mine")
    folder = {"a file": file, "below a file": file / "kept", "cannot be made": Path("/proc/kept")}[place]
    assert same(runs.losses("run", cached=f"train.trunk_cache={{mode: disk, folder: {folder}}}"), plain)
    said = runs.said("run")
    assert f"trunk cache {folder}" in said and "cannot be written" in said and "or another folder" in said
    assert file.read_text() == "mine" and said.count("cannot be written") == 2, "once for each side"


def test_an_unwritable_folder(runs: Runs, plain: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_writes(monkeypatch, runs.root, errno.EACCES, after=0)
    assert same(runs.losses("run"), plain)
    said = runs.said("run")
    assert said.count("cannot be written (Permission denied)") == 2 and "choose a larger limit or another" in said
    assert num_run(said, "vision") == 24, "every epoch anew"


def test_a_disk_that_is_full_in_the_middle(runs: Runs, plain: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse_writes(patch, runs.root, errno.ENOSPC, after=8)
        assert same(runs.losses("run"), plain)
    assert "cannot be written (No space left on device)" in runs.said("run")
    assert same(runs.losses("after"), plain), "what was written before is right, and the rest is added"
    assert 0 < num_run(runs.said("after"), "vision") < 12


def test_a_limit_that_is_reached_in_the_middle(runs: Runs, plain: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast is what keeps a run from it, so it is made to say less."""
    monkeypatch.setattr("mmtune.trunk_cache.Scales.mean", 0.0)
    limited = f"train.trunk_cache={{mode: disk, folder: {runs.root}, limit_gb: 2e-5}}"
    assert same(runs.losses("run", cached=limited), plain)
    said = runs.said("run")
    assert "it has reached its limit of 10.0 kB" in said and "`mmtune cache clear` makes room" in said
    assert all(sum(path.stat().st_size for path in trunk.iterdir()) < 60_000 for trunk in runs.trunks())


def test_a_limit_that_is_too_small_is_refused_before(runs: Runs, plain: list[float]) -> None:
    limited = f"train.trunk_cache={{mode: disk, folder: {runs.root}, limit_gb: 1e-6}}"
    assert same(runs.losses("run", cached=limited), plain)
    assert runs.said("run").count("do not fit: the limit is 1.0 kB") == 2 and not runs.root.exists()


# --- what is kept


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "states flipped": ("states-*.bin", flip),
    "states cut off": ("states-*.bin", cut_off),
    "states deleted": ("states-*.bin", Path.unlink),
    "table flipped": (INDEX, flip),
    "table deleted": (INDEX, Path.unlink),
    "no table": (INDEX, lambda path: path.write_bytes(b"no table" * 999)),
    "description cut off": (ABOUT, cut_off),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_between_steps(runs: Runs, plain: list[float], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pattern, act = DAMAGE[name]

    def damage() -> None:
        paths = [path for trunk in runs.trunks() for path in trunk.glob(pattern)]
        assert paths
        for path in paths:
            act(path)

    with monkeypatch.context() as patch:
        done = at_step(patch, 4, damage)
        assert same(runs.losses("run"), plain) and done
    said = runs.said("run")
    if name not in ("states deleted", "table deleted", "description cut off"):
        assert "damaged" in said and ("computed again" in said or "begun anew" in said), said


def test_damage_that_workers_meet(runs: Runs, plain: list[float]) -> None:
    """What is found in the loader's processes is said in the same log."""
    runs.losses("before")
    for trunk in runs.trunks():
        for path in trunk.glob("states-*.bin"):
            flip(path)
    assert same(runs.losses("run", "train.workers=2"), plain)
    assert "a damaged entry is computed again" in runs.said("run") and num_run(runs.said("run"), "vision") == 12
    assert same(runs.losses("after", "train.workers=2"), plain) and num_run(runs.said("after"), "vision") == 0


def test_everything_is_deleted_in_the_middle(runs: Runs, plain: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = at_step(patch, 4, lambda: shutil.rmtree(runs.root))
        assert same(runs.losses("run"), plain) and done
    assert 12 < num_run(runs.said("run"), "vision") <= 24, "what was deleted is computed and kept again"
    assert same(runs.losses("after"), plain) and num_run(runs.said("after"), "vision") <= 12


def test_contents_of_files_are_forgotten_or_damaged(runs: Runs, plain: list[float]) -> None:
    assert same(runs.losses("first"), plain)
    flip(runs.root / "contents.sqlite")
    assert same(runs.losses("second"), plain)
    assert num_run(runs.said("second"), "vision") == 0, "images are read again, and their states found"


# --- what the states are of


CHANGED = (0, 1, 4)


def repaint(runs: Runs, changed: int) -> None:
    """Other pictures of the same size in bytes, under the same names."""
    for number in CHANGED:
        path = runs.data / "images" / f"{number}.png"
        size = path.stat().st_size
        for shade in range(number, 256, 5):
            Image.new("RGB", (40, 36), (shade, 7, 250 - shade)).save(path)
            if path.stat().st_size == size:
                break
        assert path.stat().st_size == size
        os.utime(path, ns=(changed, changed))


def test_a_picture_that_changed_under_its_name(runs: Runs, plain: list[float]) -> None:
    runs.losses("before")
    repaint(runs, time.time_ns())
    after = runs.losses("after")
    assert same(after, runs.losses("truth", cached="train.trunk_cache=off")) and not same(after, plain)
    assert num_run(runs.said("after"), "vision") == len(CHANGED)


def test_a_picture_that_changes_between_epochs(
    runs: Runs, data: Path, plain: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for name, cached in {"cached": None, "truth": "train.trunk_cache=off"}.items():
        for number in CHANGED:
            shutil.copy2(data / "images" / f"{number}.png", runs.data / "images")
        with monkeypatch.context() as patch:
            done = at_step(patch, 3, lambda: repaint(runs, OLD + 10**9))
            losses[name] = runs.losses(name, "train.workers=0", cached=cached)
            assert done == [3]
    assert same(losses["cached"], losses["truth"]) and not same(losses["cached"], plain)
    assert num_run(runs.said("cached"), "vision") == 12 + len(CHANGED)


def test_other_weights_below_the_cut(runs: Runs, plain: list[float], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    runs.losses("before")
    other = shutil.copytree(runs.backbone, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["vision_model.encoder.layers.0.mlp.fc1.bias"][0] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    after = runs.losses("after", backbone=other)
    assert same(after, runs.losses("truth", cached="train.trunk_cache=off", backbone=other)) and not same(after, plain)
    assert len(runs.trunks()) == 3 and num_run(runs.said("after"), "vision") == 12
    assert num_run(runs.said("after"), "text") == 0, "the texts' trunk is the same"


def test_images_prepared_otherwise(runs: Runs, plain: list[float], tmp_path: Path) -> None:
    runs.losses("before")
    other = shutil.copytree(runs.backbone, tmp_path / "other")
    file = next(path for path in other.glob("*processor*.json") if "image_mean" in path.read_text())
    settings = json.loads(file.read_text())
    holder = settings if "image_mean" in settings else settings["image_processor"]
    holder["image_mean"] = [0.1, 0.2, 0.3]
    file.write_text(json.dumps(settings))
    after = runs.losses("after", backbone=other)
    assert same(after, runs.losses("truth", cached="train.trunk_cache=off", backbone=other)) and not same(after, plain)
    assert len(runs.trunks()) == 3 and num_run(runs.said("after"), "vision") == 12


# --- several processes

PATIENCE = 90
"""Seconds that a process of its own is waited for."""

TRAIN = """
import sys, time
import mmtune
from mmtune.ground.run_log import RunLog
real, wait = RunLog.metrics, float(sys.argv[2])
def metrics(log, row):
    real(log, row)
    time.sleep(wait)
RunLog.metrics = metrics
mmtune.fit(sys.argv[1])
"""


def start(runs: Runs, name: str, wait: float = 0.0) -> "subprocess.Popen[str]":
    """A run in a process of its own, which rests for so many seconds after every step."""
    recipe = runs.recipe(name)
    path = runs.folder / name / "resolved.json"
    path.write_text(recipe.model_dump_json())
    command = [sys.executable, "-c", TRAIN, str(path), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def losses_of(runs: Runs, name: str) -> list[float]:
    rows = (runs.folder / name / "run" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, rows)]


def wait_for_rows(file: Path, number: int) -> None:
    """Until a run has written so many rows."""
    until = time.monotonic() + PATIENCE
    while not file.exists() or len(file.read_text().splitlines()) < number:
        assert time.monotonic() < until, f"{file} has no {number} rows"
        time.sleep(0.02)


def test_two_at_once_one_of_them_killed(runs: Runs, plain: list[float]) -> None:
    """Two runs fill one folder; one of them is killed within its second epoch, and gone on with."""
    slow = start(runs, "killed", wait=1.0)
    metrics = runs.folder / "killed" / "run" / "metrics.jsonl"
    wait_for_rows(metrics, 1)
    assert same(runs.losses("beside"), plain) and slow.poll() is None, "both ran at once"
    wait_for_rows(metrics, 4)
    slow.send_signal(signal.SIGKILL)
    assert slow.wait(PATIENCE) == -signal.SIGKILL
    slow.communicate()
    assert len(losses_of(runs, "killed")) < len(plain)
    assert same(runs.losses("killed"), plain) and "going on from" in (metrics.parent / "run.log").read_text()
    assert num_run(runs.said("beside"), "vision") < 12, "it found what the other had computed"
    assert num_run(runs.said("killed"), "vision") == 0
    tables = [sqlite3.connect(trunk / INDEX) for trunk in runs.trunks()]
    counts = sorted(table.execute("SELECT count(*) FROM entries").fetchone()[0] for table in tables)
    assert len(counts) == 2 and counts[0] == 12
