"""The console command ``mmtune``: the same stories as from Python, with arguments in and an exit code out.

Nothing slow is imported before a story needs it: ``--help``, ``recipes``, ``schema`` and a recipe's mistakes are quick.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mmtune import command_options as options
from mmtune.command_groups import cache_app, recipes_app
from mmtune.ground.errors import MmtuneError, RecipeError

app = typer.Typer(
    name="mmtune",
    help="Adapt pretrained image-text models to your own data, score them against their base, merge them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Entry of the console script: a mistake of the user's is one message on stderr and exit code 2.

    What stands after ``--`` is for ``accelerate launch``; only ``finetune`` has a launcher.
    """
    from mmtune.launcher_call import repeated, split_arguments

    arguments, launcher = split_arguments(sys.argv[1:])
    if arguments[:1] == ["fewshot"]:
        arguments = repeated(arguments, "--shots")
    try:
        if launcher and arguments[:1] != ["finetune"]:
            raise RecipeError(f"{' '.join(launcher)}: options after -- are the launcher's, which only finetune has")
        if arguments[:1] == ["finetune"]:
            _refuse_launcher_options(arguments[1:])
        app(args=arguments, prog_name="mmtune", obj=(arguments[1:], launcher))
    except MmtuneError as error:
        if _is_first_rank():
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _refuse_launcher_options(arguments: list[str]) -> None:
    """An option that ``finetune`` does not have is most likely the launcher's."""
    command: Any = typer.main.get_command(app)
    names = [name for each in command.commands["finetune"].params for name in each.opts if name.startswith("--")]
    known = ["--help", *names]
    unknown = [each for each in arguments if each.startswith("--") and each.partition("=")[0] not in known]
    if unknown:
        raise RecipeError(
            f"finetune has no option {unknown[0]}; it has {', '.join(known)}. Options of accelerate launch stand after "
            f"--: mmtune finetune RECIPE -- {unknown[0]} ..."
        )


def _load(recipe: Path | None, overrides: list[str] | None, *, tiny: bool = False, ranks: int = 1) -> Any:
    """The recipe of a command, or its tiny twin; None where the command was given none."""
    from mmtune.recipe_schema import load_recipe

    if recipe is None:
        return None
    loaded = load_recipe(recipe, overrides or (), world_size=ranks)
    if not tiny:
        return loaded
    from mmtune.tiny_recipe import shrink

    loaded, notes = shrink(loaded, overrides or (), world_size=ranks)
    if _is_first_rank():
        print("\n".join(notes), file=sys.stderr)
    return loaded


def _run(target: str, tiny: bool, recipe: Any = None) -> str:
    """The model a command is about, or what stands for it in the tiny world."""
    if not tiny:
        return target
    from mmtune.tiny_recipe import tiny_run

    return tiny_run(target, recipe)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@app.command()
def finetune(
    context: typer.Context,
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    resume: Annotated[
        options.Resume,
        typer.Option(help="auto: go on where the run folder holds the same recipe; never: refuse such a folder"),
    ] = options.Resume.auto,
    restart: Annotated[bool, typer.Option("--restart", help="move an old run aside and begin anew")] = False,
    print_resolved: Annotated[
        bool, typer.Option("--print-resolved", help="print the recipe with every default, and stop")
    ] = False,
    tiny: options.TinyRecipe = False,
) -> None:
    """Fine-tune as RECIPE says; for several GPUs, accelerate's options after two dashes: `-- --num_processes 4`."""
    from mmtune.recipe_schema import load_recipe, resolved_json

    ours, launcher = context.obj or ([], [])
    if launcher:
        from mmtune.launcher_call import launch

        load_recipe(recipe, overrides or ())  # a mistake is found before processes are started
        launch(ours, launcher)
    checked = _load(recipe, overrides, tiny=tiny, ranks=int(os.environ.get("WORLD_SIZE", "1")))
    if print_resolved:
        _print_json(resolved_json(checked))
        return
    from mmtune.training_run import fit

    fit(checked, resume=resume.value, restart=restart)


@app.command()
def evaluate(
    target: options.ModelArgument,
    overrides: options.Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option(help="where the data comes from, if TARGET is no run; overrides apply to it")
    ] = None,
    split: Annotated[str, typer.Option(help="split of the data to score")] = "test",
    checkpoint: options.CheckpointOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for scores and pictures; default: the run's")
    ] = None,
    tiny: options.TinyRun = False,
) -> None:
    """Score a run against its untouched backbone, or a model alone, on one split."""
    if overrides and recipe is None:
        raise MmtuneError(f"{overrides[0]!r}: overrides change a recipe; give one with --recipe")
    loaded = _load(recipe, overrides, tiny=tiny)
    target = _run(target, tiny, loaded)
    from mmtune.evaluation_run import evaluate as evaluate_target

    evaluate_target(target, recipe=loaded, split=split, checkpoint=checkpoint, output=output)


@app.command()
def merge(
    run: options.RunArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="model folder to write [RUN/merged]")] = None,
    scale: Annotated[float, typer.Option(help="base + SCALE x (merged - base), for every tensor")] = 1.0,
    base: Annotated[
        options.Base,
        typer.Option(help="a quantized run merges into: auto: its dequantized base; full: the original weights"),
    ] = options.Base.auto,
    dtype: Annotated[
        options.Dtype | None, typer.Option(help="number format of the written weights; default: the backbone's")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="data for the proof, if no run here made the adapter; default: shipped glyphs")
    ] = None,
    tiny: options.TinyRun = False,
) -> None:
    """Write a run as a plain model folder, proven equal to the adapted model in a fresh process."""
    loaded = _load(recipe, None, tiny=tiny)
    run = _run(run, tiny)
    from mmtune.export_run import merge as merge_run

    number_format = None if dtype is None else dtype.value
    target: Literal["auto", "full"] = "full" if base is options.Base.full else "auto"
    folder = merge_run(run, output=output, scale=scale, base=target, dtype=number_format, recipe=loaded)
    print(f"wrote {folder}; the proof stands in {folder / 'merge_report.json'}")


@app.command()
def predict(
    model: options.ModelArgument,
    source: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="a folder, files, a glob, a table (JSON lines, CSV, TSV) or a .txt"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write: embeddings .npy, answers .jsonl")],
    kind: Annotated[options.InputKind | None, typer.Option(help="what to embed; default: what INPUT holds")] = None,
    column: Annotated[str | None, typer.Option(help="the table's column, where its name does not say it")] = None,
    images: Annotated[str | None, typer.Option(help="folder that a table's paths start from")] = None,
    ask: Annotated[str | None, typer.Option(help="question, text to match or prompt for every image")] = None,
    ask_column: Annotated[str | None, typer.Option(help="the table's column with what is asked")] = None,
    batch: Annotated[int, typer.Option(min=1, help="inputs per forward pass")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="processes that read files or sounds")] = 0,
    tiny: options.TinyRun = False,
) -> None:
    """Embed images, sounds or texts, or say what a model answers; what was interrupted goes on where it stopped."""
    model = _run(model, tiny)
    from mmtune.predict_run import predict as predict_source

    chosen: Any = None if kind is None else kind.value
    predict_source(
        model,
        source,
        output=output,
        kind=chosen,
        column=column,
        images=images,
        ask=ask,
        ask_column=ask_column,
        batch=batch,
        workers=workers,
    )


@app.command()
def check(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    schema_only: Annotated[bool, typer.Option("--schema-only", help="stop before data and backbone")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="processes the run will be launched with")] = 1,
    tiny: options.TinyRecipe = False,
) -> None:
    """Run every check of RECIPE that needs no training; exit code 0 or 2."""
    from mmtune.preflight_run import check as check_recipe

    raise typer.Exit(check_recipe(recipe, overrides or (), schema_only, ranks=ranks, tiny=tiny))


@app.command()
def show(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    samples: Annotated[int, typer.Option(min=1, help="how many, drawn by the recipe's seed")] = 5,
    split: Annotated[str, typer.Option(help="split of the data")] = "train",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write: one page, all in it")
    ] = None,
    tiny: options.TinyRecipe = False,
) -> None:
    """Show samples as the model meets them: processed images, every token masked, image or trained on, targets."""
    loaded = _load(recipe, overrides, tiny=tiny)
    from mmtune.show_run import show as show_samples

    show_samples(loaded, samples=samples, split=split, output=output)


@app.command("find-lr")
def find_lr(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    lowest: Annotated[float, typer.Option(help="learning rate of the first step")] = 1e-7,
    highest: Annotated[float, typer.Option(help="learning rate of the last step")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="steps between them, on a logarithmic scale")] = 100,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for plot and table; default: OUTPUT_find_lr")
    ] = None,
    tiny: options.TinyRecipe = False,
) -> None:
    """Raise the learning rate step by step until the loss diverges, plot it, and suggest one; nothing is kept."""
    loaded = _load(recipe, overrides, tiny=tiny)
    from mmtune.learning_rate_run import find_learning_rate

    find_learning_rate(loaded, lowest=lowest, highest=highest, steps=steps, output=output)


@app.command()
def fewshot(
    recipe: options.RecipeArgument,
    overrides: options.Overrides = None,
    shots: Annotated[
        list[int] | None, typer.Option("--shots", help="training images per class: --shots 1 2 4; default 1 2 4 8 16")
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs for each number of shots")] = 3,
    steps_per_shot: Annotated[
        int | None, typer.Option(min=1, help="steps of a run for each shot (CLIP-LoRA: 500); default: train.length")
    ] = None,
    base_to_novel: Annotated[
        bool, typer.Option("--base-to-novel", help="learn the first half of the classes, score both halves")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder of all runs, table and plot; default: OUTPUT_fewshot")
    ] = None,
) -> None:
    """Train on a few images of each class, with several seeds, beside zero-shot, linear probe and class means."""
    loaded = _load(recipe, overrides)
    from mmtune.fewshot_run import fewshot as study

    study(
        loaded,
        shots=shots or (1, 2, 4, 8, 16),
        seeds=seeds,
        steps_per_shot=steps_per_shot,
        base_to_novel=base_to_novel,
        output=output,
    )


@app.command()
def push(
    source: Annotated[str, typer.Argument(metavar="DIR_OR_RUN", help="a run, a merged folder or an adapter folder")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub")],
    private: Annotated[bool, typer.Option("--private", help="a new repository is private")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded; contact nothing")] = False,
    checkpoint: options.CheckpointOption = None,
    base_model: Annotated[
        str | None, typer.Option(help="the backbone's name on the hub, where the run knows it as a folder only")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="of the commit")] = None,
    tiny: options.TinyRun = False,
) -> None:
    """Upload an adapter or a merged model with a model card made from the run."""
    source = _run(source, tiny)
    from mmtune.push_run import push as push_source

    report = push_source(
        source,
        repo_id,
        private=private,
        dry_run=dry_run,
        checkpoint=checkpoint,
        base_model=base_model,
        message=message,
    )
    print(report)


@app.command()
def env() -> None:
    """Print what a bug report needs: versions, hardware, settings; no secrets, paths or names."""
    from mmtune.environment_report import as_markdown, describe_environment

    print(as_markdown(describe_environment()))


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from mmtune.recipe_schema import json_schema

    _print_json(json_schema())


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
