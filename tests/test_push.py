"""`push` over real HTTP: what goes, what the hub then holds, and that it loads from there in a fresh process."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import local_hub
import pytest
import torch
from adapter_examples import inputs_of
from push_world import BASE, PLACES, World, change_json, make_world, plant, run_of_kind, secret_of
from safetensors.torch import load_file, save_file

from mmtune import load_recipe, merge_proof, score
from mmtune.ground.errors import PushError
from mmtune.merge_building import RUN_NOTE, note_run
from mmtune.model_loading import load_model
from mmtune.push_run import push

ADAPTER = {"README.md", "adapter_config.json", "adapter_model.safetensors", "scores.json", "temperature.safetensors"}
MODEL = {
    *("README.md", "config.json", "model.safetensors", "merge_report.json", "scores.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
}
EQUAL = 1e-6
"""Share of the range: the same float32 arithmetic in another process."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Iterator[World]:
    yield from make_world(tmp_path_factory.mktemp("world"), tiny_clip_folder)


@pytest.fixture
def hub(world: World) -> Iterator[local_hub.Hub]:
    """The world's hub, with nothing in it but the base."""
    world.hub.repositories = {BASE: world.hub.repositories[BASE]}
    world.hub.large, world.hub.log, world.hub.faults, world.hub.created = {}, [], {}, []
    yield world.hub


def names(hub: local_hub.Hub, repo_id: str) -> set[str]:
    return set(hub.repositories[repo_id].files) - {".gitattributes"}


def test_only_files_of_the_list_go_and_they_go_in_one_commit(world: World, hub: local_hub.Hub, tmp_path: Path) -> None:
    run = world.copy(tmp_path)
    step = run / "checkpoints" / "step-000001"
    for folder in (run, step, step / "adapter", run / "merged"):
        for name in (".env", "run.log", "quarantine.jsonl", "notes.json", "training_args.bin"):
            (folder / name).write_text("A=1")
    report = push(run, "me/products")
    assert names(hub, "me/products") == ADAPTER == {name for name, _ in report.files}
    push(run / "merged", "me/merged")
    assert names(hub, "me/merged") == MODEL
    for repo_id in ("me/products", "me/merged"):
        assert len(hub.repositories[repo_id].commits) == 2, "one besides the empty first one"
    assert {"optimizer.safetensors", "state.json", ".env"} <= set(report.left)
    sent = hub.repositories["me/products"].files
    config = json.loads(sent["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, world.base_commit)
    assert sent["adapter_model.safetensors"] == (step / "adapter" / "adapter_model.safetensors").read_bytes()
    everything = b"".join(data for each in hub.repositories.values() for data in each.files.values())
    assert str(tmp_path).encode() not in everything and b"quarantined" not in everything


def test_what_was_pushed_loads_in_a_fresh_process_as_its_card_says(
    world: World, hub: local_hub.Hub, tmp_path: Path
) -> None:
    runs = {"me/lora": world.run, "me/head": run_of_kind(world, tmp_path, "head_only")}
    for repo_id, run in runs.items():
        push(run, repo_id, private=repo_id == "me/head")
    push(world.run / "merged", "me/merged")
    expected = {repo_id: load_model(run) for repo_id, run in {**runs, "me/merged": world.run}.items()}
    inputs = inputs_of(expected["me/lora"])
    save_file(inputs, tmp_path / "inputs.safetensors")
    script = Path(__file__).with_name("push_reading.py")
    arguments = [str(tmp_path / "inputs.safetensors"), str(tmp_path / "found.safetensors"), *expected]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={"PATH": "/usr/bin:/bin", **local_hub.environment(hub, tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    base = merge_proof.embed(load_model(BASE), inputs)
    for repo_id, backbone in expected.items():
        there = {side: found[f"{repo_id}/{side}"] for side in ("image", "text")}
        assert merge_proof.gap(there, merge_proof.embed(backbone, inputs)) < EQUAL
        assert merge_proof.gap(there, base) > 100 * EQUAL
        assert torch.equal(found[f"{repo_id}/temperature"], backbone.model.logit_scale)


def test_what_was_pushed_is_evaluated_as_before(world: World, hub: local_hub.Hub, tmp_path: Path) -> None:
    recipe = load_recipe(world.run / "recipe.resolved.json")
    tuned = pytest.approx(json.loads((world.run / "scores.json").read_text())["tuned"], abs=1e-3)  # a near tie may turn
    push(world.run / "merged", "me/merged")
    assert score("me/merged", recipe=recipe)["scores"] == tuned
    push(world.run, "me/products")
    folder = huggingface_hub.snapshot_download("me/products", local_dir=tmp_path / "products")
    assert score(folder, recipe=recipe)["tuned"] == tuned


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"PUT /lfs": [0] * 20}, "cannot be reached .*can be run again"),
        ({"PUT /lfs": [200, *[403] * 20]}, "may not write"),
        ({"/commit/": [500] * 20}, "answered 500 .*can be run again"),
        ({"/commit/": [412]}, "changed by someone else during the push"),
        ({"/preupload/": [0] * 20}, "cannot be reached"),
        ({"/preupload/": [401] * 20}, "does not accept the token"),
        ({"POST /api/repos/create": [409]}, "is not there any more"),  # made by somebody else, and not shown to us
        ({"/api/validate-yaml": [502] * 20}, "(answered 502|cannot be reached)"),
        ({"GET /api/models/me/": [503] * 20}, "answered 503"),
    ],
)
def test_an_interrupted_push_shows_nothing_and_is_repeated(
    world: World, hub: local_hub.Hub, faults: dict[str, list[int]], words: str
) -> None:
    hub.faults = faults
    with pytest.raises(PushError, match=words) as refused:
        push(world.run, "me/products")
    assert local_hub.TOKEN not in str(refused.value)
    assert "me/products" not in hub.repositories or not names(hub, "me/products")
    hub.faults = {}
    push(world.run, "me/products")
    again = push(world.run, "me/products")
    repository = hub.repositories["me/products"]
    assert names(hub, "me/products") == ADAPTER and len(repository.commits) == 2, "a third push has nothing to add"
    assert again.commit == repository.commits[-1][0]
    push(world.run, "me/whole")
    same = {
        name: re.sub(rb"me/products|# products|name: products", b"", data) for name, data in repository.files.items()
    }
    whole = hub.repositories["me/whole"].files
    assert {name for name in whole if name != "README.md" and whole[name] != same[name]} == set()


def test_weights_that_arrived_are_not_sent_twice(world: World, hub: local_hub.Hub) -> None:
    hub.faults = {"/commit/": [500] * 20, "PUT /lfs": [0]}  # a dropped connection is tried again by the client
    with pytest.raises(PushError):
        push(world.run, "me/products")
    sent = len(hub.seen("PUT /lfs"))
    assert sent == 3
    hub.faults = {}
    push(world.run, "me/products")
    assert len(hub.seen("PUT /lfs")) == sent


def test_a_dry_run_asks_the_hub_nothing(
    world: World, hub: local_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.copy(tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    for source in (run, run / "merged"):
        report = push(source, "me/products", dry_run=True)
        assert report.card == source / "README.md" and "license: mit" in report.card.read_text()
        said = str(report)
        assert all(f"{size:,} bytes  {name}" in said for name, size in report.files)
        assert "nothing was sent" in said and str(report.card) in said
    assert hub.log == [] and set(hub.repositories) == {BASE}
    monkeypatch.setenv("HF_TOKEN", local_hub.TOKEN)
    assert {name for name, _ in push(run, "me/products").files} == ADAPTER, "the card of a dry run is ours still"
    report.card.write_text("# My own words\n")
    push(run / "merged", "me/merged")
    assert hub.repositories["me/merged"].files["README.md"] == b"# My own words\n"


def test_a_local_base_is_named_by_the_user_and_compared(
    world: World, hub: local_hub.Hub, tmp_path: Path, tiny_clip_folder: Path
) -> None:
    run = world.copy(tmp_path)
    recipe = json.loads((run / "recipe.resolved.json").read_text())
    change_json(run / "recipe.resolved.json", backbone={**recipe["backbone"], "id": str(tiny_clip_folder)})
    manifest = json.loads((run / "manifest.json").read_text())
    change_json(run / "manifest.json", backbone={**manifest["backbone"], "id": str(tiny_clip_folder), "commit": None})
    with pytest.raises(PushError, match="stands on .*mmtune merge.*--base-model"):
        push(run, "me/products")
    assert "nobody compared" not in str(push(run, "me/products", base_model=BASE))
    sent = hub.repositories["me/products"].files
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert json.loads(sent["adapter_config.json"])["revision"] == world.base_commit
    assert f'revision="{world.base_commit}"'.encode() in sent["README.md"]
    assert str(tiny_clip_folder).encode() not in b"".join(sent.values())
    hub.add("someone/other", {"config.json": b"{}", "model.safetensors": b"other weights"})
    for name, words in [("someone/other", "holds other weights"), ("someone/absent", "no such repository")]:
        with pytest.raises(PushError, match=words):
            push(run, "me/second", base_model=name)
    assert "me/second" not in hub.repositories
    hub.add("someone/older", {"config.json": b"{}", "pytorch_model.bin": b"other weights"})
    said = str(push(run, "me/second", base_model="someone/older"))
    assert "note: base model someone/older: nobody compared its weights" in said


def test_merged_weights_that_are_not_what_was_proved_stay(world: World, hub: local_hub.Hub, tmp_path: Path) -> None:
    merged = world.copy(tmp_path) / "merged"
    weights = bytearray((merged / "model.safetensors").read_bytes())
    weights[-1] ^= 1  # one bit of the last tensor
    (merged / "model.safetensors").write_bytes(weights)
    for dry_run in (True, False):
        with pytest.raises(PushError, match="model.safetensors is not what the merge wrote .*: merge again"):
            push(merged, "me/merged", dry_run=dry_run)
    assert hub.seen("POST") == []


def test_a_folder_merged_elsewhere_finds_its_run(
    world: World, hub: local_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `mmtune merge -o` leaves it; the note of the run never goes, and a run that is gone or another is not used."""
    run, elsewhere = world.copy(tmp_path), tmp_path / "elsewhere" / "model"
    shutil.copytree(run / "merged", elsewhere)
    note_run(elsewhere, elsewhere, run)
    report = push(elsewhere, "me/merged")
    sent = hub.repositories["me/merged"].files
    assert names(hub, "me/merged") == MODEL and RUN_NOTE in report.left, "with the scores of the run"
    assert b"## Scores" in sent["README.md"] and b"characters: 60" in sent["README.md"]
    assert str(tmp_path).encode() not in b"".join(sent.values())
    moved = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_moved")) / "elsewhere" / "model"
    run.rename(tmp_path / "gone")
    assert "scores.json" in {name for name, _ in push(moved, "me/moved", dry_run=True).files}, "both moved"
    said = str(push(elsewhere, "me/second", dry_run=True))
    assert "the run that was merged is not here any more" in said and "scores.json" not in said


def test_the_command_that_makes_scores_can_be_run_here(
    world: World, hub: local_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(world.run, tmp_path / "my runs" / "products"))
    (run / "scores.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert "`mmtune evaluate 'my runs/products'` makes them" in str(push("my runs/products", "me/x", dry_run=True))
    monkeypatch.chdir(run)
    assert f"`mmtune evaluate '{run}'` makes them" in str(push(".", "me/x", dry_run=True))
    card = (run / "README.md").read_text()
    assert "my runs" not in card and "output: products" in card
    with pytest.raises(PushError, match=r"there is no folder ../prodcuts; did you mean ../products\?; "):
        push("../prodcuts", "me/x")


def test_a_base_folder_that_is_gone_is_not_taken_for_a_repository(
    world: World, hub: local_hub.Hub, tmp_path: Path
) -> None:
    """``models/clip`` could be somebody's repository, and a card would send readers there."""
    run = world.copy(tmp_path)
    gone = {"id": "models/clip"}
    for name, values in [
        ("recipe.resolved.json", gone),
        ("manifest.json", {**gone, "commit": None}),
        ("merged/merge_report.json", {**gone, "commit": None}),
    ]:
        backbone = json.loads((run / name).read_text())["backbone"]
        change_json(run / name, backbone={**backbone, **values})
    with pytest.raises(PushError, match="stands on models/clip, a folder of this machine"):
        push(run, "me/products")
    said = str(push(run / "merged", "me/merged"))
    assert "the card names no base model" in said
    assert b"base_model:" not in hub.repositories["me/merged"].files["README.md"]


@pytest.mark.parametrize(("place", "kind"), PLACES)
def test_a_secret_in_any_file_keeps_everything_here(
    world: World, hub: local_hub.Hub, tmp_path: Path, place: str, kind: str
) -> None:
    run = world.copy(tmp_path)
    source, shown = plant(run, place, secret_of(kind))
    for dry_run in (True, False):
        with pytest.raises(PushError, match="nothing was sent to me/products: these must not leave") as refused:
            push(source, "me/products", dry_run=dry_run)
        assert f"\n  {shown}" in str(refused.value) and "looks like a secret" in str(refused.value)
        assert secret_of(kind) not in str(refused.value)
    assert hub.seen("POST") == hub.seen("PUT") == [] and "me/products" not in hub.repositories
    assert not (source / "README.md").exists() or place == "own card"


def test_secrets_and_paths_in_what_stays_here_are_nobodys_business(
    world: World, hub: local_hub.Hub, tmp_path: Path
) -> None:
    run = world.copy(tmp_path)
    secret = secret_of("hf")
    (run / "recipe.yaml").write_text(f"# {secret}\n")
    (run / ".env").write_text(secret)
    data = {"kind": "jsonl", "path": "/home/someone/private/products.csv", "images": "~/photos", "caption": "title"}
    change_json(run / "recipe.resolved.json", data={**data, "split": {"test": "5%"}}, output=str(run))
    scores = json.loads((run / "scores.json").read_text())
    change_json(run / "scores.json", target=str(run), quarantined=[{"where": str(run), "reason": secret}], data=data)
    assert "/" in str(scores["target"])
    report = push(run, "me/products")
    sent = b"".join(hub.repositories["me/products"].files.values())
    for word in (secret, "/home/someone", "~/photos", str(run), str(tmp_path)):
        assert word.encode() not in sent, word
    assert b"path: products.csv" in sent and b"images: photos" in sent and b"name: 'jsonl: products.csv'" in sent
    assert any("data.path, data.images" in note for note in report.notes)


def test_a_path_in_a_file_that_is_not_ours_to_rewrite_is_refused(
    world: World, hub: local_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "zebra")
    run = world.copy(tmp_path)
    merged = run / "merged"
    change_json(merged / "tokenizer_config.json", name_or_path=str(Path.home() / "models" / "clip"))
    change_json(merged / "merge_report.json", made_by="Zebra")
    change_json(run / "checkpoints" / "step-000001" / "adapter" / "adapter_config.json", data="/scratch/a/b")
    with pytest.raises(PushError, match="tokenizer_config.json, name_or_path: a path of this machine") as refused:
        push(merged, "me/merged")
    assert "merge_report.json, made_by: the user name of this machine" in str(refused.value)
    with pytest.raises(PushError, match="adapter_config.json, data: an absolute path"):
        push(run / "checkpoints" / "step-000001" / "adapter", "me/bare")
    assert hub.seen("POST") == []
