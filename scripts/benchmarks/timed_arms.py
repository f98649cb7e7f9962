"""One arm of the comparison in this process: mmtune by ``mmtune.fit``, or one of its peers; all give one record."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmarks.paired_timing import peak_memory
from scripts.benchmarks.work_table import Work

RECIPE = """
backbone: {{id: {folder}/model}}
adapter:
  {{kind: lora, rank: {rank}, parts: [{parts}], targets: [{targets}], layers: {layers}}}
data: {{kind: jsonl, path: {{train: {folder}/pairs.jsonl}}, images: {folder}/images, captions: {captions}}}
task: {task}
train:
  length: {epochs} epochs
  batch: {batch}
  learning_rate: 1e-4
  schedule: constant
  warmup: 0 steps
  weight_decay: 0
  betas: [0.9, 0.98]
  precision: fp32
  workers: {workers}
  log_every: 1 steps
  {cache}
checkpoint: {{every: 100%, keep: 1}}
output: {output}
seed: 0
"""
TASKS = {
    "clip": "{kind: retrieval, loss: {kind: infonce}}",
    "blip": "{kind: captioning}",
    "llava": '{kind: captioning, prompt: "Describe the image."}',
}
TABLE_ROWS = 25


def has_cache() -> bool:
    """Whether recipes have the key ``train.trunk_cache``."""
    from mmtune.recipe_schema import TrainSection

    return "trunk_cache" in TrainSection.model_fields


def write_recipe(folder: Path, work: Work, *, epochs: int, workers: int, output: Path, cache: str = "auto") -> Path:
    """The recipe of a work."""
    path = folder / f"{output.name}.yaml"
    text = RECIPE.format(
        folder=folder,
        rank=work.rank,
        parts=", ".join(work.parts),
        targets=", ".join(work.targets),
        layers=work.layers,
        captions="all" if work.captions > 1 else "one",
        task=TASKS[work.family],
        epochs=epochs,
        batch=work.batch,
        workers=workers,
        cache=f"trunk_cache: {cache}" if has_cache() else "",
        output=output,
    )
    path.write_text(text, encoding="utf-8")
    return path


def train_with_mmtune(
    folder: Path, work: Work, *, epochs: int, workers: int, own: Path, cache: str = "auto", name: str = "run"
) -> dict[str, Any]:
    """mmtune's public path: a recipe file, ``mmtune.fit``, and what it wrote to ``metrics.jsonl``.

    Args:
        own: a folder of this run alone; the cache lives in it, empty at first.
    """
    os.environ["MMTUNE_CACHE"] = str(own / "cache")
    import mmtune

    recipe = write_recipe(folder, work, epochs=epochs, workers=workers, output=own / name, cache=cache)
    run = mmtune.fit(recipe)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    said = (run / "run.log").read_text(encoding="utf-8").splitlines()
    return {
        "step_seconds": [work.batch / row["samples_per_second"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "peak": peak_memory(),
        "cache": cache if has_cache() else "not there yet",
        "said": [line.replace(str(own), "RUN") for line in said if "trunk" in line or "cache" in line],
    }


def run_arm(name: str, folder: Path, work: Work, own: Path, epochs: int | None = None) -> dict[str, Any]:
    """Train as an arm does, and say how long each step took, what it lost, and how much memory it held.

    Args:
        name: ``mmtune``, ``mmtune_without_cache``, ``trainer``, ``trainer_kept``, ``sentence_transformers`` or ``trl``;
            a number behind it (``trainer_2``) is how many loader processes it has.
        folder: what ``made_inputs`` wrote.
        work: what to do.
        own: a folder of this run alone.
        epochs: instead of the work's own number.
    """
    arm, _, number = name.rpartition("_")
    arm, workers = (arm, int(number)) if number.isdigit() else (name, 0)
    given: dict[str, Any] = {"epochs": epochs or work.epochs, "workers": workers}
    with _quiet():
        if arm in ("mmtune", "mmtune_without_cache"):
            return train_with_mmtune(folder, work, own=own, cache="auto" if arm == "mmtune" else "off", **given)
        if arm == "sentence_transformers":
            from scripts.benchmarks.peer_sentences import train_with_sentences

            return train_with_sentences(folder, work, **given)
        from scripts.benchmarks.peer_trainer import train_with_trainer, train_with_trl

        if arm == "trl":
            return train_with_trl(folder, work, **given)
        return train_with_trainer(folder, work, keep=arm == "trainer_kept", **given)


def profile_arm(name: str, folder: Path, work: Work, own: Path) -> str:
    """One epoch under torch's profiler, as a table in words; of mmtune the epoch after the cache is filled."""
    from torch.profiler import ProfilerActivity, profile

    with _quiet():
        if name == "mmtune":
            train_with_mmtune(folder, work, epochs=1, workers=0, own=own, cache="disk", name="filled")
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            if name == "mmtune":
                train_with_mmtune(folder, work, epochs=1, workers=0, own=own, cache="disk")
            else:
                run_arm(name, folder, work, own, epochs=1)
    return profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=TABLE_ROWS, max_name_column_width=50)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries print goes to standard error: standard output is the record's."""
    import logging
    import sys
    import warnings

    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        yield
