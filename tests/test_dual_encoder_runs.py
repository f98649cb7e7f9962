"""A pair of encoders from training to prediction: trained, gone on with, merged, and used without us."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import DrawnImage, backbone_of, samples
from small_runs import small_recipe
from test_hub_files import HubAnswers

from mmtune.backbones import Section, describe, load, pinned, tiny_folder
from mmtune.backbones._tiny_encoders import tiny_pair
from mmtune.evaluation_run import evaluate
from mmtune.export_run import merge
from mmtune.ground.errors import BackboneError, RecipeError
from mmtune.ground.safe_files import load_tensors, read_json
from mmtune.merge_building import fold, prove_all, write_folder
from mmtune.model_loading import load_base, load_model, resolve
from mmtune.predict_run import predict
from mmtune.recipe_schema import Recipe, recipe_from_json, resolved_json
from mmtune.training_run import fit

PROJECTIONS = {"visual_projection.weight", "text_projection.weight"}
COMMITS = {"someone/dino": "a" * 40, "someone/roberta": "b" * 40}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_pair("dinov2", "roberta", tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_pair("convnext", "bert", tmp_path_factory.mktemp("staged"))


def recipe_on(folder: Path, keys: dict[str, Any], steps: int = 4, **adapter: Any) -> Recipe:
    """The small recipe on a pair, with a checkpoint per step; ``adapter`` replaces keys of a lora, or with its kind
    all of it."""
    recipe = small_recipe(
        folder, Path("unused"), f"train.length={steps} steps", "train.schedule=constant", "train.warmup=0 steps"
    )
    lora = {"kind": "lora", "rank": 4, "alpha": 8, "parts": ["vision", "text"], "targets": ["attention", "mlp"]}
    values = resolved_json(recipe)
    values |= {"backbone": {"projection_dim": 16, **keys}, "checkpoint": {"every": "1 steps", "keep": 9}}
    values["adapter"] = adapter if "kind" in adapter else {**lora, **adapter}
    return recipe_from_json(values, "the small recipe")


@pytest.fixture(scope="module")
def run(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, interrupted after two."""
    folder = tmp_path_factory.mktemp("trained")
    whole = recipe_on(folder, pair)
    fit(recipe_on(folder, pair, steps=2))
    fit(whole)
    return Path(whole.output)


def test_a_run_goes_on_as_if_it_had_never_stopped(run: Path, pair: dict[str, str], tmp_path: Path) -> None:
    assert read_json(run / "manifest.json")["backbone"] | {"weight_hash": ""} == {
        "id": f"{pair['vision']} + {pair['text']}",
        "revision": None,
        "commit": None,
        "vision_commit": None,
        "text_commit": None,
        "weight_hash": "",
        "family": "dual_encoder",
        "auto_class": "AutoModel",
        "dtype": "float32",
        "quantize": None,
        "image_processor": "ViTImageProcessorPil",
    }
    straight = recipe_on(tmp_path, pair)
    fit(straight)
    for name in ("adapter/adapter_model.safetensors", "trained.safetensors", "temperature.safetensors"):
        one, two = (load_tensors(each / "checkpoints/step-000004" / name) for each in (run, Path(straight.output)))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), name


def test_what_was_drawn_is_trained_whole_and_kept_as_plain_tensors(run: Path, pair: dict[str, str]) -> None:
    base = load(Section(**pair, projection_dim=16)).model
    trained = load_tensors(run / "checkpoints/step-000004/trained.safetensors")
    assert trained.keys() == PROJECTIONS
    assert all(not torch.equal(trained[name], base.get_parameter(name)) for name in PROJECTIONS)


def test_a_run_is_scored_and_predicts(run: Path, tmp_path: Path) -> None:
    import numpy as np

    assert "text_to_image_recall@1" in json.dumps(evaluate(run, split="test", output=tmp_path / "scores"))
    (tmp_path / "texts.txt").write_text("a red line\nanother\n")
    written = predict(run, tmp_path / "texts.txt", output=tmp_path / "out.npy")
    rows = np.load(written.output)
    assert rows.shape == (2, 16) and abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6


def test_a_merged_pair_is_an_ordinary_model_with_an_ordinary_processor(run: Path, tmp_path: Path) -> None:
    import transformers as hf

    folder = merge(run, output=tmp_path / "merged")
    report = read_json(folder / "merge_report.json")
    assert report["reload"]["gap"] < 1e-5 and report["reload"]["difference_from_base"] > 1e-2
    assert report["backbone"]["id"] == "vision + text" and report["copied"] == {}
    mine = load_model(run)
    model = hf.VisionTextDualEncoderModel.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    assert isinstance(processor, hf.VisionTextDualEncoderProcessor)
    images = [DrawnImage(number).read() for number in range(3)]
    texts = ["a red line", "another one", "ox"]
    given = processor(images=images, text=texts, return_tensors="pt", padding=True, truncation=True)
    assert type(hf.AutoTokenizer.from_pretrained(folder)).__name__ == "RobertaTokenizer"
    assert "ViTImageProcessor" in type(hf.AutoImageProcessor.from_pretrained(folder)).__name__
    family = mine.family
    encoded = [
        {**family.encode_media(mine.processor, image), **family.encode_text(mine.processor, text)}
        for image, text in zip(images, texts, strict=True)
    ]
    batch = family.pad(mine.processor, encoded)
    assert all(torch.equal(given[name], batch[name]) for name in batch)
    with torch.no_grad():
        theirs = model(**given).logits_per_image
        image, text = family.embed_media(mine.model, batch), family.embed_text(mine.model, batch)
    torch.testing.assert_close(theirs, image @ text.T * mine.model.logit_scale.exp(), rtol=1e-4, atol=1e-4)
    again = backbone_of(folder)
    assert again.fresh == () and again.processor.tokenizer.model_max_length == 30


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4bit": ({"quantize": "4bit"}, {"targets": ["mlp"]}),
    "head_only": ({}, {"kind": "head_only", "parts": ["text"]}),
    "full": ({}, {"kind": "full", "parts": ["vision"]}),
    "whole": ({"vision": None, "text": None, "projection_dim": None}, {}),
}
"""Backbone and adapter, on a tower without a list of layers and without attention; the last on a form of one id."""


def test_other_ways_to_train_are_merged_too(staged: dict[str, str], tmp_path: Path) -> None:
    """Whatever is trained, what was drawn is; of an id nothing was drawn, and its own files are copied."""
    pytest.importorskip("bitsandbytes")
    whole = tiny_folder("dual_encoder", tmp_path / "model")
    merges = {}
    for name, (keys, adapter) in WAYS.items():
        own = {"id": str(whole)} if name == "whole" else {}
        recipe = recipe_on(tmp_path / name, {**staged, **keys, **own}, steps=1, **adapter)
        fit(recipe)
        folded = fold(resolve(recipe.output), samples(), scale=1.0, full=False, dtype="float32")
        assert (set(folded.trained) >= PROJECTIONS) == (name != "whole")
        (tmp_path / name / "merged").mkdir()
        copied = write_folder(folded, tmp_path / name / "merged")
        files = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
        assert set(copied) == (files if name == "whole" else set())
        assert files <= {path.name for path in (tmp_path / name / "merged").iterdir()}
        merges[name] = (folded, tmp_path / name / "merged")
    for report in prove_all(list(merges.values())):
        assert report["reload"]["gap"] <= 1e-5


def test_layers_and_attention_of_a_tower_that_has_none(staged: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="part 'vision' has no list of layers to choose from; write layers: all"):
        fit(recipe_on(tmp_path, staged, layers="last 1"))
    with pytest.raises(RecipeError, match="'attention' hits no linear layer of part 'vision'; there are pwconv1"):
        fit(recipe_on(tmp_path, staged))


# --- from the hub


class TwoRepositories(HubAnswers):
    """``someone/dino`` and ``someone/roberta``, each at its own commit; a branch can be moved."""

    folders: dict[str, Path]
    commits: dict[str, str]

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").removeprefix("api/models/")
        name = "/".join(path.split("/")[:2])
        if name not in self.folders:
            return self.answer(401, X_Error_Code="RepoNotFound")
        if "/tree/" in path:
            files = sorted(self.folders[name].iterdir())
            found = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.hash_of(file)}
                for file in files
            ]
            return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")
        file = self.folders[name] / path.rpartition("/")[2]
        revision = path.split("/")[3]
        commit = self.commits[name] if revision == "main" else revision
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        return self.answer(200, file.read_bytes(), X_Repo_Commit=commit, ETag=f'"{self.hash_of(file)}"')

    do_HEAD = do_GET


@pytest.fixture
def hub(pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real client of the hub against a server in this process; gives the answers, to be changed."""
    from huggingface_hub import constants

    served = {
        name: Path(shutil.copytree(pair[part], tmp_path / part)) for name, part in zip(COMMITS, pair, strict=True)
    }
    answers = type("Answers", (TwoRepositories,), {"folders": served, "commits": dict(COMMITS)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield answers
    server.shutdown()
    server.server_close()


def test_each_encoder_is_held_at_its_own_commit(hub: Any, pair: dict[str, str], tmp_path: Path) -> None:
    keys = {"vision": "someone/dino", "text": "someone/roberta"}
    recipe = recipe_on(tmp_path, keys, steps=1)
    fit(recipe)
    record = read_json(Path(recipe.output) / "manifest.json")["backbone"]
    assert record["id"] == "someone/dino + someone/roberta" and record["commit"] is None
    assert (record["vision_commit"], record["text_commit"]) == ("a" * 40, "b" * 40)
    assert record["weight_hash"] == load(Section(**pair, projection_dim=16)).weight_hash
    description = describe(Section(**keys))
    assert description.short_id == "someone/dino + someone/roberta"
    assert pinned(description) == Section(**keys, vision_revision="a" * 40, text_revision="b" * 40)
    hub.commits["someone/roberta"] = "c" * 40  # the branch moves on
    assert describe(Section(**keys)).commits["text_commit"] == "c" * 40
    target = resolve(recipe.output)
    assert load_base(target).description.commits["text_commit"] == "b" * 40
    fit(recipe_on(tmp_path, keys, steps=2))
    assert read_json(Path(recipe.output) / "manifest.json")["backbone"] == record


def test_config_json_is_asked_for_before_any_weight(hub: Any, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with pytest.raises(BackboneError, match="'someone/nobody' is neither a folder here nor a repository"):
        load(Section(vision="someone/dino", text="someone/nobody"))
    with pytest.raises(BackboneError, match="vision: 'roberta' is a text encoder"):
        load(Section(vision="someone/roberta", text="someone/roberta"))
    fetched = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*")}
    assert fetched == {"config.json"}
