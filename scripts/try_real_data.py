"""A trial on real data: networks drawn at random, and `builtin:glyph-blip`, learn to answer, to match and to caption.

    python scripts/try_real_data.py FOLDER
    python scripts/try_real_data.py FOLDER --only easy_vqa nlvr
    python scripts/try_real_data.py FOLDER --length "2 steps"    # does it run at all; writes no table of the repository

FOLDER (by default `.cache`) holds `easy_vqa.tar`, `nlvr.tar` and `emoji.tar`, or what they unpack to. They are not part
of this repository; what is not there is left out, with a message.

Each trial is trained, scored on test against its untouched base, and merged, by `mmtune.fit`, `score` and `merge`.
Recipes, tables and runs go to `.cache/trials/real_data`; what is finished is not trained again. The table is printed
and written to `scripts/trials/real_data.md`: its figures are this script's alone.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import mmtune  # noqa: E402
from scripts.trials.real_data import (  # noqa: E402
    convert_easy_vqa,
    convert_emoji,
    convert_nlvr,
    find_archive,
    make_blip,
    make_vilt,
    read_rows,
)
from scripts.trials.real_data_table import Outcome, table_lines  # noqa: E402

CACHE = ROOT / ".cache" / "trials" / "real_data"
TABLE = ROOT / "scripts" / "trials" / "real_data.md"
GLYPH_BLIP = ROOT / "mmtune" / "assets" / "glyph_blip" / "model.safetensors"
EMOJI_STYLE = "3d"
Sections = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What is tried.

    Attributes:
        archive: where its data comes from.
        about: what is learned, in a few words.
        network: what learns it, and what of it is trained.
        length: of the run.
        sections: (unpacked archive, cache) -> the recipe's sections; ``train`` without its length.
    """

    archive: str
    about: str
    network: str
    length: str
    sections: Callable[[Path, Path], Sections]


# --- the trials


def easy_vqa(folder: Path, cache: Path) -> Sections:
    """Questions about one drawn shape; thirteen answers."""
    tables = convert_easy_vqa(folder, cache / "easy_vqa")
    questions = [row["question"] for row in read_rows(tables["train"])]
    answers = (folder / "answers.txt").read_text(encoding="utf-8").split()
    size = {"side": 32, "patch": 8, "width": 128, "layers": 3, "heads": 4, "length": 24}
    backbone = make_vilt(cache / "easy_vqa-vilt", "ViltForQuestionAnswering", questions, answers, size)
    return {
        "backbone": {"id": str(backbone)},
        "adapter": {"kind": "full", "parts": ["encoder"]},
        "data": {**table_of(tables, folder), "question": "question", "answers": "answer"},
        "task": {"kind": "vqa", "scores": ["exact_match", "vqa_accuracy"]},
        "train": {"batch": 64, "learning_rate": 1e-3, "warmup": "10%", "weight_decay": 0.05},
    }


def nlvr(folder: Path, cache: Path) -> Sections:
    """Sentences about three boxes of shapes, true or not."""
    side = 64
    tables = convert_nlvr(folder, cache / "nlvr", side)
    sentences = [row["sentence"] for row in read_rows(tables["train"])]
    size = {"side": side, "patch": 8, "width": 128, "layers": 3, "heads": 4, "length": 64}
    backbone = make_vilt(cache / "nlvr-vilt", "ViltForImageAndTextRetrieval", sentences, [], size)
    return {
        "backbone": {"id": str(backbone)},
        "adapter": {"kind": "full", "parts": ["encoder"]},
        "data": {**table_of(tables, cache / "nlvr" / f"images-{side}"), "caption": "sentence", "label": "label"},
        "task": {"kind": "matching", "scores": ["accuracy"]},
        "train": {"batch": 64, "learning_rate": 5e-4, "warmup": "10%", "weight_decay": 0.1, "evaluate_every": "10%"},
    }


def emoji_from_nothing(folder: Path, cache: Path) -> Sections:
    """Names of emoji, by a network that knows neither pictures nor words."""
    tables = convert_emoji(folder, cache / "emoji", EMOJI_STYLE)
    names = [row["caption"] for row in read_rows(tables["train"])]
    sections = captioning(make_blip(cache / "emoji-blip", names), tables, folder)
    return {**sections, "adapter": {"kind": "full", "parts": ["vision", "text"]}}


def emoji_from_glyphs(folder: Path, cache: Path) -> Sections:
    """Names of emoji, by the captioner of printed characters that comes with mmtune."""
    tables = convert_emoji(folder, cache / "emoji", EMOJI_STYLE)
    sections = captioning("builtin:glyph-blip", tables, folder)
    lora = {"kind": "lora", "rank": 16, "alpha": 32, "parts": ["vision", "text"], "targets": ["attention", "mlp"]}
    task = {**sections["task"], "prompt": ""}  # it has learned names alone: after BLIP's own prompt it says nothing
    return {**sections, "adapter": lora, "task": task, "train": {**sections["train"], "learning_rate": 3e-3}}


def captioning(backbone: str | Path, tables: dict[str, str], folder: Path) -> Sections:
    """What both trials of captions share."""
    return {
        "backbone": {"id": str(backbone)},
        "data": {**table_of(tables, folder), "augment": {"crop": 0.8}},
        "task": {"kind": "captioning", "scores": ["cider_d", "exact_match"]},
        "train": {"batch": 64, "learning_rate": 1e-3, "warmup": "10%", "weight_decay": 0.05, "evaluate_every": "25%"},
    }


def table_of(tables: dict[str, str], images: Path) -> Sections:
    """The recipe's data: a table per split and the folder of the images."""
    return {"kind": "jsonl", "path": tables, "images": str(images.resolve()), "image": "image", "id": "id"}


TRIALS = {
    "easy_vqa": Trial(
        "easy_vqa", "answers to questions about a shape", "random ViLT, 3 layers of 128, full", "1000 steps", easy_vqa
    ),
    "nlvr": Trial("nlvr", "is a sentence true of three boxes", "random ViLT, 3 layers of 128, full", "200 steps", nlvr),
    "emoji": Trial("emoji", "names of unseen emoji", "random BLIP, full", "250 steps", emoji_from_nothing),
    "emoji_glyph_blip": Trial(
        "emoji", "names of unseen emoji", "builtin:glyph-blip, LoRA r16", "250 steps", emoji_from_glyphs
    ),
}


# --- running them


def run_trial(name: str, trial: Trial, folder: Path, cache: Path, **train: str) -> Outcome:
    """Train (``train``: length and precision), score, merge and score the merged folder; what is there is read."""
    sections = trial.sections(folder, cache)
    sections["train"] |= train
    run = cache / f"{name}-{digest_of(sections)}"
    path = cache / f"{run.name}.yaml"
    path.write_text(json.dumps({**sections, "output": str(run)}, indent=2), encoding="utf-8")
    mmtune.fit(path)
    if read_json(run / "manifest.json").get("scores") is None:
        mmtune.score(run)
    if not (run / "merged" / "merge_report.json").is_file():
        mmtune.merge(run)
    kept = run / "merged_scores.json"
    if not kept.is_file():
        scores = mmtune.score(run / "merged", recipe=mmtune.load_recipe(path))["scores"]
        kept.write_text(json.dumps(scores), encoding="utf-8")
    return Outcome(
        about=trial.about,
        network=trial.network,
        recipe=read_json(run / "recipe.resolved.json"),
        manifest=read_json(run / "manifest.json"),
        scores=read_json(run / "scores.json"),
        answers=read_rows(run / "answers.jsonl"),
        merge=read_json(run / "merged" / "merge_report.json"),
        merged=read_json(kept),
    )


def digest_of(sections: Sections) -> str:
    """Names what is trained: the settings and the weights it begins with. Another of them is another run."""
    named = sections["backbone"]["id"]
    weights = GLYPH_BLIP if named == "builtin:glyph-blip" else Path(named) / "model.safetensors"
    return hashlib.sha256(json.dumps(sections).encode() + weights.read_bytes()).hexdigest()[:8]


def read_json(path: Path) -> dict[str, Any]:
    """A file of JSON."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def missing_reason(trial: Trial, folder: Path, found: Path | None) -> str:
    """Why a trial cannot run; "" when it can."""
    if found is None:
        return f"{folder} holds neither {trial.archive}.tar nor the unpacked {trial.archive}"
    if "glyph-blip" in trial.network and not GLYPH_BLIP.is_file():
        return "builtin:glyph-blip is not there yet"
    return ""


def main() -> int:
    """Run what can be run, write the table; 0 also when the data is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / ".cache", help="the archives, packed or not")
    parser.add_argument("--only", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--length", help="length of every run instead of its own; the table is then only printed")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="fp32 where bfloat16 is slow")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where tables, networks and runs go")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    left_out: dict[str, str] = {}
    for name in given.only:
        trial = TRIALS[name]
        found = find_archive(trial.archive, given.folder, given.cache)
        if reason := missing_reason(trial, given.folder, found):
            left_out[name] = reason
            print(f"left out: {name}, because {reason}")
            continue
        assert found is not None
        outcomes[name] = run_trial(
            name, trial, found, given.cache, length=given.length or trial.length, precision=given.precision
        )
    if not outcomes:
        print("nothing to try: the data of these trials is not part of the repository; name the folder that holds it")
        return 0
    text = "\n".join(table_lines(outcomes, left_out)) + "\n"
    if given.length is None and list(given.only) == list(TRIALS):
        TABLE.write_text(text, encoding="utf-8")
    print("\n" + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
