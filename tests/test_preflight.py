"""`mmtune check`: what can be known before training is said at once, with places, and nothing is written."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmtune.backbones import describe
from mmtune.ground.errors import RecipeError
from mmtune.ground.recipe_text import read_recipe_text
from mmtune.preflight_checks import Findings, check_abilities
from mmtune.preflight_run import check
from mmtune.recipe_schema import load_recipe, resolved_json

NUM_ROWS = 40


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Path:
    """A recipe over forty tiny pictures (32 train, 8 test; one line of each kind of badness) and a tiny CLIP."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("preflight")
    rows = []
    for number in range(NUM_ROWS):
        name = f"{number}.png"
        Image.new("RGB", (8, 8), (number * 6, 0, 0)).save(folder / name)
        split = "test" if number % 5 == 0 else "train"
        rows.append({"image": name, "caption": [f"red {number}", f"picture {number}"], "split": split})
    lines = [json.dumps(row) for row in rows]
    lines.insert(3, "not json")
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    path = folder / "x.yaml"
    path.write_text(
        f"backbone: {{id: {tiny_clip_folder}}}\n"
        "adapter: {kind: lora, parts: [vision, text], targets: [attention], rank: 2}\n"
        "data:\n"
        f"  kind: jsonl\n"
        f"  path: {folder / 'pairs.jsonl'}\n"
        f"  images: {folder}\n"
        "  splits: {train: train, test: test}\n"
        "  max_bad_fraction: 0.1\n"
        "task: {kind: retrieval, loss: {kind: infonce}}\n"
        "train: {length: 2 epochs, batch: 8, learning_rate: 1e-3}\n"
        f"output: {folder / 'run'}\n"
    )
    return path


def test_a_recipe_that_is_ready(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.iterdir())
    assert check(recipe) == 0
    out, err = capsys.readouterr()
    assert sorted(recipe.parent.iterdir()) == before, "a check writes nothing"
    table = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if "│" in line}
    assert [cell.strip() for cell in table["train"]] == ["32", "64", "1"]
    assert [cell.strip() for cell in table["test"]] == ["8", "16", "0"]
    modules, trained = table["vision"][0].strip(), table["vision"][1].strip()
    assert int(modules) > 0 and int(trained.replace(",", "")) > 0 and "text" in table and "temperature" in table
    assert "8 steps of 8 samples (4 steps per epoch, 0 samples left out of each), 1 of them warm-up" in out
    assert "sha256" in out and "clip (vision" in out and out.endswith("ready to train\n")
    assert "pairs.jsonl:4: " in err and "quarantined" in err


def tables(out: str) -> list[dict[str, list[str]]]:
    """Every table that was printed: first cell of a row -> the others."""
    found: list[dict[str, list[str]]] = []
    for line in out.splitlines():
        if line.startswith("┏"):
            found.append({})
        if line.startswith(("│", "┃")):
            first, *rest = (cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│"))
            found[-1][first] = rest
    return found


@pytest.mark.parametrize(
    ("override", "star"), [("quantize=4bit", "4bit *"), ("quantize=null", "float32 *"), ("dtype=float16", "float16 *")]
)
def test_bytes_of_each_part_at_each_setting(
    recipe: Path, capsys: pytest.CaptureFixture[str], override: str, star: str
) -> None:
    from mmtune.part_sizes import empty_model, in_words, part_sizes

    assert check(recipe, [f"backbone.{override}"]) == 0
    out = capsys.readouterr().out
    _, memory, adapter = tables(out)
    assert star in memory["part"] and sum("*" in name for name in memory["part"]) == 1
    description = describe(load_recipe(recipe, [f"backbone.{override}"]).backbone)
    sizes = part_sizes(empty_model(description), description)
    column = memory["part"].index(star)
    for size in sizes:
        assert memory[size.part][column] == in_words(size.num_bytes[star.removesuffix(" *")])
        assert memory[size.part][0] == f"{size.num_weights:,}"
    assert memory["total"][0] == f"{sum(size.num_weights for size in sizes):,}"
    trained = int(adapter["text"][1].replace(",", ""))
    assert adapter["text"][3] == in_words(16 * trained), "new weights and gradients 4 bytes each, averages 8"
    assert adapter["temperature"][3] == in_words(12), "it is no new weight"
    whole = trained + int(adapter["vision"][1].replace(",", ""))
    assert f"training  adds {in_words(4 * whole)} of weights, {in_words(4 * whole + 4)} of gradients" in out


def test_problems_of_every_room_come_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["adapter.layers=last 40", "train.precision=fp16", "train.warmup=64 samples"]
    assert check(recipe, overrides) == 2
    out, err = capsys.readouterr()
    layers = describe(load_recipe(recipe).backbone).num_layers
    for part, count in layers.items():
        assert f"command line: adapter.layers: part '{part}': 'last 40' asks for more than the {count} layers" in err
    assert "command line: train.precision: fp16 needs a GPU" in err
    assert "command line: train.warmup: 64 samples is 8 steps and the run has 8; write less" in err
    assert out.endswith("not ready: see the messages above\n") and "trained weights" not in out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adapter.parts=[vision, sound]", "command line: adapter.parts: clip has no part 'sound'; there are"),
        ("adapter.targets=[attention, q_prog]", "adapter.targets"),
        ("backbone.id=/nowhere", "command line: backbone.id: backbone '/nowhere': there is no such folder"),
        ("data.path=/nowhere.jsonl", ":3: data: "),
        ("data.splits={train: learn, test: test}", "'learn'"),
        ("data.max_bad_fraction=0", ":3: data: 1 of 33 "),
        ("train.batch=64", "command line: train.batch: 64 is larger than an epoch of 32 items"),
        ("adapter.start_from=/nowhere", "command line: adapter.start_from: there is no folder /nowhere"),
        ("output=/etc", "command line: output: /etc holds no run but other files ("),
    ],
)
def test_one_problem_each(recipe: Path, capsys: pytest.CaptureFixture[str], override: str, said: str) -> None:
    assert check(recipe, [override]) == 2
    assert said in capsys.readouterr().err


def test_a_split_that_fails_is_in_the_table_and_every_line_has_its_place(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(recipe, ["data.max_bad_fraction=0"]) == 2
    out = capsys.readouterr().out
    table = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if "│" in line}
    assert [cell.strip() for cell in table["train"]] == ["unusable"] * 3 and table["test"][0].strip() == "8"
    assert check(recipe, ["data.caption=text", "data.id=sku"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "has no column" in line]
    assert [line.split(" has ")[0].split(": ")[:2] for line in lines] == [
        ["command line", "data.id"],
        ["command line", "data.caption"],
    ]
    assert check(recipe, ["data.splits={train: train, column: fold}"]) == 2
    err = capsys.readouterr().err
    assert "command line: data.splits.column: " in err and err.count("no column 'fold'") == 1


def test_captions_all_makes_every_pair_an_item(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(recipe, ["data.captions=all", "train.batch=64"]) == 0
    assert "2 steps of 64 samples" in capsys.readouterr().out


def test_warnings_do_not_stop(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(recipe, ["task.loss.kind=sigmoid", "train.precision=bf16", "data.splits={train: train}"]) == 0
    err = capsys.readouterr().err
    assert "warning: command line: task.loss.kind: family clip has no logit bias" in err
    assert "warning: command line: train.precision: bf16 runs on a CPU" in err
    assert "there is no split 'test'" in err


def test_a_text_mistake_stops_before_data_and_backbone(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"command line: train\.batch: x does not fit"):
        check(recipe, ["train.batch=x", "backbone.id=/nowhere"])


def test_schema_only_looks_at_neither_data_nor_backbone(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(recipe, ["data.path=/nowhere.jsonl", "backbone.id=/nowhere"], schema_only=True) == 0
    assert "were not looked at" in capsys.readouterr().out


def test_ranks_are_those_of_the_launch(recipe: Path) -> None:
    assert check(recipe, schema_only=True, ranks=2) == 0
    with pytest.raises(RecipeError, match="8 is not divisible by 3 ranks"):
        check(recipe, schema_only=True, ranks=3)


def test_a_run_folder_of_this_recipe_or_another(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"output={tmp_path}"]
    (tmp_path / ".lock").touch()
    assert check(recipe, here) == 0
    assert f"{tmp_path} (new)" in capsys.readouterr().out, "a lock that nobody holds is of no account"
    (tmp_path / "recipe.resolved.json").write_text(json.dumps(resolved_json(load_recipe(recipe, here))))
    assert check(recipe, here) == 0
    assert check(recipe, [*here, "train.length=3 epochs"]) == 0
    capsys.readouterr()
    assert check(recipe, [*here, "train.learning_rate=1e-4"]) == 2
    assert "holds a run of another recipe (train.learning_rate differ)" in capsys.readouterr().err


def test_a_family_that_cannot_do_the_task(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    description = describe(loaded.backbone)
    sound = Findings(read_recipe_text(recipe))
    check_abilities(loaded, description, sound)
    assert sound.problems == []
    other = SimpleNamespace(FAMILY=replace(description.family.FAMILY, abilities=frozenset({"generate"})))
    findings = Findings(read_recipe_text(recipe))
    check_abilities(loaded, replace(description, family=other), findings)
    (problem,) = findings.problems
    assert problem.startswith(
        f"{recipe}:9: task.kind: retrieval needs the ability embed, and family clip can generate; tasks that fit: "
        "captioning, chat, matching, vqa; families for retrieval: align, blip, "
    )


def test_a_4bit_backbone_is_checked_and_attached(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(recipe, ["backbone.quantize=4bit"]) == 0
    assert "trained weights" in capsys.readouterr().out
