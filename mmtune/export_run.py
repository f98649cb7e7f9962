"""The story of ``merge``: run in, plain model folder out, with proof."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmtune.model_loading import Target
    from mmtune.recipe_schema import Recipe

DTYPES = ("float32", "bfloat16", "float16")


def merge(
    run: "str | Path | Recipe",
    *,
    output: str | Path | None = None,
    scale: float = 1.0,
    base: Literal["auto", "full"] = "auto",
    dtype: str | None = None,
    recipe: "Recipe | None" = None,
) -> Path:
    """Fold what a run trained into its backbone, write a folder that transformers alone loads, and prove it.

    Args:
        run: run folder (or its recipe), checkpoint folder, or folder of a peft adapter.
        output: where to; ``RUN/merged`` by default. Only an earlier merge is replaced.
        scale: every tensor becomes base + scale (merged - base), log temperature included.
        base: ``auto`` merges a quantized run into its dequantized weights, ``full`` into the original ones.
        dtype: number format of the weights; by default the backbone's. Its rounding is then the proof's tolerance.
        recipe: data for the proof of an adapter that no run here made; shipped glyphs or tones by default.

    Returns:
        The folder; ``merge_report.json`` in it holds the figures.

    Raises:
        CheckpointError: nothing to merge, or the folder would not be the adapted model; no folder is left then.
        RecipeError: an option that makes no sense, or an output that holds something else.
    """
    from mmtune import merge_building as building
    from mmtune.backbones import describe
    from mmtune.ground.safe_files import sweep_leftovers, whole_folder
    from mmtune.model_loading import resolve

    target = resolve(run)
    folder = _output_folder(target, output)
    number_format = _check_options(target, base, dtype)
    sweep_leftovers(folder.resolve().parent, folder.resolve().name)
    building.check_output(folder)
    samples, where = building.open_samples(target.recipe or recipe, describe(target.backbone).traits.modality)
    merged = building.fold(target, samples, scale=scale, full=base == "full", dtype=number_format)
    with whole_folder(folder) as beside:
        copied = building.write_folder(merged, beside)
        proof = building.prove(merged, beside)
        building.write_report(beside, merged, proof, copied, where)
        if target.run is not None and folder.resolve().parent != target.run.resolve():
            building.note_run(beside, folder, target.run)
    return folder


def _output_folder(target: "Target", output: str | Path | None) -> Path:
    from mmtune.ground.errors import CheckpointError

    beside = target.run or target.folder
    if beside is None:
        raise CheckpointError("a plain model has no adapter to merge: name a run, a checkpoint or a peft folder")
    return Path(output).expanduser() if output else beside / "merged"


def _check_options(target: "Target", base: str, dtype: str | None) -> str:
    from mmtune.ground.errors import RecipeError

    section = target.backbone
    problems = []
    if base not in ("auto", "full"):
        problems.append(f"base {base!r}: write auto or full")
    elif base == "full" and section.quantize is None:
        problems.append("base full: this run's backbone is not quantized, so its weights are the original ones already")
    if dtype is not None and dtype not in DTYPES:
        problems.append(f"dtype {dtype!r}: write one of {', '.join(DTYPES)}")
    if problems:
        raise RecipeError("\n".join(problems))
    return dtype or section.dtype
