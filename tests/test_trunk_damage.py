"""The store of a trunk when bits flip, files are cut off, and tables say something else: right, or nothing."""

import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from trunk_world import KEYS, World, entry, is_right

from mmtune.trunk_shelf import ABOUT as ABOUT_FILE
from mmtune.trunk_shelf import INDEX


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def places(length: int, most: int) -> list[int]:
    """All places of a short file; of a long one its head and an even choice."""
    return sorted({*range(min(length, 48)), *range(0, length, max(1, length // most))})


def test_a_flipped_bit_anywhere_in_the_states(world: World) -> None:
    path = world.folder / world.shard
    size = (world.template / world.shard).stat().st_size
    for place in range(0, size, 5):
        store = world.fresh()
        damage(path, place, 1 << place % 8)
        assert world.check(store, place) == len(KEYS) - 1
        assert store.damaged == 1 and "damaged entry" in world.lines[0]


@pytest.mark.parametrize("mask", [1, 0xFF])
def test_a_flipped_bit_anywhere_in_the_table(world: World, mask: int) -> None:
    kept = []
    for place in places((world.template / INDEX).stat().st_size, 90):
        store = world.fresh()
        damage(world.folder / INDEX, place, mask)
        kept.append(world.check(store, place))
    assert max(kept) == len(KEYS) and min(kept) == 0  # some bytes mean nothing, some everything


def test_noise_in_the_table(world: World) -> None:
    draw = random.Random(0)
    size = (world.template / INDEX).stat().st_size
    for trial in range(60):
        store = world.fresh()
        for _ in range(30):
            damage(world.folder / INDEX, draw.randrange(size), draw.randrange(1, 256))
        world.check(store, trial)


def damage(path: Path, place: int, mask: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_a_flipped_bit_in_the_description(world: World) -> None:
    for place in range((world.template / ABOUT_FILE).stat().st_size):
        store = world.fresh()
        damage(world.folder / ABOUT_FILE, place, 1)
        world.check(store, place)
        for beside in world.folder.parent.glob("ab12-*"):
            shutil.rmtree(beside)


def test_files_cut_off_anywhere(world: World) -> None:
    for name in (world.shard, INDEX, ABOUT_FILE):
        for length in places((world.template / name).stat().st_size, 20)[:: 8 if name == ABOUT_FILE else 1]:
            store = world.fresh()
            os.truncate(world.folder / name, length)
            world.check(store, (name, length))


def test_cut_off_while_open(world: World) -> None:
    for name in (world.shard, INDEX):
        store = world.fresh()
        assert is_right(store.find(KEYS[0]), KEYS[0])
        os.truncate(world.folder / name, 10)
        world.check(store, name)


def test_a_file_is_missing_or_foreign(world: World) -> None:
    for name in (world.shard, INDEX, ABOUT_FILE):
        store = world.fresh()
        (world.folder / name).unlink()
        world.check(store, name)
        store = world.fresh()
        (world.folder / name).write_bytes(b"something else\n" * 999)
        world.check(store, name)
        store = world.fresh()
        (world.folder / name).unlink()
        (world.folder / name).mkdir()
        assert all(stored is None or is_right(stored, key) for key in KEYS for stored in [store.find(key)])
        store.add([entry(key) for key in KEYS])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET offset = offset + 4",
        "UPDATE entries SET offset = -1",
        "UPDATE entries SET offset = 9223372036854775807",
        "UPDATE entries SET shape = x'302c39393939393939393939393939'",
        "UPDATE entries SET shape = x'2d33'",
        "UPDATE entries SET shape = x'342c33'",
        "UPDATE entries SET shape = x'ff'",
        "UPDATE entries SET shape = 'long' || hex(zeroblob(9000))",
        "UPDATE entries SET dtype = CAST('int32' AS BLOB)",
        "UPDATE entries SET origin = CAST('bfloat16' AS BLOB)",
        "UPDATE entries SET dtype = CAST('complex64' AS BLOB)",
        "UPDATE entries SET file = CAST('../../etc/passwd' AS BLOB)",
        "UPDATE entries SET file = NULL, offset = 'x', checksum = 1.5",
        "UPDATE entries SET beside = zeroblob(100)",
        "UPDATE entries SET beside = x''",
        "DROP TABLE entries",
        "ALTER TABLE entries DROP COLUMN beside",
        "ALTER TABLE entries RENAME COLUMN key TO other",
    ],
)
def test_lines_that_say_something_else(world: World, statement: str) -> None:
    store = world.fresh()
    connection = sqlite3.connect(world.folder / INDEX)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert world.check(store, statement) == 0


def test_lines_of_another_key(world: World) -> None:
    store = world.fresh()
    connection = sqlite3.connect(world.folder / INDEX)
    names = [name for (name,) in connection.execute("SELECT key FROM entries ORDER BY key")]
    connection.execute("UPDATE entries SET key = CAST(x'00' || key AS BLOB)")
    exchanged = [(name, b"\0" + other) for name, other in zip(names, reversed(names), strict=True)]
    connection.executemany("UPDATE entries SET key = ? WHERE key = ?", exchanged)
    assert names == [name for (name,) in connection.execute("SELECT key FROM entries ORDER BY key")]
    connection.commit()
    connection.close()
    assert world.check(store, "exchanged") == 0


def test_another_format_is_left_alone(world: World) -> None:
    store = world.fresh()
    about = json.loads((world.folder / ABOUT_FILE).read_text())
    (world.folder / ABOUT_FILE).write_text(json.dumps({**about, "mmtune_trunk_format": 2}))
    before = (world.folder / INDEX).read_bytes()
    assert world.check(store, "format") == 0
    assert store.folder == world.folder.with_name("ab12-2") and (world.folder / INDEX).read_bytes() == before
    assert len(world.lines) == 1 and "another version" in world.lines[0]
