"""One optimizer step's loss and gradients for tasks that embed: exact for every micro-batch size and rank count.

Every sample of the batch is a candidate for every other, with gradient. When the batch needs several forward passes:

1. embed every micro-batch without a graph;
2. gather the embeddings of all ranks, take the loss once, and its gradient with respect to the embeddings;
3. embed every micro-batch again, with a graph, and push its rows of that gradient through it.

Dropout draws the same masks in 1 and 3 because its generator is seeded by (seed, step, rank, micro-batch). Where one
micro-batch covers the rank's share, the graph of pass 1 is kept and pass 3 costs nothing.

With dropout the masks belong to the micro-batches: another ``micro_batch`` then draws other masks from the same
distribution. Without dropout nothing but the order of sums differs.

Gradients are summed over the ranks, not averaged: the loss is already that of the whole batch.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune.batch_building import Batch
from mmtune.ground.process_group import gather_objects, gather_rows, rank
from mmtune.ground.seeding import seed_for
from mmtune.step_context import StepContext, sum_over_ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def contrastive_step(context: StepContext, batches: Sequence[Batch], step: int) -> "Tensor":
    """Leave the whole batch's gradient in ``.grad`` of every trainable parameter and return the loss, ``float[]``.

    Args:
        context: see ``StepContext``.
        batches: this rank's micro-batches of the step; any of them may have lost samples or be empty.
        step: number of finished optimizer steps.
    """
    import torch

    keep_graph = len(batches) == 1
    embedded = [_embed(context, batch, step, number, keep_graph) for number, batch in enumerate(batches)]
    loss, gradients = _loss_of_all(context, batches, [(i.detach(), t.detach()) for i, t in embedded])
    start = 0
    for number, batch in enumerate(batches):
        rows = slice(start, start + len(batch))
        start = rows.stop
        if not len(batch):
            continue
        pair = embedded[number] if keep_graph else _embed(context, batch, step, number, True)
        parts = [(e, g[rows]) for e, g in zip(pair, gradients, strict=True) if e.requires_grad]
        torch.autograd.backward([e for e, _ in parts], [g for _, g in parts])
    sum_over_ranks(context)
    return loss


def _embed(context: StepContext, batch: Batch, step: int, number: int, graph: bool) -> "tuple[Tensor, Tensor]":
    """Embeddings of one micro-batch in at least fp32, ``float[B, D]`` each (images may have several vectors)."""
    import torch

    family, model = context.backbone.family, context.backbone.model
    if not len(batch):
        empty = torch.zeros((0, 0), device=context.device)
        return empty, empty
    inputs = {name: value.to(context.device, non_blocking=True) for name, value in batch.inputs.items()}
    torch.manual_seed(seed_for(context.seed, "dropout", step, rank(), number))
    with torch.set_grad_enabled(graph), context.autocast():
        pair = family.embed_media(model, inputs), family.embed_text(model, inputs)
    context.num_forwards += 1
    image, text = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in pair)
    return image, text


def _loss_of_all(
    context: StepContext, batches: Sequence[Batch], embedded: "Sequence[tuple[Tensor, Tensor]]"
) -> "tuple[Tensor, tuple[Tensor, Tensor]]":
    """The loss of all ranks' samples, and its gradient with respect to this rank's embeddings."""
    import torch

    images, mine = gather_rows(_rows([image for image, _ in embedded], context))
    texts, _ = gather_rows(_rows([text for _, text in embedded], context))
    images.requires_grad_()
    texts.requires_grad_()
    image_keys, _ = gather_rows(_keys(batches, context.device))
    text_keys, _ = gather_rows(torch.cat([batch.text_keys for batch in batches]).to(context.device))
    positive = context.task.positives(image_keys, text_keys)
    loss: Tensor = context.task.loss(context.section, images, texts, positive, context.temperature())
    context.scale(loss).backward()
    assert images.grad is not None and texts.grad is not None
    return loss.detach(), (images.grad[mine], texts.grad[mine])


def _rows(parts: "list[Tensor]", context: StepContext) -> "Tensor":
    """Join micro-batches; a rank that lost every sample still needs the right width to take part in the gather."""
    import torch

    full = [part for part in parts if part.shape[0]]
    width = max(gather_objects([tuple(full[0].shape[1:]) if full else (0,)]))
    if full:
        return torch.cat(full)
    dtype = torch.promote_types(next(iter(context.trainable.values())).dtype, torch.float32)
    return torch.zeros((0, *width), device=context.device, dtype=dtype)


def _keys(batches: Sequence[Batch], device: "torch.device") -> "Tensor":
    """``int64[B, K]`` of a rank, K the widest of all micro-batches and ranks."""
    import torch

    width = max(gather_objects([max(batch.image_keys.shape[1] for batch in batches)]))
    padded = [
        torch.nn.functional.pad(batch.image_keys, (0, width - batch.image_keys.shape[1]), value=-1) for batch in batches
    ]
    return torch.cat(padded).to(device)
