"""Collect what the benchmarks measured into one page: targets beside ratios, settings, misses, where the time goes.

    python scripts/benchmarks/write_results.py            # results/*.json -> RESULTS.md
    python scripts/benchmarks/write_results.py --check    # changes nothing; exit code 1 when the page is stale

Every number comes from a JSON file that a script wrote; nothing is typed in here but the targets, which the scripts
hold.
"""

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT)]

from scripts.benchmarks.paired_timing import RESULTS, Ratio, compare, read_json, table  # noqa: E402
from scripts.benchmarks.side_by_side import EVERY_ARM, HEADS, epoch_seconds, seconds_of, share_of, summary  # noqa: E402
from scripts.benchmarks.work_table import WORKS, Work  # noqa: E402

PAGE = Path(__file__).resolve().parent / "RESULTS.md"
SHARE_TARGET = 0.60
SETTINGS = """\
All arms: the same JPEG files (640x480, quality 90), captions, order of samples, batch, steps, learning rate, threads,
fp32 weights (random, saved once) and first values of LoRA's factors; each run in a process of its own, arms taking
turns. Seconds go from the end of a step to the end of the next, with reading, decoding and encoding in them.
Peak memory is that of the process that trains, without its loader processes.

- **mmtune**: `mmtune.fit` on a recipe file, 0 loader processes, an empty cache at the start, everything else as it
  comes; seconds from `metrics.jsonl`.
- **trainer**: Hugging Face `Trainer` + peft, the stock Pillow processor in the collator, scaled dot product attention,
  torch's fused AdamW; loader processes 0 and 2 tried in the first work and the faster taken, for all peers and works.
- **trainer_kept**: the same with a data set, written by hand, that holds every processed sample in memory from its
  first use on; `Trainer` itself offers nothing of the kind.
- **sentence_transformers**: its trainer, CLIP + peft, `MultipleNegativesRankingLoss` in both directions at the model's
  own scale, which it does not train: hence the difference of the losses.
- **trl**: `SFTTrainer` on prompts and completions with images, the loss on the completion.

The *limit* counts the matrix products, forward and backward, that the layers from the lowest adapted one upward need
for texts without padding, at the rate that this machine reached for products of the same sizes just before. *Strict*
also leaves out what nobody reads in the last layer, and counts an image's keys and values once for all its captions."""


LIMITS = {
    "blip_decoder": "What limits it: with the image tower out of the way, nearly all that is left is the decoder's "
    "matrix products, above all the keys and values that every layer's cross attention makes of all image tokens in "
    "every step; BLIP's text model in transformers has no fused attention, so its products and softmax stand alone."
}
"""Work -> what is said where its target is missed."""


def work_of(about: Mapping[str, Any]) -> Work:
    """The work as it was measured."""
    own = {field.name: about[field.name] for field in fields(Work)}
    return Work(**{key: tuple(value) if isinstance(value, list) else value for key, value in own.items()})


def ratio_of(record: Mapping[str, Any], work: Work, arm: str = "trainer") -> Ratio | None:
    """How many times faster mmtune was than an arm, or None where one of them was not run."""
    ours, theirs = (record["arms"].get(name, []) for name in ("mmtune", arm))
    count = min(len(ours), len(theirs))
    if not count:
        return None
    return compare(*([seconds_of(one, work) for one in runs[:count]] for runs in (theirs, ours)))


def verdict(found: float, target: float, higher: bool = True) -> str:
    """Reached, or by how much it was missed."""
    if (found >= target) if higher else (found <= target):
        return "reached"
    return f"missed by {abs(found - target) / target:.0%}"


def targets(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The rows of the first table: work, target, measured, verdict."""
    rows = []
    works = found.get("side_by_side", {}).get("works", {})
    for name in (name for name in WORKS if name in works):
        record, work = works[name], work_of(works[name]["about"])
        ratio = ratio_of(record, work)
        if ratio is not None:
            measured = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
            rows.append([work.title, f">= {work.target}x", measured, verdict(ratio.median, work.target)])
    for name in (name for name in WORKS if name in works and works[name]["arms"].get("mmtune")):
        record, work = works[name], work_of(works[name]["about"])
        share = share_of(record, work)
        label = f"share of the limit above the cut: {name}"
        rows.append([label, f">= {SHARE_TARGET:.0%}", f"{share:.0%}", verdict(share, SHARE_TARGET)])
    return [*rows, *_other_targets(found)]


def _other_targets(found: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    if memory := found.get("cache_memory"):
        first, last = memory["marks"][0], memory["marks"][-1]
        label = f"memory of the process, cache on disk growing from {first['entries']:,} to {last['entries']:,} samples"
        allowed = f"<= {memory['allowed'] - 1:+.0%}"
        said = verdict(memory["growth"], memory["allowed"], higher=False)
        yield [label, allowed, f"{memory['growth'] - 1:+.1%}", said]
    if ranking := found.get("evaluation_ranking"):
        label = f"ranking {ranking['images']:,} images x {ranking['captions']:,} captions, against the full matrix"
        ratio = Ratio(**ranking["ratio"])
        measured = f"{ratio.median:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"
        yield [label, "> 1x", measured, verdict(ratio.median, 1.0)]
        peak = max(run["peak"] for run in ranking["runs"]["mmtune"])
        yield ["its peak memory", "< 1 GB", f"{peak / 1e9:.2f} GB", verdict(peak, ranking["limit"], higher=False)]


def describe(machine: Mapping[str, Any]) -> str:
    """One line: what it was measured on, and when."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['date']}; {machine['device']} ({machine['processor']}), {machine['system']}; {versions}"


def work_section(name: str, record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """A work's table with what belongs to it."""
    work, limit = work_of(record["about"]), record["limit"]
    yield f"### {name}\n\n{work.title}. Batch {work.batch}, {work.steps} steps per epoch, {work.epochs} epochs, "
    repeats = max((len(runs) for runs in record["arms"].values()), default=0)
    about, many = record["about"], "s" if repeats > 1 else ""
    yield f"{repeats} repeat{many}, {about['threads']} threads, size: {about['size']}."
    if limit:
        yield (
            f" Matrix products of these sizes: {limit['rate'] / 1e9:.0f} GFLOP/s; a step needs "
            f"{limit['operations']['layers'] / 1e9:,.0f} GFLOP (strict {limit['operations']['strict'] / 1e9:,.0f})."
        )
    if tried := record.get("workers_tried"):
        yield " `Trainer` with " + ", ".join(f"{n} loader processes {s:.2f} s" for n, s in tried.items()) + "."
    yield f"\n\n{table(HEADS, summary(record, work))}\n"
    yield _epochs_table(record, work)
    for run in record["arms"].get("mmtune", [])[:1]:
        yield "".join(f"\n> {line}\n" for line in run.get("said", []))
    ratio = ratio_of(record, work)
    if name in LIMITS and ratio is not None and ratio.median < work.target:
        yield f"\n{LIMITS[name]}\n"
    for path in sorted(folder.glob(f"profile_{name}_*.txt")):
        yield f"\n[Where the time goes: {path.stem.removeprefix(f'profile_{name}_')}](results/{path.name})\n"
    yield "\n"


def _epochs_table(record: Mapping[str, Any], work: Work) -> str:
    """Seconds of every epoch, the median over the repeats."""
    rows = []
    for arm, runs in ((arm, record["arms"][arm]) for arm in EVERY_ARM if record["arms"].get(arm)):
        per_run = [epoch_seconds(one, work) for one in runs]
        rows.append([arm, *(f"{statistics.median(times):.2f}" for times in zip(*per_run, strict=True))])
    heads = ["seconds of epoch", *(str(number + 1) for number in range(work.epochs))]
    return f"\n{table(heads, rows)}\n"


def other_section(name: str, record: Mapping[str, Any]) -> str:
    """What another script showed, under what it says it measures; a record may be named after it with a word behind."""
    scripts = sorted(Path(__file__).resolve().parent.glob("*.py"), key=lambda path: len(path.stem))
    script = next((path for path in reversed(scripts) if name.startswith(path.stem)), None)
    said = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "") if script is not None else ""
    return f"### {name}\n\n{' '.join(said.split(chr(10) * 2)[0].split())}\n\n{record['shown']}\n\n"


def write_page(folder: Path) -> str:
    """The page in Markdown."""
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    found = {name: one for name, one in found.items() if not one.get("dry_run")}
    text = (
        "# What the benchmarks measured\n\nWritten by `scripts/benchmarks/write_results.py` from `results/*.json`.\n\n"
    )
    for name, one in found.items():
        text += f"- `{name}`: {describe(one['machine'])}\n"
    heads = ("work", "target", "measured (range)", "verdict")
    text += f"\n## Targets against Trainer + peft\n\n{table(heads, targets(found))}\n\n## Settings\n\n{SETTINGS}\n\n"
    works = found.get("side_by_side", {}).get("works", {})
    text += "## Side by side\n\n" + "".join(
        part for name in WORKS if name in works for part in work_section(name, works[name], folder)
    )
    besides = "".join(other_section(name, one) for name, one in found.items() if "shown" in one)
    return (text + "## Besides\n\n" + besides).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it with what it should be."""
    parser = argparse.ArgumentParser(description="results/*.json -> RESULTS.md")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    text = write_page(given.results)
    if given.check:
        return int(not given.page.exists() or given.page.read_text(encoding="utf-8") != text)
    given.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
