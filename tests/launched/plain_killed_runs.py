"""``killed_runs.py`` without pictures of the curves, which take longer than runs as short as these.

Usage: ``python plain_killed_runs.py PLAN.json``.
"""

import runpy
from pathlib import Path
from typing import Any

from mmtune import run_report


def note(figure: Any, path: Path) -> None:
    """A file where a picture would be."""
    path.touch()


if __name__ == "__main__":
    run_report.save_picture = note
    runpy.run_path(str(Path(__file__).with_name("killed_runs.py")), run_name="__main__")
