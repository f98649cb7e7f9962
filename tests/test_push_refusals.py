"""What `push` refuses, and that the repository is untouched then: names, tokens, other people's files."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import local_hub
import pytest
from adapter_examples import LORA, make_run

from mmtune import command_line
from mmtune.ground.errors import CheckpointError, PushError
from mmtune.push_run import push

BASE = "someone/tiny-clip"
TEMPLATE = b"# Model Card for Model ID\n" + b"[More Information Needed]\n" * 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_clip_folder: Path) -> Iterator[tuple[local_hub.Hub, Path]]:
    """A hub with a base, and an unscored run on it."""
    folder = tmp_path_factory.mktemp("made")
    with local_hub.serve() as hub, pytest.MonkeyPatch.context() as patch:
        local_hub.use(hub, folder / "cache", patch)
        hub.add_folder(BASE, tiny_clip_folder)
        yield hub, make_run(folder / "products", {"id": BASE}, LORA)


@pytest.fixture
def hub(made: tuple[local_hub.Hub, Path]) -> local_hub.Hub:
    found = made[0]
    found.repositories = {BASE: found.repositories[BASE]}
    found.large, found.log, found.faults, found.created = {}, [], {}, []
    return found


@pytest.fixture
def run(made: tuple[local_hub.Hub, Path]) -> Path:
    return made[1]


@pytest.mark.parametrize(
    "name", ["products", "a/b/c", "me/two words", "me/..", "", "me/-x", "me/x.git", "https://hub/me/x"]
)
def test_names_that_the_hub_does_not_know(hub: local_hub.Hub, run: Path, name: str) -> None:
    with pytest.raises(PushError, match=f"^repository '{name}'"):
        push(run, name)
    with pytest.raises(PushError):
        push(run, "me/products", base_model=name)
    assert hub.log == []


def test_sources_that_are_nothing_to_push(
    hub: local_hub.Hub, run: Path, tmp_path: Path, tiny_clip_folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in [
        (tmp_path / "nowhere", "there is no folder"),
        (tiny_clip_folder, "plain model folder that no merge of mmtune wrote"),
    ]:
        with pytest.raises(PushError, match=words):
            push(source, "me/products")
    with pytest.raises(CheckpointError, match="neither a run"):
        push(tmp_path / "empty", "me/products")
    with pytest.raises(CheckpointError, match="no checkpoint 'step-9'; it has step-000001"):
        push(run, "me/products", checkpoint="step-9")
    assert hub.log == []


def test_a_named_checkpoint_and_a_bare_adapter_folder_go_too(hub: local_hub.Hub, run: Path, tmp_path: Path) -> None:
    push(run, "me/named", checkpoint="step-000001")
    push(run / "checkpoints" / "step-000001" / "adapter", "me/bare")
    named, bare = (hub.repositories[name].files for name in ("me/named", "me/bare"))
    assert "temperature.safetensors" in named and "temperature.safetensors" not in bare
    assert named["adapter_model.safetensors"] == bare["adapter_model.safetensors"]
    assert b"Seed 0, checkpoint step-000001" in named["README.md"] and b"Seed" not in bare["README.md"]
    assert b"Licence: unknown" in bare["README.md"] and b"\nlicense:" not in bare["README.md"]


def test_who_may_not_push_is_told_why(hub: local_hub.Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refused(words: str, repo_id: str = "me/products") -> None:
        with pytest.raises(PushError, match=words) as found:
            push(run, repo_id)
        assert found.value.__suppress_context__ or "Traceback" not in str(found.value)
        assert set(hub.repositories) == {BASE}

    refused("needs write permission for stranger", "stranger/products")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_" + "x" * 30)
        refused("does not accept the token")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.get_token", lambda: None)
        refused("no token for the hub: log in with `hf auth login`")
    hub.log.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        refused("HF_HUB_OFFLINE is set, so nothing can be pushed")
        assert push(run, "me/products", dry_run=True).dry_run
    assert hub.log == []
    with monkeypatch.context() as patch:
        for name in ("huggingface_hub.constants.ENDPOINT", "huggingface_hub.hf_api.api.endpoint"):
            patch.setattr(name, "http://127.0.0.1:9")
        refused("http://127.0.0.1:9 cannot be reached .*can be run again")


def test_private_is_asked_for_and_held_against_what_is_there(hub: local_hub.Hub, run: Path) -> None:
    push(run, "me/hidden", private=True)
    assert [each.get("visibility") for each in hub.created] == ["private"] and hub.repositories["me/hidden"].private
    push(run, "me/hidden", private=True)
    push(run, "me/open")
    assert "visibility" not in hub.created[-1], "the owner's default may be private"
    assert not hub.repositories["me/open"].private
    with pytest.raises(PushError, match="me/open is public already"):
        push(run, "me/open", private=True)
    assert len(hub.repositories["me/open"].commits) == 2


@pytest.mark.parametrize(
    "card",
    [b"# My model\n", b"---\nlicense: mit\n---\n", b"# Hello\n<!-- card written by mmtune; sha256 of the rest: -->"],
)
def test_a_card_that_a_person_wrote_is_not_overwritten(hub: local_hub.Hub, run: Path, card: bytes) -> None:
    hub.add("me/products", {"README.md": card})
    with pytest.raises(PushError, match="was written or changed by a person .* delete it there, or save it as"):
        push(run, "me/products")
    assert len(hub.repositories["me/products"].commits) == 1


def test_a_card_of_ours_is_renewed_until_a_person_changes_it(hub: local_hub.Hub, run: Path) -> None:
    push(run, "me/products")
    repository = hub.repositories["me/products"]
    ours = dict(repository.files)
    crlf = {**ours, "README.md": ours["README.md"].replace(b"\n", b"\r\n")}
    repository.commit(crlf, "line ends")
    push(run, "me/products")
    assert repository.files == ours
    repository.commit({**ours, "README.md": ours["README.md"].replace(b"## Limits", b"## Limits!")}, "by hand")
    with pytest.raises(PushError, match="written or changed by a person"):
        push(run, "me/products")


def test_files_of_others_stay_and_old_weights_of_ours_go(hub: local_hub.Hub, run: Path) -> None:
    push(run, "me/products")
    repository = hub.repositories["me/products"]
    repository.commit({**repository.files, "demo.py": b"print()", "trained.safetensors": b"of an earlier push"}, "more")
    report = push(run, "me/products")
    assert report.removed == ("trained.safetensors",) and "removed there: trained.safetensors" in str(report)
    assert "trained.safetensors" not in repository.files and repository.files["demo.py"] == b"print()"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "model.safetensors": b"1"},
            "holds a whole model .config.json., which would be mixed up",
        ),
        ({"temperature.safetensors": b"1", "trained.safetensors": b"1"}, "has weights that this did not write"),
        ({"adapter_model.safetensors": b"of somebody", "README.md": TEMPLATE}, "has weights that this did not write"),
    ],
)
def test_what_would_mix_two_models_is_refused(
    hub: local_hub.Hub, run: Path, files: dict[str, bytes], words: str
) -> None:
    hub.add("me/products", files)
    with pytest.raises(PushError, match=words):
        push(run, "me/products")
    assert len(hub.repositories["me/products"].commits) == 1


def test_a_repository_that_changes_during_the_push_is_left_as_it_is(
    hub: local_hub.Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmtune import hub_upload

    push(run, "me/products")
    repository = hub.repositories["me/products"]
    look = hub_upload.look

    def look_and_wait(repo_id: str) -> hub_upload.Remote:
        seen = look(repo_id)
        repository.commit({"README.md": b"# written meanwhile\n"}, "meanwhile")
        return seen

    monkeypatch.setattr(hub_upload, "look", look_and_wait)
    with pytest.raises(PushError, match="changed by someone else during the push"):
        push(run, "me/products")
    assert repository.files == {"README.md": b"# written meanwhile\n"}


def test_an_unfilled_template_is_nobodys_card(hub: local_hub.Hub, run: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(run / "checkpoints" / "step-000001" / "adapter", tmp_path / "bare"))
    (bare / "README.md").write_bytes(TEMPLATE)
    hub.add("me/products", {"README.md": TEMPLATE})
    push(bare, "me/products")
    assert b"card written by mmtune" in hub.repositories["me/products"].files["README.md"]


def test_damaged_files_of_a_run_are_named(hub: local_hub.Hub, run: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merged.mkdir()
    for text in ("{", "[]", "{}"):
        (merged / "merge_report.json").write_text(text)
        with pytest.raises(PushError, match="merge_report.json is damaged"):
            push(merged, "me/products")
    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / "scores.json").write_text("{")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "scores": {}}))
    with pytest.raises(PushError, match="scores.json is damaged"):
        push(other, "me/products")
    assert hub.seen("POST") == []


def test_the_commits_message_is_read_too(hub: local_hub.Hub, run: Path) -> None:
    for message in (f"with {local_hub.TOKEN}", "with hf" + "_" + "x1" * 20, f"from {Path.home()}/data/x"):
        with pytest.raises(PushError, match="the commit's message, ") as refused:
            push(run, "me/products", message=message)
        assert message.split()[1] not in str(refused.value)
    assert hub.seen("POST") == []
    push(run, "me/products", message="the first one")
    assert hub.repositories["me/products"].commits[-1][1] == "the first one"


def test_the_command_says_it_in_one_message(
    hub: local_hub.Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mmtune", "push", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return int(ended.value.code or 0)

    assert command(str(run), "products") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("repository 'products': write owner/name") and "Traceback" not in err
    assert command(str(run), "me/products", "--private", "--checkpoint", "step-000001", "--dry-run") == 0
    assert "nothing was sent" in capsys.readouterr().out and hub.log == []
    assert command(str(run), "me/products", "--private") == 0
    assert "/me/products/commit/" in capsys.readouterr().out and hub.repositories["me/products"].private
