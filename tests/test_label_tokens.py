"""The chunked loss of label tokens equals the plain one over all logits, and never makes the large tensor."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmtune.losses._label_tokens import NO_LABEL, select_labels, sum_token_losses, token_log_likelihoods

EXACT = 1e-10
"""float64: the order of the sums alone differs."""
HALF = 2e-2
"""bfloat16 has 8 bits of mantissa; the losses here are near 4."""

ROWS, LENGTH, WIDTH, WORDS = 3, 11, 8, 37


class TransformHead(torch.nn.Module):
    """Like BLIP's: a dense layer and a norm before the words."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(WIDTH, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.decoder = torch.nn.Linear(WIDTH, WORDS)

    def forward(self, states):
        return self.decoder(self.norm(torch.nn.functional.gelu(self.dense(states))))


class LowRankHead(torch.nn.Module):
    """A frozen head with a trained low-rank part that has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(WIDTH, WORDS).requires_grad_(False)
        self.down, self.up = torch.nn.Linear(WIDTH, 2, bias=False), torch.nn.Linear(2, WORDS, bias=False)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, states):
        return self.base(states) + self.up(self.down(self.dropout(states)))


def plain_loss(states, labels, head, shifted):
    """All logits at once, as transformers does it, but summed."""
    logits = head(states)
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, WORDS), labels.reshape(-1), ignore_index=NO_LABEL, reduction="sum"
    )


def world(make_head=lambda: torch.nn.Linear(WIDTH, WORDS), seed=0):
    torch.manual_seed(seed)
    head = make_head().double()
    states = torch.randn(ROWS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, WORDS, (ROWS, LENGTH))
    labels[torch.rand(ROWS, LENGTH) < 0.6] = NO_LABEL
    labels[0, 0], labels[1, -1] = 5, 6  # the edges of the shift
    return states, labels, head


def gradients(loss, states, head):
    wanted = [states, *(parameter for parameter in head.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("make_head", [lambda: torch.nn.Linear(WIDTH, WORDS), TransformHead])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_value_and_gradients_are_those_of_all_logits(make_head, chunk, shifted):
    states, labels, head = world(make_head)
    expected = plain_loss(states, labels, head, shifted)
    loss = sum_token_losses(*select_labels(states, labels, shifted), head, chunk=chunk)
    assert loss.shape == () and abs(loss - expected) < EXACT
    for ours, plain in zip(gradients(loss, states, head), gradients(expected, states, head), strict=True):
        assert (ours - plain).abs().max() < EXACT
    assert abs(loss - plain_loss(states, labels, head, not shifted)) > 1  # the negation: a wrong shift is another loss


def test_positions_without_label_get_no_gradient():
    states, labels, head = world()
    (gradient, *_) = gradients(sum_token_losses(*select_labels(states, labels, True), head), states, head)
    says = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    says[:, :-1] = labels[:, 1:] != NO_LABEL
    assert torch.equal(gradient.abs().sum(-1) > 0, says)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_head_passes_gradients_on(frozen):
    states, labels, head = world()
    head.requires_grad_(not frozen)
    sum_token_losses(*select_labels(states, labels, True), head, chunk=3).backward()
    assert states.grad is not None and states.grad.abs().sum() > 0
    assert (head.weight.grad is None) == frozen


def test_states_without_gradient_train_the_head():
    states, labels, head = world()
    sum_token_losses(*select_labels(states.detach(), labels, True), head, chunk=3).backward()
    assert head.weight.grad.abs().sum() > 0


def test_dropout_draws_the_same_mask_in_the_backward_pass():
    states, labels, head = world(LowRankHead)
    selected, targets = select_labels(states, labels, True)

    def plain(seed):
        torch.manual_seed(seed)
        again, _ = select_labels(states, labels, True)
        return torch.nn.functional.cross_entropy(head(again), targets, reduction="sum")

    torch.manual_seed(1)
    loss = sum_token_losses(selected, targets, head, chunk=len(targets))
    expected = plain(1)
    assert abs(loss - expected) < EXACT < abs(loss - plain(2))
    torch.manual_seed(3)  # another state of the generator by then
    for ours, theirs in zip(gradients(loss, states, head), gradients(expected, states, head), strict=True):
        assert (ours - theirs).abs().max() < EXACT


def test_autocast_holds_in_the_backward_pass_and_the_sum_is_fp32():
    states, labels, head = world()
    states, head = states.detach().float().requires_grad_(), head.float()
    seen = []
    head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum_token_losses(*select_labels(states, labels, True), head, chunk=4)
    loss.backward()  # outside: where a training step calls it
    assert loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16} and len(seen) % 2 == 0
    assert head.weight.grad.dtype == torch.float32
    expected = plain_loss(states, labels, head, True)
    assert abs(loss / expected - 1) < HALF and loss != expected


def test_weights_of_16_bits_are_summed_in_fp32():
    states, labels, head = world()
    loss = sum_token_losses(*select_labels(states.bfloat16(), labels, True), head.bfloat16())
    assert loss.dtype == torch.float32


def test_a_quantized_head():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    head = bitsandbytes.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    states, targets = torch.randn(7, 64, requires_grad=True), torch.randint(0, 128, (7,))
    loss = sum_token_losses(states, targets, head, chunk=2)
    expected = torch.nn.functional.cross_entropy(head(states), targets, reduction="sum")
    ours, plain = torch.autograd.grad(loss, states)[0], torch.autograd.grad(expected, states)[0]
    assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(ours, plain, atol=1e-5)  # fp32 kernels


def test_no_label_at_all_gives_zero_with_a_graph():
    states, labels, head = world()
    loss = sum_token_losses(*select_labels(states, torch.full_like(labels, NO_LABEL), True), head)
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any() and not head.weight.grad.any()


def test_no_label_at_all_is_zero_even_beside_values_that_are_not_finite():
    states, labels, head = world()
    with torch.no_grad():
        states[0, 0, 0], head.weight[0, 0] = torch.nan, torch.inf
    loss = sum_token_losses(*select_labels(states, torch.full_like(labels, NO_LABEL), False), head)
    loss.backward()
    assert loss.item() == 0 and not states.grad.any()


@pytest.mark.parametrize("shifted", [True, False])
def test_log_likelihoods_are_sums_per_row(shifted):
    states, labels, head = world()
    labels[2] = NO_LABEL
    found = token_log_likelihoods(states, labels, head, shifted, chunk=2)
    assert not found.requires_grad and found.shape == (ROWS,)
    for row in range(ROWS):
        logs = head(states[row]).log_softmax(-1)
        pairs = zip(logs[:-1], labels[row, 1:], strict=True) if shifted else zip(logs, labels[row], strict=True)
        expected = sum((log[word] for log, word in pairs if word != NO_LABEL), torch.zeros(()))
        assert abs(found[row] - expected) < EXACT
    assert found[2] == 0
    assert abs(found[0] - token_log_likelihoods(states, labels, head, not shifted)[0]) > 0.1


def test_log_likelihoods_without_any_label():
    states, labels, head = world()
    assert not token_log_likelihoods(states, torch.full_like(labels, NO_LABEL), head, True).any()


class LargestTensor(TorchDispatchMode):
    """Sees every operation, those of the backward pass too, and keeps the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


def kept_between_passes(compute):
    """(loss, numbers that its graph keeps from the forward for the backward pass)."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()
    return loss, sum(sizes.values())


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_logits_of_more_than_a_chunk_never_exist(share):
    words, width, length, chunk = 1000, 8, 400, 20
    torch.manual_seed(0)
    head = torch.nn.Linear(width, words, bias=False)
    states = torch.randn(1, length, width, requires_grad=True)
    labels = torch.randint(0, words, (1, length))
    labels[:, int(share * length) :] = NO_LABEL

    def ours():
        return sum_token_losses(*select_labels(states, labels, False), head, chunk=chunk)

    def stock():
        return torch.nn.functional.cross_entropy(head(states)[0], labels[0], reduction="sum")

    largest, kept = [], []
    for compute in (ours, stock):
        with LargestTensor() as sizes:
            loss, numbers = kept_between_passes(compute)
            loss.backward()
        largest.append(sizes.largest)
        kept.append(numbers)
    assert largest == [chunk * words, length * words]
    assert kept[0] < words * width + 3 * length * width < length * words <= kept[1]  # weight, states, targets


def test_both_paths_of_the_benchmark_compute_one_loss():
    file = Path(__file__).resolve().parents[1] / "scripts" / "benchmarks" / "large_vocabulary.py"
    spec = importlib.util.spec_from_file_location("large_vocabulary", file)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    size = {"words": 300, "width": 32, "rows": 2, "length": 16, "device": "cpu", "dtype": "float32"}
    losses = []
    for path, share in (("stock", 0.5), ("label tokens", 0.5), ("label tokens", 1.0)):
        losses.append(benchmark.measure(argparse.Namespace(**size, path=path, share=share))["loss"])
    assert abs(losses[0] - losses[1]) < 1e-5 < abs(losses[1] - losses[2])  # fp32
