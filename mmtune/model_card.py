"""The card of what goes to the hub: README.md, filled from the run, with metadata that the hub can read."""

import hashlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.kind_folder import kinds
from mmtune.ground.records import MEDIA_WORDS
from mmtune.loading_code import loading_code, loading_note
from mmtune.metrics import retrieval_scores
from mmtune.public_base import Base
from mmtune.push_files import Package

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

MARK = "<!-- card written by mmtune; sha256 of the rest: {} -->"
MARKED = re.compile(r"\n*<!-- card written by mmtune; sha256 of the rest: ([0-9a-f]{64}) -->\s*$")
UNFILLED = "[More Information Needed]"
"""What the empty card template of the hub is full of."""

PIPELINES = {"image": "zero-shot-image-classification"}
"""The hub's word for what a two-tower model of images and text does untrained; for others the general one is used."""

TASKS = {
    "retrieval": ("retrieval", "Retrieval"),
    "classification": ("zero-shot-image-classification", "Image classification by the classes' names"),
    "captioning": ("image-to-text", "Image captioning"),
    "vqa": ("visual-question-answering", "Visual question answering"),
    "matching": ("image-text-matching", "Image-text matching"),
    "chat": ("image-text-to-text", "Conversation about images"),
}
"""Task of a recipe -> the hub's word for it, and its name."""

NO_PIPELINE = ("dual_encoder",)
"""Families that transformers has no such pipeline for."""

UNKNOWN = "unknown"


def write_card(package: Package, repo_id: str, licence: dict[str, Any]) -> str:
    """README.md with its metadata.

    Args:
        package: what goes.
        repo_id: where to.
        licence: from the base's card, see ``read_licence``; empty where it is unknown.
    """
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _summary(package, licence),
        "## Load it",
        loading_note(package),
        f"```python\n{loading_code(package, repo_id)}```",
        *_score_section(package),
        *_data_section(package),
        *_training_section(package),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(package)),
    ]
    text = f"---\n{_metadata(package, repo_id, licence)}\n---\n\n" + "\n\n".join(parts) + "\n"
    return f"{text}\n{MARK.format(_fingerprint(text))}\n"


def is_ours(card: str) -> bool:
    """Whether a card was written by ``write_card`` and not changed since."""
    found = MARKED.search(card)
    return found is not None and found[1] == _fingerprint(card[: found.start()])


def is_unfilled(card: str) -> bool:
    """Whether a card is the hub's template, as peft and transformers leave it."""
    return card.count(UNFILLED) > 5


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode()).hexdigest()


def _metadata(package: Package, repo_id: str, licence: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    results, on_hub = _eval_results(package), list(package.base.on_hub)
    public = on_hub[0] if len(on_hub) == 1 else on_hub or None
    extra: dict[str, Any] = (
        {"base_model_relation": "adapter" if package.kind == "adapter" else "finetune"} if public else {}
    )
    tags = ["mmtune", package.family, package.manifest.get("adapter"), _task(package)]
    data = ModelCardData(
        base_model=public,
        eval_results=results or None,
        library_name="peft" if package.has("adapter_model.safetensors") else "transformers",
        model_name=repo_id.rpartition("/")[2] if results else None,
        pipeline_tag=_pipeline(package),
        tags=[tag for tag in tags if tag],
        **{**licence, **extra},
    )
    return data.to_yaml().strip()


def _task(package: Package) -> str:
    """The recipe's task; of a model that no recipe is known of, retrieval where its family embeds."""
    if package.recipe is not None and "task" in package.recipe:
        return str(package.recipe["task"]["kind"])
    family = kinds("backbones").get(package.family or "")
    return "retrieval" if family is None or "embed" in family.FAMILY.abilities else "chat"


def _pipeline(package: Package) -> str | None:
    """The hub's pipeline for the model; None where it has none."""
    if _task(package) == "retrieval":
        return PIPELINES.get("" if package.family in NO_PIPELINE else _modality(package), "feature-extraction")
    return None if _task(package) == "matching" else TASKS[_task(package)][0]


def _modality(package: Package) -> str:
    family = kinds("backbones").get(package.family or "")
    return getattr(family.FAMILY, "modality", "image") if family else ""


def _eval_results(package: Package) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    scores, recipe = package.scores, package.recipe
    if scores is None or recipe is None:
        return []
    return [
        EvalResult(
            task_type=TASKS[_task(package)][0],
            task_name=TASKS[_task(package)][1],
            dataset_type=_data_type(package, recipe),
            dataset_name=_data_name(recipe),
            dataset_split=scores["split"],
            metric_type=name,
            metric_name=name.replace("_", " "),
            metric_value=round(value, 6),
        )
        for name, value in scores["tuned"].items()
    ]


def _data_type(package: Package, recipe: dict[str, Any]) -> str:
    """The data set's name on the hub, where it has one."""
    data, started_in = recipe["data"], Path(package.manifest.get("started_in", "."))
    name = str(data.get("id")) if data["kind"] == "hub" else ""
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None
    is_public = is_name and not (started_in / name).is_dir()
    notes = package.manifest.get("data", {}).get("notes")
    if notes is not None:  # a folder that is gone has a name like a repository's, but no commit
        is_public = is_public and any(f"{name} at commit " in note for note in notes)
    return name if is_public else "private"


def _data_name(recipe: dict[str, Any]) -> str:
    """The data's kind, and the name of its file or folder where it has one."""
    data = recipe["data"]
    named = next((data[key] for key in ("id", "path", "folder") if isinstance(data.get(key), str)), "")
    return f"{data['kind']}: {Path(named).name}" if named else str(data["kind"])


def _summary(package: Package, licence: dict[str, Any]) -> str:
    base, manifest = package.base, package.manifest
    name = _linked(base)
    method = manifest.get("adapter")
    if package.kind == "model":
        what = f"{name}, fine-tuned{f' with {method}' if method else ''} and merged into one plain model."
    elif package.has("adapter_model.safetensors"):
        what = f"A peft adapter{f' ({method})' if method else ''} for {name}: it needs that model to stand on."
    else:
        what = f"The tensors that {method or 'training'} changed in {name}: they need that model to stand on."
    stated = licence.get("license_name") or licence.get("license")
    lines = [
        what[0].upper() + what[1:] + " Made with mmtune.",
        f"Licence: {stated}, as the base model's card states it."
        if stated
        else f"Licence: {UNKNOWN} (the base "
        "model's card states none that could be read); ask its authors before you share or use this.",
    ]
    return "\n\n".join(lines)


def _linked(base: Base) -> str:
    if base.is_builtin:
        return f"`{base.id}`, a small model that travels inside mmtune"
    if not base.on_hub:
        return "a base model without a public name"
    at = f" (at `{base.revision[:12]}`)" if base.revision else ""
    return " with ".join(f"[{name}](https://huggingface.co/{name}){at}" for name in base.on_hub)


def _score_section(package: Package) -> list[str]:
    scores = package.scores
    if scores is None:
        return ["## Scores", "None were measured on a held-out split with these weights."]
    rows = ["| score | base | tuned | change | 95 % interval of the change |", "|---|---|---|---|---|"]
    modality = scores.get("modality", "image")
    order = [score.name for score in retrieval_scores(modality)]
    for name in sorted(scores["tuned"], key=lambda each: order.index(each) if each in order else len(order)):
        interval = scores["interval95"].get(name)
        edges = "-" if interval is None else " to ".join(_number(edge, signed=True) for edge in interval)
        values = _number(scores["base"][name]), _number(scores["tuned"][name]), _number(scores["delta"][name], True)
        rows.append(f"| {name} | {' | '.join(values)} | {edges} |")
    media = MEDIA_WORDS[modality]
    texts = f", {scores['texts']:,} texts" if "texts" in scores else ""
    seen = (
        f"Split `{scores['split']}`: {scores['samples']:,} samples, {scores[media]:,} {media}{texts}"
        f"; {scores['bad']:,} left out as unreadable. Base is the untouched backbone, scored by the same code. "
        f"Interval: {scores['bootstrap']['method']}, {scores['bootstrap']['resamples']:,} resamples."
    )
    return ["## Scores", seen, "\n".join(rows)]


def _number(value: float, signed: bool = False) -> str:
    return format(value, "+.3f" if signed else ".3f")


def _data_section(package: Package) -> list[str]:
    if package.recipe is None:
        return []
    facts, scores = package.manifest.get("data", {}), package.scores
    lines = [f"Source: {_data_name(package.recipe)}; the data itself is not part of this repository."]
    if facts:
        lines.append(f"Trained on {facts['train_items']:,} items, {facts['samples_trained']:,} drawn in all.")
        lines.append(f"Quarantined (unreadable or empty) while training: {facts['bad']:,}.")
        if _task(package) == "retrieval":
            lines.append(f"Captions cut at the text tower's limit: {facts['captions_cut']:,}.")
    if scores:
        lines.append(f"Scored on {scores['samples']:,} samples of the split `{scores['split']}`.")
    return ["## Data", "\n".join(f"- {line}" for line in lines)]


def _training_section(package: Package) -> list[str]:
    if package.recipe is None:
        return []
    manifest = package.manifest
    facts = [f"Seed {package.recipe['seed']}", f"checkpoint {package.checkpoint}"]
    if "steps" in manifest:
        facts.append(f"of a run of {manifest['steps']:,} steps in {manifest['seconds']:,.0f} s")
    if "trainable" in manifest:
        share = manifest["trainable"]["share"]
        facts.append(f"{manifest['trainable']['count']:,} trained parameters ({share:.2%} of the model)")
    versions = ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items())
    text = [f"{', '.join(facts)}.", "The recipe, with every default:", f"```yaml\n{_as_yaml(package.recipe)}```"]
    return ["## Training", *text, *([f"Versions: {versions}."] if versions else [])]


def _as_yaml(value: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer, stream = YAML(), io.StringIO()
    writer.representer.add_representer(
        type(None), lambda each, _: each.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    writer.default_flow_style = False
    writer.width = 10_000
    writer.dump(value, stream)
    return stream.getvalue()


def _limits(package: Package) -> list[str]:
    recipe, scores, base = package.recipe, package.scores, package.base
    lines = ["Everything that limits the base model limits this one: see its card."]
    if scores is None:
        lines.append("Not measured: any score of these weights.")
    else:
        lines.append(
            f"Measured on one split of one data set ({_data_name(recipe or {'data': {'kind': UNKNOWN}})}) only. Not "
            "measured: other domains, other languages, other tasks, robustness, bias, and what the base could do "
            "before and this model may have forgotten."
        )
    lines.append("Language and domain are those of the texts and media it was trained on, which are not part of this.")
    trained = (recipe or {}).get("adapter", {}).get("temperature") and _task(package) == "retrieval"
    if package.has("temperature.safetensors") or trained:
        lines.append(
            "The temperature (scale of the logits) was trained too: probabilities differ from the base's even where "
            "the ranking does not."
        )
    if base.quantize:
        lines.append(_quantized_note(package))
    return lines


def _quantized_note(package: Package) -> str:
    quantized = (package.report or {}).get("quantized")
    if quantized is None:
        return (
            f"It was trained, and scored, on the base in {package.base.quantize}; on the base in full precision, as "
            "loaded above, embeddings differ a little."
        )
    change = max(abs(value) for value in quantized["change_of_scores"].values())
    return (
        f"It was trained on the base in {quantized['trained_in']} and merged into its {quantized['merged_into']}; the "
        f"scores are of the former, and merging changed none of them by more than {change:.3f} on a sample."
    )
