"""README.zh-CN.md says what README.md says: the same commands, numbers, code spans, tables and links, block by block.

What scripts write into README.md between markers is left out; where it stands, the Chinese page has a link to it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")

GENERATED = re.compile(r"<!-- ([\w ]+): written by \S+ -->.*?<!-- \1 ends -->", re.DOTALL)
ELSEWHERE = "](README.md#"  # in a paragraph of the Chinese page: what it links to is not translated
NOT_TRANSLATED = "## Map\n"  # a heading with nothing but a generated part below it
FENCE = re.compile(r"```(\w*)")
HEADING = re.compile(r"(#+) (.+)")
LINK = re.compile(r"\]\(([^)]+)\)")
BOLD = re.compile(r"\*\*(.+?)\*\*", re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)*")
FILE_NAME = re.compile(r"[A-Za-z0-9_./-]*[./][A-Za-z0-9_./-]*")
COMMENTED = re.compile(r"""((?:"[^"]*"|'[^']*'|[^"'#]|(?<=\S)#)*)(?:#(.*))?""")
FOR_EDITORS = "# yaml-language-server"  # a comment that a program reads: it stays as it is
FOLDER_TREE = ""  # the language of the block that shows a run folder: names to compare, words to translate
LONGEST_LINE = 120


@dataclass
class Block:
    """A paragraph, an item of a list, a table, a fenced block, or a generated part (in Chinese: a link to it)."""

    kind: str
    lines: list[str]
    language: str = ""


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    level: int
    blocks: list[Block] = field(default_factory=list)


def sections(page: str) -> list[Section]:
    """The sections of a page in order."""
    found: list[Section] = []
    open_block: Block | None = None
    for line in GENERATED.sub(ELSEWHERE, page).replace(NOT_TRANSLATED, "").splitlines():
        fence, heading = FENCE.match(line), HEADING.match(line)
        if open_block and open_block.kind == "code":
            if line == "```":
                open_block = None
            else:
                open_block.lines.append(line)
        elif fence:
            open_block = Block("code", [], fence[1])
            found[-1].blocks.append(open_block)
        elif heading:
            open_block = None
            found.append(Section(heading[2], len(heading[1])))
        elif not line.strip():
            open_block = None
        elif open_block is None or kind_of(line, open_block) != open_block.kind or line.startswith("- "):
            open_block = Block(kind_of(line), [line])
            found[-1].blocks.append(open_block)
        else:
            open_block.lines.append(line)
    return found


def kind_of(line: str, before: Block | None = None) -> str:
    if line.startswith("|"):
        return "table"
    if line.startswith("- ") or (before and before.kind == "item" and line.startswith("  ")):
        return "item"
    return "generated" if ELSEWHERE in line else "paragraph"


def facts(text: str) -> Counter[str]:
    """What no translation changes: numbers, code spans, links, and how much is bold."""
    links = [target for target in LINK.findall(text) if not target.startswith("README")]  # not to the other language
    words = LINK.sub("]", text)
    spans = [" ".join(span.split()) for span in CODE_SPAN.findall(words)]
    numbers = NUMBER.findall(CODE_SPAN.sub(" ", words))
    bold = ["bold" for _ in BOLD.finditer(text)]
    return Counter([*(f"`{span}`" for span in spans), *numbers, *links, *bold])


def without_comment(line: str) -> tuple[str, str | None]:
    """The code of a line of shell, YAML or Python, and its comment."""
    if line.startswith(FOR_EDITORS):
        return line, None
    match = COMMENTED.fullmatch(line)
    assert match, f"a quote is not closed: {line}"
    return match[1].rstrip(), match[2]


def untranslated(line: str, language: str) -> object:
    """What is the same in both languages in one line of a fenced block."""
    if language == FOLDER_TREE:
        return len(line) - len(line.lstrip()), Counter(FILE_NAME.findall(line)), Counter(NUMBER.findall(line))
    code, comment = without_comment(line)
    return code, comment is None, Counter(NUMBER.findall(comment or ""))


def cells(row: str) -> list[Counter[str]]:
    return [facts(cell) for cell in row.strip().strip("|").split("|")]


def compared(block: Block) -> list[object]:
    """A block as things that are equal in both languages: one per line, row, paragraph or item."""
    if block.kind == "code":
        return [block.language, *(untranslated(line, block.language) for line in block.lines)]
    if block.kind == "table":
        return [cells(row) for row in block.lines]
    if block.kind == "generated":
        return []
    return [facts("\n".join(block.lines))]


def differences(english: str, chinese: str) -> list[str]:
    """Where the Chinese page has fallen behind, each with its section; README.md is `english`."""
    ours, theirs = sections(english), sections(chinese)
    if [section.level for section in ours] != [section.level for section in theirs]:
        return [f"{len(ours)} headings in English, {len(theirs)} in Chinese, or not of the same levels"]
    return [each for pair in zip(ours, theirs, strict=True) for each in section_differences(*pair)]


def section_differences(ours: Section, theirs: Section) -> Iterator[str]:
    kinds = [[block.kind for block in section.blocks] for section in (ours, theirs)]
    if kinds[0] != kinds[1]:
        yield f"{ours.title}: {kinds[0]} in English, {kinds[1]} in Chinese"
        return
    for block, other in zip(ours.blocks, theirs.blocks, strict=True):
        for one, two in zip_longest(compared(block), compared(other)):
            if one != two:
                yield f"{ours.title}: {one} in English, {two} in Chinese"


def anchor(title: str) -> str:
    """The name under which GitHub finds a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def anchors(page: str) -> list[str]:
    return [anchor(title) for title in re.findall(r"^##+ (.+)", page, re.MULTILINE)]


def broken_links(page: str) -> list[str]:
    """Links that lead to no file, or to no heading of README.md."""
    found = []
    for target in LINK.findall(page):
        path, _, place = target.partition("#")
        whole = (ROOT / path).is_file() and (not place or (path == "README.md" and place in anchors(ENGLISH)))
        if not whole and "://" not in target:
            found.append(target)
    return found


def test_the_chinese_page_is_in_step() -> None:
    assert differences(ENGLISH, CHINESE) == []


def test_the_pages_link_to_each_other() -> None:
    assert ENGLISH.splitlines()[2] == "[中文](README.zh-CN.md)"
    assert CHINESE.splitlines()[2] == "[English](README.md)"
    assert broken_links(CHINESE) == []
    generated = [anchors(ENGLISH[: match.start()])[-1] for match in GENERATED.finditer(ENGLISH)]
    assert generated == ["what-is-frozen-runs-once", "what-works-with-what", "map"]
    assert [target for target in LINK.findall(CHINESE) if "#" in target] == [f"README.md#{each}" for each in generated]


def test_a_broken_link_is_seen() -> None:
    page = "[a](LICENSE) [b](LICENCE) [c](README.md#map) [d](README.md#maps) [e](https://example.org/x)"
    assert broken_links(page) == ["LICENCE", "README.md#maps"]


def badly_broken_lines(page: str) -> list[str]:
    """Lines outside tables that are too long, or that end between two Chinese characters: that is shown as a gap."""
    found = []
    for block in [block for section in sections(page) for block in section.blocks if block.kind != "table"]:
        found += [line for line in block.lines if len(line) > LONGEST_LINE]
        if block.kind != "code":
            found += [line for line in block.lines[:-1] if re.search(r"[\u4e00-\u9fff]$", line)]
    return found


def test_lines_are_short_and_break_after_punctuation() -> None:
    assert badly_broken_lines(CHINESE) == []
    assert badly_broken_lines("# 题\n\n第一行，\n第二\n行。\n\n" + "长" * 121 + "\n") == ["第二", "长" * 121]


def planted(pattern: str, change: str) -> Iterator[tuple[str, str]]:
    """The Chinese page with one place changed, for every place that the pattern finds; and the place."""
    for match in re.finditer(pattern, CHINESE, re.MULTILINE):
        yield CHINESE[: match.start()] + match.expand(change) + CHINESE[match.end() :], match[0]


@pytest.mark.parametrize(
    ("pattern", "change", "at_least"),
    [
        (r"(?<![0-9.])[0-9]+(?:\.[0-9]+)*", r"9\g<0>", 60),  # another number, in prose, tables, code and comments
        (r"(?<!`)`([^`\n]+)`(?!`)", r"`\1x`", 60),  # another code span
        (r"\]\((?!README)([^)]+)\)", r"](\1x)", 4),  # another link
        (r"^\|.*\n", "", 20),  # a row that is missing
        (r"^(\|.*)\|.*\|$", r"\1|", 20),  # a cell that is missing
        (r"^- ", "", 8),  # an item that is no item
        (r"^## .*\n", "", 8),  # a heading that is missing
        (r"^(?:mmtune [a-z]|accelerate|pip|source|scripts/).*\n", "", 12),  # a command that is missing
        (r"^((?:mmtune [a-z]|accelerate)[^#\n]*[^#\n ])", r"\1 --force", 10),  # a flag that is not there
        (r"^ +[\w/.-]+\.(?:jsonl?|png)", "", 6),  # a file of the run folder that is missing
        (r"^( *\w+: +)([\w{])", r"\1x\2", 8),  # another value in the recipe
        (r"^(\w+ = .*)\)", r"\1, 1)", 6),  # another call in Python
        (r" +# .*$", "", 12),  # a comment that is missing
        (r"^```.*", "```text", 10),  # a fence of another language, or one that does not end
    ],
)
def test_small_changes_are_found(pattern: str, change: str, at_least: int) -> None:
    changed = list(planted(pattern, change))
    assert len(changed) >= at_least
    missed = [place for page, place in changed if not differences(ENGLISH, page)]
    assert missed == []


def test_what_the_other_page_gains_is_found() -> None:
    assert differences(ENGLISH.replace("\n- **Splits", "\n- **New.** More.\n- **Splits", 1), CHINESE)
    assert differences(ENGLISH.replace("\n## Map", "\n## New\n\nMore.\n\n## Map"), CHINESE)
    for end in ("<!-- method table ends -->", "<!-- map ends -->"):
        assert differences(ENGLISH.replace(end, f"{end}\n\nBy hand."), CHINESE)


def test_words_and_generated_parts_may_differ() -> None:
    assert not differences(ENGLISH, CHINESE.replace("骨干模型", "主干模型"))
    generated = ENGLISH.replace("| ia3 |", "| ia4 | 17 |").replace("(mmtune/", "(other/")
    assert generated != ENGLISH and not differences(generated, CHINESE)


@pytest.mark.parametrize(
    ("line", "code", "comment"),
    [
        ("mmtune check a.yaml   # all of it's checks", "mmtune check a.yaml", " all of it's checks"),
        ('caption: "{a} # {b}"  # a template', 'caption: "{a} # {b}"', " a template"),
        ("path: a#b", "path: a#b", None),
        ("# only words", "", " only words"),
        (f"{FOR_EDITORS}: $schema=x", f"{FOR_EDITORS}: $schema=x", None),
    ],
)
def test_comments_are_told_from_code(line: str, code: str, comment: str | None) -> None:
    assert without_comment(line) == (code, comment)
