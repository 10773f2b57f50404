"""Nothing random has a state: every draw comes from a generator keyed by what it is for.

A key is (seed, purpose, numbers such as epoch, step, rank, micro-batch, item). Resuming a run therefore needs the step number and
no generator state, and an evaluation, a worker or a second pass can never shift the draws of training.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(seed: int, purpose: str, *numbers: int) -> int:
    """A 64-bit key for one draw; different arguments give independent keys.

    Args:
        seed: the run's seed.
        purpose: what the draw is for ("dropout", "plan", "unknown", ...).
        numbers: where in the run it happens: epoch or step, rank, micro-batch, item.
    """
    text = "/".join(map(str, (seed, purpose, *numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A NumPy generator for one key. Philox: counter-based, so that making one costs microseconds."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *numbers)))


def reseed(seed: int, purpose: str, *numbers: int) -> None:
    """Set torch's global generators (dropout reads them) to one key.

    On the CPU torch uses the low 32 bits of a seed; the key is a hash, so they almost always differ for different arguments. The
    default generator is set directly: `torch.manual_seed` costs 75 microseconds, this costs one.
    """
    value = key(seed, purpose, *numbers) & 0x7FFF_FFFF_FFFF_FFFF
    torch.default_generator.manual_seed(value)
    for of_device in torch.cuda.default_generators:  # none before CUDA is in use
        of_device.manual_seed(value)
