"""``mmtune finetune RECIPE -- --num_processes 2``: what stands after ``--`` belongs to ``accelerate launch``."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from mmtune.ground.errors import RecipeError

SEPARATOR = "--"


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and the launcher's: those after the first ``--``."""
    if SEPARATOR not in argv:
        return list(argv), []
    place = list(argv).index(SEPARATOR)
    return list(argv[:place]), list(argv[place + 1 :])


def launcher_command(arguments: Sequence[str], launcher: Sequence[str]) -> list[str]:
    """The call of ``accelerate launch`` that runs ``finetune`` with our arguments.

    Args:
        arguments: recipe, overrides and options of ``finetune``.
        launcher: options of ``accelerate launch``, passed on as they are.
    """
    call = [sys.executable, "-m", "accelerate.commands.launch", *launcher, "--module", "mmtune.finetune"]
    return [*call, *arguments]


def launch(arguments: Sequence[str], launcher: Sequence[str]) -> NoReturn:
    """Become ``accelerate launch``: the process is replaced, so signals and exit code are the launcher's.

    Raises:
        RecipeError: this process was itself started by a launcher.
    """
    if "LOCAL_RANK" in os.environ:
        raise RecipeError(
            f"options after {SEPARATOR} start a launcher, but this is a launcher's process already: give its options "
            "to the one that is running"
        )
    os.execv(sys.executable, launcher_command(arguments, launcher))
