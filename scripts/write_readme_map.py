"""Write the README's map of every file from the first sentence of each file.

    python scripts/write_readme_map.py           # rewrites README.md between the two markers
    python scripts/write_readme_map.py --check   # changes nothing; exit code 1 when the map is stale

The sentence comes from a module's docstring, or from the first comment of a shell script or recipe.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- map: written by scripts/write_readme_map.py -->"
END = "<!-- map ends -->"
FOLDERS = ("mmtune", "recipes", "scripts", "tests")
SUFFIXES = ("", ".py", ".yaml")  # no suffix: the shell scripts
IGNORED = ("__pycache__", "assets", "pictures", "fixtures", "data")


def first_sentence(path: Path) -> str:
    """What a file says it is, as one line.

    Raises:
        ValueError: the file does not begin by saying what it is.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = (line for line in text.splitlines() if not line.startswith(("#!", "# yaml-language-server")))
        comments = (re.match(r"#\s?(.*)", line) for line in lines)
        said = next((match[1] for match in comments if match and match[1].strip()), "")
    paragraph = " ".join(said.split("\n\n")[0].split())
    if not paragraph:
        raise ValueError(f"{path.relative_to(ROOT)}: begin the file with one sentence that says what it is")
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0].rstrip(".:")
    return re.sub(r"``(.+?)``", r"`\1`", sentence)


def mapped_files(folder: Path) -> list[Path]:
    """The files of a folder that the map tells of, a folder's own file before its neighbours'."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix in SUFFIXES)
    kept = (path for path in found if not any(part in IGNORED for part in path.relative_to(ROOT).parts))
    return sorted(kept, key=lambda path: (path.parent != folder, path.parent, path.name != "__init__.py", path.name))


def write_map() -> str:
    """The whole map in Markdown."""
    lines = [BEGIN]
    for folder in (ROOT / name for name in FOLDERS):
        heading = None
        for path in mapped_files(folder):
            if path.parent != heading:
                heading = path.parent
                lines += ["", f"**{heading.relative_to(ROOT).as_posix()}/**", ""]
            lines.append(f"- [`{path.name}`]({path.relative_to(ROOT).as_posix()}): {first_sentence(path)}")
    return "\n".join([*lines, "", END])


def replace_map(readme: str) -> str:
    """The README with the map as it should be.

    Raises:
        ValueError: the two markers are not there.
    """
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}")
    before, rest = readme.split(BEGIN, 1)
    return before + write_map() + rest.split(END, 1)[1]


def main() -> int:
    """Rewrite or check README.md; the exit code."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = replace_map(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print("README.md: the map is stale; run python scripts/write_readme_map.py", file=sys.stderr)
        return int(new != old)
    path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
