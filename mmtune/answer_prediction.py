"""What a model says about a person's images, a line of JSON each; what was interrupted goes on where it stopped."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.answer_scoring import answer_batches
from mmtune.answer_ways import Said, way_of
from mmtune.embedding_input import EmbeddingInput
from mmtune.ground.errors import DataError
from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import BadItem, MediaReference, Sample, Turn, printable
from mmtune.ground.safe_files import read_json, write_json
from mmtune.item_encoding import Asking, make_asking

if TYPE_CHECKING:
    from mmtune.backbones import Backbone
    from mmtune.model_loading import Target

DEFAULT_TASK = {"generate": "captioning", "match": "matching", "classify": "vqa"}
"""What a model is for that no recipe says it of."""


@dataclass(frozen=True)
class AnswerPaths:
    """The files that belong to one ``.jsonl`` of answers."""

    answers: Path

    @property
    def manifest(self) -> Path:
        """What was asked of what model, how far it got, and what was bad."""
        return self.answers.with_suffix(".manifest.json")

    @property
    def partial(self) -> Path:
        """Lines so far, while it is not finished."""
        return self.answers.with_suffix(".part.jsonl")


def predict_answers(
    model: str | Path,
    target: "Target",
    given: EmbeddingInput,
    output: str | Path,
    ask: str | None,
    batch: int,
    workers: int,
    device: str,
) -> tuple[Path, Path, Path, int, tuple[BadItem, ...]]:
    """Write one line per image: id, image, what was asked, the answer, and how sure where the model chose.

    Raises:
        DataError: nothing is asked where something must be, every image is bad, or ``output`` holds something else.
    """
    from mmtune.model_loading import load_model, model_identity

    paths = AnswerPaths(_ending(Path(output)))
    backbone = load_model(model, device=device)
    asking = _asking_of(target, backbone, asks=ask is not None or any(given.asked))
    samples = _samples(given, ask, asking)
    identity = {**model_identity(backbone, target), "input": given.fingerprint, "asked": json.dumps([ask, given.asked])}
    done, bad = _open(paths, identity)
    bad = tuple(one for one in bad if one not in given.bad)  # a finished list has what could not be read, too
    if done < len(samples):
        done, bad = _fill(paths, identity, asking, backbone, samples, (done, bad), batch, workers, device)
        if len(bad) == len(samples):
            raise DataError(f"none of the {len(samples)} images can be answered: {bad[0].where}: {bad[0].reason}")
        _finish(paths, identity, str(model), done, (*given.bad, *bad))
    for item in (*given.bad, *bad)[:10]:
        print(f"left out {item.where}: {item.reason}", flush=True)
    left_out = (*given.bad, *bad)
    said = f"{paths.answers}: {len(samples) - len(bad)} answers, {len(left_out)} left out"
    print(printable(said), flush=True)
    return paths.answers, paths.answers, paths.manifest, len(samples) - len(bad), left_out


def _ending(path: Path) -> Path:
    if path.suffix == "":
        path = path.with_suffix(".jsonl")
    if path.suffix != ".jsonl" or path.name.endswith(".part.jsonl"):
        raise DataError(f"{path}: answers are written as JSON lines; end the name in .jsonl")
    return path


def _asking_of(target: "Target", backbone: "Backbone", *, asks: bool) -> Asking:
    """The run's own task, or what the model is for; who asks a captioner something gets an answer to that."""
    tasks = kinds("tasks")
    if target.recipe is not None:
        section: Any = target.recipe.task
    else:
        name = DEFAULT_TASK[sorted(backbone.traits.abilities - {"embed"})[0]]
        section = tasks[name].Section(kind=name)
    if section.kind == "captioning" and asks:
        options = {"max_new_tokens": section.max_new_tokens, "num_beams": section.num_beams}
        section = tasks["vqa"].Section(kind="vqa", **options)
    return make_asking(section, backbone)


def _samples(given: EmbeddingInput, ask: str | None, asking: Asking) -> list[Sample]:
    """The images with what is asked about each.

    Raises:
        DataError: the task asks something, and nothing was given.
    """
    task = asking.section.kind
    asked = [ask or own for own in (given.asked or [""] * len(given.items))]
    if task in ("vqa", "matching", "chat") and not all(asked):
        words = {"vqa": "a question", "matching": "a text to match", "chat": "what to say"}[task]
        raise DataError(f"task {task} needs {words} about every image: give --ask TEXT or --ask-column NAME")
    return [_sample(*each) for each in zip(given.ids, given.items, asked, strict=True)]


def _sample(name: str, media: Any, asked: str) -> Sample:
    reference: MediaReference = media
    turns = (Turn("user", (reference, asked)), Turn("assistant", ("",)))
    return Sample(name, reference, captions=(asked,), question=asked, turns=turns)


def _open(paths: AnswerPaths, identity: dict[str, str]) -> tuple[int, tuple[BadItem, ...]]:
    """How many samples are done already, and which of them were bad.

    Raises:
        DataError: the output holds something else.
    """
    old = read_json(paths.manifest) if paths.manifest.is_file() else None
    if old is None:
        if paths.answers.exists():
            raise DataError(f"{paths.answers} is there and was not written by predict; give another name")
        return 0, ()
    differing = [key for key, value in identity.items() if old.get("identity", {}).get(key) != value]
    if differing and old.get("status") == "finished":
        raise DataError(
            f"{paths.answers} holds answers of something else (other {', '.join(differing)}); give another name or "
            "delete it"
        )
    if differing:
        print(f"what was begun there is of something else (other {', '.join(differing)}): beginning anew", flush=True)
        return 0, ()
    done = int(old["done"])
    print(f"{done} are done already", flush=True)
    return done, tuple(BadItem(**one) for one in old["failed"])


def _fill(
    paths: AnswerPaths,
    identity: dict[str, str],
    asking: Asking,
    backbone: "Backbone",
    samples: list[Sample],
    before: tuple[int, tuple[BadItem, ...]],
    batch: int,
    workers: int,
    device: str,
) -> tuple[int, tuple[BadItem, ...]]:
    """Answer what is missing, a batch at a time; each is safe before the next begins."""
    done, bad = before
    paths.partial.parent.mkdir(parents=True, exist_ok=True)
    lines = paths.partial.read_text(encoding="utf-8").splitlines(keepends=True) if done else []
    paths.partial.write_text("".join(lines[: done - len(bad)]), encoding="utf-8")
    with paths.partial.open("a", encoding="utf-8") as stream:
        while done < len(samples):
            some = samples[done : done + batch]
            said, failed = answer_batches(way_of(asking, some, ""), backbone, device, batch, workers)
            for place in sorted(said):
                stream.write(json.dumps(_row(asking, some[place], said[place]), ensure_ascii=False) + "\n")
            stream.flush()
            done, bad = done + len(some), (*bad, *(failed[place] for place in sorted(failed)))
            facts = {"failed": [asdict(item) for item in bad], "done": done, "identity": identity}
            write_json(paths.manifest, {"status": "running", **facts})
    return done, bad


def _row(asking: Asking, sample: Sample, said: Said) -> dict[str, Any]:
    answer, confidence = said
    asked = asking.asked(sample)[-1].text if asking.ability == "generate" else asking.task.statement(sample)
    row = {"id": sample.id, "image": sample.media.where, "asked": asked, "answer": answer}
    return row if confidence is None else {**row, "confidence": confidence}


def _finish(paths: AnswerPaths, identity: dict[str, str], model: str, done: int, bad: tuple[BadItem, ...]) -> None:
    paths.partial.replace(paths.answers)
    facts = {"done": done, "failed": [asdict(item) for item in bad], "identity": identity, "model": model}
    write_json(paths.manifest, {"status": "finished", **facts})
