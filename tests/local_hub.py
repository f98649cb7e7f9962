"""A hub on the loopback interface that speaks the upload and download protocol; faults can be put into it."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

TOKEN = "hf_" + "localhubtokenoftests0123456789abcd"
LARGE = 1000
"""Bytes from which a file goes through LFS here; weights always do."""


@dataclass
class Repository:
    """One repository: its settings and its commits, oldest first."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        """Add a commit and give its name."""
        hashes = "".join(f"{name}{sha256(data)}" for name, data in sorted(files.items()))
        text = f"{len(self.commits)}{message}{hashes}"
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), message, files))
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        """What the newest commit holds."""
        return self.commits[-1][2]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Name and files of a commit."""
        if revision == "main":
            return self.commits[-1][0], self.commits[-1][2]
        return next(((name, files) for name, _, files in self.commits if name == revision), None)


@dataclass
class Hub:
    """The server's state.

    Attributes:
        url: where it listens.
        repositories: by name.
        large: what was uploaded through LFS, by sha256; visible only once a commit names it.
        log: method and path of every request.
        faults: words that a path contains -> statuses to answer with, one per request; 0 drops the connection.
        created: bodies of the requests that make a repository.
        writers: owners that the token may write for.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    faults: dict[str, list[int]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    writers: set[str] = field(default_factory=lambda: {"me"})

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = False) -> Repository:
        """A repository that is there already."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit({".gitattributes": b"", **files}, "by hand")
        return repository

    def add_folder(self, repo_id: str, folder: Path) -> str:
        """A repository with a folder's files; gives its commit."""
        return self.add(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()}).commits[-1][0]

    def seen(self, words: str) -> list[str]:
        """The requests whose method and path contain these words."""
        return [line for line in self.log if words in line]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_oid(data: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str, size: int) -> bool:
    return name.endswith(".safetensors") or size > 10 * LARGE


class Answers(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def answer(self, code: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.log.append(f"{self.command} {path}")
        if (status := self.fault(f"{self.command} {path}")) is not None:
            return self.fail(status)
        length = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        body = self.read_chunked() if chunked else self.rfile.read(length)
        for method, pattern, function in ROUTES:
            if method in (self.command, "ANY") and (match := re.fullmatch(pattern, path)):
                return function(self, body, *match.groups())
        return self.answer(404, {"error": f"the local hub knows no {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = route

    def fault(self, request: str) -> int | None:
        for words, statuses in self.hub.faults.items():
            if words in request and statuses:
                return statuses.pop(0)
        return None

    def fail(self, status: int) -> None:
        self.close_connection = True
        if status:
            told = {"error": "as the test wished", "url": f"{self.hub.url}/me/products"}
            return self.answer(status, told, Connection="close")
        self.rfile.read(10)
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)
        return None

    def read_chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def may_write(self, owner: str) -> bool:
        given = self.headers.get("Authorization", "")
        if given != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return False
        if owner not in self.hub.writers:
            self.answer(403, {"error": "You don't have the rights"})
            return False
        return True

    def found(self, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        given = self.headers.get("Authorization")
        hidden = repository is not None and repository.private and given != f"Bearer {TOKEN}"
        if repository is None or hidden:
            self.answer(401 if hidden or given is None else 404, {}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def create(self, body: bytes) -> None:
        wish = json.loads(body)
        self.hub.created.append(wish)
        if not self.may_write(wish["organization"]):
            return None
        repo_id = f"{wish['organization']}/{wish['name']}"
        if repo_id in self.hub.repositories:
            url = f"{self.hub.url}/{repo_id}"
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.add(repo_id, {}, private=wish.get("visibility") == "private")
        return self.answer(200, {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": "0"})

    def validate(self, body: bytes) -> None:
        """As strict as the hub in what matters here: YAML, a mapping, a model-index with results."""
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            data = YAML(typ="safe").load(front[1]) if front else {}
        except YAMLError as error:
            return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        results = [each for model in data.get("model-index", []) for each in model["results"]]
        good = all(
            each["task"]["type"] and each["dataset"]["name"] and each["dataset"]["type"] and each["metrics"]
            for each in results
        )
        if not good or not isinstance(data, dict):
            return self.answer(400, {"errors": [{"message": '"model-index" is not valid'}], "warnings": []})
        return self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo_id: str, _revision: str) -> None:
        if not self.may_write(repo_id.partition("/")[0]) or (repository := self.found(repo_id)) is None:
            return None
        files = []
        for wish in json.loads(body)["files"]:
            there, mode = repository.files.get(wish["path"]), is_large(wish["path"], wish["size"])
            oid = None if there is None else sha256(there) if mode else git_oid(there)
            upload = "lfs" if mode else "regular"
            files.append({"path": wish["path"], "uploadMode": upload, "shouldIgnore": False, "oid": oid})
        return self.answer(200, {"files": files})

    def batch(self, body: bytes, repo_id: str) -> None:
        if not self.may_write(repo_id.partition("/")[0]):
            return None
        objects: list[dict[str, Any]] = []
        for wish in json.loads(body)["objects"]:
            href = {"href": f"{self.hub.url}/lfs/{wish['oid']}"}
            actions = {} if wish["oid"] in self.hub.large else {"actions": {"upload": href}}
            objects.append({**wish, **actions})
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if sha256(body) != oid:
            return self.answer(400, {"error": "other bytes than announced"})
        self.hub.large[oid] = body
        return self.answer(200)

    def commit(self, body: bytes, repo_id: str, _revision: str) -> None:
        if not self.may_write(repo_id.partition("/")[0]) or (repository := self.found(repo_id)) is None:
            return None
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header, files = lines[0]["value"], dict(repository.files)
        if header.get("parentCommit") not in (None, repository.commits[-1][0]):
            return self.answer(412, {"error": "The expected parent commit is not the newest one"})
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        name = repository.commit(files, header["summary"])
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{name}", "commitOid": name})

    def info(self, _body: bytes, repo_id: str, revision: str | None = None) -> None:
        if (repository := self.found(repo_id)) is None:
            return None
        if (at := repository.at(revision or "main")) is None:
            return self.answer(404, {}, X_Error_Code="RevisionNotFound")
        siblings = [{"rfilename": name, "size": len(data), **self.lfs(name, data)} for name, data in at[1].items()]
        facts = {"id": repo_id, "sha": at[0], "private": repository.private, "siblings": siblings, "tags": []}
        return self.answer(200, {**facts, "downloads": 0, "likes": 0})

    @staticmethod
    def lfs(name: str, data: bytes) -> dict[str, Any]:
        pointer = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
        return {"lfs": pointer} if is_large(name, len(data)) else {}

    def tree(self, _body: bytes, repo_id: str, revision: str) -> None:
        if (repository := self.found(repo_id)) is None or (at := repository.at(revision)) is None:
            return None
        rows = [{"type": "file", "path": name, "size": len(data), "oid": git_oid(data)} for name, data in at[1].items()]
        return self.answer(200, rows)

    def resolve(self, _body: bytes, repo_id: str, revision: str, name: str) -> None:
        if (repository := self.found(repo_id)) is None:
            return None
        if (at := repository.at(revision)) is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if name not in at[1]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=at[0])
        return self.answer(200, at[1][name], X_Repo_Commit=at[0], ETag=f'"{git_oid(at[1][name])}"')

    def whoami(self, _body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        return self.answer(200, {"type": "user", "name": "me", "auth": {"type": "access_token"}})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Answers.create),
    ("POST", "/api/validate-yaml", Answers.validate),
    ("GET", "/api/whoami-v2", Answers.whoami),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", Answers.preupload),
    ("POST", f"/{REPO}\\.git/info/lfs/objects/batch", Answers.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Answers.put),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", Answers.commit),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)", Answers.tree),
    ("GET", f"/api/models/{REPO}/revision/([^/]+)", Answers.info),
    ("GET", f"/api/models/{REPO}", Answers.info),
    ("ANY", f"/{REPO}/resolve/([^/]+)/(.+)", Answers.resolve),
]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub in a thread of this process, on a free port of the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Point the hub's client of this process at a local hub, with a token and a cache of its own."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    patch.setenv("HF_TOKEN", TOKEN)


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """What a fresh process needs to take this for the hub, with an empty cache."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_CACHE": str(cache / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
