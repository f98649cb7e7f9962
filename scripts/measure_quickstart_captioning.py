"""What the captioning quickstart's figures are worth: the tuned model beside its base, a control and clean print.

    python scripts/measure_quickstart_captioning.py runs/quickstart_captioning
    python scripts/measure_quickstart_captioning.py runs/quickstart_captioning output=/tmp/small data.characters=40

The control is the same recipe on clean print (`data.look=clean`), in RUN-control: what the same steps gain without the
shifted look. It is trained here unless it is finished already. Everything is scored on the test characters, by the code
that `mmtune evaluate` uses. Overrides change the control's recipe and the data that is scored.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import mmtune  # noqa: E402
from mmtune.answer_exam import AnswerExam  # noqa: E402
from mmtune.answer_scoring import Answers  # noqa: E402
from mmtune.evaluation_setup import device  # noqa: E402
from mmtune.model_loading import attach_target, load_base, resolve  # noqa: E402
from mmtune.train_data import open_checked  # noqa: E402
from scripts.measure_quickstart import in_look, read_recipe  # noqa: E402

MODELS = ("base", "tuned", "control")
Taken = dict[str, dict[str, Answers]]  # look -> model -> its answers


def take_answers(run: Path, control: Path, exams: dict[str, AnswerExam]) -> Taken:
    """What each model says of the test characters in each look; the base is a fresh load."""
    taken: Taken = {look: {} for look in exams}
    for name, folder in (("tuned", run), ("control", control)):
        target = resolve(folder)
        backbone = load_base(target, device=device())
        if name == "tuned":
            for look, exam in exams.items():
                taken[look]["base"] = exam.take(backbone)
        attach_target(backbone, target)
        for look, exam in exams.items():
            taken[look][name] = exam.take(backbone)
    return taken


def write_table(exams: dict[str, AnswerExam], taken: Taken) -> Iterator[str]:
    """One markdown row per look and model."""
    values = {look: {name: exams[look].values(one) for name, one in models.items()} for look, models in taken.items()}
    scores = list(next(iter(values.values()))["base"])
    yield f"| look | model | {' | '.join(scores)} |"
    yield "|---|---|" + "---|" * len(scores)
    for look, models in values.items():
        for name in MODELS:
            yield f"| {look} | {name} | {' | '.join(f'{models[name][score]:.3f}' for score in scores)} |"


def write_gains(exams: dict[str, AnswerExam], taken: Taken) -> Iterator[str]:
    """What each model gained over the base, with the interval that `mmtune evaluate` gives."""
    for look, models in taken.items():
        for name in ("tuned", "control"):
            both: dict[str, Any] = exams[look].compare(models["base"], models[name])
            for score, gain in both["delta"].items():
                low, high = both["interval95"][score] or (float("nan"), float("nan"))
                yield f"- gain of {name} on {look}, {score}: {gain:+.3f} (95 % {low:+.3f} to {high:+.3f})"


def write_costs(run: Path, control: Path) -> Iterator[str]:
    """Trained share, steps, seconds and machine, from the manifests."""
    tuned, other = (json.loads((folder / "manifest.json").read_text()) for folder in (run, control))
    trained = tuned["trainable"]
    yield f"- trained: {trained['count']:,} weights, {100 * trained['share']:.2f} % of the model"
    yield f"- steps: tuned {tuned['steps']}, control {other['steps']}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = "CPU" if device() == "cpu" else device()
    yield f"- seconds of training: tuned {tuned['seconds']:.0f}, control {other['seconds']:.0f}; {cores} cores, {where}"


def main(arguments: list[str]) -> None:
    """RUN and overrides in, the table out."""
    run = Path(arguments[0])
    recipe = read_recipe(run, arguments[1:])
    control = mmtune.fit(in_look(recipe, "clean", output=f"{recipe.output}-control"))
    recipes = {look: in_look(recipe, look) for look in (recipe.data.look, "clean")}
    exams = {look: AnswerExam(one, open_checked(one, "test"), "test") for look, one in recipes.items()}
    taken = take_answers(run, control, exams)
    print("\n" + "\n".join([*write_table(exams, taken), "", *write_gains(exams, taken), *write_costs(run, control)]))


if __name__ == "__main__":
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        sys.exit("usage: python scripts/measure_quickstart_captioning.py RUN [section.key=value ...]")
    main(sys.argv[1:])
