"""What must not leave this machine: secrets, and traces of the machine (paths, user name, host name), file by file."""

import bisect
import getpass
import json
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mmtune.ground.errors import PushError
from mmtune.ground.safe_files import BLOCK
from mmtune.ground.secret_patterns import NAMES, find_secrets, is_secret_value, own_secrets

VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
"""Files that list words of all kinds, names of people and folders among them."""

ANY_PATH = re.compile(
    r"(?<![\w./~<>#?&%{}-])"
    r"(?:/(?!/)[\w.+@-]+/[\w.+@-]|~/[\w.-]|file:///?[\w.]|[A-Za-z]:\\{1,2}[\w.-]+\\|\\\\{1,3}[\w.-]+\\{1,2}[\w.-])"
    r"[^\s\"'`,;<>()]*"
)
"""An absolute path: two names deep at least, or below the home folder."""

ADDRESS = re.compile(r"(?:://[^\s\"'`]*|(?:href|src)=)$")
"""What stands before a path that is a part of an address, such as ``?next=/a/b``."""

LONGEST_ADDRESS = 500
"""Letters before a path that are looked at for the address it may be in."""

SYSTEM = ("/bin/", "/dev/", "/etc/", "/lib/", "/proc/", "/sbin/", "/sys/", "/usr/")
"""Folders that every machine has."""

SHORT_NAME = 4
PLAIN_NAMES = {"root", "user", "admin", "ubuntu", "debian", "docker", "runner", "jovyan", "localhost", "data", "test"}
"""User and host names that name nobody."""


@dataclass(frozen=True)
class Leak:
    """Something that must stay here: in which file, where in it, and of which kind; never the secret itself."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}, {self.where}: {self.what}"


@dataclass(frozen=True)
class Machine:
    """What tells one machine from another.

    Attributes:
        paths: folders of this machine, without a slash at the end.
        names: what and name, such as a user's or the host's.
        secrets: environment variable -> value.
    """

    paths: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    secrets: dict[str, str] = field(default_factory=dict, repr=False)


def this_machine(folders: Iterable[Path] = (), public: Iterable[str] = ()) -> Machine:
    """This machine.

    Args:
        folders: folders that are being read, besides the home folder and the current one.
        public: names that go out anyway, such as the repository's: a user name that is part of one is no secret.
    """
    wide = [Path.home(), Path.cwd(), *folders]
    paths = {str(form) for folder in wide for form in (folder.absolute(), folder.resolve()) if len(form.parts) > 1}
    shown = " ".join(public).lower()
    host = socket.gethostname()
    names = (("user name", _user_name()), ("host name", host), ("host name", host.partition(".")[0]))
    plain = PLAIN_NAMES | _own_words()
    kept = tuple(
        (what, name)
        for what, name in names
        if len(name) >= SHORT_NAME and name.lower() not in plain and name.lower() not in shown
    )
    return Machine(tuple(sorted(paths, key=len, reverse=True)), kept, own_secrets())


@cache
def _own_words() -> frozenset[str]:
    """Words of our own code: a machine called "model" or "train" is named by no card that says these words."""
    texts = (path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("*.py"))
    return frozenset(word for text in texts for word in re.findall(r"[a-z][a-z0-9]+", text.lower()))


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user that has a number and no name
        return ""


def find_leaks(name: str, path: Path, machine: Machine, *, copied: bool = False) -> list[Leak]:
    """Everything in a file that must not leave this machine.

    Args:
        name: what the file is called where it goes.
        path: the file.
        machine: this machine.
        copied: the file is the backbone's own, untouched. A path of somebody else's machine in it is public already,
            and its words are no names of ours.
    """
    leaks = [Leak(name, "anywhere in it", f"the value of {variable}") for variable in _raw_secrets(path, machine)]
    is_vocabulary = Path(name).name in VOCABULARIES or path.suffix == ".model"
    if path.suffix == ".safetensors":
        lines = _Lines(_flatten(_read_header(path), "header"))
    elif (value := _read_json(path)) is not None:
        lines = _Lines(_flatten(value, ""))
    else:
        lines = _text_lines(path.read_bytes().decode("utf-8", "replace"))
    leaks += [Leak(name, where, what) for where, what in _secrets(lines)]
    leaks += [Leak(name, where, what) for where, what in _traces(lines, machine, copied, is_vocabulary)]
    return list(dict.fromkeys(leaks))


def find_leaks_in_text(name: str, text: str, machine: Machine) -> list[Leak]:
    """The same for a text that is no file."""
    lines = _text_lines(text)
    leaks = [Leak(name, "in it", f"the value of {key}") for key, value in machine.secrets.items() if value in text]
    leaks += [Leak(name, where, what) for where, what in _secrets(lines)]
    return leaks + [Leak(name, where, what) for where, what in _traces(lines, machine, False, False)]


def _text_lines(text: str) -> "_Lines":
    return _Lines((f"line {number}", "", line) for number, line in enumerate(text.splitlines(), start=1))


def _raw_secrets(path: Path, machine: Machine) -> list[str]:
    """The environment's secrets whose value stands in the file's bytes, weights included."""
    wanted = {name: value.encode() for name, value in machine.secrets.items()}
    overlap = max(map(len, wanted.values()), default=1) - 1
    found: dict[str, None] = {}
    with open(path, "rb") as file:
        tail = b""
        while wanted and (block := file.read(BLOCK)):
            block = tail + block
            found.update(dict.fromkeys(name for name, value in wanted.items() if value in block))
            tail = block[-overlap:] if overlap else b""
    return list(found)


def _read_header(path: Path) -> Any:
    """The JSON header of a safetensors file: tensor names, shapes and metadata.

    Raises:
        PushError: it has none.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(length), object_pairs_hook=_Pairs)
    except (struct.error, ValueError, OverflowError, MemoryError):
        raise PushError(f"{path} is damaged: it has no header of a safetensors file") from None


def _read_json(path: Path) -> Any:
    """The parsed file, with repeated keys; None where it is no JSON."""
    if path.suffix not in (".json", ".jsonl"):
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except ValueError:
        return None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps what a dict would lose: a second value of the same key."""


def _flatten(value: Any, where: str) -> Iterator[tuple[str, str, str]]:
    """(place, key, text) of every key and string below; escapes are undone, as a reader would see them."""
    if isinstance(value, _Pairs):
        for key, each in value:
            place = f"{where}.{key}" if where else key
            yield (where or "the keys", "", key)
            yield from _flatten(each, place) if not isinstance(each, str) else [(place, key, each)]
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _flatten(each, f"{where}[{number}]")
    elif isinstance(value, str):
        yield (where or "its text", "", value)


class _Lines:
    """Texts with their places, and all of them as one to search in."""

    def __init__(self, rows: Iterable[tuple[str, str, str]]) -> None:
        self.rows = [(where, key, text) for where, key, text in rows if text]
        self.starts: list[int] = []
        position = 0
        for _, _, text in self.rows:
            self.starts.append(position)
            position += len(text) + 1
        self.text = "\n".join(text for _, _, text in self.rows)

    def place(self, position: int) -> str:
        """Where in the file a position of ``text`` is; a key that is a secret itself is not repeated."""
        where = self.rows[bisect.bisect_right(self.starts, position) - 1][0]
        return "in a key" if find_secrets(where) else where


def _secrets(lines: _Lines) -> Iterator[tuple[str, str]]:
    for secret in find_secrets(lines.text):
        yield lines.place(secret.position), f"looks like a secret ({secret.kind})"
    for where, key, text in lines.rows:
        if NAMES.search(key) and is_secret_value(key, text):
            yield where, f"looks like a secret (value of {key})"


def _traces(lines: _Lines, machine: Machine, copied: bool, is_vocabulary: bool) -> Iterator[tuple[str, str]]:
    for folder in machine.paths:
        for match in re.finditer(rf"(?<![\w.]){re.escape(folder)}(?![\w-])", lines.text):
            if is_vocabulary and folder.count("/") == 1 and lines.text[match.end() : match.end() + 1] != "/":
                continue  # "/root" is a word of many a vocabulary
            yield lines.place(match.start()), "a path of this machine"
    for match in () if is_vocabulary else ANY_PATH.finditer(lines.text):
        if ADDRESS.search(lines.text, max(0, match.start() - LONGEST_ADDRESS), match.start()):
            continue
        if not copied:
            yield lines.place(match.start()), "an absolute path"
        elif not match[0].startswith(SYSTEM) and Path(match[0]).exists():
            yield lines.place(match.start()), "a path of this machine"
    if not (copied or is_vocabulary):
        for what, name in machine.names:
            for match in re.finditer(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", lines.text, re.IGNORECASE):
                yield lines.place(match.start()), f"the {what} of this machine"


def leaks_message(leaks: list[Leak], repo_id: str) -> str:
    """One line per leak, and what to do about it."""
    shown = "".join(f"\n  {leak}" for leak in leaks[:20])
    more = f"\n  and {len(leaks) - 20} more" if len(leaks) > 20 else ""
    return (
        f"nothing was sent to {repo_id}: these must not leave this machine:{shown}{more}\n"
        "Take them out of the files named and push again; a secret that was ever shared has to be replaced."
    )
