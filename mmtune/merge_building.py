"""The steps of a merge: fold the adapter in, write a plain model folder, prove it; ``export_run`` calls them."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune import merge_proof
from mmtune.backbones._quiet_loading import quiet
from mmtune.ground.errors import CheckpointError, RecipeError
from mmtune.ground.records import Sample
from mmtune.ground.safe_files import file_hash, files_below, write_json
from mmtune.ground.sound_reading import require_packages
from mmtune.merge_scores import score_some
from mmtune.model_loading import Target, attach_target, load_base
from mmtune.sources._made_up import Tone

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.backbones import Backbone
    from mmtune.recipe_schema import Recipe

REPORT = "merge_report.json"

RUN_NOTE = ".mmtune_run"
"""File beside the weights that says where the run is on this machine, for `push`; it is never sent."""

NOT_MERGED = ("optimizer", "rng", "raw")
"""What a checkpoint holds beside what was trained."""


@dataclass
class Merge:
    """An adapter folded into its base, in memory.

    Attributes:
        backbone: ``backbone.model`` is the plain merged model, float32.
        target: what was merged.
        scale: every tensor is base + scale (merged - base).
        dtype: number format of the folder.
        inputs: encoded samples that everything below was embedded from.
        base_state: the base's tensors, float32.
        state: the merged model's tensors, float32.
        trained: names of the tensors that the adapter changes.
        embedded: ``base``, ``adapted`` (adapter beside the base), ``merged``, and ``as_trained`` (in the quantized
            backbone) where that is another model.
        scores: split scores of ``as_trained`` and ``merged`` where both are there.
    """

    backbone: "Backbone"
    target: Target
    scale: float
    dtype: str
    inputs: "dict[str, Tensor]"
    base_state: "dict[str, Tensor]"
    trained: list[str] = field(default_factory=list)
    state: "dict[str, Tensor]" = field(default_factory=dict)
    embedded: "dict[str, merge_proof.Embedded]" = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def check_output(folder: Path) -> None:
    """Refuse to replace anything but an earlier merge.

    Raises:
        RecipeError: the folder holds something else, or is the one that the process stands in.
    """
    if folder.is_dir() and Path.cwd().is_relative_to(folder.resolve()):
        raise RecipeError(f"{folder} is the folder you are in, and it would be replaced: name one inside it with -o")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / REPORT).is_file()):
        raise RecipeError(f"{folder} is there already and is no earlier merge: name another folder with -o")


def open_samples(recipe: "Recipe | None", modality: str = "image") -> tuple[Sequence[Sample], str]:
    """Real samples for the proof, and where they are from: the recipe's held-out data, else shipped glyphs or tones.

    Raises:
        DataError: the recipe's data is not there any more, or sounds cannot be read here.
    """
    from mmtune.sources import glyphs, open_split, split_names

    if recipe is None and modality == "audio":
        require_packages()
        return [Sample(f"tone {n}", Tone(n), (f"tone {n}",)) for n in range(merge_proof.NUM_SAMPLES)], "made-up tones"
    if recipe is None:
        section: Any = glyphs.Section(kind="glyphs", characters=64)
        return open_split(section, "test", seed=0).samples, "glyphs, split test"
    there = split_names(recipe.data)
    split = next((name for name in ("test", "validation") if name in there), "train")
    return open_split(recipe.data, split, seed=recipe.seed).samples, f"{recipe.data.kind}, split {split}"


def fold(target: Target, samples: Sequence[Sample], *, scale: float, full: bool, dtype: str) -> Merge:
    """Load base and adapter in float32, embed with and without, and fold the adapter in.

    Args:
        target: what to merge.
        samples: real samples.
        scale: 1 is the adapter as it was trained, 0 the base.
        full: merge a quantized run into the original weights instead of the dequantized ones.
        dtype: number format of the folder to come.
    """
    from mmtune.adapters import merge_into, merged_names

    base = load_base(target, full=full, plain=True)
    inputs = merge_proof.encode_samples(base, samples)
    merge = Merge(base, target, scale, dtype, inputs, _copy_state(base))
    merge.embedded["base"] = merge_proof.embed(base, inputs)
    if target.backbone.quantize is not None:
        _embed_as_trained(merge, samples)
    adapted = attach_target(base, target)
    merge.embedded["adapted"] = merge_proof.embed(base, inputs)
    merge.trained = merged_names(adapted)
    base.model = merge_into(adapted, scale=scale)
    merge.state = _copy_state(base)
    merge.embedded["merged"] = merge_proof.embed(base, inputs)
    if merge.scores:
        merge.scores["merged"] = score_some(base, target.recipe, samples)
    return merge


def _copy_state(backbone: "Backbone") -> "dict[str, Tensor]":
    return {name: value.detach().cpu().clone() for name, value in backbone.model.state_dict().items()}


def _embed_as_trained(merge: Merge, samples: Sequence[Sample]) -> None:
    """The quantized backbone with its adapter, computing in float32."""
    import torch

    trained = load_base(merge.target)
    attach_target(trained, merge.target)
    layers: list[Any] = [module for module in trained.model.modules() if hasattr(module, "compute_dtype")]
    for layer in layers:
        layer.compute_dtype = torch.float32
    torch.nn.Module.float(trained.model)
    merge.embedded["as_trained"] = merge_proof.embed(trained, merge.inputs)
    merge.scores["as_trained"] = score_some(trained, merge.target.recipe, samples)


def write_folder(merge: Merge, folder: Path) -> dict[str, str]:
    """Weights and config as transformers saves them, everything else byte for byte; gives the copies' sha256.

    Where the backbone was made of two encoders its processor is saved by transformers too: the tokenizer files of
    one repository and the image processor's of another say nothing of each other.
    """
    import torch

    from mmtune.backbones import component_files

    model: Any = merge.backbone.model
    if hasattr(merge.backbone.family, "before_saving"):
        merge.backbone.family.before_saving(model)
    computed = _unsaved_buffers(model)
    model.to(getattr(torch, merge.dtype))
    with quiet():
        model.save_pretrained(str(folder))
        if merge.backbone.description.encoders:
            merge.backbone.processor.save_pretrained(str(folder))
    model.float()
    for name, values in model.named_buffers():
        values.copy_(computed.get(name, values))
    copied = {}
    for path in component_files(merge.backbone.description):
        name = path.relative_to(merge.backbone.description.folder).as_posix()
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
        copied[name] = file_hash(folder / name)
        if copied[name] != file_hash(path):
            raise CheckpointError(f"{name} was not copied byte for byte")
    return copied


def _unsaved_buffers(model: Any) -> "dict[str, Tensor]":
    """What no file holds and transformers computes anew, exactly: the frequencies of rotary positions."""
    saved = set(model.state_dict())
    return {name: values.clone() for name, values in model.named_buffers() if name not in saved}


def prove(merge: Merge, folder: Path) -> dict[str, Any]:
    """Reload the folder here and in a fresh process; the figures for the report.

    Raises:
        CheckpointError: it is not the adapted model, or no other than the base.
    """
    return prove_all([(merge, folder)])[0]


def prove_all(merges: Sequence[tuple[Merge, Path]]) -> list[dict[str, Any]]:
    """The same for several merges with one fresh process for all of them."""
    tensors = [_check_tensors(merge, folder) for merge, folder in merges]
    cases = [merge_proof.case_of(merge.backbone, folder, merge.inputs) for merge, folder in merges]
    with tempfile.TemporaryDirectory() as scratch:
        reloaded = merge_proof.reload_elsewhere(cases, Path(scratch))
    return [
        {"tensors": checked, "reload": _judge(merge, embedded), **_quantized(merge)}
        for checked, embedded, (merge, _) in zip(tensors, reloaded, merges, strict=True)
    ]


def _check_tensors(merge: Merge, folder: Path) -> dict[str, Any]:
    names = _check_names(merge, folder)
    written = _reload_state(merge, folder)
    return {**merge_proof.compare_tensors(written, merge.state, merge.base_state, set(merge.trained)), **names}


def _check_names(merge: Merge, folder: Path) -> dict[str, list[str]]:
    from mmtune.backbones import original_weight_names

    ignored = merge.backbone.traits.ignored_weights
    original = original_weight_names(merge.backbone.description)
    model: Any = merge.backbone.model
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    return merge_proof.check_weight_names(folder, original, ignored, tied)


def _reload_state(merge: Merge, folder: Path) -> "dict[str, Tensor]":
    import torch

    model_class: Any = type(merge.backbone.model)
    with quiet():
        model = model_class.from_pretrained(str(folder), dtype=getattr(torch, merge.dtype), local_files_only=True)
    state: dict[str, Tensor] = model.state_dict()
    return state


def _judge(merge: Merge, reloaded: "merge_proof.Embedded") -> dict[str, Any]:
    """Hold the fresh process's embeddings against the adapted model's and the base's."""
    as_written = merge_proof.embed(merge.backbone, merge.inputs)  # the model holds the folder's rounded values now
    reference = _reference(merge)
    tolerance = merge_proof.ROUNDING[merge.dtype]
    found = merge_proof.gap(reloaded, merge.embedded[reference])
    from_written = merge_proof.gap(reloaded, as_written)
    compared = merge_proof.COMPARED[merge_proof.ability_of(merge.backbone)]
    from_base = merge_proof.gap(merge.embedded["merged"], merge.embedded["base"])
    figures = {
        "reference": reference,
        "gap": found,
        "tolerance": tolerance,
        "gap_to_written_weights": from_written,
        "difference_from_base": from_base,
        "unit": f"share of the range of the {compared}, both sides computed in float32",
    }
    if merge.dtype != "float32":
        figures["tolerance_is"] = f"eight steps of {merge.dtype}, the number format of the folder"
    if not (found <= tolerance and from_written <= merge_proof.TOLERANCE):
        raise CheckpointError(
            f"the merged folder is not the {reference} model: {compared} differ by {found:.2e} of their range "
            f"(allowed {tolerance:.0e}), from the written weights by {from_written:.2e} (allowed "
            f"{merge_proof.TOLERANCE:.0e})"
        )
    if merge.scale != 0 and not from_base > merge_proof.TOLERANCE:
        raise CheckpointError(
            f"the merged model's {compared} are like the untouched base's (difference {from_base:.1e} of the range): "
            "the adapter changes nothing"
        )
    return figures


def _reference(merge: Merge) -> str:
    """What the folder must embed like: the adapted model; scaled or in 8 bit, the nearest thing that is exact."""
    if merge.scale == 0:
        return "base"
    if merge.scale != 1:
        return "merged"
    is_exact = merge.target.backbone.quantize == "4bit" and merge.backbone.section.quantize == "4bit"
    return "as_trained" if is_exact else "adapted"


def _quantized(merge: Merge) -> dict[str, Any]:
    """What merging a quantized run changed: the gap to the model as it was trained, and its scores."""
    if "as_trained" not in merge.embedded:
        return {}
    before, after = merge.scores["as_trained"], merge.scores["merged"]
    return {
        "quantized": {
            "trained_in": merge.target.backbone.quantize,
            "merged_into": "original weights" if merge.backbone.section.quantize is None else "dequantized weights",
            "gap_to_the_model_as_trained": merge_proof.gap(merge.embedded["merged"], merge.embedded["as_trained"]),
            "scores_as_trained": before,
            "scores_merged": after,
            "change_of_scores": {name: after[name] - before[name] for name in before},
        }
    }


def write_report(folder: Path, merge: Merge, proof: dict[str, Any], copied: dict[str, str], samples: str) -> None:
    """merge_report.json: what was merged, into what, and what the proof measured; no path of this machine."""
    report = {
        "format": 1,
        "merged": _what_was_merged(merge.target),
        "backbone": {**merge.backbone.record(), "id": merge.backbone.description.short_id},
        "scale": merge.scale,
        "dtype": merge.dtype,
        "samples": {"from": samples, "count": _num_samples(merge)},
        **proof,
        "copied": copied,
        "weights": {path.name: file_hash(path) for path in sorted(folder.glob("*.safetensors"))},
    }
    write_json(folder / REPORT, report)


def _num_samples(merge: Merge) -> int:
    """Some image tensors have a row per patch; texts have one per sample."""
    return len(merge.inputs["input_ids"])


def note_run(written: Path, folder: Path, run: Path) -> None:
    """Say in the folder where its run is: seen from where the folder will lie, so that both may move, and in full.

    Args:
        written: where the folder is written.
        folder: where it will lie.
        run: the run folder.
    """
    run = run.resolve()
    lines = (os.path.relpath(run, folder.resolve()), str(run))
    (written / RUN_NOTE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _what_was_merged(target: Target) -> dict[str, Any]:
    """The run's name, the adapter's folder within it (or its name), and the hashes of what was trained."""
    assert target.folder is not None, "a model has nothing to merge"
    folder, run = target.folder.resolve(), target.run.resolve() if target.run else None
    trained = [path for path in files_below(folder) if path.suffix == ".safetensors" and path.stem not in NOT_MERGED]
    return {
        "run": run.name if run else None,
        "folder": folder.relative_to(run).as_posix() if run else folder.name,
        "sha256": {path.relative_to(folder).as_posix(): file_hash(path) for path in trained},
    }
