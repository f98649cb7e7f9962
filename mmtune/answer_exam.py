"""One evaluation of a task that ends in answers: ask, score, compare, write ``answers.jsonl`` and ``answers.png``."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.answer_scoring import Answers, answer_split, score_answers
from mmtune.evaluation_setup import choose_precision, device, enforce_limit
from mmtune.ground.errors import DataError
from mmtune.ground.records import NoMedia
from mmtune.ground.safe_files import write_json, write_text
from mmtune.item_encoding import make_asking
from mmtune.metrics import answer_score
from mmtune.metrics._bootstrap import NUM_RESAMPLES, answer_intervals
from mmtune.score_files import MANIFEST_KEYS
from mmtune.scoring_loop import EncodedBatches, Progress

if TYPE_CHECKING:
    from rich.table import Table

    from mmtune.backbones import Backbone
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe
    from mmtune.sources import OpenedSplit

INTERVAL_NOTE = "paired percentile bootstrap over groups of samples that share an image"


class AnswerExam:
    """What a split asks, of a base and of a tuned model alike."""

    def __init__(self, recipe: "Recipe", opened: "OpenedSplit", split: str) -> None:
        from mmtune.ground.kind_folder import kind

        self.recipe, self.opened, self.split = recipe, opened, split
        self.samples = kind("tasks", recipe.task).prepare(opened.samples, recipe.seed)
        self.keep = EncodedBatches()
        self.asking: Any = None

    def take(self, backbone: "Backbone", progress: Progress | None = None) -> Answers:
        """What this model answers.

        Raises:
            DataError: with what could not be read, too much of the split is bad.
            RecipeError: the model cannot do the task.
        """
        from mmtune.run_setup import refuse_misfit_of
        from mmtune.train_data import answer_batch

        refuse_misfit_of(self.recipe, backbone.description)
        where = device()
        self.asking = make_asking(self.recipe.task, backbone, self.recipe.seed)
        answers = answer_split(
            self.asking,
            backbone,
            self.samples,
            device=where,
            batch=answer_batch(self.recipe),
            workers=self.recipe.train.workers,
            precision=choose_precision(self.recipe, where),
            split=self.split,
            progress=progress,
            keep=self.keep,
        )
        enforce_limit(self.opened, answers.bad, self.recipe, self.split)
        return answers

    def values(self, answers: Answers) -> dict[str, float]:
        """Every score."""
        return score_answers(answers)

    def compare(self, base: Answers, tuned: Answers) -> dict[str, Any]:
        """Scores of both, their difference and its 95 % interval (null where there is only one group to draw from).

        Raises:
            DataError: an image could be read for one of them and not for the other.
        """
        if [one.id for one in base.samples] != [one.id for one in tuned.samples]:
            odd = sorted({item.where for item in base.bad} ^ {item.where for item in tuned.bad})
            raise DataError(f"base and tuned could not read the same samples: {', '.join(odd[:5])}; evaluate again")
        values = {"base": self.values(base), "tuned": self.values(tuned)}
        names = list(values["base"])
        scores = [answer_score(name) for name in names]
        intervals = answer_intervals(scores, base.statistics, tuned.statistics, base.groups, seed=self.recipe.seed)
        return {
            **values,
            "delta": {name: values["tuned"][name] - values["base"][name] for name in names},
            "interval95": {name: None if found is None else list(found) for name, found in intervals.items()},
            "bootstrap": {
                "resamples": NUM_RESAMPLES,
                "groups": int(base.groups.max()) + 1,
                "seed": self.recipe.seed,
                "method": INTERVAL_NOTE,
            },
        }

    def describe(self, found: "Target", backbone: "Backbone", answers: Answers) -> dict[str, Any]:
        """What a reader needs to know about how the scores came about."""
        bad = (*self.opened.bad, *answers.bad)
        return {
            "task": self.recipe.task.kind,
            "split": self.split,
            "samples": len(answers.samples),
            "images": len(_image_keys(answers)),
            "ability": self.asking.ability,
            "majority": majority(answers),
            "bad": len(bad),
            "quarantined": [asdict(item) for item in bad],
            "checkpoint": found.folder.name if found.run and found.folder else None,
            "backbone": backbone.record(),
            "data": self.recipe.data.model_dump(mode="json"),
            "precision": choose_precision(self.recipe, device()),
            "seed": self.recipe.seed,
        }

    def write_files(
        self, folder: Path, suffix: str, result: dict[str, Any], taken: Mapping[str, Answers]
    ) -> list[Path]:
        """Write ``scores.json``, ``answers.jsonl``, ``answers.png``, and the manifest's copy; returns their paths."""
        from mmtune.answer_picture import draw_answers
        from mmtune.run_folder import update_manifest
        from mmtune.run_report import draw_curves

        scores_file, answers_file = folder / f"scores{suffix}.json", folder / f"answers{suffix}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answer_rows(taken)]
        write_json(scores_file, result)
        write_text(answers_file, "".join(lines))
        picture = draw_answers(folder / f"answers{suffix}.png", taken, seed=self.recipe.seed)
        written = [scores_file, answers_file, picture]
        if (folder / "manifest.json").is_file() and not suffix and "tuned" in result:
            update_manifest(folder, scores={key: result[key] for key in MANIFEST_KEYS})
            written.append(draw_curves(folder))
        return written


def _image_keys(answers: Answers) -> set[str]:
    """Every different image that was shown; a sample in words alone has none."""
    shown = (each for sample in answers.samples for each in (sample.media, *(m for t in sample.turns for m in t.media)))
    return {each.key for each in shown if not isinstance(each, NoMedia)}


def majority(answers: Answers) -> dict[str, Any]:
    """The commonest right answer, and the share of samples that it is right for: what saying always the same gets."""
    from collections import Counter

    counts = Counter(answer for references in answers.references for answer in set(references))
    text, number = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return {"answer": text, "share": number / len(answers.references)}


def answer_rows(taken: Mapping[str, Answers]) -> Iterator[dict[str, Any]]:
    """One row per sample: what was asked, what would have been right, what each model said and how that scores."""
    first = next(iter(taken.values()))
    scored = {
        model: {name: answer_score(name).combine(each) for name, each in one.statistics.items()}
        for model, one in taken.items()
    }
    for place, sample in enumerate(first.samples):
        row: dict[str, Any] = {"id": sample.id, "image": sample.media.where, "asked": first.asked[place]}
        row |= {"references": list(first.references[place]), "group": int(first.groups[place])}
        for model, one in taken.items():
            row[model] = {"answer": one.predictions[place]}
            if one.confidences[place] is not None:
                row[model]["confidence"] = one.confidences[place]
            row[model]["scores"] = {name: float(values[place]) for name, values in scored[model].items()}
        yield row


def answer_table(result: dict[str, Any]) -> "Table":
    """The result of an evaluation for a terminal: one line per score."""
    from rich.markup import escape
    from rich.table import Table

    compared = "base" in result
    title = f"{result['split']} split: {result['samples']:,} samples, {result['images']:,} images ({result['task']})"
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.add_column("score", no_wrap=True)
    for column in ("base", "tuned", "change", "95 % interval") if compared else ("score of the model",):
        table.add_column(column, justify="right", no_wrap=True)
    for name in result["base" if compared else "scores"]:
        table.add_row(*_cells(result, name, compared))
    most = result["majority"]
    table.caption = escape(f"always saying {most['answer']!r} would be right for {most['share']:.1%}")
    if compared:
        table.caption += f"\ninterval of the change: {INTERVAL_NOTE}, {NUM_RESAMPLES:,} resamples"
    return table


def _cells(result: dict[str, Any], name: str, compared: bool) -> list[str]:
    if not compared:
        return [name, f"{result['scores'][name]:.3f}"]
    change, interval = result["delta"][name], result["interval95"][name]
    colour = "green" if (change > 0) == answer_score(name).higher_is_better else "red"
    sure = interval is not None and (interval[0] > 0 or interval[1] < 0)
    return [
        name,
        f"{result['base'][name]:.3f}",
        f"{result['tuned'][name]:.3f}",
        f"[{colour}]{change:+.3f}[/{colour}]" if sure else f"{change:+.3f}",
        "-" if interval is None else " .. ".join(f"{edge:+.3f}" for edge in interval),
    ]
