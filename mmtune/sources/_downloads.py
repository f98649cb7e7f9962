"""Images behind addresses, where a recipe allows it: fetched once into a folder, with limits, and checked by header."""

import hashlib
import http.client
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mmtune.ground.image_reading import check_header, read_image
from mmtune.ground.records import ContentStamp, file_stamp, printable
from mmtune.ground.safe_files import whole_file
from mmtune.ground.sections import StrictSection

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMES = ("http", "https")
BLOCK = 1 << 16
KEPT = "%/:?@!$&'()*+,;=~[]|"
"""Signs of an address that are sent as they stand, besides letters, digits and ``-._``."""


class DownloadSection(StrictSection):
    """Images whose paths are addresses (http, https) are fetched, once, into a folder."""

    folder: str = Field(
        "~/.cache/mmtune/images", min_length=1, description="where they are kept, under names made of their addresses"
    )
    max_bytes: int = Field(20_000_000, ge=1, description="an image of more bytes is bad")
    seconds: float = Field(20, gt=0, le=3600, description="an image that takes longer is bad")

    def image_at(self, url: str) -> "FetchedImage":
        """The reference for an address; nothing is fetched before it is checked."""
        name = hashlib.sha256(url.encode()).hexdigest()
        return FetchedImage(url, str(Path(self.folder).expanduser() / name), self.max_bytes, self.seconds)


@dataclass(frozen=True)
class FetchedImage:
    """A reference to an image behind an address.

    Attributes:
        url: the address, which is its identity.
        path: where its copy is kept.
        max_bytes: bytes above which it is bad.
        seconds: time above which it is bad.
    """

    url: str
    path: str
    max_bytes: int
    seconds: float

    @property
    def key(self) -> str:
        """The address."""
        return self.url

    @property
    def where(self) -> str:
        """The address, for people."""
        return printable(self.url)

    def check(self) -> str | None:
        """Fetch it where the folder lacks it; why that, or the image, is bad, or None. Safe in threads."""
        if Path(self.path).is_file():
            return check_header(self.path)
        try:
            content = fetch(self.url, max_bytes=self.max_bytes, seconds=self.seconds)
        except FetchError as problem:
            return str(problem)
        reason = check_header(content)
        if reason is None:
            with whole_file(Path(self.path)) as beside:
                beside.write_bytes(content)
        return reason

    def content_stamp(self) -> ContentStamp | None:
        """The copy's path with its size and time."""
        return file_stamp(os.path.abspath(self.path))

    def read(self) -> "Image":
        """The decoded RGB image of the copy.

        Raises:
            DataError: as `read_image`.
        """
        return read_image(Path(self.path), self.where)


class FetchError(Exception):
    """An address that gives nothing usable; the message is the reason."""


def fetch(url: str, *, max_bytes: int, seconds: float) -> bytes:
    """What an address holds. Proxies are those of the environment; redirects stay on http and https.

    Whoever wrote the data says what is asked for, inside your own network too; what is no image is thrown away.

    Raises:
        FetchError: another scheme, no answer, an error of the server, too many bytes, too much time.
    """
    if url.split("://")[0].lower() not in SCHEMES:
        raise FetchError(f"address not allowed: '{url[:200]}'; it must begin with http:// or https://")
    watch = _Watch()
    try:
        with _deadline(watch, seconds), _opener(watch).open(_request(url), timeout=seconds) as answer:
            content = _read(answer, max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"cannot be fetched: the server says {error.code} {error.reason}") from None
    except FetchError:
        if not watch.expired:
            raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if watch.expired or isinstance(error, TimeoutError):
            raise FetchError(f"took too long: more than {seconds:g} seconds") from None
        raise FetchError(
            f"cannot be fetched: {getattr(error, 'reason', None) or error or type(error).__name__}"
        ) from None
    if watch.expired:
        raise FetchError(f"took too long: more than {seconds:g} seconds")
    return content


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(_written_out(url), headers={"User-Agent": "mmtune", "Accept": "image/*"})


def _written_out(url: str) -> str:
    """The address with blanks and letters beyond ASCII written as ``%C3%A9``, as browsers do."""
    parts = urllib.parse.urlsplit(url)
    path, query = (urllib.parse.quote(part, safe=KEPT) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit(parts._replace(path=path, query=query, fragment=""))


def _read(answer: Any, max_bytes: int) -> bytes:
    """The whole body, unless it is longer than it may be."""
    length = answer.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise FetchError(f"too many bytes: {int(length):,}, allowed are {max_bytes:,}")
    content = bytearray()
    while block := answer.read1(BLOCK):
        content += block
        if len(content) > max_bytes:
            raise FetchError(f"too many bytes: more than {max_bytes:,}")
    if length.isdigit() and len(content) < int(length):
        raise FetchError(f"cut short: {len(content):,} of {int(length):,} bytes")
    return bytes(content)


class _Watch:
    """The sockets of one fetch, so that a server that trickles can be hung up on."""

    def __init__(self) -> None:
        self.expired = False
        self.sockets: list[socket.socket] = []

    def hang_up(self) -> None:
        """Wake whoever waits for a byte."""
        self.expired = True
        for each in self.sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was closed already


@contextmanager
def _deadline(watch: _Watch, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, watch.hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _opener(watch: _Watch) -> urllib.request.OpenerDirector:
    """An opener that knows http and https, and no files, ftp or data addresses, not by redirects either."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            watch.sockets.append(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            watch.sockets.append(self.sock)

    class OverHttp(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(Plain, req)

    class OverHttps(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(Secure, req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        OverHttp(),
        OverHttps(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, five times."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request."""
        if newurl.split("://")[0].lower() not in SCHEMES:
            raise FetchError(f"address not allowed: it leads on to '{newurl[:200]}'")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
