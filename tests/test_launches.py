"""Every way to launch a run works, whatever modules lie beside `finetune.py` and wherever one stands."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ACCELERATE = str(Path(sys.executable).with_name("accelerate"))
PLANTED = ("datasets", "evaluate", "logging", "peft", "queue", "tokenizers", "types")
SLOW = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "PIL", "matplotlib")
SHORT = ["train.length=2 steps", "train.batch=8", "train.micro_batch=null", "train.evaluate_every=null"]


@dataclass(frozen=True)
class Clone:
    """A copy of the tree in which modules with the names of others are planted; each leaves a mark when imported."""

    root: Path
    marks: Path

    def hit(self) -> list[str]:
        """The planted modules that were imported since the last look."""
        found = sorted(path.name for path in self.marks.iterdir())
        for name in found:
            (self.marks / name).unlink()
        return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    root, marks = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("marks")
    for name in ("mmtune", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PLANTED:
        assert not (ROOT / "mmtune" / f"{name}.py").exists()
        mark = f"open({str(marks / name)!r}, 'w').close()\nraise ImportError('planted')\n"
        (root / "mmtune" / f"{name}.py").write_text(mark)
    return Clone(root, marks)


def start(command: list[str], cwd: Path, **more: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**kept, "PYTHONDONTWRITEBYTECODE": "1", **more}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def printed(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, f"{process.args}\n{out}\n{err}"
    return out


def launches(root: Path) -> Iterator[tuple[list[str], Path]]:
    """Command and place: by file, by module and through `accelerate launch`, from the root, / and the package."""
    anywhere, package = Path("/"), root / "mmtune"
    file, recipe = str(package / "finetune.py"), str(root / "recipes" / "quickstart.yaml")
    yield [sys.executable, "mmtune/finetune.py", "recipes/quickstart.yaml"], root
    yield [sys.executable, file, recipe], anywhere
    yield [sys.executable, "finetune.py", "../recipes/quickstart.yaml"], package
    yield [sys.executable, "-m", "mmtune.finetune", "recipes/quickstart.yaml"], root
    yield [ACCELERATE, "launch", "mmtune/finetune.py", "recipes/quickstart.yaml"], root
    yield [ACCELERATE, "launch", file, recipe], anywhere
    yield [ACCELERATE, "launch", "-m", "mmtune.finetune", "recipes/quickstart.yaml"], root


def test_every_launch_reads_the_same_recipe(clone: Clone) -> None:
    started = []
    printouts = []
    for command, cwd in launches(clone.root):
        started.append(start([*command, "--print-resolved"], cwd))
        if len(started) == 2:  # two at once: each costs seconds of imports
            printouts += [printed(process) for process in started]
            started = []
    printouts += [printed(process) for process in started]
    assert len(printouts) == 7
    assert len(set(printouts)) == 1
    assert json.loads(printouts[0])["backbone"]["id"] == "builtin:glyph-clip"
    assert clone.hit() == []


def test_a_run_from_inside_the_package_is_not_led_astray(clone: Clone) -> None:
    """A whole run imports everything that the planted modules could stand in for."""
    run = clone.root / "runs" / "inside"
    command = [ACCELERATE, "launch", "finetune.py", "../recipes/quickstart.yaml", *SHORT, f"output={run}"]
    printed(start(command, clone.root / "mmtune"))
    assert json.loads((run / "manifest.json").read_text())["status"] == "finished"
    assert clone.hit() == []


@pytest.mark.parametrize("name", ["datasets", "evaluate", "queue"])
def test_without_the_defence_planted_modules_are_imported(clone: Clone, name: str) -> None:
    probe = clone.root / "mmtune" / "probe.py"
    probe.write_text(f"import {name}\n")
    process = start([sys.executable, "mmtune/probe.py"], clone.root)
    _, err = process.communicate(timeout=60)
    probe.unlink()
    assert process.returncode == 1
    assert "planted" in err
    assert clone.hit() == [name]


def test_by_module_from_inside_the_package() -> None:
    """`-m` puts the place where one stands first: nothing of ours there may hide a module of Python."""
    command = [sys.executable, "-m", "mmtune.finetune", "../recipes/quickstart.yaml", "--print-resolved"]
    process = start(command, ROOT / "mmtune", PYTHONPATH=str(ROOT))
    assert json.loads(printed(process))["backbone"]["id"] == "builtin:glyph-clip"


FREE = """
import sys
{what}
slow = [name for name in {slow} if name in sys.modules]
assert not slow, slow
"""


@pytest.mark.parametrize(
    "what",
    [
        "import mmtune; dir(mmtune); mmtune.__version__",
        "import mmtune; mmtune.Recipe, mmtune.load_recipe",
    ],
)
def test_importing_costs_nothing(what: str) -> None:
    printed(start([sys.executable, "-c", FREE.format(what=what, slow=SLOW)], ROOT))


def test_public_names_are_there() -> None:
    import mmtune

    for name in mmtune.__all__:
        assert getattr(mmtune, name)
    assert set(mmtune.__all__) <= set(dir(mmtune))
    with pytest.raises(AttributeError, match="no attribute 'train'; it has Recipe"):
        _ = mmtune.train
