"""Losses against plain double loops, with several positives, at the published temperatures."""

import math

import pytest
import torch

from mmtune.losses import infonce, sigmoid
from mmtune.tasks.retrieval import positives

TOLERANCE = 1e-12
"""float64 sums of at most a few hundred terms of size 100."""


def some_batch(num: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit embeddings and a positives matrix in which samples 0, 1 share a caption and 2, 3 an image."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(num, 8, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    positive = torch.eye(num, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = True
    positive[2, 3] = positive[3, 2] = True
    return images, texts, positive


def infonce_by_loop(images: torch.Tensor, texts: torch.Tensor, positive: torch.Tensor, scale: float) -> float:
    """The formula of the docstring, written with loops over rows and positives."""
    total = 0.0
    for rows, columns, mask in ((images, texts, positive), (texts, images, positive.T)):
        for i, row in enumerate(rows):
            scores = [scale * float(row @ column) for column in columns]
            negative = [s for s, is_positive in zip(scores, mask[i], strict=True) if not is_positive]
            shares = [
                scores[p] - math.log(sum(math.exp(s) for s in [scores[p], *negative]))
                for p in range(len(scores))
                if mask[i, p]
            ]
            total -= sum(shares) / len(shares) / len(rows) / 2
    return total


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_infonce_equals_the_double_loop(scale: float) -> None:
    images, texts, positive = some_batch(7)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
    value = infonce.loss(images, texts, positive, log_scale)
    assert float(value) == pytest.approx(infonce_by_loop(images, texts, positive, scale), rel=TOLERANCE * 100)
    one_positive = torch.eye(7, dtype=torch.bool)
    assert float(value) != pytest.approx(infonce_by_loop(images, texts, one_positive, scale), rel=1e-3)


def test_infonce_with_one_positive_is_clips_cross_entropy() -> None:
    images, texts, _ = some_batch(6)
    logits = 20 * images @ texts.T
    target = torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    log_scale = torch.tensor(math.log(20.0), dtype=torch.float64)
    value = infonce.loss(images, texts, torch.eye(6, dtype=torch.bool), log_scale)
    torch.testing.assert_close(value, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_positive_is_never_pushed_away() -> None:
    images, texts, positive = some_batch(6)
    texts.requires_grad_()
    scale = torch.tensor(math.log(5.0), dtype=torch.float64)
    logits_of_pair = images[0] @ texts[1]
    (direction,) = torch.autograd.grad(logits_of_pair, texts, retain_graph=True)
    alone = torch.eye(6, dtype=torch.bool)
    (as_negative,) = torch.autograd.grad(infonce._one_direction(scale.exp() * images[:1] @ texts.T, alone[:1]), texts)
    assert (as_negative * direction).sum() > 0, "as a negative, a step down the gradient lowers the pair's score"
    row = infonce._one_direction(scale.exp() * images[:1] @ texts.T, positive[:1])
    (as_positive,) = torch.autograd.grad(row, texts)
    assert (as_positive * direction).sum() < 0, "as a positive, it raises it"


def test_a_batch_in_which_everything_is_positive_costs_nothing() -> None:
    images, texts, _ = some_batch(4)
    images.requires_grad_()
    log_scale = torch.tensor(4.6, dtype=torch.float64, requires_grad=True)
    value = infonce.loss(images, texts, torch.ones(4, 4, dtype=torch.bool), log_scale)
    value.backward()
    assert value.item() == 0.0
    assert images.grad is not None and images.grad.abs().sum() == 0 and log_scale.grad is not None


@pytest.mark.parametrize("bias", [None, -10.0])
def test_sigmoid_equals_the_double_loop(bias: float | None) -> None:
    images, texts, positive = some_batch(5)
    expected = 0.0
    for i, j in ((i, j) for i in range(5) for j in range(5)):
        score = 10 * float(images[i] @ texts[j]) + (bias or 0.0)
        expected += math.log1p(math.exp(-score if positive[i, j] else score)) / 5
    offset = None if bias is None else torch.tensor(bias, dtype=torch.float64)
    log_scale = torch.tensor(math.log(10.0), dtype=torch.float64)
    value = sigmoid.loss(images, texts, positive, log_scale, offset)
    assert float(value) == pytest.approx(expected, rel=TOLERANCE * 10)


def test_positives_are_known_texts_and_nothing_else() -> None:
    image_keys = torch.tensor([[1, 2], [3, -1], [2, -1]])
    text_keys = torch.tensor([1, 3, 2])
    expected = torch.tensor([[True, False, True], [False, True, False], [False, False, True]])
    assert torch.equal(positives(image_keys, text_keys), expected)
