"""The ranks of a run. Every function also works in a single process, where it does nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def _distributed() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 in a single process."""
    import torch.distributed as dist

    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """How many processes take part."""
    import torch.distributed as dist

    return dist.get_world_size() if _distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    import torch.distributed as dist

    if _distributed():
        dist.barrier()


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """Sum ``tensor`` over the ranks, in place, and return it."""
    import torch.distributed as dist

    if _distributed():
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor: "Tensor") -> "tuple[Tensor, slice]":
    """Every rank's rows, in rank order, without gradient.

    Args:
        tensor: ``[B_rank, ...]``; the number of rows may differ between ranks and may be zero.

    Returns:
        ``[sum of B_rank, ...]`` and the slice that holds this rank's rows.
    """
    import torch
    import torch.distributed as dist

    if not _distributed():
        return tensor.detach(), slice(0, tensor.shape[0])
    counts = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([tensor.shape[0]], dtype=torch.int64, device=tensor.device))
    sizes = [int(count) for count in counts]
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    start = sum(sizes[: rank()])
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows, slice(start, start + sizes[rank()])


def gather_objects(items: list[Any]) -> list[Any]:
    """The lists of all ranks joined in rank order; small plain objects only."""
    import torch.distributed as dist

    if not _distributed():
        return list(items)
    parts: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    import torch.distributed as dist

    if not _distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def leave() -> None:
    """Take the process group down at the end of a launched process."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
