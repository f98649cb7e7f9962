"""What a stranger installs: the wheel holds recipes and assets and runs elsewhere; the set-up does things once."""

import ast
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
BUILT_FROM = ("mmtune", "recipes", "pyproject.toml", "README.md", "LICENSE")
# The extra that the suite does without: peers that are measured beside mmtune, in an environment of their own.
MEASURED = "bench"
# What an import of the distribution's code is called, where that is not the distribution's name.
IMPORT_NAMES = {"pillow": "PIL", "ruamel-yaml": "ruamel", "huggingface-hub": "huggingface_hub"}
# Imported, and always there because a dependency cannot do without it.
COMES_WITH = {"pydantic_core": "pydantic", "tokenizers": "transformers", "fontTools": "matplotlib"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return described


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from what a clone has, without the network."""
    clone, built = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("built")
    for name in BUILT_FROM:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone / name)
    run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(clone))
    return next(built.glob("mmtune-*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed where there is no clone."""
    target = tmp_path_factory.mktemp("elsewhere")
    run_pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def run_pip(*arguments: str) -> None:
    environment = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_installed(elsewhere: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    command = [sys.executable, "-W", "ignore", str(elsewhere / "bin" / "mmtune"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_wheel_holds_all_that_a_run_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    recipes = {path.name for path in (ROOT / "recipes").iterdir()}
    assert {name for name in recipes if name.endswith(".yaml")}
    for name in recipes:
        assert inside[f"mmtune/shipped_recipes/{name}"] == (ROOT / "recipes" / name).read_bytes()
    for path in (ROOT / "mmtune").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert inside[path.relative_to(ROOT).as_posix()] == path.read_bytes()
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mmtune"}, "nothing but the package"
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_package_is_small(wheel: Path) -> None:
    folders = [folder for folder in (ROOT / "mmtune" / "assets").iterdir() if folder.is_dir()]
    assert {folder.name for folder in folders} >= {"glyph_blip", "glyph_clip"}
    for folder in folders:
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 5_000_000, folder.name
    assert wheel.stat().st_size <= 11_000_000


def test_shipped_quickstart_runs_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    copied = run_installed(elsewhere, tmp_path, "recipes", "copy", "quickstart")
    assert copied.returncode == 0, copied.stderr
    recipe = tmp_path / "quickstart.yaml"
    assert recipe.read_bytes() == (ROOT / "recipes" / "quickstart.yaml").read_bytes()
    short = ["train.length=2 steps", "train.batch=8", "train.micro_batch=null", "train.evaluate_every=null"]
    ran = run_installed(elsewhere, tmp_path, "finetune", recipe.name, *short, "output=runs/short")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "runs" / "short" / "manifest.json").exists()
    assert list((tmp_path / "runs" / "short" / "checkpoints").glob("step-*/MANIFEST.json"))


def requirements(project: dict[str, Any]) -> Iterator[Requirement]:
    for text in [
        *project["dependencies"],
        *(one for name, extra in project["optional-dependencies"].items() if name != MEASURED for one in extra),
    ]:
        requirement = Requirement(text)
        if requirement.name != "mmtune":
            yield requirement


def constraints() -> dict[str, str]:
    lines = (SCRIPTS / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "one exact version per line, without a +local part that a registry does not have"
    return {pin[1]: pin[2] for pin in pins if pin}


GPU_BUILD = re.compile(r"nvidia-.*|cuda-.*|triton.*|pytorch-triton.*")
"""What torch's GPU builds bring and its CPU build does not: they pin these exactly themselves."""


def brought_by(requirement: Requirement, seen: set[tuple[str, str]]) -> None:
    """Add what installing a requirement installs, as (name, extra), by the metadata of what is installed here."""
    name = canonicalize_name(requirement.name)
    if GPU_BUILD.fullmatch(name):
        return
    for extra in {"", *requirement.extras}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for further in map(Requirement, importlib.metadata.requires(name) or []):
            if further.marker is None or further.marker.evaluate({"extra": extra}):
                brought_by(further, seen)


def test_constraints_pin_what_is_installed_and_nothing_else(project: dict[str, Any]) -> None:
    pins, brought = constraints(), set[tuple[str, str]]()
    for requirement in requirements(project):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)
        if requirement.marker is None or requirement.marker.evaluate():
            brought_by(requirement, brought)
    assert set(pins) == {name for name, _ in brought}
    assert pins["torch"] == "2.13.0"


def test_torchvision_is_brought_by_nothing(project: dict[str, Any]) -> None:
    """Beside a CPU build of torch it does not import and then breaks every model import of transformers."""
    assert "torchvision" not in constraints()
    assert "torchvision" not in {canonicalize_name(requirement.name) for requirement in requirements(project)}
    assert "torchvision" not in " ".join(project["optional-dependencies"][MEASURED])


def test_dependencies_are_what_is_imported(project: dict[str, Any]) -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    offered = project["optional-dependencies"]
    optional = [text for extra in ("audio", "tensorboard", "metrics") for text in offered[extra]]
    extras = {canonicalize_name(Requirement(text).name) for text in optional}
    imported = {name for path in (ROOT / "mmtune").rglob("*.py") for name in imported_modules(path)}
    foreign = imported - set(sys.stdlib_module_names) - {"mmtune"}
    names = {IMPORT_NAMES.get(name, name) for name in declared}
    assert foreign - names - extras - set(COMES_WITH) == set(), "declare it in pyproject.toml"
    for name, owner in COMES_WITH.items():
        assert owner in declared
        assert any(
            Requirement(text).name.lower() == name.lower().replace("_", "-")
            for text in importlib.metadata.requires(owner) or []
        )
    # bitsandbytes is imported by transformers, when a recipe says `quantize`
    assert names - foreign - {"bitsandbytes"} == set(), "nothing imports it"


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_ci_calls_the_tests_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert commands == ['exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test"']
    for path in (ROOT / ".ci" / "run", SCRIPTS / "test", SCRIPTS / "quickstart", SCRIPTS / "make_venv"):
        assert path.stat().st_mode & stat.S_IXUSR, f"{path} must be executable"
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


FAKE_PYTHON = """#!{bash}
echo "$*" | head -n 1 >>{log}
case "$*" in
    "-m venv"*) mkdir -p "${{@: -1}}/bin"; cp "$0" "${{@: -1}}/bin/python" ;;
    "-m pip"*) ;;
    *"import pip"*) dirname "$(dirname "$0")" ;;
    --version) echo "Python 3.11" ;;
    *) exec {python} -I "$@" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose Python only writes down what it is asked for."""
    bare, root = tmp_path / "bin", tmp_path / "clone"
    bare.mkdir()
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("make_venv", "constraints.txt"):
        shutil.copy(SCRIPTS / name, root / "scripts")
    for tool in ("bash", "cat", "cp", "dirname", "env", "head", "mkdir", "rm"):
        (bare / tool).symlink_to(str(shutil.which(tool)))
    return root


def give_python(clone: Path) -> Path:
    log, python = clone.parent / "log", clone.parent / "bin" / "python3"
    python.write_text(FAKE_PYTHON.format(bash=shutil.which("bash"), log=log, python=sys.executable))
    python.chmod(0o755)
    return log


def make_venv(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(clone / "scripts" / "make_venv"), *arguments]
    environment = {"PATH": str(clone.parent / "bin")}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)


def installs(log: Path) -> list[str]:
    """What pip was asked to install since the last look."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line.split("constraints.txt ")[1] for line in lines if line.startswith("-m pip install")]


def test_set_up_without_python_says_what_is_needed(clone: Path) -> None:
    done = make_venv(clone)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (clone / ".venv").exists()


def test_set_up_does_things_once(clone: Path) -> None:
    log = give_python(clone)
    assert make_venv(clone).returncode == 0
    assert installs(log) == ["torch", f"-e {clone}"], "torch first, by its exact version"
    again = make_venv(clone)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert installs(log) == []
    assert make_venv(clone, "test").returncode == 0
    assert installs(log) == ["torch", f"-e {clone}[test]"]
    assert make_venv(clone).returncode == make_venv(clone, "test").returncode == 0
    assert installs(log) == [], "with the test extras everything is there"
    with (clone / "scripts" / "constraints.txt").open("a") as file:
        file.write("x==1\n")
    assert make_venv(clone).returncode == 0
    assert installs(log) == ["torch", f"-e {clone}"], "other versions are wanted now"


def test_set_up_that_failed_is_tried_again(clone: Path) -> None:
    log = give_python(clone)
    python = clone.parent / "bin" / "python3"
    whole = python.read_text()
    python.write_text(whole.replace('"-m pip"*) ;;', '"-m pip"*) exit 7 ;;'))
    assert make_venv(clone).returncode == 7
    assert installs(log) == ["torch"]
    shutil.rmtree(clone / ".venv")
    python.write_text(whole)
    assert make_venv(clone).returncode == 0
    assert installs(log) == ["torch", f"-e {clone}"]


def test_unknown_argument_of_set_up_is_refused(clone: Path) -> None:
    done = make_venv(clone, "tests")
    assert done.returncode == 2
    assert "'tests' is unknown" in done.stderr
