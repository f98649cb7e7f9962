"""The house keeps its shape: floors, names, sizes and words of every file, read with `ast` and never imported."""

import ast
import importlib.metadata
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mmtune"

# Lowest first. A room imports rooms of earlier rows and itself; rooms of one row do not know each other.
ROWS: list[tuple[int, tuple[str, ...]]] = [
    (0, ("ground",)),
    (1, ("glyphs",)),
    (1, ("backbones", "sources", "losses", "metrics")),
    (2, ("adapters", "tasks")),
    (3, ("recipe_keys",)),
    (3, ("train_checks",)),
    (3, ("recipe_checks", "recipe_errors")),
    (3, ("recipe_schema",)),
    (3, ("recipe_paths",)),
    (4, ("weight_average", "activation_checkpointing", "run_trackers", "part_sizes")),
    (4, ("shared_table", "stored_states", "store_troubles")),
    (4, ("content_memory", "state_files")),
    (4, ("trunk_shelf",)),
    (4, ("trunk_store",)),
    (4, ("pixel_pictures", "token_spans")),
    (4, ("shown_media", "trunk_cuts")),
    (4, ("fused_projection", "packed_rows")),
    (4, ("known_layers", "row_attention")),
    (4, ("fused_layers",)),
    (4, ("trunk_keys",)),
    (4, ("epoch_items", "item_encoding", "step_context", "token_states")),
    (4, ("trunk_batches",)),
    (4, ("trunk_images",)),
    (4, ("trunk_feeding",)),
    (4, ("length_grouping",)),
    (4, ("batch_building", "optimizer_setup", "adapter_liveness", "scored_split", "merge_proof", "fresh_reload")),
    (4, ("recipe_shelf", "run_report", "embedding_files", "embedding_input", "tiny_recipe", "environment_report")),
    (4, ("memory_advice", "learning_rate_picture")),
    (4, ("class_prompts",)),
    (4, ("additive_step", "contrastive_step", "prompt_step", "run_checkpoint", "scoring_loop", "retrieval_picture")),
    (4, ("answer_ways",)),
    (4, ("answer_scoring",)),
    (4, ("answer_picture", "shot_baselines", "shot_report")),
    (4, ("run_folder", "model_loading", "score_comparison", "bad_samples", "early_stopping", "merge_scores")),
    (4, ("train_data", "score_files", "merge_building", "adapter_start", "answer_prediction")),
    (4, ("trunk_cache",)),
    (4, ("trunk_opening",)),
    (4, ("trunk_setup", "sample_views")),
    (4, ("trunk_forecast",)),
    (4, ("token_page", "token_terminal")),
    (4, ("leak_scan", "public_base")),
    (4, ("push_files",)),
    (4, ("loading_code",)),
    (4, ("model_card",)),
    (4, ("hub_upload",)),
    (5, ("train_loop",)),
    (6, ("run_setup", "evaluation_setup")),
    (6, ("answer_exam", "retrieval_exam")),
    (6, ("preflight_checks", "trainer_building")),
    (6, ("learning_rate_run",)),
    (6, ("training_run", "evaluation_run", "export_run", "preflight_run", "predict_run", "push_run")),
    (6, ("show_run", "cache_run", "fewshot_run")),
    (7, ("command_options", "launcher_call")),
    (7, ("command_groups",)),
    (7, ("finetune", "command_line")),
]
FLOOR = {room: floor for floor, rooms in ROWS for room in rooms}
ORDER = {room: row for row, (_, rooms) in enumerate(ROWS) for room in rooms}
ENTRIES = ROWS[-1][1]
SLOW = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "evaluate", "PIL", "matplotlib"}
NOT_ROOMS = {"__init__", "assets", "__pycache__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def names_in_package() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def imported_names(node: ast.AST) -> Iterator[str]:
    """The dotted names that one statement imports: `from mmtune import losses` is `mmtune.losses`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        for name in imported_names(node):
            parts = name.split(".")
            if parts[0] == "mmtune" and len(parts) > 1:
                yield node, parts[1]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement that runs when the module is imported: not in functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function) or is_type_checking(node):
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, Function)]


def floor_problems(room: str, path: Path, tree: ast.Module) -> list[str]:
    problems = []
    for node, other in rooms_imported(tree):
        if other in ENTRIES:
            problems.append(f"{where(path, node)} imports the entry {other}; nobody imports an entry")
        elif other not in ORDER:
            continue  # a name of mmtune/__init__.py, or a room that test_every_room_has_a_floor reports
        elif other != room and ORDER[other] >= ORDER[room]:
            problems.append(f"{where(path, node)}: {room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})")
    return problems


def slow_imports(path: Path, tree: ast.Module) -> list[str]:
    found = ((node, name.split(".")[0]) for node in run_at_import(tree) for name in imported_names(node))
    return [f"{where(path, node)} imports {name} at the top" for node, name in found if name in SLOW]


def test_every_room_has_a_floor() -> None:
    assert not names_in_package() - NOT_ROOMS - set(FLOOR), "give the new room a row in ROWS, and in CONTRIBUTING.md"


def test_imports_only_go_down() -> None:
    assert not [problem for path in module_files() for problem in floor_problems(room_of(path), path, tree_of(path))]


def test_an_import_that_goes_up_is_seen() -> None:
    tree = ast.parse("def f():\n    from mmtune.train_loop import train\n    from mmtune import finetune, losses\n")
    problems = floor_problems("losses", PACKAGE / "losses" / "new.py", tree)
    assert len(problems) == 2
    assert "train_loop" in problems[0] and "entry" in problems[1]


def test_relative_imports_are_not_used() -> None:
    nodes = [(path, node) for path in module_files() for node in ast.walk(tree_of(path))]
    assert not [where(path, node) for path, node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_low_floors_import_nothing_slow_at_the_top() -> None:
    low = [path for path in [PACKAGE / "__init__.py", *module_files()] if FLOOR.get(room_of(path), 0) <= 3]
    assert not [problem for path in low for problem in slow_imports(path, tree_of(path))]


def test_a_slow_import_at_the_top_is_seen() -> None:
    seen = "try:\n    import torch.nn\nexcept ImportError:\n    pass\nclass C:\n    from PIL import Image\n"
    fine = "import numpy\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import peft\n"
    problems = slow_imports(PACKAGE / "x.py", ast.parse(seen + fine))
    assert {problem.split(" imports ")[1] for problem in problems} == {"torch at the top", "PIL at the top"}


def test_names_hide_no_other_module() -> None:
    """`accelerate launch mmtune/finetune.py` puts mmtune/ first on sys.path: a name here would shadow one there."""
    ours = names_in_package() - {"__init__", "__pycache__"}
    installed = {name for name, owners in importlib.metadata.packages_distributions().items() if owners != ["mmtune"]}
    assert not ours & set(sys.stdlib_module_names)
    assert not ours & installed
    assert {"logging", "queue", "types"} <= set(sys.stdlib_module_names) and {"torch", "evaluate"} <= installed


def test_names_say_something() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    named = [path for folder in ("mmtune", "scripts", "tests") for path in (ROOT / folder).rglob("*")]
    assert not [path for path in named if vague & set(path.stem.strip("_").split("_"))]
    files = [path.stem for path in PACKAGE.glob("*.py") if path.name not in ("__init__.py", "finetune.py")]
    assert not [name for name in files if not re.fullmatch("[a-z]+(_[a-z]+)+", name)], "two words or more, joined by _"


def test_sizes() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    long_files = [path for path in paths if len(path.read_text(encoding="utf-8").splitlines()) >= 350]
    assert not long_files, "a file of 350 lines is two files"
    lengths = {
        where(path, node): (node.end_lineno or 0) - node.lineno + 1
        for path in paths
        if path.parts[-2] != "tests"
        for node in functions(path)
    }
    assert not {place: length for place, length in lengths.items() if length > 80}, "a giant is a missing room"
    assert sum(length < 45 for length in lengths.values()) >= 0.9 * len(lengths)
    assert statistics.median(lengths.values()) <= 20


def caught_everything(handler: ast.ExceptHandler) -> bool:
    """Catches every error and does not raise again."""
    names = "" if handler.type is None else ast.unparse(handler.type)
    broad = not names or re.search(r"\b(Base)?Exception\b", names)
    return bool(broad) and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def forbidden(node: ast.AST) -> str | None:
    """Why a piece of code may not stand in mmtune/, or None."""
    if {name.split(".")[0] for name in imported_names(node)} & {"dill", "joblib", "shelve", "marshal"}:
        return "reads or writes pickles"
    if isinstance(node, ast.Attribute) and re.fullmatch(r"pickle\.(?!UnpicklingError).*", ast.unparse(node)):
        return "reads or writes pickles"
    if isinstance(node, ast.ImportFrom) and node.module == "pickle":
        return "reads or writes pickles"
    if isinstance(node, ast.ExceptHandler) and caught_everything(node):
        return "catches every error and goes on"
    if isinstance(node, ast.Name) and node.id == "NotImplementedError":
        return "is not finished"
    if isinstance(node, ast.Call):
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            return "unpickles without weights_only=True"
        if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            return "unpickles arrays"
    return None


def test_nothing_forbidden_is_written() -> None:
    nodes = [(path, node) for path in module_files() for node in ast.walk(tree_of(path))]
    assert not [f"{where(path, node)} {forbidden(node)}" for path, node in nodes if forbidden(node)]
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert not [path for path in module_files() if words.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("pickle.loads(text)", 1),
        ("from pickle import load", 1),
        ("import shelve", 1),
        ("pickle.UnpicklingError", 0),
        ("from torch import nn", 0),
        ("try:\n    f()\nexcept:\n    pass", 1),
        ("try:\n    f()\nexcept (OSError, Exception) as error:\n    g()", 1),
        ("try:\n    f()\nexcept BaseException:\n    g()\n    raise", 0),
        ("try:\n    f()\nexcept OSError:\n    pass", 0),
        ("raise NotImplementedError", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("np.load(path, allow_pickle=True)", 1),
    ],
)
def test_what_is_forbidden(source: str, count: int) -> None:
    assert sum(forbidden(node) is not None for node in ast.walk(ast.parse(source))) == count


def public_definitions(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Public functions and classes of a module, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                methods = (child for child in node.body if isinstance(child, Function))
                yield from (child for child in methods if not child.name.startswith("_"))


def test_public_things_say_what_they_are() -> None:
    pairs = [(path, node) for path in module_files() for node in public_definitions(tree_of(path))]
    assert len(pairs) > 20
    assert not [f"{where(path, node)} {node.name}" for path, node in pairs if not ast.get_docstring(node)]


def test_readme_map_is_up_to_date() -> None:
    checked = subprocess.run(
        [sys.executable, "-I", str(ROOT / "scripts" / "write_readme_map.py"), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
