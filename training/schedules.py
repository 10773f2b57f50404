"""Learning-rate schedules: pure functions of the step, so that resuming needs no schedule state."""

from __future__ import annotations


def linear(step: int, num_steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate: up from 1/warmup to 1, then down in a line to 0 after the last step.

    Args:
        step: 0-based optimizer step; the first one trains with a factor above 0.
        num_steps: steps of the whole training.
        warmup_steps: steps until the factor is 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup_steps))
