"""Memory of a training step: how much was held, and what to set when there was not enough."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmtune.batch_building import Layout
from mmtune.ground.errors import MemoryExhausted


@contextmanager
def advise_on_memory(layout: Layout, step: int) -> Iterator[None]:
    """Turn running out of memory in step number ``step`` into a message with the micro-batch to set.

    Raises:
        MemoryExhausted: with that message.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise MemoryExhausted(_smaller_micro_batch(layout, step)) from None


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _smaller_micro_batch(layout: Layout, step: int) -> str:
    micro = layout.micro_batch
    share = layout.batch // layout.num_ranks
    smaller = max((size for size in range(1, micro) if share % size == 0), default=0)
    advice = (
        f"set train.micro_batch: {smaller} (it changes memory and speed, never the result)"
        if smaller
        else "micro_batch is 1 already: set train.activation_checkpointing: true, or use a smaller backbone, "
        "backbone.quantize, or fewer adapted layers"
    )
    return f"out of memory in step {step} with train.micro_batch={micro}: {advice}"


def peak_memory() -> int:
    """Bytes: the most the GPU held, else the most this process held."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
