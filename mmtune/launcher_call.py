"""``mmtune finetune RECIPE -- --num_processes 2``: what stands after ``--`` belongs to ``accelerate launch``."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from mmtune.ground.errors import RecipeError

SEPARATOR = "--"
ASKED = "MMTUNE_NUM_PROCESSES"
"""Environment variable that tells the launched processes how many were asked for."""


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and the launcher's: those after the first ``--``."""
    if SEPARATOR not in argv:
        return list(argv), []
    place = list(argv).index(SEPARATOR)
    return list(argv[:place]), list(argv[place + 1 :])


def repeated(arguments: Sequence[str], option: str) -> list[str]:
    """``--shots 1 2 4`` as ``--shots 1 --shots 2 --shots 4``: whole numbers that follow an option all belong to it."""
    found: list[str] = []
    inside = False
    for argument in arguments:
        inside = argument == option or (inside and argument.isdigit())
        if inside and argument.isdigit() and found[-1] != option:
            found.append(option)
        found.append(argument)
    return found


def launcher_command(arguments: Sequence[str], launcher: Sequence[str]) -> list[str]:
    """The call of ``accelerate launch``, by way of `main`, that runs ``finetune`` with our arguments.

    Args:
        arguments: recipe, overrides and options of ``finetune``.
        launcher: options of ``accelerate launch``, passed on as they are.
    """
    call = [sys.executable, "-m", "mmtune.launcher_call", *launcher, "--module", "mmtune.finetune"]
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
    environment = {**os.environ, ASKED: _num_processes(launcher)}
    os.execve(sys.executable, launcher_command(arguments, launcher), environment)


def _num_processes(launcher: Sequence[str]) -> str:
    """What ``--num_processes`` says, "" where it is not given."""
    words = " ".join(launcher).replace("=", " ").replace("--num-processes", "--num_processes").split()
    place = words.index("--num_processes") + 1 if "--num_processes" in words else len(words)
    return words[place] if place < len(words) and words[place].isdigit() else ""


def refuse_fewer_ranks() -> None:
    """``accelerate launch`` starts a single process, without a word, where it takes the machine for one without GPUs.

    Raises:
        RecipeError: fewer processes run than were asked for.
    """
    asked, ranks = os.environ.get(ASKED, ""), os.environ.get("WORLD_SIZE", "1")
    if asked.isdigit() and int(ranks) < int(asked):
        raise RecipeError(
            f"--num_processes {asked} was asked for, and accelerate launch started {ranks}: on a CPU several processes "
            f"need --multi_gpu too, and ACCELERATE_USE_CPU=true in the environment"
        )


def main() -> int:
    """``accelerate launch`` with the arguments of this process, without its tracebacks where a run has ended.

    The ranks have said why; of one that could not, the signal that ended it is named.

    Returns:
        What the first rank that failed ended with, or 128 + the signal that the launcher was sent.
    """
    import subprocess

    from accelerate.commands.launch import main as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate_launch()
    except SignalException as error:
        return 128 + int(error.sigval)
    except subprocess.CalledProcessError as error:
        return _said("the run", error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _said(f"rank {rank}", failure.exitcode)
    return 0


def _said(who: str, code: int) -> int:
    """A signal as exit code; one that a process could not say anything about is said here."""
    if code < 0:
        print(f"{who} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
