"""What a user reads about a wrong recipe: every problem at once, each at its place, with what would be right."""

import random
from pathlib import Path

import pytest

from mmtune.ground.errors import RecipeError
from mmtune.ground.kind_folder import kinds
from mmtune.recipe_schema import load_recipe

SOUND = """\
backbone: {id: "builtin:glyph-clip"}
adapter:
  kind: lora
  parts: [vision, text]
data: {kind: glyphs,
  look: camera,
  augment: {flip: true}}
task: {kind: retrieval, loss: {kind: infonce}}
train: {length: 100 steps, batch: 128, learning_rate: 1e-4}
output: runs/x
"""


def problems_of(tmp_path: Path, text: str, *overrides: str, ranks: int = 1) -> list[str]:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, world_size=ranks)
    return str(caught.value).replace(f"{path}:", "x.yaml:").splitlines()


def changed(old: str, new: str) -> str:
    assert SOUND.count(old) == 1
    return SOUND.replace(old, new)


def test_the_text_that_the_tests_change_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(SOUND)
    load_recipe(path)


EVERYTHING_WRONG = """\
backbone: {id: 3, quantise: 4bit, dtype: float8}
adapter: {kind: lora, parts: vision, rank: 0,
  layers: lst 4,
  alpha: {vision: x},
  use_dora: yes}
data: {kind: glyph, look: camera}
task: {kind: retrieval, loss: {kind: infonce, learning_rate: 3}}
train: {length: 100, batch: 127, micro_batch: 010, learning_rate: 1e-3, lenght: 3,
  betas: [0.9, a], warmup: 5%}
trian: 3
train: 4
"""


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    found = problems_of(tmp_path, EVERYTHING_WRONG, "train.evaluate_every=0 steps", "foo.bar=1", ranks=2)
    assert found == [
        "x.yaml:1: backbone.dtype: float8 does not fit; write one of float32, bfloat16, float16; did you mean float16?",
        "x.yaml:1: backbone.id: 3 does not fit; write text: '3' in quotes",
        "x.yaml:1: backbone.quantise: is no key of this section; did you mean quantize?",
        "x.yaml:1: output: is missing; write output: the run folder",
        "x.yaml:2: adapter.parts: vision does not fit; write a list such as [a, b]: [vision]",
        "x.yaml:2: adapter.rank: 0 must be at least 1",
        "x.yaml:3: adapter.layers: 'lst 4' is not a choice of layers: write 'all', 'last 4', 'first 4', '3-7' "
        "(layers 3 to 7, counted from 0), or a list such as ['0-2', 11]",
        "x.yaml:4: adapter.alpha.vision: x does not fit; write a number",
        "x.yaml:5: adapter.use_dora: yes does not fit; write true or false: true instead of yes, "
        "which is text in YAML 1.2",
        "x.yaml:6: data.kind: there is no kind glyph; did you mean glyphs? The kinds are coco, conversations, coop, "
        "glyphs, hub, image_folder, jsonl, karpathy, mix, parquet, webdataset",
        "x.yaml:7: task.loss.learning_rate: is no key of this section; it belongs under train",
        "x.yaml:8: train.batch: 127 is not divisible by 2 ranks; write 126 or 128",
        "x.yaml:8: train.lenght: is no key of this section; did you mean length?",
        "x.yaml:8: train.length: a duration needs a unit: '100 steps', '100 epochs', '100 samples' or '100%'",
        "x.yaml:8: train.micro_batch: 010 is 8 in YAML 1.1 and 10 in 1.2; write 10, or '010' in quotes if it is text",
        "x.yaml:9: train.betas[1]: a does not fit; write a number",
        "x.yaml:10: trian: is no key of this section; did you mean train?",
        "x.yaml:11: train: stands twice, first at x.yaml:8; keep one of the two",
        "command line: foo: is no key of this section; it has backbone, adapter, data, task, train, checkpoint, "
        "output, seed",
        "command line: train.evaluate_every: 0 steps is nothing; write more than 0",
    ]


ONE_PROBLEM = [
    ("kind: lora", "kind: lroa", "x.yaml:3: adapter.kind: there is no kind lroa; did you mean lora?"),
    ("kind: lora", "rank: 8", f"x.yaml:2: adapter.kind: is missing; write one of {', '.join(kinds('adapters'))}"),
    ("kind: lora", "kind: adalora", "x.yaml:3: adapter.kind: adalora moves ranks between layers by scores"),
    ("kind: lora", "kind: lora\n  init: eva", "x.yaml:4: adapter.init: eva is computed from the layers' inputs"),
    ("kind: lora", "kind: lora\n  init: psisa", "psisa does not fit; write one of default, gaussian, orthogonal,"),
    (
        "kind: lora",
        "kind: lora\n  init: olora\n  use_dora: true",
        "x.yaml:4: adapter.init: init olora keeps its start as a second",
    ),
    ("kind: lora", "kind: [lora]", "x.yaml:3: adapter.kind: there is no kind ['lora']; write one of"),
    ("kind: retrieval", "kind: retrieve", "x.yaml:8: task.kind: there is no kind retrieve; did you mean retrieval?"),
    ("kind: infonce", "kind: info_nce", "x.yaml:8: task.loss.kind: there is no kind info_nce; did you mean infonce?"),
    ("flip: true", "flip: on", "x.yaml:7: data.augment.flip: on does not fit; write true or false: true instead of on"),
    ("flip: true", "flip: 'off'", "data.augment.flip: 'off' does not fit; write true or false: false instead of off"),
    ("flip: true", "flp: true", "x.yaml:7: data.augment.flp: is no key of this section; did you mean flip?"),
    ("flip: true", "flip: 1", "x.yaml:7: data.augment.flip: 1 does not fit; write true or false"),
    ("look: camera", "look: photo", "x.yaml:6: data.look: photo does not fit; write one of clean, camera, hollow"),
    ("look: camera", "look: camra", "did you mean camera?"),
    ("batch: 128", "batch: 128.0", "x.yaml:9: train.batch: 128.0 does not fit; write a whole number: 128"),
    ("batch: 128", "batch: '128'", "train.batch: '128' does not fit; write a whole number: 128 without quotes"),
    ("batch: 128", "batch: true", "train.batch: true does not fit; write a whole number"),
    ("batch: 128", "batch: null", "train.batch: is empty; write a whole number"),
    ("batch: 128", "batch: 128, betas: [0.9]", "train.betas: [0.9] has too few entries"),
    ("batch: 128", "batch: 128, betas: [1, 0]", "train.betas[0]: 1 must be below 1"),
    ("batch: 128, ", "", "x.yaml:9: train.batch: is missing; write batch: samples per optimizer step"),
    ("learning_rate: 1e-4", "learning_rate: '1e-4'", "write a number or a mapping such as {key: value}: 1e-4 without"),
    ("learning_rate: 1e-4", "learning_rate: 0", "train.learning_rate: 0 must be above 0"),
    ("output: runs/x", "output: 3.10", "x.yaml:10: output: 3.10 does not fit; write text: '3.10' in quotes"),
    ("output: runs/x", "output: ''", "output: '' needs at least 1 characters"),
    ("output: runs/x", "output: runs/x\nseed: -1", "x.yaml:11: seed: -1 must be at least 0"),
    ("length: 100 steps", "length: 100 stps", "train.length: '100 stps' is not a duration: write '500 steps'"),
    ("length: 100 steps", "length: 1.5 steps", "steps are whole numbers"),
    ("  parts: [vision, text]", "  parts: []", "x.yaml:4: adapter.parts: [] needs at least 1 of them"),
    ("  parts: [vision, text]", "  parts: [vision, vision]", "x.yaml:4: adapter.parts: named twice: vision"),
    (
        "  parts: [vision, text]",
        "  parts: [vision]\n  rank: {text: 4}",
        "x.yaml:5: adapter.rank: rank per part must name",
    ),
    ("train: {", "train: 3\nx: {", "x.yaml:9: train: 3 does not fit; write a section such as {length: 3}"),
]


@pytest.mark.parametrize(("old", "new", "said"), ONE_PROBLEM)
def test_what_is_wrong_and_what_would_be_right(tmp_path: Path, old: str, new: str, said: str) -> None:
    found = problems_of(tmp_path, changed(old, new))
    assert any(said in problem for problem in found), found
    assert len(found) == 1 or "x: {" in new, found


def test_a_key_of_another_kind_is_told_from_a_typo(tmp_path: Path) -> None:
    found = problems_of(tmp_path, changed("kind: lora", "kind: head_only\n  use_dora: true\n  use_dra: true"))
    assert found == [
        "x.yaml:4: adapter.use_dora: is a key of kind lora, not of head_only; delete it",
        "x.yaml:5: adapter.use_dra: is no key of this section; use_dora would be a key of kind lora, not of head_only; "
        "delete it",
    ]


def test_text_that_is_not_yaml_is_one_problem(tmp_path: Path) -> None:
    found = problems_of(tmp_path, SOUND + "seed: [1\n")
    assert len(found) == 1 and found[0].startswith("x.yaml:12: ")


def test_contradictions_are_found_beside_other_mistakes(tmp_path: Path) -> None:
    text = changed("batch: 128", "batch: 127, micro_batch: 2, lerning_rate: 3, schedule: cosin, warmup: 200 steps")
    found = problems_of(tmp_path, text, ranks=1)
    assert [problem.split(": ")[1] for problem in found] == [
        "train.batch",
        "train.lerning_rate",
        "train.schedule",
        "train.warmup",
    ]
    assert "not divisible by micro_batch 2" in found[0]


def test_a_contradiction_with_a_wrong_value_is_not_invented(tmp_path: Path) -> None:
    found = problems_of(tmp_path, changed("batch: 128", "batch: many, micro_batch: 3"), ranks=2)
    assert found == ["x.yaml:9: train.batch: many does not fit; write a whole number"]


def test_whatever_is_typed_the_answer_is_a_recipe_or_a_list_of_places(tmp_path: Path) -> None:
    """Two hundred copies, cut and mixed with foreign text: no other exception, and no line without a place."""
    chance = random.Random(0)
    scraps = [
        "null",
        "[]",
        "{}",
        "010",
        "*a",
        "&a ",
        "'",
        '"',
        "{kind: lora}",
        "- a",
        "\t",
        ": ",
        "? x",
        "1e400",
        "é\n",
    ]
    path = tmp_path / "x.yaml"
    num_sound = 0
    for _ in range(200):
        text = SOUND
        for _ in range(chance.randint(0, 2)):
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice([*scraps, ""]) + text[at + chance.randint(0, 9) :]
        path.write_text(text)
        try:
            load_recipe(path, [f"train.batch={chance.choice(scraps[:6])}"] if chance.random() < 0.3 else [])
            num_sound += 1
        except RecipeError as error:
            assert all(line.startswith((f"{path}:", "command line: ")) for line in str(error).splitlines()), text
    assert 10 < num_sound < 150


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1e-3", "did you mean learning_rate?"),
        ("adapter.lora_alpha=3", "did you mean alpha?"),
        ("train.batch_size=3", "did you mean batch?"),
        ("train.ema=0.9", "write a section such as {decay: 0.9}"),
        ("train.early_stopping=3", "write a section such as {patience: 3}"),
        ("data.look={camera} by night", "text that begins with { or [ needs quotes of its own"),
    ],
)
def test_what_other_libraries_call_it_and_what_a_shell_makes_of_it(tmp_path: Path, override: str, said: str) -> None:
    found = problems_of(tmp_path, SOUND, override)
    assert any(problem.startswith("command line: ") and said in problem for problem in found), found
