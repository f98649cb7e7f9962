"""One optimizer step's loss and gradients for classification by prompts.

All classes are embedded once per step, however many micro-batches there are: the gradient with respect to their
embeddings is collected from the images and sent back through the text tower once. Where nothing of the text tower is
trained they are embedded once per run. The loss is the mean over the whole batch, all micro-batches and ranks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune.batch_building import Batch
from mmtune.class_prompts import class_logits, embed_classes, encode_prompts
from mmtune.ground.process_group import all_reduce_sum, rank
from mmtune.ground.seeding import seed_for
from mmtune.step_context import StepContext, sum_over_ranks

if TYPE_CHECKING:
    from torch import Tensor


def prompt_step(context: StepContext, batches: Sequence[Batch], step: int) -> "Tensor":
    """Leave the whole batch's gradient in ``.grad`` of every trainable parameter and return the loss, ``float64[]``.

    Args:
        context: see ``StepContext``.
        batches: this rank's micro-batches of the step; any of them may have lost samples or be empty.
        step: number of finished optimizer steps.
    """
    import torch

    number = int(all_reduce_sum(torch.tensor(sum(map(len, batches)), device=context.device)))
    loss = torch.zeros((), device=context.device, dtype=torch.float64)
    context.scale(torch.zeros((), device=context.device))  # fp16's scaler begins with this, also where all is bad
    classes = _classes(context, step)
    leaf = classes.detach().requires_grad_(classes.requires_grad)
    for place, batch in enumerate(batches):
        if not len(batch):
            continue
        part = _image_loss(context, batch, leaf, step, place) / max(1, number)
        if part.requires_grad:
            context.scale(part).backward()
        loss += part.detach()
    if classes.requires_grad and leaf.grad is not None:
        classes.backward(leaf.grad)
    _sum_temperature(context)
    sum_over_ranks(context)
    return all_reduce_sum(loss)


def _image_loss(context: StepContext, batch: Batch, classes: "Tensor", step: int, place: int) -> "Tensor":
    """The sum of a micro-batch's losses, ``float[]``."""
    import torch

    backbone = context.backbone
    inputs = {name: value.to(context.device, non_blocking=True) for name, value in batch.inputs.items()}
    torch.manual_seed(seed_for(context.seed, "dropout", step, rank(), place))
    with context.autocast():
        images = backbone.family.embed_media(backbone.model, inputs)
    context.num_forwards += 1
    logits = class_logits(backbone, images, classes)
    total: Tensor = context.task.loss_total(context.section, logits, batch.text_keys.to(context.device))
    return total


def _classes(context: StepContext, step: int) -> "Tensor":
    """float[C, D]; with a graph, and anew in each step, where the text tower is trained."""
    import torch

    if (kept := context.kept.get("classes")) is not None:
        return kept
    backbone = context.backbone
    if "prompts" not in context.kept:
        context.kept["prompts"] = encode_prompts(backbone, context.task, context.section)
    torch.manual_seed(seed_for(context.seed, "dropout of classes", step))
    with context.autocast():
        classes = embed_classes(backbone, context.kept["prompts"], len(context.section.classes), context.device)
    context.num_prompt_passes += 1
    if not classes.requires_grad:
        context.kept["classes"] = classes
    return classes


def _sum_temperature(context: StepContext) -> None:
    """Give every rank the temperature's whole gradient: ``sum_over_ranks`` takes that of rank 0 alone."""
    import torch

    for name in context.backbone.traits.temperature:
        parameter = context.trainable.get(name)
        if parameter is not None:
            mine = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            parameter.grad = all_reduce_sum(mine.clone())
