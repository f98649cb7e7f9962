"""The whole life of every family, model type and class: trained, stopped, gone on with, scored, merged, reloaded."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lifecycle_cases import CASES, STEPS, STOPPED, World, answers, checkpoint_bytes, live, losses, without_pictures
from safetensors.torch import load

from mmtune.backbones import Section
from mmtune.backbones import load as load_backbone
from mmtune.merge_building import prove_all
from mmtune.merge_proof import TOLERANCE, embed

READ_BY_HEADS = r".*\b(lm_head|cls\.predictions\..*|output|itm_head|rank_output|classifier\.\d|pooler\.dense)"
UNREAD_LAYER = r"model\.vision_tower\.encoder\.layers\.2\..*"
WORDS_OF_LAST_LAYER = r"qformer\.encoder\.layer\.1\.(intermediate|output)\.dense"  # its queries' half alone is read
LEFT = {
    **dict.fromkeys(("llava", "llava, from a list", "llava_next"), UNREAD_LAYER),
    **dict.fromkeys(("blip2 matches", "instructblip llama", "instructblip t5"), WORDS_OF_LAST_LAYER),
    "qwen3_vl": r"model\.visual\.deepstack_merger_list\..*",  # neither attention nor mlp; a recipe can name them
}
"""Case -> linear layers that run and are not trained, beside those that make the logits."""

OWN_FILES = {"config.json", "model.safetensors", "run", "merge_report.json"}
"""Files of a merged folder that are no copies."""

SEEN = 1e-3
"""Least difference from the base that counts as one, as a share of the outputs' range."""


class Lives:
    """Every case lived once, and proven in one fresh process with those that were lived by then."""

    def __init__(self, world: World) -> None:
        self.of = functools.cache(functools.partial(self._of, world))
        self.lived: dict[str, Any] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    def _of(self, world: World, name: str) -> Any:
        self.lived[name] = live(world, name)
        return self.lived[name]

    def report_of(self, name: str) -> dict[str, Any]:
        """What the proof of its merged folder measured."""
        if name not in self.reports:
            waiting = {one: life for one, life in self.lived.items() if one not in self.reports}
            made = prove_all([(life.merge, life.merged) for life in waiting.values()])
            self.reports |= dict(zip(waiting, made, strict=True))
        return self.reports[name]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with without_pictures():
        yield Lives(World(tmp_path_factory.mktemp("lives")))


@pytest.fixture(params=CASES)
def life(request: pytest.FixtureRequest, lives: Lives) -> Any:
    return lives.of(request.param)


def trained_of(life: Any, step: int = STEPS) -> dict[str, torch.Tensor]:
    """The adapter's tensors, by name in the model."""
    stored = load(checkpoint_bytes(life.resumed, step)["adapter/adapter_model.safetensors"])
    return {name.removeprefix("base_model.model."): value for name, value in stored.items()}


def test_a_run_that_stopped_goes_on_bit_for_bit(life: Any) -> None:
    assert losses(life.resumed) == losses(life.whole) and sorted(losses(life.whole)) == [1, 2, 3, 4]
    found, expected = checkpoint_bytes(life.resumed), checkpoint_bytes(life.whole)
    assert found == expected and {"adapter/adapter_model.safetensors", "optimizer.safetensors"} <= set(found)
    before = trained_of(life, STOPPED)
    assert not any(value.equal(before[name]) for name, value in trained_of(life).items())
    assert f"going on from step-{STOPPED:06d}" in (life.resumed / "run.log").read_text()


def test_exactly_the_parts_are_trained(life: Any) -> None:
    """What is expected is every linear layer of the parts that runs, as hooks on the plain model see it."""
    backbone, ran = life.merge.backbone, set()
    linear = {name: layer for name, layer in backbone.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: ran.add(name))  # type: ignore[misc]
        for name, layer in linear.items()
    ]
    embed(backbone, life.merge.inputs)
    for hook in hooks:
        hook.remove()
    others = f"{READ_BY_HEADS}|{LEFT.get(life.name, '')}"
    expected = {name for name in ran if not re.fullmatch(others, name)}
    trained = trained_of(life)
    assert set(trained) == {f"{name}.lora_{side}.weight" for name in expected for side in "AB"}
    paths = {part: backbone.traits.parts[part] for part in life.case.parts}
    assert all(any(under(name, path) for name in expected) for path in paths.values())
    assert all(any(under(name, path) for path in paths.values()) for name in expected)


def under(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def test_every_layer_of_every_part_is_alive(life: Any) -> None:
    """LoRA's B begins at zero, and what the run's log says of the parts is that all of their layers moved."""
    trained = trained_of(life)
    assert not [name for name, value in trained.items() if ".lora_B." in name and not value.abs().max() > 0]
    rows = [line.split() for line in (life.resumed / "run.log").read_text().splitlines() if "/" in line.split()[-1:][0]]
    judged = {row[-7]: row for row in rows if len(row) >= 7 and row[-7] in life.case.parts and "%" in row[-4]}
    assert set(judged) == set(life.case.parts)
    for row in judged.values():
        moved, _, total = row[-1].partition("/")
        assert moved == total == row[-6] and float(row[-3]) > 0 and float(row[-2]) > 0


def test_base_and_tuned_are_scored_alike(life: Any) -> None:
    rows, scores = answers(life.resumed), life.scores
    assert (life.resumed / "scores.json").is_file() and len(rows) == scores["samples"] > 4
    assert scores["base"].keys() == scores["tuned"].keys() == scores["delta"].keys()
    assert life.alone["scores"] == scores["base"]
    assert [row["base"] for row in answers(life.alone_folder)] == [row["base"] for row in rows], "a fresh load"
    assert any(row["tuned"] != row["base"] for row in rows)


def test_files_that_are_not_weights_are_copies(life: Any) -> None:
    there = {str(path.relative_to(life.merged)) for path in life.merged.rglob("*") if path.is_file()}
    original = {str(path.relative_to(life.twin)) for path in life.twin.rglob("*") if path.is_file()}
    assert there == original and "config.json" in there and not any("adapter" in name for name in there)
    copies = there - OWN_FILES
    assert {"tokenizer.json", "tokenizer_config.json"} <= copies
    assert {"preprocessor_config.json", "processor_config.json"} & copies
    assert life.case.family != "chat" or "generation_config.json" in copies
    assert [name for name in copies if (life.merged / name).read_bytes() != (life.twin / name).read_bytes()] == []
    weights = "model.safetensors"
    assert (life.merged / weights).read_bytes() != (life.twin / weights).read_bytes()


def test_the_merged_folder_is_a_backbone_like_any_other(life: Any) -> None:
    """Loaded as if it were the hub's it gives what the adapted model gave, and another thing than the base."""
    plain = load_backbone(Section(id=str(life.merged)), ability=life.merge.backbone.description.ability or ())
    found, expected, base = embed(plain, life.merge.inputs), life.merge.embedded["adapted"], life.merge.embedded["base"]
    for name, value in expected.items():
        span = value.max() - value.min()
        assert (found[name] - value).abs().max() <= TOLERANCE * span
        assert (found[name] - base[name]).abs().max() > SEEN * span


def test_transformers_alone_reloads_it(life: Any, lives: Lives) -> None:
    """In a fresh process, which knows nothing of this project and of peft."""
    report = lives.report_of(life.name)
    assert report["reload"]["reference"] == "adapted" and report["reload"]["gap"] <= TOLERANCE
    assert report["reload"]["difference_from_base"] > SEEN
    tensors = report["tensors"]
    assert tensors["changed"] == tensors["trained"] > 0 and tensors["trained_but_equal_to_base"] == []
    assert tensors["trained"] < tensors["total"]
