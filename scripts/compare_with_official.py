"""Our caption words and scores beside those of the official scorers, on lines of text.

    pip install --no-deps --target official pycocoevalcap    # its scorers are Python; its tokenizer needs Java
    python scripts/compare_with_official.py official FILE    # FILE: one text per line

Prints every line whose words differ, then the scores with every line in turn as the prediction and the two that follow
it as references: the official ones, ours of the same tokenized text, ours of the raw text. Exit code 1 where those of
tokenized text differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

from mmtune.metrics import answer_score  # noqa: E402
from mmtune.metrics._ptb_tokens import ptb_tokens  # noqa: E402

JAR = "pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar"
DROPPED = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
CLOSE = 1e-6


def official_words(jar: Path, lines: list[str]) -> list[list[str]]:
    """The words of each line by the tokenizer that the COCO caption evaluation calls."""
    tokenizer = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run(
        ["java", "-cp", str(jar), *tokenizer], input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    )
    found = done.stdout.split("\n")[: len(lines)]
    return [[word.replace("\\/", "/") for word in line.split() if word not in DROPPED] for line in found]


def official_scores(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    """The official scorers' values of tokenized texts."""
    scorers: Any = {
        name: importlib.import_module(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "cider", "rouge")
    }
    said = {number: [text] for number, text in enumerate(predictions)}
    right = dict(enumerate(references))
    bleu = scorers["bleu"].Bleu(4).compute_score(right, said, verbose=0)[0]
    values = {f"coco_bleu@{k}": float(value) for k, value in enumerate(bleu, start=1)}
    values["cider_d"] = float(scorers["cider"].Cider().compute_score(right, said)[0])
    values["rouge_l"] = float(scorers["rouge"].Rouge().compute_score(right, said)[0])
    return values


def neighbours(lines: list[str]) -> list[list[str]]:
    """References that overlap with each line, in a sorted file: the two lines that follow."""
    return [[lines[(number + n) % len(lines)] for n in (1, 2)] for number in range(len(lines))]


def main() -> int:
    """Compare; see the file's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    sys.path.append(str(given.official))
    lines = [line.strip() for line in given.file.read_text(encoding="utf-8").splitlines() if line.strip()]
    words = official_words(given.official / JAR, lines)
    differing = [(line, theirs) for line, theirs in zip(lines, words, strict=True) if ptb_tokens(line) != theirs]
    for line, theirs in differing:
        print(f"{line}\n  official {theirs}\n  ours     {ptb_tokens(line)}")
    print(f"{len(differing)} of {len(lines)} lines have other words")
    tokenized = [" ".join(theirs) for theirs in words]
    expected = official_scores(tokenized, neighbours(tokenized))
    worst = 0.0
    for name, value in expected.items():
        same = answer_score(name).value(tokenized, neighbours(tokenized))
        raw = answer_score(name).value(lines, neighbours(lines))
        worst = max(worst, abs(same - value))
        print(f"{name:12} official {value:.9f}   ours, tokenized {same:.9f}   ours, raw {raw:.9f}")
    return int(worst > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
