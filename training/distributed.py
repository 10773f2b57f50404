"""Several processes that train, evaluate or predict as one: started by torchrun, joined here.

Every function here also works in a process alone, where it costs nothing: no caller asks how many there are. A collective must be
called by all ranks in the same order.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hanzoo.errors import HanzooError, RunError

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 for a process alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def restarts() -> int:
    """How often torchrun has started this process again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def local_device(name: str) -> str:
    """The device of this rank: of several processes on one machine each has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "cuda" and local is not None and "WORLD_SIZE" in os.environ else name


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    Args:
        device: cpu (gloo) or cuda (nccl).

    Raises:
        RunError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    try:
        # torchrun keeps one store over its restarts. What ranks left there before they died must not be taken for the word of
        # those that come now: they would wait for each other for ever.
        store, number, ranks = next(rendezvous("env://"))
        store = PrefixStore(f"restart_{restarts()}", store)
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=ranks)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the other ranks must be there, but: {str(error).splitlines()[0]}. "
            "Start all of them by torchrun --nproc-per-node N train.py ..."
        ) from error
    try:
        yield
        dist.barrier()  # the others may still be answering: a rank that leaves early can bring them down
    finally:
        # DistributedDataParallel lies in a cycle of references: what is left of it would hold the group, whose threads then abort
        # the process at its end ("terminate called without an active exception")
        gc.collect()
        dist.destroy_process_group()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def sum_integers(values: Sequence[int]) -> list[int]:
    """The sums over all ranks, on every rank. Collective."""
    if num_ranks() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64, device=_device())
    dist.all_reduce(tensor)
    return [int(value) for value in tensor.tolist()]


def sum_tensor(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on every rank; `tensor` itself is left as it is. Collective."""
    if num_ranks() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Each rank's value, in the order of ranks, on every rank. Collective."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all places are filled


def on_first(function: Callable[[], T]) -> T:
    """Call a function on the first rank alone; all ranks get its value, or raise its error. Collective."""
    if num_ranks() == 1:
        return function()
    outcome: list[tuple[T | None, HanzooError | None]] = [(None, None)]
    if rank() == 0:
        try:
            outcome = [(function(), None)]
        except HanzooError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome)
    value, failure = outcome[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]  # the function's own value


def share(items: Sequence[T]) -> list[T]:
    """The part of `items` that is this rank's: every num_ranks-th, so that sorted items are shared evenly."""
    return list(items[rank() :: num_ranks()])


def merge(shares: Sequence[Sequence[T]]) -> list[T]:
    """The items whose shares these are, in their order: undoes `share`."""
    merged: list[T] = []
    for at in range(max((len(part) for part in shares), default=0)):
        merged.extend(part[at] for part in shares if at < len(part))
    return merged
