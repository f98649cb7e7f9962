"""What is remembered of files: right for the file as it is now, or nothing."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from mmtune import content_memory, shared_table
from mmtune.content_memory import FILE, ContentMemory, Stamp

HASH = bytes(range(32))


def stamp_of(path: Path) -> Stamp:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A file that was last changed an hour ago."""
    path = tmp_path / "bild-ä.jpg"
    path.write_bytes(b"12345")
    hour_ago = time.time_ns() - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))
    return path


def test_recalls_the_same_file_only(tmp_path: Path, picture: Path) -> None:
    memory, stamp = ContentMemory(tmp_path / "root"), stamp_of(picture)
    assert memory.recall(stamp) is None and not (tmp_path / "root").exists()
    memory.remember(stamp, HASH)
    assert memory.recall(stamp) == HASH == ContentMemory(tmp_path / "root").recall(stamp)
    path, size, changed, touched = stamp
    assert memory.recall((path, size + 1, changed, touched)) is None
    assert memory.recall((path, size, changed + 1, touched)) is None
    assert memory.recall((path, size, changed, touched + 1)) is None
    assert memory.recall((path + "x", size, changed, touched)) is None
    memory.remember((path, size + 1, changed + 1, touched), HASH[::-1])
    assert memory.recall((path, size + 1, changed + 1, touched)) == HASH[::-1] and memory.recall(stamp) is None


def test_a_file_changed_under_the_same_name(tmp_path: Path, picture: Path) -> None:
    memory = ContentMemory(tmp_path)
    memory.remember(stamp_of(picture), HASH)
    picture.write_bytes(b"54321")
    assert memory.recall(stamp_of(picture)) is None


def test_a_file_that_was_replaced_by_one_as_long_with_the_same_time(tmp_path: Path, picture: Path) -> None:
    """As unpacking and copying with times do."""
    memory, before = ContentMemory(tmp_path), picture.stat().st_mtime_ns
    memory.remember(stamp_of(picture), HASH)
    picture.write_bytes(b"54321")
    os.utime(picture, ns=(before, before))
    assert stamp_of(picture)[:3] == (str(picture), 5, before)
    assert memory.recall(stamp_of(picture)) is None


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path, picture: Path) -> None:
    memory = ContentMemory(tmp_path)
    for change, known in ((-1.0, False), (60.0, False), (-3.0, True)):  # just now, in the future, settled
        at = time.time_ns() + int(change * 10**9)
        os.utime(picture, ns=(at, at))
        memory.remember(stamp_of(picture), HASH)
        assert (memory.recall(stamp_of(picture)) == HASH) is known, change


def test_names_that_are_no_text(tmp_path: Path) -> None:
    memory = ContentMemory(tmp_path)
    name = os.fsdecode(b"/a/\xff\xfe.jpg")
    memory.remember((name, 1, 2, 3), HASH)
    assert memory.recall((name, 1, 2, 3)) == HASH and memory.recall(("/a/.jpg", 1, 2, 3)) is None


def test_damage_is_forgotten(tmp_path: Path, picture: Path) -> None:
    stamp = stamp_of(picture)
    filled = tmp_path / "root"
    ContentMemory(filled).remember(stamp, HASH)
    whole = (filled / FILE).read_bytes()
    recalled = []
    for place in range(0, len(whole), 41):
        (filled / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        memory = ContentMemory(filled)
        recalled.append(memory.recall(stamp))
        for _ in range(2):
            memory.remember(stamp, HASH)
        assert memory.recall(stamp) == HASH, place
        memory.close()
    assert set(recalled) == {HASH, None}
    for length in range(0, len(whole), 997):
        (filled / FILE).write_bytes(whole[:length])
        memory = ContentMemory(filled)
        assert memory.recall(stamp) in (HASH, None)
        for _ in range(2):
            memory.remember(stamp, HASH)
        assert memory.recall(stamp) == HASH, length
        memory.close()


def test_a_line_of_another_file(tmp_path: Path) -> None:
    memory = ContentMemory(tmp_path)
    memory.remember(("/a", 1, 2, 3), HASH)
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("UPDATE entries SET path = CAST('/b' AS BLOB)")
    connection.commit()
    connection.close()
    assert memory.recall(("/b", 1, 2, 3)) is None


def test_where_nothing_can_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    memory = ContentMemory(tmp_path / "file" / "root")
    memory.remember(("/a", 1, 2, 3), HASH)
    assert memory.recall(("/a", 1, 2, 3)) is None
    monkeypatch.setattr(shared_table, "WAIT", 0.01)
    busy = ContentMemory(tmp_path)
    busy.remember(("/a", 1, 2, 3), HASH)
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    busy.remember(("/b", 1, 2, 3), HASH)
    assert busy.recall(("/a", 1, 2, 3)) is None
    holder.execute("COMMIT")
    busy.remember(("/b", 1, 2, 3), HASH)
    assert busy.recall(("/a", 1, 2, 3)) == busy.recall(("/b", 1, 2, 3)) == HASH
    (tmp_path / content_memory.FILE).unlink()
    assert busy.recall(("/a", 1, 2, 3)) is None
    busy.remember(("/a", 1, 2, 3), HASH)
    assert busy.recall(("/a", 1, 2, 3)) == HASH


def test_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_table, "WAIT", 0.05)
    memory = ContentMemory(tmp_path)
    memory.remember(("/a", 1, 2, 3), HASH)
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    assert [memory.recall(("/a", 1, 2, 3)) for _ in range(200)] == [None] * 200
    assert time.monotonic() - start < 200 * 0.05 / 2
    holder.close()
    assert ContentMemory(tmp_path).recall(("/a", 1, 2, 3)) == HASH
