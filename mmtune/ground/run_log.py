"""What a run says and writes down while it goes: plain lines in a log, a bar on a terminal, ``metrics.jsonl``."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.ground.process_group import is_main
from mmtune.ground.safe_files import write_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class RunLog:
    """Lines to the terminal and to ``FOLDER/run.log``, one JSON object per logged step to ``FOLDER/metrics.jsonl``.

    Only the main rank writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.active = is_main()
        self._process = os.getpid()
        self._bar: tuple[Progress, TaskID] | None = None
        if self.active:
            folder.mkdir(parents=True, exist_ok=True)

    def line(self, text: str) -> None:
        """Say ``text`` and keep it in ``run.log``."""
        if not self.active:
            return
        if os.getpid() != self._process:  # a loader's worker: a lock of the terminal may never be free here
            os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
        elif self._bar:
            self._bar[0].console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)
        self._keep(text)

    def keep(self, text: str) -> None:
        """Keep ``text`` in ``run.log`` without saying it: somebody else does."""
        if self.active:
            self._keep(text)

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one row to ``metrics.jsonl``."""
        if not self.active:
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def step(self, row: dict[str, Any], total: int, seconds_left: float) -> None:
        """Show a logged step: on the bar where there is one, as a plain line otherwise."""
        text = describe_step(row, total, seconds_left)
        if self._bar and self.active:
            progress, task = self._bar
            progress.update(task, completed=row["step"], facts=text)
            self._keep(text)
        else:
            self.line(text)

    def cut_after(self, step: int) -> None:
        """Drop rows beyond ``step``: a resumed run writes them again."""
        path = self.folder / "metrics.jsonl"
        if not self.active or not path.exists():
            return
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))

    @contextmanager
    def progress(self, done: int, total: int) -> Iterator[None]:
        """A bar while the block runs, where a person would see it."""
        if not (self.active and sys.stderr.isatty()):
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        columns = (
            BarColumn(bar_width=24, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[facts]}", table_column=Column()),  # folds where the terminal is narrow
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            self._bar = (progress, progress.add_task("training", total=total, completed=done, facts=""))
            try:
                yield
            finally:
                self._bar = None

    def _keep(self, text: str) -> None:
        with open(self.folder / "run.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")


def describe_step(row: dict[str, Any], total: int, seconds_left: float) -> str:
    """One line: loss, throughput, share of time spent waiting for data, memory, time left."""
    minutes, seconds = divmod(int(seconds_left), 60)
    return (
        f"step {row['step']}/{total}  loss {row['loss']:.4f}  {row['samples_per_second']:.1f} samples/s  "
        f"data wait {row['data_wait']:.0%}  memory {row['memory'] / 2**30:.2f} GiB  left {minutes}:{seconds:02d}"
    )


def _step_of(line: str) -> float:
    """The step of a row; a line that was cut off by a kill counts as beyond every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
