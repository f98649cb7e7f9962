"""Images behind addresses: only where the recipe allows it, within limits, kept whole, and asked for once."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversation_rows import opened, spoken
from image_server import ImageServer, image_server
from pair_tables import make_images, write_lines
from picture_bytes import image_bytes

from mmtune.ground.errors import DataError
from mmtune.recipe_paths import anchored
from mmtune.recipe_schema import load_recipe
from mmtune.sources import OpenedSplit
from mmtune.sources._downloads import DownloadSection, FetchError, fetch

LIMIT = 0.4  # seconds; a byte every 0.02 s takes minutes for what is trickled
PATIENCE = 3.0  # seconds; what a busy machine may add to the limit


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    with image_server() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path, server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images ``images/0.png`` ... ``9.png``; the server has forgotten what it was asked for."""
    monkeypatch.setenv("no_proxy", "*")
    server.asked.clear()
    return make_images(tmp_path)


def with_images(folder: Path, *images: str, **downloads: Any) -> OpenedSplit:
    """A conversation about each of the images, and one about a file."""
    rows = [spoken(("human", "<image>?"), ("gpt", "x"), image=image) for image in ("0.png", *images)]
    write_lines(folder, *rows, name="chats.jsonl")
    return opened(folder, downloads={"folder": str(folder / "kept"), **downloads})


def reason(folder: Path, image: str, **downloads: Any) -> str:
    result = with_images(folder, image, **downloads)
    assert len(result.samples) == 1 and len(result.bad) == 1 and result.bad[0].where.endswith("chats.jsonl:2")
    return result.bad[0].reason.removesuffix(f": {image}")


def kept(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "kept").glob("*")}


def test_an_image_is_fetched_once_and_read_from_its_copy(folder: Path, server: ImageServer) -> None:
    url = f"{server.url}/1.png"
    result = with_images(folder, url, url)
    assert result.bad == () and [sample.id for sample in result.samples] == ["row-1", "row-2", "row-3"]
    assert kept(folder) == {hashlib.sha256(url.encode()).hexdigest(): image_bytes(1)}
    media = result.samples[1].media
    assert (media.key, media.where, result.samples[1].group) == (url, url, url)
    assert media.read().size == (6, 5)
    with_images(folder, url)
    assert server.asked == ["/1.png"], "the second time it is there already"
    next((folder / "kept").iterdir()).unlink()
    with pytest.raises(DataError, match="/1.png: no such file"):
        media.read()


def test_without_the_setting_nothing_is_asked(folder: Path, server: ImageServer) -> None:
    url = f"{server.url}/1.png"
    write_lines(
        folder, *[spoken(("human", "<image>?"), ("gpt", "x"), image=i) for i in ("0.png", url)], name="chats.jsonl"
    )
    result = opened(folder)
    assert len(result.samples) == 1 and result.bad[0].reason.startswith(
        f"image is an address: '{url}'; fetch the files"
    )
    assert server.asked == []
    opened_with = with_images(folder, url)
    assert len(opened_with.samples) == 2 and server.asked == ["/1.png"]


def test_other_tables_say_that_they_do_not_fetch(folder: Path, server: ImageServer) -> None:
    from pair_tables import opened as open_table

    url = f"{server.url}/1.png"
    write_lines(folder, {"image": "0.png", "caption": "x"}, {"image": url, "caption": "x"})
    result = open_table(folder)
    assert result.bad[0].reason == f"image is an address: '{url}'; fetch the files first and give their paths"
    assert server.asked == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/none", "cannot be fetched: the server says 404 Not Found"),
        ("/page", "not an allowed format: a web page"),
        ("/endless", "too many bytes: more than 100,000"),
        ("/cut", "cut short: "),
        ("/round", "cannot be fetched: the server says 302"),
        ("/to_file", "cannot be fetched: the server says 302"),
        ("/to_ftp", "address not allowed: it leads on to 'ftp://127.0.0.1/1.png'"),
    ],
)
def test_what_is_no_image_is_bad_and_leaves_nothing(
    folder: Path, server: ImageServer, path: str, expected: str
) -> None:
    assert reason(folder, server.url + path, max_bytes=100_000).startswith(expected)
    assert kept(folder) == {}


def test_redirects_to_another_page_are_followed(folder: Path, server: ImageServer) -> None:
    result = with_images(folder, f"{server.url}/there")
    assert result.bad == () and server.asked == ["/there", "/1.png"] and list(kept(folder).values()) == [image_bytes(1)]


def test_blanks_and_letters_beyond_ascii_are_written_out(folder: Path, server: ImageServer) -> None:
    with pytest.raises(FetchError, match="404"):
        fetch(f"{server.url}/é b/%41?x=ä&y=1", max_bytes=100, seconds=5)
    assert server.asked == ["/%C3%A9%20b/%41?x=%C3%A4&y=1"]


def test_too_many_bytes(folder: Path, server: ImageServer) -> None:
    size = len(image_bytes(2))
    found = reason(folder, f"{server.url}/2.png", max_bytes=size - 1)
    assert found == f"too many bytes: {size:,}, allowed are {size - 1:,}" and kept(folder) == {}
    assert with_images(folder, f"{server.url}/2.png", max_bytes=size).bad == ()


@pytest.mark.parametrize("path", ["/slow_header", "/slow_body"])
def test_a_server_that_trickles_is_hung_up_on(folder: Path, server: ImageServer, path: str) -> None:
    start = time.monotonic()
    assert reason(folder, server.url + path, seconds=LIMIT) == f"took too long: more than {LIMIT} seconds"
    assert time.monotonic() - start < LIMIT + PATIENCE and kept(folder) == {}


def test_nobody_there(folder: Path) -> None:
    assert reason(folder, "http://127.0.0.1:9/1.png", seconds=2).startswith("cannot be fetched: ")
    assert reason(folder, "http://[bad/1.png", seconds=2).startswith("cannot be fetched: ")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/1.png", "/etc/hostname", "gopher://x/1"])
def test_no_other_scheme_is_ever_opened(url: str) -> None:
    with pytest.raises(FetchError, match="address not allowed: '.*'; it must begin with http:// or https://"):
        fetch(url, max_bytes=1000, seconds=1)


def test_the_folder_is_in_the_home_unless_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    image = DownloadSection().image_at("http://x.org/a.png")
    assert image.path == f"/home/someone/.cache/mmtune/images/{hashlib.sha256(b'http://x.org/a.png').hexdigest()}"


def test_a_relative_folder_starts_where_the_run_was_started(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    data = "{kind: conversations, path: chats.jsonl, split: {}, downloads: {folder: FOLDER}}"
    for folder, expected in (("kept", str(tmp_path / "kept")), ("elsewhere", "elsewhere")):
        (tmp_path / "x.yaml").write_text(
            f"backbone: {{id: x/y}}\nadapter: {{kind: lora, parts: [text]}}\ndata: {data.replace('FOLDER', folder)}\n"
            "task: {kind: chat}\ntrain: {length: 1 steps, batch: 2, learning_rate: 1e-3}\noutput: run\n"
        )
        recipe = anchored(load_recipe(tmp_path / "x.yaml"), tmp_path)
        assert recipe.data.downloads == DownloadSection(folder=expected)
