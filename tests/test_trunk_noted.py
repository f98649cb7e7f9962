"""What is noted of a run is believed only where it still holds; what lies below a cut depends on nothing else."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trunk_feeding import section_of
from trunk_cases import Twins, World, make_world
from trunk_runs import Runs

import mmtune
from mmtune.adapters import attach
from mmtune.ground.image_augmentation import AugmentSection
from mmtune.ground.run_log import RunLog
from mmtune.run_folder import open_run
from mmtune.shown_media import show
from mmtune.sources.jsonl import Section as Jsonl
from mmtune.trunk_cuts import below
from mmtune.trunk_setup import fits, noted_cut

BOTH = {"parts": ["vision", "text"], "layers": "last 1"}
STARTED = [
    "clip",
    "siglip",
    "chinese_clip",
    "blip",
    "blip2",
    "vit + bert",
    "dinov2 + roberta",
    "blip captioning",
    "git",
]
ANSWERING = ["blip2 (OPT)", "llava", "llava_next", "qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(scope="module")
def own_twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return Twins(tmp_path_factory.mktemp("twins"))


class Kept:
    """In the place of a store: finds nothing and holds what it is given."""

    num_entries = 0

    def __init__(self) -> None:
        self.held: dict[bytes, torch.Tensor] = {}

    def find(self, key: bytes) -> None:
        """Nothing is there."""

    def add(self, entries: Any) -> int:
        self.held |= {key: stored.states.clone() for key, stored in entries}
        return 0

    def close(self) -> None:
        """Nothing is open."""


def states_of(world: World, cache: Any) -> dict[str, dict[bytes, torch.Tensor]]:
    """What the trunks make of all samples."""
    for feed in cache.feeds.values():
        feed.store = Kept()
    for batch in world.batches(world.plan):
        world.backbone.family.run_trunks(world.backbone.model, batch.inputs)
    return {side: feed.store.held for side, feed in cache.feeds.items()}


def others_moved(model: Any, roots: tuple[str, ...]) -> Iterator[None]:
    """Move every weight and buffer that is not at or under the roots; afterwards all is as before."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = [name for name in tensors if not below(roots, [name]) and tensors[name].is_floating_point()]
    assert moved
    old = {name: tensors[name].detach().clone() for name in moved}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in moved:
            tensors[name].add_(0.1 + 0.3 * torch.randn(tensors[name].shape, generator=generator).to(tensors[name]))
        yield
        for name in moved:
            tensors[name].copy_(old[name])


@pytest.mark.parametrize("name", [*STARTED, *ANSWERING])
def test_states_are_a_function_of_what_is_hashed(own_twins: Twins, tmp_path: Path, name: str) -> None:
    """And of it: with a weight below the cut moved they are others."""
    answering = {"parts": ["text"]} if name in ANSWERING else BOTH
    section = {"parts": ["vision", "qformer"], "layers": "last 1"} if name == "blip2" else answering
    world = make_world(own_twins.copy(name), section_of(section), Twins.ability(name))
    cache = world.fed(tmp_path)
    assert cache.feeds
    before = states_of(world, cache)
    for side, feed in cache.feeds.items():
        for _ in others_moved(world.backbone.model, feed.cut.roots):
            now = states_of(world, cache)[side]
            assert before[side].keys() == now.keys()
            assert all(torch.equal(before[side][key], now[key]) for key in now), side
        root = world.backbone.model.get_submodule(feed.cut.roots[0])
        with torch.no_grad():
            next(root.parameters()).add_(0.5)
        now = states_of(world, cache)[side]
        assert not all(torch.equal(before[side][key], now[key]) for key in now), side
    cache.close()


def test_a_noted_cut_must_be_one_of_the_model(own_twins: Twins, tmp_path: Path) -> None:
    world = make_world(own_twins.copy("clip"), section_of(BOTH))
    cache = world.fed(tmp_path)
    record = json.loads(json.dumps(cache.record()))
    plain = own_twins.copy("clip")
    for side, noted in record.items():
        cut = noted_cut(noted)
        assert cut is not None and fits(plain, "embed", side, cut)
        assert not fits(plain, "embed", "media" if side == "text" else "text", cut)
        for wrong in ({"depth": 9}, {"part": "tail"}, {"roots": noted["roots"][:-1]}, {"kind": "whole"}):
            other = noted_cut({**noted, **wrong})
            assert other is not None and not fits(plain, "embed", side, other), wrong
    assert noted_cut({"side": "text"}) is None and noted_cut(3) is None
    cache.close()


def test_a_side_whose_trunk_the_adapter_changes_is_not_fed(own_twins: Twins, tmp_path: Path) -> None:
    """As where a manifest says that the cut lies higher than it does."""
    world = make_world(own_twins.copy("clip"), section_of(BOTH))
    cache = world.fed(tmp_path)
    cache.drop_touched(world.adapted)
    assert set(cache.feeds) == {"media", "text"}
    deeper = attach(own_twins.copy("clip"), section_of({"parts": ["text"], "layers": "all"}))
    cache.drop_touched(deeper)
    assert set(cache.feeds) == {"media"} and "the adapter changes what is below" in cache.lines[-1]
    cache.close()


@pytest.fixture
def runs(tmp_path: Path, tiny_clip_folder: Path) -> Runs:
    from small_runs import write_pairs

    write_pairs(tmp_path / "given")
    return Runs(tmp_path, tmp_path / "given", tiny_clip_folder)


def test_evaluation_says_what_it_keeps_and_doubts_the_manifest(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    run = mmtune.fit(runs.recipe("run"))
    plain = mmtune.score(str(mmtune.fit(runs.recipe("off", cached="train.trunk_cache=off"))))
    capfd.readouterr()
    fed = mmtune.score(str(run))
    said = capfd.readouterr().err
    assert "trunk cache: text below layer 1 runs once" in said and "spared" in said
    assert fed["tuned"] == pytest.approx(plain["tuned"], abs=1e-4)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["trunk"]["text"]["depth"] = 2
    del manifest["trunk"]["media"]["roots"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    doubted = mmtune.score(str(run))
    assert "notes a cut that this model does not have" in capfd.readouterr().err
    assert doubted["tuned"] == pytest.approx(plain["tuned"], abs=1e-4)


def test_a_run_that_began_before_these_keys_goes_on(runs: Runs) -> None:
    recipe = runs.recipe("run")
    run = mmtune.fit(recipe)
    file = run / "recipe.resolved.json"
    old = json.loads(file.read_text())
    for key in ("trunk_cache", "fused_layers"):
        del old["train"][key]
    file.write_text(json.dumps(old))
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"length": recipe.train.length})})
    assert open_run(longer, resume="auto", restart=False).finished


def test_a_worker_says_a_line_without_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its locks may have been held when the worker was forked."""
    log = RunLog(tmp_path)

    class Held:
        @property
        def console(self) -> Any:
            raise AssertionError("the bar belongs to the run's own process")

    log._bar = (Held(), 0)  # type: ignore[assignment]
    child = os.fork()
    if child == 0:
        log.line("said by a worker")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert "said by a worker" in (tmp_path / "run.log").read_text() and "said by a worker" in capfd.readouterr().err


def test_views_belong_to_the_image_wherever_it_lies(tmp_path: Path) -> None:
    from small_runs import write_pairs

    from mmtune.sources import open_split

    write_pairs(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    change = AugmentSection(crop=0.5, views=2)
    drawn = []
    for place in ("here", "there"):
        folder = tmp_path / place
        section = Jsonl(
            kind="jsonl", path=str(folder / "pairs.jsonl"), images=str(folder / "images"), splits={"train": "train"}
        )
        media = open_split(section, "train", seed=0).samples[0].media
        drawn.append([show(media, change, 3, turn, f"sample {turn}", 1).draw for turn in range(4)])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == drawn[0][2] != drawn[0][1] == drawn[0][3]


def test_bytes_become_floats_for_images_alone(
    own_twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding the texts of a batch does nothing for its pixels."""
    world = make_world(own_twins.copy("clip"), section_of({"parts": ["vision", "text"], "layers": "all"}))
    cache = world.fed(tmp_path)
    (batch, *_) = world.batches(world.plan)
    assert batch.inputs["pixel_values"].dtype == torch.uint8
    seen: list[str] = []
    monkeypatch.setattr("mmtune.trunk_feeding.expand_pixels", lambda processor, inputs: seen.append("floats") or inputs)
    world.backbone.family.embed_text(world.backbone.model, batch.inputs)
    assert not seen
    world.backbone.family.embed_media(world.backbone.model, batch.inputs)
    assert seen
    cache.close()
