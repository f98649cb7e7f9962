"""Several sources as one: proportions, names, images that two of them have, and a run that goes on exactly."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_runs import small_recipe

from mmtune.batch_building import EncodedPairs
from mmtune.epoch_items import epoch_items
from mmtune.ground.errors import DataError, RecipeError
from mmtune.recipe_paths import anchored
from mmtune.recipe_schema import Recipe, load_recipe, recipe_from_json, resolved_json
from mmtune.sources import open_split, split_names
from mmtune.sources.mix import Section
from mmtune.tasks import retrieval

Rows = dict[str, tuple[str, str]]


def write_source(folder: Path, name: str, rows: Rows, pictures: str = "pictures") -> dict[str, Any]:
    """A jsonl source: picture -> (split, caption). One name is one picture, also of two sources."""
    (folder / pictures).mkdir(exist_ok=True)
    lines = []
    for picture, (split, caption) in rows.items():
        shade = sum(picture.encode()) % 256
        Image.new("RGB", (8, 8), (shade, 255 - shade, len(name) * 9)).save(folder / pictures / f"{picture}.png")
        lines.append(json.dumps({"image": f"{picture}.png", "caption": [caption, f"{caption} again"], "split": split}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    splits = {split: split for split in dict.fromkeys(split for split, _ in rows.values())}
    return {"kind": "jsonl", "path": str(folder / f"{name}.jsonl"), "images": str(folder / pictures), "splits": splits}


def many(count: int, prefix: str, split: str = "train") -> Rows:
    return {f"{prefix}{number}": (split, f"{prefix} number {number}") for number in range(count)}


def mix(sources: dict[str, Any], **settings: Any) -> Section:
    return Section.model_validate_json(json.dumps({"kind": "mix", "sources": sources, **settings}))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """``big``: 12 of train, 3 of validation; ``small``: 4 of train, 2 of test."""
    return {
        "big": write_source(tmp_path, "big", {**many(12, "b"), **many(3, "v", "validation")}),
        "small": write_source(tmp_path, "small", {**many(4, "s"), **many(2, "t", "test")}),
    }


def test_splits_are_put_together(sources: dict[str, Any]) -> None:
    section = mix(sources)
    assert split_names(section) == ("train", "validation", "test")
    train = open_split(section, "train", seed=0)
    assert [sample.id for sample in train.samples][11:13] == ["big/b11.png", "small/s0.png"]
    assert {sample.source for sample in train.samples} == {"big", "small"}
    assert len({sample.group for sample in train.samples}) == len(train.samples) == train.num_seen == 16
    assert [sample.id for sample in open_split(section, "test", seed=0).samples] == ["small/t0.png", "small/t1.png"]
    assert split_names(mix(sources, scored=["big"])) == ("train", "validation")
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        open_split(mix(sources, scored=["big"]), "test", seed=0)


def test_weights_make_the_proportions(sources: dict[str, Any]) -> None:
    samples = open_split(mix(sources), "train", seed=0).samples
    sizes = {}
    for weights in (None, {"big": 1, "small": 1}, {"big": 1, "small": 3}):
        items = epoch_items(retrieval, samples, mix(sources, weights=weights), seed=0)
        shown = [samples[items.at(0, place).sample].source for place in range(len(items))]
        sizes[str(weights)] = (shown.count("big"), shown.count("small"))
    assert list(sizes.values()) == [(12, 4), (12, 12), (12, 36)]


def test_an_image_of_two_sources(tmp_path: Path) -> None:
    """Its captions are true of both, so none is a negative of it; and no source trains on what another scores."""
    first = write_source(tmp_path, "first", {"same": ("train", "a cup"), "leak": ("train", "x"), "own": ("train", "y")})
    second = write_source(
        tmp_path, "second", {"same": ("train", "a mug"), "other": ("train", "z"), "leak": ("test", "held")}
    )
    section = mix({"first": first, "second": second}, max_bad_fraction=0.5)
    train = open_split(section, "train", seed=0)
    found = {sample.id: sample for sample in train.samples}
    assert list(found) == ["first/same.png", "first/own.png", "second/same.png", "second/other.png"]
    pairs = [retrieval.render(found[f"{name}/same.png"], 0, seed=0, epoch=0) for name in ("first", "second")]
    assert pairs[0].text_key != pairs[1].text_key and set(pairs[0].image_keys) == set(pairs[1].image_keys)
    assert found["second/other.png"].also_true == ()
    assert [item.reason for item in train.bad] == ["image is in another split too: source second puts it into test"]
    unscored = open_split(mix({"first": first, "second": second}, scored=["first"]), "train", seed=0)
    assert "first/leak.png" in {sample.id for sample in unscored.samples}, "what is not scored holds nothing back"


def test_a_source_of_which_nothing_is_left(tmp_path: Path) -> None:
    first = write_source(tmp_path, "first", {"a": ("train", "x"), "b": ("train", "y")})
    second = write_source(tmp_path, "second", {"a": ("test", "x"), "b": ("test", "y"), "c": ("train", "z")})
    with pytest.raises(DataError, match="data.sources: first has nothing left in train"):
        open_split(mix({"first": first, "second": second}, max_bad_fraction=0.9), "train", seed=0)


def test_the_order_in_the_recipe_means_nothing(sources: dict[str, Any]) -> None:
    """A run goes on with a recipe whose keys stand in another order; its samples must not."""
    turned = mix(dict(reversed(sources.items())))
    assert list(turned.sources) == ["big", "small"]
    both = [open_split(section, "train", seed=0).samples for section in (turned, mix(sources))]
    assert [one.id for one in both[0]] == [one.id for one in both[1]]


def test_each_source_has_its_own_limit_and_changes(sources: dict[str, Any]) -> None:
    shutil.copy(sources["small"]["path"], sources["small"]["path"] + ".jsonl")
    Path(sources["small"]["path"]).write_text(Path(sources["small"]["path"]).read_text() + "\nnot json")
    with pytest.raises(DataError, match=r"data.sources.small, split train: 1 of 5 lines and images are bad"):
        open_split(mix(sources), "train", seed=0)
    small = {**sources["small"], "max_bad_fraction": 0.5, "augment": {"flip": True}}
    with pytest.raises(DataError, match="1 of 17 lines and images are bad"):
        open_split(mix({**sources, "small": small}), "train", seed=0)
    section = mix({**sources, "small": small}, max_bad_fraction=0.1)
    opened = open_split(section, "train", seed=0)
    pairs = EncodedPairs(opened.samples, retrieval, None, None, section, 0, 77)
    assert (pairs.augmentations["big"].flip, pairs.augmentations["small"].flip) == (False, True)


def test_a_limit_of_the_mix_is_that_of_sources_that_set_none(tmp_path: Path, sources: dict[str, Any]) -> None:
    with open(sources["small"]["path"], "a") as file:
        file.write("\nno JSON")
    with pytest.raises(DataError, match=r"20.0%; data\.sources\.small\.max_bad_fraction allows 1\.0%"):
        open_split(mix(sources), "train", seed=0)
    assert len(open_split(mix(sources, max_bad_fraction=0.3), "train", seed=0).samples) == 16
    own = {**sources, "small": {**sources["small"], "max_bad_fraction": 0.05}}
    with pytest.raises(DataError, match=r"data\.sources\.small\.max_bad_fraction allows 5\.0%"):
        open_split(mix(own, max_bad_fraction=0.3), "train", seed=0)
    (tmp_path / "x.yaml").write_text(
        json.dumps({"data": {"kind": "mix", "sources": sources, "max_bad_fraction": "50%"}})
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "x.yaml")
    lines = [line for line in str(caught.value).splitlines() if "max_bad_fraction" in line]
    assert len(lines) == 1 and lines[0].endswith("write a number: 0.5 instead of 50%")


def test_what_a_mix_cannot_be(tmp_path: Path, sources: dict[str, Any]) -> None:
    for settings, message in (
        ({"weights": {"big": 1}}, "weights lacks small"),
        ({"weights": {"big": 1, "small": 0}}, "weights of small must be above 0"),
        ({"weights": {"big": 1, "small": 1, "x": 1}}, "weights names x"),
        ({"scored": ["none"]}, "scored names none"),
    ):
        with pytest.raises(ValueError, match=message):
            mix(sources, **settings)
    with pytest.raises(ValueError, match="name sources with letters"):
        mix({"a/b": sources["big"]})
    with pytest.raises(DataError, match="small2 has no split train; a mix trains on all of its sources"):
        open_split(
            mix({**sources, "small2": {**sources["big"], "splits": {"validation": "validation"}}}), "train", seed=0
        )
    gone = mix({name: {**source, "path": "/none.jsonl"} for name, source in sources.items()})
    with pytest.raises(DataError, match="(?s)data.sources.big, split train: .*data.sources.small, split train: "):
        open_split(gone, "train", seed=0)


def recipe_text(folder: Path, data: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"backbone: {{id: x}}\nadapter: {{kind: lora, parts: [vision]}}\ndata:\n{data}\ntask: {{kind: retrieval}}\n"
        "train: {length: 4 steps, batch: 4, learning_rate: 1e-3}\noutput: run\n"
    )
    return path


def test_mistakes_inside_a_source_are_found_where_they_stand(tmp_path: Path) -> None:
    data = (
        "  kind: mix\n  sources:\n    jsonl: {kind: jsonl, path: a.csv, splitt: {test: 5%}, caption: '{x'}\n"
        "    b: {kind: jsonll}\n    c: {kind: mix, sources: {}}\n    d: {kind: karpathy, images: x}\n"
        "    e: {kind: glyphs, seed: -1}"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_text(tmp_path, data))
    lines = [re.sub(r"^.*recipe.yaml", "", line) for line in str(caught.value).splitlines()]
    assert lines[0].startswith(":6: data.sources.jsonl.caption: '{x': a brace without its partner")
    assert ":6: data.sources.jsonl.splitt: is no key of this section; did you mean split?" in lines
    assert ":7: data.sources.b.kind: there is no kind jsonll; did you mean jsonl?" in str(caught.value)
    assert any(line.startswith(":8: data.sources.c.kind: there is no kind mix; ") for line in lines)
    assert any(line.startswith(":9: data.sources.d.path: is missing; write path") for line in lines)
    assert ":10: data.sources.e.seed: -1 must be at least 0" in lines


def test_folders_that_are_looked_at_later_do_not_stop_a_recipe(tmp_path: Path) -> None:
    data = "  kind: mix\n  sources: {a: {kind: image_folder, path: /none}, b: {kind: glyphs}}"
    recipe = load_recipe(recipe_text(tmp_path, data), ["data.sources.b.look=clean", "train.evaluate_every=2 steps"])
    assert recipe.data.sources["b"].look == "clean"
    assert recipe_from_json(resolved_json(recipe)) == recipe


def test_paths_of_sources_mean_where_the_run_was_started(tmp_path: Path, sources: dict[str, Any]) -> None:
    near = {name: {**one, "path": f"{name}.jsonl", "images": "pictures"} for name, one in sources.items()}
    web = {"kind": "webdataset", "path": {"train": "{00..12}.tar"}}
    (tmp_path / "00.tar").touch()
    data = "  " + json.dumps({"kind": "mix", "sources": {**near, "web": web}})
    moved = anchored(load_recipe(recipe_text(tmp_path, data)), tmp_path).data.sources
    assert moved["big"].path == str(tmp_path / "big.jsonl") and moved["small"].images == str(tmp_path / "pictures")
    assert moved["web"].path.train == str(tmp_path / "{00..12}.tar")


# --- training


def mixed_recipe(folder: Path, backbone: Path, sources: dict[str, Any], *overrides: str) -> Recipe:
    """Six steps an epoch: 12 + 12 items in batches of 4, with crops that draws decide."""
    augmented = {name: {**one, "augment": {"crop": 0.5}} for name, one in sources.items()}
    recipe = small_recipe(folder, backbone, *overrides)
    data = {"kind": "mix", "sources": augmented, "weights": {"big": 1, "small": 1}}
    return recipe_from_json({**resolved_json(recipe), "data": data})


def test_a_run_on_a_mix_goes_on_exactly(tmp_path: Path, tiny_clip_folder: Path, sources: dict[str, Any]) -> None:
    """Stopped in the middle of the second epoch (6 steps each), against one that was not stopped."""
    from mmtune.training_run import fit

    length = ("train.schedule=constant", "train.warmup=0 steps", "checkpoint.every=1 steps", "checkpoint.keep=9")
    losses = {}
    for name, parts in (("whole", ["9 steps"]), ("parts", ["7 steps", "9 steps"]), ("other", ["9 steps"])):
        for part in parts:
            seed = f"seed={2 if name == 'other' else 1}"
            changes = (*length, seed, f"train.length={part}", f"output={tmp_path / name}")
            run = fit(mixed_recipe(tmp_path, tiny_clip_folder, sources, *changes))
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["loss"] for row in rows if "loss" in row]
    assert len(losses["whole"]) == 9 and losses["whole"] == losses["parts"]
    assert losses["other"] != losses["whole"], "the order, the captions and the crops follow the seed"
