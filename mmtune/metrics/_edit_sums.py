"""Errors and lengths for the error rates, counted by jiwer.

jiwer comes with the extra ``mmtune[metrics]``.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmtune.ground.errors import DataError
from mmtune.metrics import Predictions, References
from mmtune.metrics._answer_sums import check_answers


def edit_statistics(
    unit: Literal["words", "characters"], predictions: Predictions, references: References
) -> np.ndarray:
    """Per sample: errors against the reference with the lowest rate of them, and that reference's length.

    Returns:
        float64[N, 2], whole numbers; of references with equal rates the longer, then the first.

    Raises:
        DataError: jiwer is missing.
        ValueError: see `check_answers`.
    """
    try:
        import jiwer
    except ImportError as error:
        score = {"words": "wer", "characters": "cer"}[unit]
        raise DataError(f"the score {score} needs jiwer: pip install 'mmtune[metrics]'") from error
    check_answers(predictions, references)

    def counts(prediction: str, text: str) -> tuple[int, int]:
        if unit == "words":
            done: jiwer.WordOutput | jiwer.CharacterOutput = jiwer.process_words(text, prediction)
        else:
            done = jiwer.process_characters(text, prediction)
        wrong = done.substitutions + done.deletions
        return wrong + done.insertions, wrong + done.hits

    rows = [_least([counts(p, text) for text in texts]) for p, texts in zip(predictions, references, strict=True)]
    return np.array(rows, dtype=np.float64)


def _least(counted: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(counted, key=lambda pair: (pair[0] / max(pair[1], 1), -pair[1]))
