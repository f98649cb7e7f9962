"""The card says what the run says, its metadata is valid for the hub, and what is unknown is said to be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import KINDS, LORA, embeddings, inputs_of, make_run
from huggingface_hub import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from ruamel.yaml import YAML

from mmtune.adapters._peft_warnings import old_names_allowed
from mmtune.backbones import tiny_folder
from mmtune.ground.errors import PushError
from mmtune.ground.kind_folder import kinds
from mmtune.loading_code import loading_code
from mmtune.model_card import MARKED, is_ours, is_unfilled, write_card
from mmtune.model_loading import load_model
from mmtune.public_base import Base, base_of_merge, find_base, read_licence
from mmtune.push_files import Package, PushFile, collect
from mmtune.push_run import push

METHODS: dict[str, dict[str, Any]] = {
    "ia3": {**LORA, "kind": "ia3"},
    "vera": {**LORA, "kind": "vera", "targets": ["q_proj"], "rank": 16},
    "oft": {**LORA, "kind": "oft", "oft_block_size": 8},
}
for each in (METHODS["ia3"], METHODS["oft"]):
    del each["rank"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPE: dict[str, Any] = {
    "backbone": {"id": "someone/clip", "revision": None},
    "adapter": {"kind": "lora", "rank": 4, "temperature": False},
    "data": {"kind": "jsonl", "path": "products.csv", "caption": "{title}: 'x' #1"},
    "output": "products",
    "seed": 7,
}
SCORES: dict[str, Any] = {
    "split": "test",
    "modality": "image",
    **{"samples": 1234, "images": 1200, "texts": 2400, "bad": 5},
    "base": {"text_to_image_recall@1": 0.25, "text_to_image_recall@5": 0.5},
    "tuned": {"text_to_image_recall@1": 0.375, "text_to_image_recall@5": 0.4996},
    "delta": {"text_to_image_recall@1": 0.125, "text_to_image_recall@5": -0.0004},
    "interval95": {"text_to_image_recall@1": [0.1, 0.1504], "text_to_image_recall@5": None},
    "bootstrap": {"resamples": 2000, "method": "a bootstrap"},
    "checkpoint": "step-000120",
}
MANIFEST: dict[str, Any] = {
    "adapter": "lora",
    "steps": 1200,
    "seconds": 61.4,
    "data": {"train_items": 20000, "samples_trained": 153600, "captions_cut": 31, "bad": 12},
    "trainable": {"count": 294912, "share": 0.002},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}


def package(**changes: Any) -> Package:
    """An adapter of a run on a hub backbone; nothing lies on the disk."""
    made = Package("adapter", Path("x"), Path("x/README.md"), Base("someone/clip", COMMIT), family="clip")
    made.files = [PushFile("adapter_model.safetensors", Path("x/a"))]
    made.recipe, made.manifest, made.scores, made.checkpoint = RECIPE, MANIFEST, SCORES, "step-000120"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def metadata(card: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "README.md").write_text(card)
    data = metadata_load(tmp_path / "README.md")
    assert isinstance(data, dict)
    return data


def test_the_metadata_is_what_the_hub_reads(tmp_path: Path) -> None:
    card = write_card(package(), "me/products", {"license": "other", "license_name": "x", "license_link": "LICENSE"})
    data = metadata(card, tmp_path)
    assert data["base_model"] == "someone/clip" and data["base_model_relation"] == "adapter"
    assert (data["license"], data["license_name"]) == ("other", "x") and "Licence: x, as" in card
    assert data["library_name"] == "peft" and data["pipeline_tag"] == "zero-shot-image-classification"
    assert {"mmtune", "clip", "lora"} <= set(data["tags"])
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "products"
    assert {each.metric_type: each.metric_value for each in results} == SCORES["tuned"]
    assert {(each.dataset_name, each.dataset_split) for each in results} == {("jsonl: products.csv", "test")}


def test_the_text_is_the_runs(tmp_path: Path) -> None:
    card = write_card(package(), "me/products", {})
    for words in (
        "| text_to_image_recall@1 | 0.250 | 0.375 | +0.125 | +0.100 to +0.150 |",
        "| text_to_image_recall@5 | 0.500 | 0.500 | -0.000 | - |",
        "1,234 samples, 1,200 images, 2,400 texts; 5 left out",
        "20,000 items",
        "while training: 12",
        "Seed 7, checkpoint step-000120, of a run of 1,200 steps in 61 s, 294,912 trained parameters (0.20% of",
        "torch 2.13.0",
        "Licence: unknown",
    ):
        assert words in card
    assert "license" not in metadata(card, tmp_path), "never invented"
    recipe = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert recipe is not None and YAML(typ="safe").load(recipe[1]) == RECIPE
    assert "temperature (scale" not in card and "Not measured: other domains, other languages" in card
    warm = {**RECIPE, "adapter": {"kind": "lora", "temperature": True}}
    assert "temperature (scale" in write_card(package(recipe=warm), "me/products", {})


def test_data_of_the_hub_is_named_as_there(tmp_path: Path) -> None:
    (tmp_path / "saved" / "set").mkdir(parents=True)
    for name, notes, expected in [
        ("someone/pairs", {}, "someone/pairs"),
        ("someone/pairs", {"notes": [f"data: someone/pairs at commit {COMMIT}"]}, "someone/pairs"),
        ("saved/gone", {"notes": ["data: saved/gone"]}, "private"),
        ("saved/set", {}, "private"),
        ("./saved", {}, "private"),
    ]:
        recipe = {**RECIPE, "data": {"kind": "hub", "id": name}}
        facts = {**MANIFEST["data"], **notes}
        made = package(recipe=recipe, manifest={**MANIFEST, "data": facts, "started_in": str(tmp_path)})
        results = model_index_to_eval_results(metadata(write_card(made, "me/x", {}), tmp_path)["model-index"])[1]
        assert {each.dataset_type for each in results} == {expected}


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    bare = package(recipe=None, manifest={}, scores=None, family=None, checkpoint=None)
    card = write_card(bare, "me/products", {})
    data = metadata(card, tmp_path)
    assert "model-index" not in data and data["pipeline_tag"] == "feature-extraction"
    assert "None were measured" in card and "Not measured: any score" in card
    assert "## Data" not in card and "## Training" not in card
    nameless = package(kind="model", base=Base(), files=[PushFile("model.safetensors", Path("x"))])
    card = write_card(nameless, "me/products", {})
    data = metadata(card, tmp_path)
    assert "base_model" not in data and data["library_name"] == "transformers"
    assert "A base model without a public name" in card
    pair = package(kind="model", base=Base(pair=("a/vit", "b/bert")), family="dual_encoder")
    data = metadata(write_card(pair, "me/products", {}), tmp_path)
    assert data["base_model"] == ["a/vit", "b/bert"] and data["pipeline_tag"] == "feature-extraction"


def test_quantized_training_is_told() -> None:
    base = Base("someone/clip", COMMIT, quantize="4bit")
    assert "trained, and scored, on the base in 4bit" in write_card(package(base=base), "me/x", {})
    changed = {"trained_in": "4bit", "merged_into": "dequantized weights", "change_of_scores": {"a": -0.02, "b": 0.01}}
    card = write_card(package(kind="model", base=base, report={"quantized": changed}), "me/x", {})
    assert "merged into its dequantized weights" in card and "by more than 0.020" in card


def test_the_code_fits_what_goes() -> None:
    plain = [PushFile("trained.safetensors", Path("x")), PushFile("temperature.safetensors", Path("x"))]
    code = loading_code(package(files=plain), "me/x")
    assert "peft" not in code and code.count("load_state_dict") == 2 and code.endswith("model = base.eval()\n")
    remote = package(base=Base("someone/clip", COMMIT, trust_remote_code=True), family="blip")
    code = loading_code(remote, "me/x")
    assert code.count(f'revision="{COMMIT}", trust_remote_code=True') == 2
    assert "BlipForImageTextRetrieval.from_pretrained" in code
    for made in (package(files=plain), remote, package(kind="model")):
        compile(loading_code(made, "me/x"), "card", "exec")


def test_a_card_knows_whether_it_was_changed() -> None:
    card = write_card(package(), "me/products", {})
    assert is_ours(card) and is_ours(card.replace("\n", "\r\n")) and is_ours(card + "\n\n")
    assert not is_ours(card.replace("Limits", "Bounds")) and not is_ours(MARKED.sub("", card)) and not is_ours("")
    assert not is_ours(card + "one more line\n")
    template = "# Model Card for Model ID\n" + "[More Information Needed]\n" * 20
    assert is_unfilled(template) and not is_ours(template) and not is_unfilled(card)


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: other\nlicense_name: own", {"license": "other", "license_name": "own"}),
        ("license: 7", {}),
        ("tags: [a", {}),
        ("tags: [a]", {}),
    ],
)
def test_the_licence_is_the_bases_own(tmp_path: Path, front: str, found: dict[str, str]) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Base\n")
    assert read_licence(Base(folder=tmp_path), online=False) == found
    assert read_licence(Base("someone/clip", folder=tmp_path / "none"), online=False) == {}


def test_public_names_of_bases(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some-one--my--clip" / "snapshots" / COMMIT
    (tmp_path / "local").mkdir()
    snapshot.mkdir(parents=True)

    def named(known: str, given: str | None = None) -> tuple[str | None, str | None]:
        base = find_base(known, "rev", given, tmp_path)
        return base.id, base.revision

    assert named("someone/clip") == ("someone/clip", "rev")
    assert named("builtin:glyph-clip") == ("builtin:glyph-clip", None)
    assert named(str(snapshot)) == ("some-one/my--clip", COMMIT)
    for local in (str(tmp_path / "local"), "local", "./gone", "/gone/clip", "~/gone", "a/b/c"):
        assert named(local) == (None, None), local
    assert named("local", "me/clip") == ("me/clip", None)
    record: dict[str, Any] = {"id": "clip", "commit": None}
    assert base_of_merge(record, None, None, tmp_path).id is None, "a folder's last name is no public name"
    assert base_of_merge({**record, "id": "a/clip", "commit": COMMIT}, None, None, tmp_path).revision == COMMIT
    pair = {**record, "id": "a/vit + bert", "vision_commit": COMMIT, "text_commit": None}
    assert base_of_merge(pair, None, None, tmp_path).pair == ("a/vit",)


def run_by_card(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, base: Path | None = None) -> Any:
    """The model that the code of the card makes of what would be sent, with the base read from a folder."""
    sent = folder / "sent"
    sent.mkdir()
    package = collect(run, sent, "someone/clip" if base else None)
    for file in package.files:
        (sent / file.name).write_bytes(file.path.read_bytes())
    code = loading_code(package, "me/x")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: str(sent / name))
    names: dict[str, Any] = {}
    with old_names_allowed():
        exec(code.replace('"me/x"', repr(str(sent))).replace('"someone/clip"', repr(str(base))), names)
    return names["model"].get_base_model() if "PeftModel" in code else names["model"]


@pytest.mark.parametrize("kind", KINDS | METHODS)
def test_every_adapter_loads_by_its_card(
    kind: str, tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", {"id": str(tiny_clip_folder)}, (KINDS | METHODS)[kind])
    expected = load_model(run)
    inputs = inputs_of(expected)
    wanted, scale = embeddings(expected, inputs), expected.model.logit_scale.item()
    expected.model = run_by_card(run, tmp_path, monkeypatch, tiny_clip_folder)
    assert torch.allclose(embeddings(expected, inputs), wanted, atol=1e-6)  # float32, the same order of sums
    assert expected.model.logit_scale.item() == scale
    assert not torch.allclose(embeddings(load_model(str(tiny_clip_folder)), inputs), wanted, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(kinds("backbones")) - {"clip", "dual_encoder"}))
def test_an_adapter_of_every_family_loads_by_its_card(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLIP's and BLIP-2's classes have no temperature of their own to put the trained one into."""
    base = tiny_folder(family, tmp_path / "base")
    parts = [part for part in kinds("backbones")[family].FAMILY.parts if (family, part) != ("align", "vision")]
    run = make_run(tmp_path / "run", {"id": str(base)}, {**LORA, "parts": parts})
    expected = load_model(run).model.state_dict()
    found = run_by_card(run, tmp_path, monkeypatch, base).state_dict()
    plain = {name for name in found if "lora_" not in name}
    assert plain <= set(expected) and all(torch.equal(found[name], expected[name]) for name in plain)
    adapter = [(value, expected[name]) for name, value in found.items() if ".lora_B." in name]
    assert adapter and all(value.any() and value.equal(wanted) for value, wanted in adapter)


def test_a_run_on_the_builtin_backbone_loads_by_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", {"id": "builtin:glyph-clip"}, LORA)
    report = push(run, "me/glyphs", dry_run=True)
    assert report.card is not None and 'mmtune.load("builtin:glyph-clip")' in report.card.read_text()
    assert "base_model" not in metadata(report.card.read_text(), tmp_path), "it is no repository of the hub"
    expected = load_model(run)
    inputs = inputs_of(expected)
    wanted = embeddings(expected, inputs)
    expected.model = run_by_card(run, tmp_path, monkeypatch)
    assert embeddings(expected, inputs).equal(wanted)
    config = json.loads((tmp_path / "sent" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "builtin:glyph-clip"


@pytest.mark.parametrize("family", kinds("backbones"))
def test_a_merged_model_of_every_family_loads_by_its_card(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path / family)
    names: dict[str, Any] = {}
    exec(loading_code(Package("model", folder, folder / "README.md", Base(), family=family), str(folder)), names)
    assert names["model"].config.model_type in kinds("backbones")[family].FAMILY.model_types
    assert names["processor"].tokenizer is not None


def test_a_merged_folder_of_a_local_base_goes_nameless(tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    backbone = {"id": "mine", "commit": None, "family": "clip", "dtype": "float32", "quantize": None}
    report = {"backbone": backbone, "merged": {"run": None, "folder": "a", "sha256": {}}, "scale": 1.0}
    (merged / "merge_report.json").write_text(json.dumps(report))
    (merged / "config.json").write_text("{}")
    with pytest.raises(PushError, match="lacks model.safetensors: merge again"):
        push(merged, "me/x", dry_run=True)
    header = b'{"__metadata__": {"format": "pt"}}'
    weights = len(header).to_bytes(8, "little") + header
    (merged / "model-00001-of-00002.safetensors").write_bytes(weights)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (merged / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PushError, match="lacks model-00002-of-00002.safetensors: merge again"):
        push(merged, "me/x", dry_run=True)
    (merged / "model-00002-of-00002.safetensors").write_bytes(weights)
    said = str(push(merged, "me/x", dry_run=True))
    assert "model-00002-of-00002.safetensors" in said and "names no base model" in said
    (merged / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Own"}}')
    with pytest.raises(PushError, match="names Python code"):
        push(merged, "me/x", dry_run=True)
