"""Finding a backbone's files on the hub or on disk: what is asked for, what is refused, and what is said."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from mmtune.backbones import Section, component_files, describe, load, pinned
from mmtune.ground.errors import BackboneError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_clip_folder):
    """A hub repository ``someone/clip`` at COMMIT, served from a folder, with a list of what was asked for."""
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    snapshot = Path(shutil.copytree(tiny_clip_folder, tmp_path / "snapshots" / COMMIT))
    asked = []

    def hf_hub_download(repo, name, revision=None):
        asked.append((repo, name, revision))
        if not (snapshot / name).is_file():
            raise http_error(RemoteEntryNotFoundError)
        return str(snapshot / name)

    def snapshot_download(repo, revision, allow_patterns):
        asked.append((repo, tuple(allow_patterns), revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return snapshot, asked


def http_error(kind):
    """An error as the hub's client raises it; its constructor wants a response of whichever HTTP library is in use."""
    error = kind.__new__(kind)
    Exception.__init__(error, "as the server said it")
    error.response = None
    return error


class HubAnswers(BaseHTTPRequestHandler):
    """The few answers of the hub that fetching files needs: ``someone/clip`` is a folder, the rest is refused."""

    folder: Path

    def log_message(self, *_args):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        if path.startswith("gated/"):
            return self.answer(403, X_Error_Code="GatedRepo")
        if not path.removeprefix("api/models/").startswith("someone/clip/"):
            return self.answer(401, X_Error_Code="RepoNotFound")
        if "/tree/" in path:
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.hash_of(file)}
                for file in sorted(self.folder.iterdir())
            ]
            return self.answer(200, json.dumps(files).encode(), Content_Type="application/json")
        revision, name = path.split("/")[3:]
        if revision not in ("main", "v1", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        file = self.folder / name
        if not file.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self.answer(200, file.read_bytes(), X_Repo_Commit=COMMIT, ETag=f'"{self.hash_of(file)}"')

    do_HEAD = do_GET

    @staticmethod
    def hash_of(file):
        return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def local_hub(tmp_path, tiny_clip_folder, monkeypatch):
    """The real client of the hub against a server in this process; gives the folder it serves."""
    from huggingface_hub import constants

    folder = Path(shutil.copytree(tiny_clip_folder, tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (HubAnswers,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield folder
    server.shutdown()
    server.server_close()


def test_the_real_client_resolves_fetches_and_explains(local_hub, tiny_clip_folder, monkeypatch):
    from huggingface_hub import constants

    backbone = load(Section(id="someone/clip", revision="v1"))
    assert backbone.description.commit == COMMIT
    assert backbone.weight_hash == load(Section(id=str(tiny_clip_folder))).weight_hash
    assert [file.name for file in component_files(backbone.description)] == [
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, revision, words in [
        ("gated/clip", "main", "is gated"),
        ("absent/clip", "main", "neither a folder here nor a repository"),
        ("someone/clip", "v2", "has no revision 'v2'"),
    ]:
        with pytest.raises(BackboneError, match=words):
            describe(Section(id=name, revision=revision))
    (local_hub / "model.safetensors").rename(local_hub / "pytorch_model.bin")
    shutil.rmtree(constants.HF_HUB_CACHE)
    with pytest.raises(BackboneError, match="allow_pickle: true"):
        load(Section(id="someone/clip"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert describe(Section(id="someone/clip")).commit == COMMIT  # config.json is in the cache, the weights are not
    with pytest.raises(BackboneError, match="not wholly in the local cache"):
        load(Section(id="someone/clip"))


def test_offline_a_cached_copy_loads_whatever_form_its_weights_have(local_hub, tiny_clip_folder, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    whole = load(Section(id=str(tiny_clip_folder)))
    (local_hub / "model.safetensors").unlink()
    whole.model.save_pretrained(local_hub, max_shard_size="100KB")
    describe(Section(id="someone/clip"))
    huggingface_hub.snapshot_download("someone/clip", revision=COMMIT)  # as `hf download` does
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sharded = load(Section(id="someone/clip"))
    assert sharded.model.logit_scale.equal(whole.model.logit_scale) and sharded.description.commit == COMMIT
    next(sharded.description.folder.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(BackboneError, match="not wholly in the local cache"):
        load(Section(id="someone/clip"))


def test_a_hub_backbone_is_read_at_one_commit(hub, tiny_clip_folder):
    snapshot, asked = hub
    backbone = load(Section(id="someone/clip", revision="v1"))
    assert backbone.description.commit == COMMIT and backbone.description.folder == snapshot
    assert backbone.record()["commit"] == COMMIT and backbone.record()["revision"] == "v1"
    assert asked[0] == ("someone/clip", "config.json", "v1")
    assert {revision for _, _, revision in asked[1:]} == {COMMIT}
    assert not any(".bin" in str(name) or "*.py" in name for _, name, _ in asked)
    assert pinned(backbone.description) == Section(id="someone/clip", revision=COMMIT)
    assert pinned(describe(Section(id=str(tiny_clip_folder)))).revision is None


def test_no_conversion_is_asked_for_and_no_network_used(hub, monkeypatch):
    """A repository with .bin weights only: transformers would start a thread that asks a bot to convert it."""
    import socket

    import torch
    from safetensors.torch import load_file

    snapshot, asked = hub
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()

    def refuse(*_args, **_options):
        raise AssertionError("a connection or thread was opened")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self)))
    load(Section(id="someone/clip", allow_pickle=True))
    assert [name for name in started if "conversion" in name] == []
    assert [name for _, name, _ in asked if ".bin" in name] == ["pytorch_model.bin"]


def test_remote_code_needs_a_pinned_commit(tiny_clip_folder):
    for revision in (None, "main", "v1.0", COMMIT[:7]):
        with pytest.raises(ValidationError, match="40-digit commit"):
            Section(id="someone/clip", trust_remote_code=True, revision=revision)
    Section(id="someone/clip", trust_remote_code=True, revision=COMMIT)
    with pytest.raises(BackboneError, match="has no revision"):
        describe(Section(id=str(tiny_clip_folder), trust_remote_code=True, revision=COMMIT))


REMOTE = """
from pathlib import Path
from transformers import CLIPConfig, CLIPModel
Path({mark!r}).touch()
class OurModel(CLIPModel):
    pass
"""


def test_remote_code_runs_only_when_trusted(hub, tmp_path, monkeypatch):
    snapshot, asked = hub
    mark = tmp_path / "it-ran"
    (snapshot / "modeling_ours.py").write_text(REMOTE.format(mark=str(mark)))
    config = json.loads((snapshot / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_ours.OurModel"}
    (snapshot / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load(Section(id="someone/clip", revision=COMMIT))
    assert not mark.exists() and not any("*.py" in name for _, name, _ in asked)
    backbone = load(Section(id="someone/clip", revision=COMMIT, trust_remote_code=True))
    assert mark.exists() and type(backbone.model).__name__ == "OurModel"
    assert any("*.py" in name for _, name, _ in asked)
    config["auto_map"] = {"AutoModel": "another/repository--modeling_ours.OurModel"}
    (snapshot / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="another repository, which its commit does not pin"):
        load(Section(id="someone/clip", revision=COMMIT, trust_remote_code=True))


@pytest.mark.parametrize("name", ["./models/clip", "/no/such/folder", "a/b/c", "~/nowhere/clip"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(name):
    with pytest.raises(BackboneError, match="there is no such folder"):
        describe(Section(id=name))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "is gated: accept its terms at https://huggingface.co/someone/clip"),
        ("RepositoryNotFoundError", "neither a folder here nor a repository at https://huggingface.co/someone/clip"),
        ("RevisionNotFoundError", "has no revision 'main'"),
        ("RemoteEntryNotFoundError", "the repository has no config.json"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set: run `hf download someone/clip` once with network"),
        ("LocalEntryNotFoundError", "is not wholly in the local cache"),
        ("HfHubHTTPError", "the hub did not answer as expected"),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch, kind, words):
    import huggingface_hub
    from huggingface_hub import errors

    def hf_hub_download(*_args, **_options):
        raise http_error(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    with pytest.raises(BackboneError, match=words):
        describe(Section(id="someone/clip"))


def test_offline_without_a_cached_copy_says_what_to_run():
    """The real client with HF_HUB_OFFLINE=1 (set for all tests), not a stand-in."""
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set: run `hf download no-one/nothing --revision v2`"):
        describe(Section(id="no-one/nothing", revision="v2"))
    with pytest.raises(BackboneError, match="neither a folder here nor a hub id"):
        describe(Section(id="not a hub id"))


def test_component_files_are_an_allow_list(tiny_clip_folder, tmp_path):
    copied = Path(shutil.copytree(tiny_clip_folder, tmp_path / "copied"))
    (copied / ".env").write_text("SECRET=1")
    (copied / "notes.json").write_text("{}")
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    files = component_files(describe(Section(id=str(copied))))
    assert [file.name for file in files] == [
        "chat_template.jinja",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
