"""Sounds from recipe to merged model, on CLAP's tiny twin: the same guarantees as for images, under names of sounds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sound_files import sound_recipe, tone, write_sounds, write_wav

import mmtune
from mmtune import train_loop
from mmtune.backbones import Section, describe, load, tiny_folder
from mmtune.ground.errors import DataError, RecipeError
from mmtune.preflight_run import check
from mmtune.recipe_schema import Recipe, load_recipe
from mmtune.run_setup import refuse_misfit

SCORES = [f"{way}_{key}" for way in ("text_to_audio", "audio_to_text") for key in ("recall@1", "recall@5", "recall@10")]

TOLERANCE = 1e-5
"""Largest difference between two float32 computations of one model on embeddings of length 1."""


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("clap", tmp_path_factory.mktemp("backbones") / "clap")


def damage(folder: Path) -> None:
    """One file that its header shows to be bad, and one that only decoding does; both in the training split."""
    whole = (folder / "sounds" / "0.wav").read_bytes()
    (folder / "sounds" / "0.wav").write_bytes(whole[:-1000])
    loud = np.full(4000, 0.1, dtype=np.float32)
    loud[7] = np.nan
    import soundfile

    soundfile.write(folder / "sounds" / "5.wav", loud, 8000, subtype="FLOAT")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clap_folder: Path) -> tuple[Path, Recipe]:
    """Sounds, two of them damaged, and a finished run on them."""
    folder = tmp_path_factory.mktemp("sounds")
    write_sounds(folder)
    damage(folder)
    recipe = made_recipe(folder, clap_folder, "run")
    mmtune.fit(recipe)
    return folder, recipe


def made_recipe(folder: Path, backbone: Path, run: str, **train: Any) -> Recipe:
    data = {"max_bad_fraction": 0.2}
    train = {"length": "6 steps", "evaluate_every": "3 steps", **train}
    return sound_recipe(folder, backbone, f"output={folder / run}", data=data, train=train)


def trained_files(run: Path) -> dict[str, Any]:
    last = sorted((run / "checkpoints").iterdir())[-1]
    return {
        f"{path.stem}/{name}": value
        for path in last.rglob("*.safetensors")
        if path.stem != "rng"
        for name, value in load_file(path).items()
    }


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_a_run_scores_sounds_by_their_names(world: tuple[Path, Recipe]) -> None:
    folder, recipe = world
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert list(manifest["validation"]) == ["text_to_audio_recall@1"] and recipe.train.best is None
    assert manifest["backbone"]["feature_extractor"] == "ClapFeatureExtractor"
    result = mmtune.score(folder / "run")
    assert (result["modality"], result["sounds"], result["texts"], result["bad"]) == ("audio", 6, 12, 0)
    assert set(SCORES) < set(result["tuned"]) and not any("image" in name for name in result["tuned"])
    assert result["tuned"] != result["base"] and "shared sound" in result["bootstrap"]["method"]
    rows = [json.loads(line) for line in (folder / "run" / "ranks.jsonl").read_text().splitlines()]
    assert {row["direction"] for row in rows} == {"text_to_audio", "audio_to_text"} and len(rows) == 18
    assert {"scores.json", "retrievals.png", "curves.png"} <= {Path(name).name for name in result["files"]}


def test_bad_sounds_are_quarantined_with_file_and_reason(world: tuple[Path, Recipe]) -> None:
    folder, _ = world
    rows = [json.loads(line) for line in (folder / "run" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {Path(row["where"]).name: row["reason"] for row in rows}
    assert reasons["0.wav"] == "cut short: the last 1,000 bytes that its header promises are not there"
    assert reasons["5.wav"] == "not finite: the samples hold NaN or infinity" and len(rows) == 2


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_killed_run_goes_on_bit_for_bit(
    world: tuple[Path, Recipe], clap_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = world
    recipe = made_recipe(folder, clap_folder, "killed")
    real = train_loop.take_step

    def dying(trainer: Any, steps: Any) -> Any:
        if trainer.state.step == 5:
            raise Killed
        return real(trainer, steps)

    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "take_step", dying)
        with pytest.raises(Killed):
            mmtune.fit(recipe)
    mmtune.fit(recipe)
    whole, resumed = trained_files(folder / "run"), trained_files(folder / "killed")
    assert whole.keys() == resumed.keys() and all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert losses(folder / "run") == losses(folder / "killed")
    other = made_recipe(folder, clap_folder, "other").model_copy(update={"seed": 2})
    mmtune.fit(other)
    assert losses(folder / "other") != losses(folder / "run")


def test_epochs_hear_other_windows_of_long_sounds_and_workers_change_none(
    world: tuple[Path, Recipe], clap_folder: Path
) -> None:
    from mmtune.batch_building import EncodedPairs, Layout, open_loader
    from mmtune.ground.kind_folder import kind
    from mmtune.train_data import open_checked

    _, recipe = world
    backbone = load(Section(id=str(clap_folder)))
    samples = open_checked(recipe, "train").samples
    pairs = EncodedPairs(
        samples, kind("tasks", recipe.task), backbone.family, backbone.processor, recipe.data, recipe.seed, 32
    )
    place = {sample.id: item for item, sample in enumerate(samples)}

    def shown(name: str, epoch: int) -> np.ndarray:
        item: Any = pairs[epoch, place[name]]
        pixels: np.ndarray = item.inputs["input_features"].numpy()
        return pixels

    assert all(np.array_equal(shown(name, 0), shown(name, 1)) for name in ("4.wav", "8.wav")), "heard as a whole"
    assert not np.array_equal(shown("9.wav", 0), shown("9.wav", 1))
    assert np.array_equal(shown("9.wav", 0), shown("9.wav", 0))
    layout = Layout(len(pairs), 4, 4, 1, recipe.seed)
    here, there = (
        [batch.inputs for batch in open_loader(pairs, layout, rank=0, first_step=0, last_step=4, workers=workers)]
        for workers in (0, 2)
    )
    assert all(bool((a[name] == b[name]).all()) for a, b in zip(here, there, strict=True) for name in a)


def test_a_merged_model_embeds_as_the_adapted_one_in_a_fresh_process(world: tuple[Path, Recipe]) -> None:
    folder, _ = world
    merged = mmtune.merge(folder / "run", output=folder / "merged")
    report = json.loads((merged / "merge_report.json").read_text())
    assert report["samples"] == {"from": "jsonl, split test", "count": 6}
    assert report["reload"]["gap"] <= TOLERANCE < report["reload"]["difference_from_base"]
    assert report["tensors"]["changed"] == report["tensors"]["trained"] > 0
    assert {"preprocessor_config.json", "processor_config.json"} & set(report["copied"])


def test_predict_embeds_a_folder_of_sounds(world: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, _ = world
    sounds = tmp_path / "clips"
    shutil.copytree(folder / "sounds", sounds / "inner")
    (sounds / "notes.txt").write_text("no sound")
    (sounds / "film.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    write_wav(sounds / "stereo.wav", np.stack([tone(1, 0.3, 22_050)] * 2, axis=1), 22_050)
    made = mmtune.predict(folder / "run", sounds, output=tmp_path / "x.npy", batch=4)
    ids, rows = json.loads(made.ids.read_text()), np.load(made.output)
    assert len(ids) == len(rows) == 23 and "stereo.wav" in ids and "inner/1.wav" in ids
    bad = {Path(item.where).name: item.reason.split(":")[0] for item in made.bad}
    assert bad == {"0.wav": "cut short", "5.wav": "not finite", "film.m4a": "not an allowed format"}
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < TOLERANCE
    texts = mmtune.predict(folder / "run", folder / "sounds.jsonl", kind="text", column="audio", output=tmp_path / "t")
    assert np.load(texts.output).shape == (24, 16)
    table = mmtune.predict(
        folder / "run", folder / "sounds.jsonl", kind="audio", images=folder / "sounds", output=tmp_path / "a"
    )
    table_rows = dict(zip(json.loads(table.ids.read_text()), np.load(table.output), strict=True))
    assert np.abs(table_rows["1.wav"] - rows[ids.index("inner/1.wav")]).max() < TOLERANCE


def test_predict_refuses_what_the_family_does_not_embed(
    world: tuple[Path, Recipe], tiny_clip_folder: Path, clap_folder: Path, tmp_path: Path
) -> None:
    folder, _ = world
    with pytest.raises(DataError, match="holds images, and family clap embeds sounds and texts"):
        from PIL import Image

        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        mmtune.predict(clap_folder, tmp_path, kind="image", output=tmp_path / "x")
    with pytest.raises(DataError, match=r"nothing to embed, 0 bad \(looked for sounds\)"):
        mmtune.predict(clap_folder, tmp_path, output=tmp_path / "x")
    with pytest.raises(DataError, match="holds sounds, and family clip embeds images and texts"):
        mmtune.predict(
            tiny_clip_folder, folder / "sounds.jsonl", kind="audio", images=folder / "sounds", output=tmp_path / "x"
        )


def test_sounds_for_images_are_refused_before_anything_is_loaded(
    world: tuple[Path, Recipe], tiny_clip_folder: Path, clap_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, recipe = world
    refuse_misfit(recipe)
    wrong = sound_recipe(folder, tiny_clip_folder, adapter={"parts": ["vision"]})
    with pytest.raises(RecipeError, match="data: holds sounds, and family clip matches images with text") as caught:
        refuse_misfit(wrong)
    assert "families: clap" in str(caught.value)
    glyphs = recipe.model_copy(update={"data": load_data("glyphs", folder)})
    with pytest.raises(RecipeError, match="data: holds images, and family clap matches sounds with text: name them"):
        refuse_misfit(glyphs)
    assert check(folder / "recipe.yaml") == 2
    assert "data: holds sounds, and family clip matches images" in capsys.readouterr().err
    made_recipe(folder, clap_folder, "new")
    assert check(folder / "recipe.yaml") == 0
    shown = capsys.readouterr().out
    assert "sounds" in shown and "images" not in shown and "audio 2 layers" in shown


def load_data(kind: str, folder: Path) -> Any:
    path = folder / "glyphs.yaml"
    path.write_text(
        "backbone: {id: builtin:glyph-clip}\nadapter: {kind: head_only, parts: [vision]}\n"
        f"data: {{kind: {kind}}}\ntask: {{kind: retrieval}}\noutput: x\n"
        "train: {length: 1 steps, batch: 2, learning_rate: 1e-3}\n"
    )
    return load_recipe(path).data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.image=picture"], "image names images and sounds names sounds; keep one of them"),
        (["data.augment={flip: true}"], "augment changes images, and these are sounds: leave it out"),
        (
            ["train.best=text_to_image_recall@1", "train.evaluate_every=1 epochs"],
            "there is no score 'text_to_image_recall@1'; did you mean text_to_audio_recall@1",
        ),
        (["train.best=audio_to_text_mrr"], "chooses among validation scores, and none are made"),
    ],
)
def test_recipes_of_sounds_that_make_no_sense(
    tmp_path: Path, clap_folder: Path, overrides: list[str], message: str
) -> None:
    write_sounds(tmp_path, 4)
    sound_recipe(tmp_path, clap_folder, "train.best=audio_to_text_mrr", "train.evaluate_every=1 epochs")
    with pytest.raises(RecipeError) as caught:
        sound_recipe(tmp_path, clap_folder, *overrides)
    assert message in str(caught.value)


def test_a_resolved_recipe_is_read_back(world: tuple[Path, Recipe]) -> None:
    from mmtune.recipe_schema import recipe_from_json, resolved_json

    _, recipe = world
    again = recipe_from_json(resolved_json(recipe))
    assert again == recipe and again.data.modality == "audio" and describe(again.backbone).traits.modality == "audio"
