"""The main entry, for any launcher and without installation.

accelerate launch mmtune/finetune.py recipes/x.yaml [section.key=value ...] [--resume auto|never] [--restart] [--tiny]
accelerate launch mmtune/finetune.py recipes/x.yaml --print-resolved
"""

import os
import sys

if __name__ == "__main__":
    # Before any other import: launched as a file, Python puts mmtune/ itself first on sys.path, where our rooms would
    # stand in for libraries of the same name. The repository root in its place also makes `import mmtune` work.
    _package = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != _package]
    if not globals().get("__package__"):
        sys.path.insert(0, os.path.dirname(_package))

import argparse
import json
from collections.abc import Sequence


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line -> recipe, overrides, resume, restart, print_resolved, tiny."""
    parser = argparse.ArgumentParser(prog="finetune.py", description="Fine-tune a backbone as a recipe says.")
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on where the run folder holds the same recipe; never: refuse a folder that holds a run",
    )
    parser.add_argument("--restart", action="store_true", help="move an old run aside and begin anew")
    parser.add_argument("--print-resolved", action="store_true", help="print the recipe with every default, and stop")
    parser.add_argument("--tiny", action="store_true", help="tiny twin, made-up rows, four steps: seconds, offline")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 for a mistake of the user's, which the first rank prints without a traceback.

    A run that was asked to stop ends with 143 (SIGTERM) or 130 (Ctrl-C), its checkpoint written.

    What only one rank can know, that it ran out of memory, is printed by that rank.
    """
    from mmtune.ground import stop_signals  # noqa: F401  (it notes the parent process: before anything slow)
    from mmtune.ground.errors import MemoryExhausted, MmtuneError, RunStopped
    from mmtune.ground.process_group import leave

    given = read_arguments(argv)
    rank = os.environ.get("RANK", "0")
    is_first = rank == "0"
    try:
        from mmtune.launcher_call import refuse_fewer_ranks
        from mmtune.recipe_schema import load_recipe, resolved_json

        refuse_fewer_ranks()
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        recipe = load_recipe(given.recipe, given.overrides, world_size=ranks)
        if given.tiny:
            from mmtune.tiny_recipe import shrink

            recipe, notes = shrink(recipe, given.overrides, world_size=ranks)
            if is_first:
                print("\n".join(notes), file=sys.stderr)
        if given.print_resolved:
            if is_first:
                print(json.dumps(resolved_json(recipe), indent=2, ensure_ascii=False))
            return 0
        from mmtune.training_run import fit

        fit(recipe, resume=given.resume, restart=given.restart)
        leave()
    except MmtuneError as error:
        if is_first or isinstance(error, MemoryExhausted):
            print(error if is_first else f"rank {rank}: {error}", file=sys.stderr)
        if isinstance(error, RunStopped):
            leave()  # of all ranks together; after another error a partner may still be at work
        return error.exit_code
    except KeyboardInterrupt:
        if is_first:
            print("interrupted; what is saved stays, and the same command goes on from it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
