"""The console command and the launcher's entry: arguments in, exit code out, no traceback for a user's mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmtune import command_line, finetune
from mmtune.ground.errors import CheckpointError
from mmtune.recipe_schema import json_schema, load_recipe, resolved_json

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
SLOW = {"torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "PIL", "matplotlib", "bitsandbytes"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls ``mmtune ARGUMENTS`` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def stories(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The stories replaced by ones that write down how they were called."""
    called: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    homes = {"training_run": "fit", "evaluation_run": "evaluate", "export_run": "merge", "predict_run": "predict"}
    homes |= {"push_run": "push", "learning_rate_run": "find_learning_rate"}
    for home, name in homes.items():
        fake = ModuleType(f"mmtune.{home}")

        def note(*given: Any, _name: str = name, **named: Any) -> Any:
            called[_name] = (given, named)
            return SimpleNamespace(suggestion=3e-4, plot="plot.png") if "rate" in _name else Path("written")

        setattr(fake, name, note)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return called


def test_nothing_slow_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    """One fresh interpreter for all cases: after each, no slow library is loaded; the negation is the last one."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("train: {batch: x}\n")
    cases = [
        (["--help"], 0),
        (["finetune", "--help"], 0),
        (["recipes", "list"], 0),
        (["recipes", "show", "quickstart"], 0),
        (["schema"], 0),
        (["push", "--help"], 0),
        (["finetune", str(wrong), "--", "--num_processes", "2"], 2),
        (["check", str(RECIPE), "--schema-only"], 0),
        (["check", str(wrong)], 2),
        (["finetune", str(wrong)], 2),
        (["finetune", str(RECIPE), "--print-resolved"], 0),
        (["evaluate", "runs/none", "--recipe", str(wrong)], 2),
    ]
    script = f"""
import contextlib, io, json, sys
from mmtune import command_line
seen = []
for arguments, _ in {cases!r}:
    sys.argv = ["mmtune", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            command_line.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    seen.append([code, sorted({SLOW!r} & set(sys.modules))])
import PIL
print(json.dumps([seen, sorted({SLOW!r} & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    seen, at_last = json.loads(done.stdout)
    assert seen == [[code, []] for _, code in cases]
    assert at_last == ["PIL"]


def test_a_mistake_is_a_message_without_a_traceback(run: Any, tmp_path: Path) -> None:
    code, out, err = run("check", RECIPE, "train.batsh=3", "--schema-only")
    assert (code, out) == (2, "")
    assert err == "command line: train.batsh: is no key of this section; did you mean batch?\n"
    assert run("check", tmp_path / "none.yaml")[0] == 2
    assert run("nonsense")[0] == 2 and run("merge", "x", "--dtype", "int4")[0] == 2


def test_only_the_first_rank_speaks(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("finetune", RECIPE, "train.batsh=3") == (2, "", "")


def test_ranks_of_the_launch_count(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not divisible by 3 ranks" in run("check", RECIPE, "--schema-only", "--ranks", 3)[2]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "not divisible by 3 ranks" in run("finetune", RECIPE, "--print-resolved")[2]


def test_finetune_calls_fit(run: Any, stories: Any) -> None:
    assert run("finetune", RECIPE, "train.batch=64", "--resume", "never", "--restart")[0] == 0
    assert stories["fit"] == ((load_recipe(RECIPE, ["train.batch=64"]),), {"resume": "never", "restart": True})


def test_print_resolved_stops_before_training(run: Any, stories: Any) -> None:
    code, out, _ = run("finetune", RECIPE, "seed=4", "--print-resolved")
    assert code == 0 and json.loads(out) == resolved_json(load_recipe(RECIPE, ["seed=4"]))
    assert not stories


def test_evaluate_merge_and_predict_hand_their_options_on(run: Any, stories: Any) -> None:
    assert run("evaluate", "runs/x", "--split", "validation", "--checkpoint", "step-000010", "-o", "scores")[0] == 0
    named = {"recipe": None, "split": "validation", "checkpoint": "step-000010", "output": Path("scores")}
    assert stories["evaluate"] == (("runs/x",), named)
    assert run("evaluate", "some/model", "--recipe", RECIPE, "seed=3")[0] == 0
    assert stories["evaluate"][1]["recipe"] == load_recipe(RECIPE, ["seed=3"])
    assert run("merge", "runs/x", "-o", "out", "--scale", "0.5", "--base", "full", "--dtype", "bfloat16")[0] == 0
    options = {"output": Path("out"), "scale": 0.5, "base": "full", "dtype": "bfloat16", "recipe": None}
    assert stories["merge"] == (("runs/x",), options)
    assert run("merge", "runs/x", "--recipe", RECIPE)[0] == 0
    plain = {"output": None, "scale": 1.0, "base": "auto", "dtype": None, "recipe": load_recipe(RECIPE)}
    assert stories["merge"][1] == plain
    assert run("predict", "runs/x", "photos", "-o", "e.npy", "--kind", "text", "--batch", "8", "--workers", "2")[0] == 0
    named = {"output": Path("e.npy"), "kind": "text", "column": None, "images": None}
    named |= {"ask": None, "ask_column": None, "batch": 8, "workers": 2}
    assert stories["predict"] == (("runs/x", ["photos"]), named)
    assert run("predict", "runs/x", "pairs.csv", "-o", "e.npy", "--column", "title")[0] == 0
    assert stories["predict"][1]["kind"] is None and stories["predict"][1]["column"] == "title"
    assert run("predict", "runs/x", "a.png", "b.png", "-o", "e.npy")[0] == 0
    assert stories["predict"][0] == ("runs/x", ["a.png", "b.png"])


def test_push_and_find_lr_hand_their_options_on(run: Any, stories: Any) -> None:
    assert run("push", "runs/x", "someone/model", "--private", "--dry-run", "--checkpoint", "step-000010")[0] == 0
    named = {"private": True, "dry_run": True, "checkpoint": "step-000010", "base_model": None, "message": None}
    assert stories["push"] == (("runs/x", "someone/model"), named)
    assert run("push", "runs/x", "someone/model", "--base-model", "some/base", "-m", "why")[1] == "written\n"
    assert stories["push"][1]["base_model"] == "some/base" and stories["push"][1]["private"] is False
    code, out, _ = run("find-lr", RECIPE, "seed=2", "--lowest", "1e-6", "--highest", "0.1", "--steps", "50", "-o", "x")
    named = {"lowest": 1e-6, "highest": 0.1, "steps": 50, "output": Path("x")}
    assert stories["find_learning_rate"] == ((load_recipe(RECIPE, ["seed=2"]),), named)
    assert code == 0 and out == "", "the story says itself what it found"


def test_the_shell_completes_commands_and_recipe_names() -> None:
    def completions(words: str, place: int) -> list[str]:
        environment = {**os.environ, "_MMTUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        command = [sys.executable, "-m", "mmtune.command_line"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        return done.stdout.split()

    assert completions("mmtune pu", 1) == ["push"]
    assert "find-lr" in completions("mmtune ", 1) and "recipes" in completions("mmtune ", 1)
    assert completions("mmtune recipes copy siglip", 3) == ["siglip2_sigmoid_lora"]


def test_overrides_without_a_recipe_are_refused(run: Any, stories: Any) -> None:
    code, _, err = run("evaluate", "runs/x", "seed=3")
    assert code == 2 and "give one with --recipe" in err and not stories


def test_an_error_of_a_story_is_shown_the_same_way(run: Any, stories: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise CheckpointError("step-000010: state.json is damaged")

    sys.modules["mmtune.export_run"].merge = broken  # type: ignore[attr-defined]
    assert run("merge", "runs/x") == (2, "", "step-000010: state.json is damaged\n")


def test_schema_prints_the_schema(run: Any) -> None:
    code, out, _ = run("schema")
    assert code == 0 and json.loads(out) == json_schema()


def test_recipes_are_listed_shown_and_copied(run: Any, tmp_path: Path) -> None:
    listed = run("recipes", "list")[1].splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in RECIPE.parent.glob("*.yaml"))
    assert run("recipes", "show", "quickstart")[1] == RECIPE.read_text()
    code, out, _ = run("recipes", "copy", "quickstart", tmp_path)
    copied = tmp_path / "quickstart.yaml"
    written = [f"wrote {copied}", f"wrote {tmp_path / 'recipe.schema.json'}"]
    assert code == 0 and out.splitlines() == [*written, f"run it with: mmtune finetune {copied}"]
    assert copied.read_bytes() == RECIPE.read_bytes()
    copied.write_text("changed")
    code, _, err = run("recipes", "copy", "quickstart", tmp_path)
    assert code == 2 and "is there already" in err and copied.read_text() == "changed"
    assert run("recipes", "copy", "quickstart", tmp_path, "--force")[0] == 0
    assert copied.read_bytes() == RECIPE.read_bytes()
    assert "did you mean quickstart?" in run("recipes", "copy", "quikstart", tmp_path)[2]
    assert "there is no such folder" in run("recipes", "copy", "quickstart", tmp_path / "none" / "x.yaml")[2]


# --- mmtune/finetune.py, the same for a launcher


def test_the_entry_for_launchers_takes_options_between_overrides(stories: Any) -> None:
    arguments = [str(RECIPE), "--resume", "never", "seed=3", "--restart", "train.batch=64"]
    assert finetune.main(arguments) == 0
    assert stories["fit"] == (
        (load_recipe(RECIPE, ["seed=3", "train.batch=64"]),),
        {"resume": "never", "restart": True},
    )


def test_the_entry_for_launchers_reports_like_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stories: Any
) -> None:
    assert finetune.main([str(RECIPE), "--print-resolved"]) == 0
    assert json.loads(capsys.readouterr().out) == resolved_json(load_recipe(RECIPE))
    assert finetune.main([str(RECIPE), "train.batch=x"]) == 2
    assert capsys.readouterr().err == "command line: train.batch: x does not fit; write a whole number\n"
    monkeypatch.setenv("RANK", "1")
    assert finetune.main([str(RECIPE), "train.batch=x"]) == 2
    assert capsys.readouterr().err == ""
    assert not stories


def test_the_options_are_those_of_the_stories() -> None:
    """The fakes above take anything; the real stories take exactly what is handed on."""
    import inspect

    from mmtune import evaluation_run, export_run, predict_run, training_run

    taken = {
        training_run.fit: {"resume", "restart"},
        evaluation_run.evaluate: {"recipe", "split", "checkpoint", "output"},
        export_run.merge: {"output", "scale", "base", "dtype", "recipe"},
        predict_run.predict: {"output", "kind", "column", "batch", "workers"},
    }
    for story, names in taken.items():
        assert names <= set(inspect.signature(story).parameters), story
