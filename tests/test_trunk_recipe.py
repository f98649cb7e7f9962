"""What a recipe says of the trunk cache: contradictions are named, and a run goes on with another place for it."""

from pathlib import Path

import pytest
from small_runs import small_recipe

import mmtune
from mmtune.ground.errors import RecipeError
from mmtune.preflight_run import check
from mmtune.recipe_schema import TrunkCacheSection
from mmtune.run_folder import differing_keys


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.trunk_cache={mode: memory, folder: x}", "train.trunk_cache.folder: states are kept in memory, so no"),
        ("train.trunk_cache={mode: off, folder: x}", "train.trunk_cache.folder: none are kept, so no folder is used"),
        ("data.augment={views: 3}", "data.augment.views: there is nothing to change, so all views are alike; write"),
        ("train.trunk_cache={limit_gb: 0}", "train.trunk_cache"),
        ("train.trunk_cache=fast", "train.trunk_cache"),
    ],
)
def test_contradictions(tmp_path: Path, tiny_clip_folder: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        small_recipe(tmp_path, tiny_clip_folder, override)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.trunk_cache={mode: disk, folder: x}",
        "train.trunk_cache={mode: memory}",
        "data.augment={views: 3, flip: true}",
    ],
)
def test_what_contradicts_nothing(tmp_path: Path, tiny_clip_folder: Path, override: str) -> None:
    assert small_recipe(tmp_path, tiny_clip_folder, override)


def test_views_of_one_source_of_a_mix(tmp_path: Path, tiny_clip_folder: Path) -> None:
    table = str(tmp_path / "pairs.jsonl")
    source = f"{{kind: jsonl, path: {table}, images: {tmp_path / 'images'}, AUGMENT split: {{validation: 20%}}}}"
    sources = {"a": source.replace("AUGMENT", "augment: {views: 2},"), "b": source.replace("AUGMENT", "")}
    mix = f"data={{kind: mix, sources: {{a: {sources['a']}, b: {sources['b']}}}}}"
    with pytest.raises(RecipeError, match=r"data\.sources\.a\.augment\.views: there is nothing to change"):
        small_recipe(tmp_path, tiny_clip_folder, mix)


def test_a_file_in_the_place_of_the_folder_is_said_beforehand(
    tmp_path: Path, tiny_clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_recipe(tmp_path, tiny_clip_folder)
    (tmp_path / "file").write_text("mine")
    assert check(tmp_path / "recipe.yaml", [f"train.trunk_cache={{folder: {tmp_path / 'file'}}}"]) == 0
    err = capsys.readouterr().err
    assert f"train.trunk_cache: {tmp_path / 'file'} is no folder: nothing can be kept there" in err
    assert check(tmp_path / "recipe.yaml") == 0 and "is no folder" not in capsys.readouterr().err


def test_a_run_goes_on_with_another_place_and_not_with_another_format(tmp_path: Path, tiny_clip_folder: Path) -> None:
    run = mmtune.fit(small_recipe(tmp_path, tiny_clip_folder, "train.trunk_cache=off"))
    cache = f"train.trunk_cache={{mode: disk, folder: {tmp_path / 'kept'}}}"
    mmtune.fit(small_recipe(tmp_path, tiny_clip_folder, cache))
    log = (run / "run.log").read_text()
    assert f"{run} is finished: nothing to do" in log
    mmtune.fit(small_recipe(tmp_path, tiny_clip_folder, cache, "train.length=6 steps"))
    assert "train.length changed from 4 steps to 6 steps" in (run / "run.log").read_text()
    with pytest.raises(RecipeError, match=r"these keys differ:\n  train\.trunk_cache\.dtype\n"):
        mmtune.fit(
            small_recipe(tmp_path, tiny_clip_folder, "train.trunk_cache={dtype: float16}", "train.length=6 steps")
        )


def test_which_keys_of_the_cache_differ() -> None:
    whole = TrunkCacheSection(mode="disk", folder="here", limit_gb=3).model_dump()
    other = {**whole, "folder": "there", "limit_gb": 5, "mode": "auto"}
    half = {**whole, "dtype": "float16"}

    def differing(before: object, after: object) -> set[str]:
        return differing_keys({"train": {"trunk_cache": before}}, {"train": {"trunk_cache": after}})

    assert not differing("auto", "off") and not differing(None, "auto") and not differing("off", whole)
    assert not differing(whole, other) and not differing(whole, "memory")
    for pair in ((whole, half), (half, whole), ("auto", half), (half, "auto"), (None, half)):
        assert differing(*pair) == {"train.trunk_cache.dtype"}
    assert differing_keys({"train": {"length": 1}}, {"train": {"length": 2}}) == {"train.length"}
