"""A trial of adapter methods on data that nobody here drew: emoji known in one style, learned in another.

    python scripts/trials/emoji_adapters.py FOLDER
    python scripts/trials/emoji_adapters.py FOLDER --pretrain "2 epochs" --length "2 epochs"    # does it run at all

FOLDER holds `captions.jsonl` (id, caption, split) and `images/STYLE/ID.*`; it is not part of this repository.

1. The backbone: `builtin:glyph-clip` is trained in full on all emoji in the style `3d` and merged. It then knows
   every emoji's name, and none in the style `high-contrast`.
2. Each method adapts it to the training emoji in high-contrast, once per learning rate of its own; validation
   chooses the rate and the checkpoint.
3. The score is that of the test emoji in high-contrast, which no method has seen in that style.

Everything goes to `.cache/trials/emoji_adapters`; what is finished is not trained again. The table is printed and
written beside the plot, `table.md` and `adapters.png`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import mmtune  # noqa: E402

CACHE = ROOT / ".cache" / "trials" / "emoji_adapters"
KNOWN, NEW = "3d", "high-contrast"
SUFFIXES = (".jpg", ".png")
PRETRAIN, LENGTH = "120 epochs", "20 epochs"
BOTH = {"parts": ["vision", "text"]}
TOWERS = {**BOTH, "targets": ["attention", "mlp"]}
SCORES = tuple(f"text_to_image_recall@{k}" for k in (1, 5, 10))


@dataclass(frozen=True)
class Method:
    """An adapter section and the learning rates it is tried with."""

    section: dict[str, Any]
    rates: tuple[float, ...]


METHODS = {
    "LoRA r8": Method({"kind": "lora", "rank": 8, **TOWERS}, (5e-4, 2e-3, 8e-3)),
    "DoRA r8": Method({"kind": "lora", "rank": 8, "use_dora": True, **TOWERS}, (5e-4, 2e-3, 8e-3)),
    "IA3": Method({"kind": "ia3", **TOWERS}, (5e-3, 2e-2, 8e-2)),
    "VeRA r128": Method({"kind": "vera", "rank": 128, **TOWERS}, (5e-3, 2e-2, 8e-2)),
    "layernorm": Method({"kind": "layernorm", **BOTH}, (1e-3, 5e-3, 2e-2)),
    "head_only": Method({"kind": "head_only", **BOTH}, (1e-3, 5e-3, 2e-2)),
    "full": Method({"kind": "full", **BOTH}, (1e-4, 5e-4, 2e-3)),
}


@dataclass(frozen=True)
class Outcome:
    """What one method gave.

    Attributes:
        rate: the learning rate that validation chose.
        manifest: of the chosen run.
        scores: base, tuned and interval of the change, on test.
        memory: largest resident memory of the training process, bytes.
    """

    rate: float
    manifest: dict[str, Any]
    scores: dict[str, Any]
    memory: int


def find_missing(folder: Path) -> str:
    """Why the trial cannot run; "" when it can."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    for name in ("captions.jsonl", f"images/{KNOWN}", f"images/{NEW}"):
        if not (folder / name).exists():
            return f"{folder} holds no {name}"
    return ""


def write_table(folder: Path, style: str, cache: Path, *, every: bool) -> Path:
    """A table of one style; with ``every``, all emoji are for training."""
    rows = []
    for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for suffix in SUFFIXES:
            if (folder / "images" / style / f"{row['id']}{suffix}").is_file():
                split = "train" if every else row["split"]
                rows.append({"image": f"{row['id']}{suffix}", "caption": row["caption"], "split": split})
    path = cache / f"{style}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def data_section(folder: Path, style: str, table: Path, **more: Any) -> dict[str, Any]:
    """The recipe's data: a table and the folder of a style."""
    return {"kind": "jsonl", "path": str(table), "images": str(folder.resolve() / "images" / style), **more}


def write_recipe(path: Path, **sections: Any) -> Path:
    """A recipe file; the task is the same everywhere."""
    values = {"task": {"kind": "retrieval", "loss": {"kind": "infonce"}}, **sections}
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path


def train(recipe: Path) -> int:
    """Fine-tune in a process of its own and give its largest resident memory in bytes."""
    command = [sys.executable, str(ROOT / "mmtune" / "finetune.py"), str(recipe)]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{recipe} ended with exit code {process.returncode}")
    return usage.ru_maxrss * 1024


def pretrain(folder: Path, cache: Path, length: str) -> Path:
    """The backbone that knows all emoji in one style, as a merged folder."""
    run = cache / f"backbone-{length.replace(' ', '-')}"
    merged = run / "merged"
    if not (merged / "config.json").is_file():
        table = write_table(folder, KNOWN, cache, every=True)
        recipe = write_recipe(
            cache / "pretrain.yaml",
            backbone={"id": "builtin:glyph-clip"},
            adapter={"kind": "full", **BOTH},
            data=data_section(folder, KNOWN, table, splits={"train": "train"}, augment={"crop": 0.7, "colour": 0.4}),
            train={"length": length, "batch": 128, "learning_rate": 1e-3, "weight_decay": 0.05, "workers": 1},
            checkpoint={"every": "10 epochs", "keep": 1},
            output=str(run),
        )
        train(recipe)
        mmtune.merge(run)
    return merged


def try_method(name: str, method: Method, folder: Path, backbone: Path, cache: Path, length: str) -> Outcome:
    """Train once per learning rate, let validation choose, and score the chosen run on test."""
    table = write_table(folder, NEW, cache, every=False)
    tried = []
    for rate in method.rates:
        stem = f"{name.replace(' ', '-')}-{length.replace(' ', '-')}-{rate:g}"
        recipe = write_recipe(
            cache / f"{stem}.yaml",
            backbone={"id": str(backbone)},
            adapter=method.section,
            data=data_section(
                folder, NEW, table, splits={each: each for each in ("train", "validation", "test")},
                augment={"crop": 0.8},
            ),
            train={"length": length, "batch": 128, "learning_rate": rate, "evaluate_every": "10%", "workers": 1},
            checkpoint={"every": "50%", "keep": 1},
            output=str(cache / stem),
        )  # fmt: skip
        memory_file = cache / f"{stem}.memory"
        if not memory_file.is_file():
            memory_file.write_text(str(train(recipe)))
        manifest = json.loads((cache / stem / "manifest.json").read_text())
        tried.append((manifest["validation"][SCORES[0]], rate, manifest, cache / stem, int(memory_file.read_text())))
    _, rate, manifest, run, memory = max(tried, key=lambda one: one[0])
    return Outcome(rate, manifest, mmtune.score(run), memory)


def table_rows(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """One row per method; the interval is that of the change against the untouched backbone."""
    yield (
        "| method | learning rate | trained | "
        + " | ".join(f"recall@{n.partition('@')[2]}" for n in SCORES)
        + (" | seconds | memory |")
    )
    yield "|---|---|---|" + "---|" * len(SCORES) + "---|---|"
    base = next(iter(outcomes.values())).scores["base"]
    yield "| backbone | - | - | " + " | ".join(f"{base[name]:.3f}" for name in SCORES) + " | - | - |"
    for name, one in outcomes.items():
        cells = []
        for score in SCORES:
            low, high = one.scores["interval95"][score]
            cells.append(f"{one.scores['tuned'][score]:.3f} ({low:+.3f} to {high:+.3f})")
        share, seconds = one.manifest["trainable"]["share"], one.manifest["seconds"]
        yield (
            f"| {name} | {one.rate:g} | {share:.2%} | {' | '.join(cells)} | {seconds:.0f} | "
            f"{one.memory / 2**20:.0f} MiB |"
        )


def draw(outcomes: dict[str, Outcome], path: Path) -> None:
    """recall@1 over the share of weights trained, with the interval of the change."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    base = next(iter(outcomes.values())).scores["base"][SCORES[0]]
    axes.axhline(base, color="0.5", linestyle="--", label=f"backbone ({base:.3f})")
    by_share = sorted(outcomes.items(), key=lambda pair: pair[1].manifest["trainable"]["share"])
    for number, (name, one) in enumerate(by_share):
        share, value = 100 * one.manifest["trainable"]["share"], one.scores["tuned"][SCORES[0]]
        low, high = (base + change for change in one.scores["interval95"][SCORES[0]])
        axes.errorbar(share, value, yerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt="o", capsize=3)
        after = by_share[number + 1][1].manifest["trainable"]["share"] if number + 1 < len(by_share) else 100.0
        left = 100 * after < 1.5 * share  # a close neighbour stands on the right: the name goes to the other side
        axes.annotate(
            name,
            (share, value),
            textcoords="offset points",
            xytext=(-7 if left else 7, 0),
            ha="right" if left else "left",
            va="center",
        )
    axes.set(xscale="log", xlabel="weights trained, % of the model", ylabel=SCORES[0], title=f"{KNOWN} -> {NEW}")
    axes.margins(x=0.15, y=0.12)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main() -> int:
    """Pretrain, try every method, print and draw; 0 also when the data is not there."""
    parser = argparse.ArgumentParser(description="compare adapter methods on emoji")
    parser.add_argument("folder", type=Path, help="the unpacked emoji: captions.jsonl and images")
    parser.add_argument("--pretrain", default=PRETRAIN, help="length of the backbone's training")
    parser.add_argument("--length", default=LENGTH, help="length of each method's runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="where tables and runs go")
    parser.add_argument("--pretrain-only", action="store_true", help="stop when the backbone is there")
    given = parser.parse_args()
    if missing := find_missing(given.folder):
        print(f"skipped: {missing}; this trial's data is not shipped")
        return 0
    given.cache.mkdir(parents=True, exist_ok=True)
    backbone = pretrain(given.folder, given.cache, given.pretrain)
    if given.pretrain_only:
        return 0
    outcomes = {
        name: try_method(name, METHODS[name], given.folder, backbone, given.cache, given.length)
        for name in given.methods
    }
    table = "\n".join(table_rows(outcomes))
    (given.cache / "table.md").write_text(table + "\n", encoding="utf-8")
    draw(outcomes, given.cache / "adapters.png")
    print("\n" + table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
