"""A server on the loopback interface that gives images, and everything that can go wrong instead."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from picture_bytes import image_bytes

REDIRECTS = {
    "/there": "/1.png",
    "/to_file": "file:///etc/hostname",
    "/to_ftp": "ftp://127.0.0.1/1.png",
    "/round": "/round",
}


class ImageServer:
    """``url`` and the paths that were asked for, in their order."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.asked: list[str] = []
        self.ended = threading.Event()


@contextlib.contextmanager
def image_server() -> Iterator[ImageServer]:
    """``/1.png`` and the like are images; see `REDIRECTS` and `_answer` for the rest."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.daemon_threads = True
    server = ImageServer(httpd.server_address[1])
    httpd.state = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        httpd.shutdown()
        httpd.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        state: ImageServer = self.server.state  # type: ignore[attr-defined]
        state.asked.append(self.path)
        with contextlib.suppress(ConnectionError):
            self._answer(state)

    def _answer(self, state: ImageServer) -> None:
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
        elif self.path == "/page":
            self._send(b"<!doctype html><p>sign in")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"\x89PNG" * 4096)
        elif self.path == "/cut":
            self._send(image_bytes(1), length=10_000)
        elif self.path == "/slow_header":
            self._trickle(state, b"HTTP/1.0 200 OK\r\n" + b"x: y\r\n" * 1000)
        elif self.path == "/slow_body":
            self.send_response(200)
            self.end_headers()
            self._trickle(state, image_bytes(1))
        elif self.path.endswith(".png"):
            self._send(image_bytes(int(self.path[1:-4])))
        else:
            self.send_error(404)

    def _send(self, content: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def _trickle(self, state: ImageServer, content: bytes) -> None:
        """A byte now and then, so that no single wait is long."""
        for byte in content:
            if state.ended.is_set():
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
