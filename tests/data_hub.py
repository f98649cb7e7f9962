"""A hub on this machine with one data set in it, as far as `datasets` asks."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
from picture_bytes import image_bytes

COMMIT = "c" * 40
NAME = "owner/Some_Name"


def content() -> dict[str, bytes]:
    """The repository's files: two splits and a card."""
    files = {"README.md": b"---\nlicense: mit\n---\n"}
    for split, numbers in (("train", (1, 2, 3)), ("test", (4,))):
        rows = [{"image": {"bytes": image_bytes(n), "path": None}, "text": f"t{n}"} for n in numbers]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        files[f"data/{split}-00000-of-00001.parquet"] = file.getvalue()
    return files


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *given: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name in self.files:
                self._send(self.files[name], ETag=f'"{hashlib.sha1(self.files[name]).hexdigest()}"')
            else:
                self._send(b"", 404, **{"X-Error-Code": "EntryNotFound"})
        elif "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            self._send(json.dumps(self._listing(folder)).encode())
        elif path.startswith(f"/api/datasets/{NAME}"):
            names = [{"rfilename": name} for name in self.files]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": names, "tags": []}).encode())
        else:
            self._send(b'{"error": "Repository not found"}', 404, **{"X-Error-Code": "RepoNotFound"})

    def _listing(self, folder: str) -> list[dict[str, object]]:
        start = f"{folder}/" if folder else ""
        inside = [name for name in self.files if name.startswith(start)]
        folders = dict.fromkeys(
            start + name[len(start) :].split("/")[0] for name in inside if "/" in name[len(start) :]
        )
        found: list[dict[str, object]] = [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders]
        for name in inside:
            if "/" not in name[len(start) :]:
                found.append({"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40})
        return found

    def _send(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def data_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it is asked, as long as the context is open."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
