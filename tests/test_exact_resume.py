"""A run that was killed, or asked to stop, goes on bit for bit: adapter, averages, optimizer and logged losses.

One interpreter makes all runs (see ``launched/killed_runs.py``); the tests below look at what they left.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_runs import free_port

pytestmark = pytest.mark.timeout(900)  # the first test waits for all runs
HERE = Path(__file__).parent
STEPS = 9
EVALUATED = ["train.evaluate_every=2 steps", "data.split={validation: 30%, test: 5%}"]
HEADS = ["adapter={kind: head_only, parts: [vision, text]}", "train.workers=2"]
EVERYTHING = [
    *EVALUATED,
    "adapter={kind: full, parts: [vision, text]}",
    "train.optimizer=adamw_8bit",
    "train.learning_rate={default: 0.001, temperature: 0.01}",
    "train.layer_decay=0.8",
    "train.ema={decay: 0.8}",
    "train.activation_checkpointing=true",
    "train.early_stopping={patience: 9}",
]
NOTHING_RANDOM = ["adapter.dropout=0.0", "data.augment={crop: null, flip: false, colour: 0}"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"kill_at": 5},
    "before_the_first_checkpoint": {"kill_at": 2},
    "workers": {"kill_at": 7, "overrides": ["train.workers=2"]},
    "in_the_middle_of_a_save": {"kill_at": 6, "kill_in_save": 3},
    "two_ranks": {"kill_at": 5, "ranks": 2},
    "evaluated": {"kill_at": 5, "overrides": EVALUATED},
    "heads_on_two_ranks": {"kill_at": 8, "ranks": 2, "overrides": [*EVALUATED, *HEADS]},
    "everything_on_two_ranks": {"kill_at": 5, "ranks": 2, "overrides": EVERYTHING},
    "terminated": {"signal_at": 5, "number": 15, "overrides": EVERYTHING},
    "ctrl_c_with_workers": {"signal_at": 4, "number": 2, "overrides": ["train.workers=2"]},
    "one_of_two_ranks_terminated": {"signal_at": 2, "number": 15, "signalled": 1, "ranks": 2},
}
"""Case -> how it is ended. Checkpoints are written every third step, so 5 and 7 lose steps that were done."""
WAYS_TO_END = ("kill", "signal", "number")


def write_data(folder: Path) -> None:
    """Twenty-two small pictures with two captions each, and one that is no picture inside."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(22):
        name = f"{number}.png"
        Image.new("RGB", (40, 36), (number * 11, 255 - number * 9, (number * 37) % 256)).save(folder / "images" / name)
        rows.append({"image": name, "caption": [f"picture {number}", f"the colour of number {number}"]})
    damaged = folder / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:60])  # the header stays whole: found only when decoded
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path, backbone: Path) -> Path:
    recipe = {
        "backbone": {"id": str(backbone)},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.2, "parts": ["vision", "text"],
                    "targets": ["attention"]},
        "data": {
            "kind": "jsonl", "path": str(folder / "pairs.jsonl"), "images": str(folder / "images"),
            "split": {"validation": "5%", "test": "5%"}, "max_bad_fraction": 0.2,
            "augment": {"crop": 0.7, "flip": True, "colour": 0.3},
        },
        "task": {"kind": "retrieval", "loss": {"kind": "infonce"}},
        "train": {
            "length": f"{STEPS} steps", "batch": 8, "micro_batch": 2, "learning_rate": 0.01, "warmup": "2 steps",
            "log_every": "1 steps", "evaluate_every": None, "precision": "fp32",
        },
        "checkpoint": {"every": "3 steps", "keep": 2},
        "output": "set by each run",
        "seed": 4,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> dict[str, Any]:
    """Every run of this file: folder of the runs, exit codes by name."""
    folder = tmp_path_factory.mktemp("resume")
    write_data(folder)
    recipe = str(write_recipe(folder, tiny_clip_folder))

    def spec(name: str, *overrides: str, run: str = "", **values: Any) -> dict[str, Any]:
        common = {"recipe": recipe, "error": str(folder / f"{name}.error"), "port": free_port()}
        return {
            **common,
            **values,
            "overrides": [f"output={folder / (run or name)}", *values.get("overrides", []), *overrides],
        }

    plan: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        lasting = {key: value for key, value in case.items() if not key.startswith(WAYS_TO_END)}
        plan[f"{name}.whole"] = spec(f"{name}.whole", **lasting)
        plan[f"{name}.killed"] = spec(f"{name}.killed", **case)
        plan[f"{name}.resumed"] = spec(f"{name}.killed", **lasting)
    stops = [*EVALUATED, "train.early_stopping={patience: 1, min_delta: 1.0}"]
    plan["stops.whole"] = spec("stops.whole", *stops)
    plan["stops.killed"] = spec("stops.killed", *stops, kill_at=3)
    plan["stops.resumed"] = spec("stops.resumed", *stops, run="stops.killed")
    plan["finished again"] = spec("finished again", run="plain.whole")
    plan["another recipe"] = spec("another recipe", "train.learning_rate=0.02", run="plain.whole")
    plan["never"] = spec("never", run="plain.whole", fit={"resume": "never"})
    one_step = ["train.length=1 steps", "train.warmup=0 steps", "train.schedule=constant"]
    plan["no dropout"] = spec("no dropout", *one_step, "adapter.dropout=0.0")
    plan["no augmentation"] = spec("no augmentation", *one_step, "data.augment={crop: null}")
    plan["another seed"] = spec("another seed", *one_step, "seed=5")
    plan["one rank"] = spec("one rank", *NOTHING_RANDOM)
    plan["two ranks"] = spec("two ranks", *NOTHING_RANDOM, ranks=2)
    plan["longer"] = spec("longer", "train.workers=2", f"train.length={STEPS + 2} steps", run="workers.whole")
    plan["restarted"] = spec("restarted", run="before_the_first_checkpoint.whole", fit={"restart": True})
    plan["not finite"] = spec("not_finite", poison_at=4)
    plan["not finite on two ranks"] = spec("not_finite_two", poison_at=2, ranks=2)
    file = folder / "plan.json"
    file.write_text(json.dumps(list(plan.values())))
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, str(HERE / "launched" / "killed_runs.py"), str(file)]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads((folder / "plan.codes.json").read_text())
    return {"folder": folder, "codes": dict(zip(plan, codes, strict=True)), "output": done.stdout + done.stderr}


def losses(run: Path) -> dict[int, tuple[float, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: (row["loss"], row["grad_norm"], row["learning_rate"]) for row in rows if "loss" in row}
    assert len(found) == sum("loss" in row for row in rows), "no step is logged twice"
    return found


def validations(run: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["validation"] for row in rows if "validation" in row}
    assert len(found) == sum("validation" in row for row in rows), "no step is scored twice"
    return found


def checkpoint_bytes(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", CASES)
def test_goes_on_bit_for_bit(runs: dict[str, Any], name: str) -> None:
    folder, codes = runs["folder"], runs["codes"]
    expected_code = 128 + CASES[name]["number"] if "number" in CASES[name] else -9
    assert codes[f"{name}.killed"] == expected_code, runs["output"][-2000:]
    assert codes[f"{name}.whole"] == codes[f"{name}.resumed"] == 0, runs["output"][-2000:]
    whole, resumed = folder / f"{name}.whole", folder / f"{name}.killed"
    # One uninterrupted run is trained on for two steps more by another case: look at the first steps only.
    assert losses(resumed) == {step: row for step, row in losses(whole).items() if step <= STEPS}
    assert sorted(losses(resumed)) == list(range(1, STEPS + 1))
    expected = checkpoint_bytes(whole, STEPS)
    is_plain = "adapter=" in str(CASES[name].get("overrides"))
    trained = {"trained.safetensors" if is_plain else "adapter/adapter_model.safetensors"}
    trained |= {"raw.safetensors"} if "train.ema" in str(CASES[name].get("overrides")) else set()
    assert {*trained, "optimizer.safetensors", "temperature.safetensors"} <= set(expected)
    assert checkpoint_bytes(resumed, STEPS) == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "signal_at" in case])
def test_a_run_that_is_asked_to_stop_saves_that_very_step(runs: dict[str, Any], name: str) -> None:
    step = CASES[name]["signal_at"]
    message = (runs["folder"] / f"{name}.killed.error").read_text()
    signal_name = {2: "SIGINT", 15: "SIGTERM"}[CASES[name]["number"]]
    assert message.startswith(f"stopped by {signal_name} after step {step} of {STEPS}; step-{step:06d} is written")
    log = (runs["folder"] / f"{name}.killed" / "run.log").read_text()
    assert f"going on from step-{step:06d}" in log
    assert "KeyboardInterrupt" not in runs["output"]


def test_the_averages_are_what_users_get(runs: dict[str, Any]) -> None:
    """The files of the adapter hold averages; the weights to train on from are others and lie beside them."""
    from safetensors.torch import load_file

    folder = runs["folder"] / "terminated.whole" / "checkpoints" / f"step-{STEPS:06d}"
    averaged, raw = load_file(folder / "trained.safetensors"), load_file(folder / "raw.safetensors")
    assert set(averaged) < set(raw), "the temperature has a file of its own"
    assert any(not averaged[name].equal(raw[name]) for name in averaged)
    state = load_file(folder / "optimizer.safetensors")
    assert {str(value.dtype) for name, value in state.items() if name.endswith("//state1")} == {
        "torch.uint8",
        "torch.float32",
    }, "large tensors in 8 bit, small ones not"


def test_something_in_the_run_is_random(runs: dict[str, Any]) -> None:
    """The negation: equal bytes would prove little without dropout, augmentation and an order that a seed decides."""
    whole = losses(runs["folder"] / "plain.whole")
    for name in ("no dropout", "no augmentation", "another seed"):
        assert runs["codes"][name] == 0
        assert losses(runs["folder"] / name)[1][:2] != whole[1][:2], name  # loss and gradient norm
    assert checkpoint_bytes(runs["folder"] / "plain.whole", STEPS - 3) != checkpoint_bytes(
        runs["folder"] / "plain.whole", STEPS
    )


@pytest.mark.parametrize("name", ["evaluated", "heads_on_two_ranks"])
def test_the_best_checkpoint_is_that_of_the_uninterrupted_run(runs: dict[str, Any], name: str) -> None:
    whole, resumed = (runs["folder"] / f"{name}.{which}" for which in ("whole", "killed"))
    assert validations(resumed) == validations(whole)
    assert sorted(validations(whole)) == [2, 4, 6, 8, STEPS]
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (whole, resumed)]
    for key in ("best_checkpoint", "validation", "steps"):
        assert manifests[0][key] == manifests[1][key] and manifests[0][key] is not None, key
    best = int(manifests[0]["best_checkpoint"].removeprefix("step-"))
    assert checkpoint_bytes(resumed, best) == checkpoint_bytes(whole, best) != {}
    score = {step: values["text_to_image_recall@1"] for step, values in validations(whole).items()}
    assert score[best] == max(score.values()) == manifests[0]["validation"]["text_to_image_recall@1"]
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, resumed)]
    assert kept[0] == kept[1]


def test_early_stopping_remembers_what_it_saw(runs: dict[str, Any]) -> None:
    """Killed between the validations of steps 2 and 4, of which the second is no gain over the first."""
    whole, resumed = (runs["folder"] / f"stops.{which}" for which in ("whole", "killed"))
    assert runs["codes"]["stops.killed"] == -9 and runs["codes"]["stops.resumed"] == 0, runs["output"][-2000:]
    assert sorted(losses(whole)) == [1, 2, 3, 4] and losses(whole) == losses(resumed)
    assert checkpoint_bytes(whole, 4) == checkpoint_bytes(resumed, 4) != {}
    manifests = [json.loads((run / "manifest.json").read_text()) for run in (whole, resumed)]
    assert [(one["status"], one["stopped_early"]) for one in manifests] == [("finished", 4)] * 2


def test_ranks_change_no_loss_where_nothing_is_random(runs: dict[str, Any]) -> None:
    """The same batches on one rank and on two: only the order of sums differs, and the optimizer carries that on."""
    assert runs["codes"]["one rank"] == runs["codes"]["two ranks"] == 0, runs["output"][-2000:]
    one, two = (losses(runs["folder"] / name) for name in ("one rank", "two ranks"))
    assert sorted(one) == sorted(two) == list(range(1, STEPS + 1))
    for step, (loss, norm, rate) in one.items():
        assert two[step] == (pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-4), rate), step
    with_dropout = [losses(runs["folder"] / f"{name}.whole")[STEPS][0] for name in ("plain", "two_ranks")]
    assert with_dropout[0] != pytest.approx(with_dropout[1], rel=1e-4), "with dropout every rank draws its own masks"


def test_workers_change_nothing(runs: dict[str, Any]) -> None:
    without, with_workers = (losses(runs["folder"] / f"{name}.whole") for name in ("plain", "workers"))
    assert without == {step: row for step, row in with_workers.items() if step <= STEPS}


def test_what_failed_to_decode_is_quarantined_once(runs: dict[str, Any]) -> None:
    for name in ("plain.whole", "plain.killed", "two_ranks.killed"):
        rows = [json.loads(line) for line in (runs["folder"] / name / "quarantine.jsonl").read_text().splitlines()]
        assert [Path(row["where"]).name for row in rows] == ["3.png"], name
        manifest = json.loads((runs["folder"] / name / "manifest.json").read_text())
        assert manifest["data"]["bad"] == 1 and manifest["status"] == "finished"
        assert manifest["data"]["samples_trained"] < STEPS * 8, "a bad image leaves its batch and is not replaced"


def test_a_folder_in_use_is_never_overwritten(runs: dict[str, Any]) -> None:
    folder, codes = runs["folder"], runs["codes"]
    assert codes["finished again"] == 0 and "nothing to do" in runs["output"]
    assert codes["another recipe"] == 2 and codes["never"] == 2
    assert "train.learning_rate" in (folder / "another recipe.error").read_text()
    assert "--restart" in (folder / "never.error").read_text()
    assert codes["restarted"] == 0
    assert (folder / "before_the_first_checkpoint.whole.old-1" / "checkpoints").is_dir()


def test_a_longer_run_goes_on_from_the_end(runs: dict[str, Any]) -> None:
    assert runs["codes"]["longer"] == 0
    run = runs["folder"] / "workers.whole"
    assert max(losses(run)) == STEPS + 2
    assert json.loads((run / "manifest.json").read_text())["steps"] == STEPS + 2


@pytest.mark.parametrize(
    ("name", "folder"), [("not finite", "not_finite"), ("not finite on two ranks", "not_finite_two")]
)
def test_not_finite_stops_before_the_weights_move(runs: dict[str, Any], name: str, folder: str) -> None:
    step = 5 if folder == "not_finite" else 3
    assert runs["codes"][name] == 2
    message = (runs["folder"] / f"{folder}.error").read_text()
    assert f"step {step}:" in message and "not finite" in message and "Samples of the batch: " in message
    assert max(losses(runs["folder"] / folder)) == step - 1
