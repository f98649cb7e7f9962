"""The loss of label tokens, without ever holding the logits of all of them.

A vocabulary of 150,000 words makes logits the largest tensor of a step: 4,096 positions are 2.4 GB in fp32, and the
stock loss holds several copies. Two things keep them small here:

- only the states of positions that carry a label reach the head (``select_labels``);
- they pass it in chunks, and the logits of a chunk are computed again in the backward pass instead of being kept.

The sums are those of the full computation up to the order of addition. Letters: B rows, L positions, D width,
V vocabulary, N labelled positions of all rows.

Source: the loss itself is the cross-entropy of every published language model; recomputing is Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost".
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

NO_LABEL = -100
"""What stands in ``labels`` where nothing is trained: transformers' and torch's own mark."""

CHUNK = 256
"""Positions whose logits are held at a time: 154 MB in fp32 for 150,000 words, and still a large matrix product."""


def select_labels(states: "Tensor", labels: "Tensor", shifted: bool) -> "tuple[Tensor, Tensor]":
    """The states that must say something, float[N, D], and what each must say, int64[N].

    Args:
        states: float[B, L, D], what the head would turn into logits.
        labels: int64[B, L], ``NO_LABEL`` where nothing is trained.
        shifted: whether a label stands at its own token, so that the state before it must say it (causal models);
            else the label stands at the state that says it.
    """
    places = labelled(labels, shifted)
    width = places.shape[1]
    return states[:, :width][places], labels[:, labels.shape[1] - width :][places]


def labelled(labels: "Tensor", shifted: bool) -> "Tensor":
    """Which states must say something: bool[B, L], or bool[B, L - 1] where labels are shifted."""
    return (labels[:, 1:] if shifted else labels) != NO_LABEL


def sum_token_losses(states: "Tensor", targets: "Tensor", head: "nn.Module", *, chunk: int = CHUNK) -> "Tensor":
    """The sum of the cross-entropies of ``targets``, float[] in at least fp32.

    Args:
        states: float[N, D] of labelled positions only, see ``select_labels``.
        targets: int64[N].
        head: maps states to logits float[n, V]; it may be trained, frozen, quantized or adapted, and it runs in the
            number format of the autocast that is on here, in the backward pass too.
        chunk: positions at a time.

    Without any position the sum is 0 and has a graph, so that every rank can call ``backward``.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    dtype = torch.promote_types(states.dtype, torch.float32)
    if not len(targets):
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        nothing: Tensor = sum(each.flatten()[:0].sum().to(dtype) for each in (states, *trained))  # type: ignore[assignment]
        return nothing
    parts = []
    for some, said in zip(states.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():  # the head's dropout draws the same mask again: checkpoint restores its generator
            parts.append(checkpoint(_sum_of_chunk, some, said, head, use_reentrant=False))
        else:
            parts.append(_sum_of_chunk(some, said, head))
    return torch.stack(parts).sum()


def token_log_likelihoods(
    states: "Tensor", labels: "Tensor", head: "nn.Module", shifted: bool, *, chunk: int = CHUNK
) -> "Tensor":
    """How likely each row's labels are together: the sum of their log probabilities, float[B], without gradient.

    Args:
        states: float[B, L, D].
        labels: int64[B, L].
        head: as in ``sum_token_losses``.
        shifted: as in ``select_labels``.
        chunk: positions at a time.

    A row without labels gives 0.
    """
    import torch

    with torch.no_grad():
        selected, targets = select_labels(states, labels, shifted)
        places = labelled(labels, shifted)
        values = torch.zeros(places.shape, dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
        if len(targets):
            pairs = zip(selected.split(chunk), targets.split(chunk), strict=True)
            values[places] = -torch.cat([_token_losses(some, said, head) for some, said in pairs])
        return values.sum(dim=1)


def _sum_of_chunk(states: "Tensor", targets: "Tensor", head: "nn.Module") -> "Tensor":
    return _token_losses(states, targets, head).sum()


def _token_losses(states: "Tensor", targets: "Tensor", head: "nn.Module") -> "Tensor":
    """Cross-entropies float[n] in at least fp32: in 16 bits the sum over a large vocabulary loses its small terms."""
    import torch

    logits = head(states)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.nn.functional.cross_entropy(wide, targets, reduction="none")
