"""`push` of models that say something: class, pipeline and scores of the card, and its code as it stands."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import local_hub
import pytest
import torch
from adapter_examples import LORA, backbone_of, make_run
from huggingface_hub import ModelCard
from push_world import scored

from mmtune import merge, merge_proof
from mmtune.backbones import Backbone, tiny_folder
from mmtune.merge_proof import encode_samples
from mmtune.model_loading import load_model
from mmtune.push_run import push
from mmtune.train_data import open_checked

BASE, CLASS = "someone/tiny-blip", "BlipForConditionalGeneration"
SCORES = ["wer", "cider_d", "exact_match"]
TASK = {"kind": "captioning", "max_new_tokens": 6, "scores": SCORES}
EQUAL = 1e-5
"""Share of the range of the logits: the same float32 arithmetic, with the adapter beside the weights or in them."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scored captioning run with its merged folder, on a base of the hub, where both were pushed to."""
    folder = tmp_path_factory.mktemp("captions")

    def reload_here(cases: list[merge_proof.Case], scratch: Path) -> list[Any]:
        return [merge_proof.embed(backbone_of(case.folder), case.inputs) for case in cases]

    with local_hub.serve() as hub, pytest.MonkeyPatch.context() as patch:
        local_hub.use(hub, folder / "cache", patch)
        hub.add_folder(BASE, tiny_folder("blip", folder / "tiny", architecture=CLASS))
        made = scored(make_run(folder / "captions", {"id": BASE}, LORA, TASK))
        patch.setattr(merge_proof, "reload_elsewhere", reload_here)  # the proof itself has tests of its own
        merge(made)
        push(made, "me/adapter")
        push(made / "merged", "me/merged")
        yield made


@pytest.fixture
def cards(run: Path) -> dict[str, ModelCard]:
    return {name: ModelCard.load(f"me/{name}") for name in ("adapter", "merged")}


def test_the_cards_say_what_it_is_for(cards: dict[str, ModelCard]) -> None:
    for name, card in cards.items():
        data = card.data
        assert (data.pipeline_tag, data.base_model) == ("image-to-text", BASE), name
        assert {"mmtune", "blip", "captioning"} <= set(data.tags)
        assert {result.metric_type for result in data.eval_results} == set(SCORES)
        assert {result.task_type for result in data.eval_results} == {"image-to-text"}
        for score in SCORES:
            assert re.search(rf"^\| {score} \| [\d.]+ \| [\d.]+ \| [+-][\d.]+ \| ", card.text, re.MULTILINE), score
        told = card.text.partition("## Training")[0].lower()  # after that the recipe stands, with every default
        assert not [word for word in ("texts;", "temperature", "text tower", "embeddings") if word in told]


def test_the_code_of_the_cards_gives_the_model(cards: dict[str, ModelCard], run: Path) -> None:
    ours, base = load_model(run), load_model(BASE)
    inputs = encode_samples(ours, open_checked(load_recipe_of(run), "test").samples[:4])
    wanted, untouched = merge_proof.embed(ours, inputs), merge_proof.embed(base, inputs)
    for name, card in cards.items():
        (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
        assert f"import {CLASS}, AutoProcessor" in code and "temperature" not in code
        names: dict[str, Any] = {}
        with warnings.catch_warnings(action="ignore"):  # of peft about transformers
            exec(code, names)
        model = names["model"].merge_and_unload() if name == "adapter" else names["model"]
        assert type(model).__name__ == CLASS and type(names["processor"]) is type(ours.processor)
        found = merge_proof.embed(Backbone(**{**vars(ours), "model": model}), inputs)
        assert merge_proof.gap(found, wanted) < EQUAL < 1e-3 < merge_proof.gap(found, untouched), name
        assert torch.isfinite(found["logits"]).all()


def load_recipe_of(run: Path) -> Any:
    from mmtune import load_recipe

    return load_recipe(run / "recipe.resolved.json")
