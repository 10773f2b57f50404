"""The CRF layer against pytorch-crf 0.7.2: loss (forward and backward) and decoding, one thread, in turns.

    python benchmarks/crf.py [--rounds 25] [--save]

Batch 32, ragged lengths up to 128, 41 tags, standard normal emissions. First both sides are checked to agree. Then they run in
turn; a ratio is the median over rounds of (their time / our time in the same round), its range the smallest and the largest.
Times are processor seconds of this single-threaded process, so that other work on the machine does not count. The constrained
rows are our layer under BIOES constraints (10 types, 41 tags) against pytorch-crf, which has none. A line of JSON ends the
output; --save also writes it to benchmarks/results/crf.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch reads them
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
import torchcrf  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.report import report  # noqa: E402
from hanzoo.data.schemes import TagSet  # noqa: E402
from hanzoo.models.layers.crf import CRF, log_likelihood, marginals  # noqa: E402

BATCH, SEQ, TYPES = 32, 128, 10


def build() -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """The layers, all with one set of parameters, and emissions, tags (legal under BIOES), mask."""
    scheme = TagSet(scheme="BIOES", labels=tuple(f"type{i}" for i in range(TYPES)))
    num_tags = len(scheme.tags)
    legal = {"legal_transitions": scheme.legal_transitions, "legal_start": scheme.legal_start}
    constrained = CRF(num_tags, batch_first=True, legal_end=scheme.legal_end, **legal)
    free, theirs = CRF(num_tags, batch_first=True), torchcrf.CRF(num_tags, batch_first=True)
    for layer in (free, theirs):
        layer.load_state_dict(constrained.state_dict())
    lengths = torch.randint(1, SEQ + 1, (BATCH,))
    lengths[0] = SEQ
    mask = torch.arange(SEQ) < lengths.unsqueeze(1)
    emissions = torch.randn(BATCH, SEQ, num_tags)
    tags, _ = constrained.viterbi_decode(torch.randn(BATCH, SEQ, num_tags), mask)
    return {"constrained": constrained, "free": free, "theirs": theirs}, emissions, tags, mask


def gradients(layer: Any, emissions: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Value of the loss and its gradients."""
    source = emissions.detach().requires_grad_()
    layer.zero_grad()
    value = loss(source)
    value.backward()
    assert source.grad is not None
    return [value.detach(), source.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


def in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each side in each round; the order turns around every other round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for name in list(sides) * 2:
        sides[name]()  # warm-up
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str) -> tuple[float, list[float]]:
    """Median and range of theirs / ours."""
    ratios = [a / b for a, b in zip(seconds["theirs"], seconds[ours], strict=True)]
    return round(statistics.median(ratios), 2), [round(min(ratios), 2), round(max(ratios), 2)]


def check(layers: dict[str, Any], emissions: Tensor, tags: Tensor, mask: Tensor) -> None:
    """Fail unless both sides agree on loss, gradients and best paths, and a wrong side would be noticed."""
    free, theirs = layers["free"], layers["theirs"]
    want = gradients(theirs, emissions, lambda e: theirs(e, tags, mask))
    for name, found in {
        "numba": gradients(free, emissions, lambda e: free(e, tags, mask)),
        "torch": gradients(free, emissions, lambda e: torch_loss(free, e, tags, mask)),
    }.items():
        for place, (a, b) in enumerate(zip(found, want, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name, p=place: f"{n} {p}: {m}")
    assert free.decode(emissions, mask) == theirs.decode(emissions, mask)
    other = gradients(free, emissions + 0.1 * torch.randn_like(emissions), lambda e: free(e, tags, mask))
    assert (other[1] - want[1]).abs().max() > 1e-2, "the check would not notice a difference"


def torch_loss(layer: Any, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
    """The loss on the torch path, which is what CUDA runs."""
    scores = layer.start_transitions, layer.transitions, layer.end_transitions
    return log_likelihood(emissions, *scores, tags, mask.sum(1), backend="torch").sum()


def gradient_error(num_tags: int, backend: Literal["numba", "torch"]) -> float:
    """Largest error of an emission gradient in float32 at length 512, randn * 3, batch 32, against float64."""
    layer = CRF(num_tags)
    emissions = torch.randn(BATCH, 512, num_tags) * 3
    lengths = torch.full((BATCH,), 512)
    start, transitions, end = (p.detach() for p in (layer.start_transitions, layer.transitions, layer.end_transitions))
    found = marginals(emissions, start, transitions, end, lengths, backend=backend)
    exact = marginals(emissions.double(), start.double(), transitions.double(), end.double(), lengths, backend="numba")
    return float((found.double() - exact).abs().max())


def compile_seconds() -> tuple[float, float]:
    """Processor seconds that the first loss with its gradient, and the first decoding, take in a fresh process."""
    script = (
        "import time, torch; from hanzoo.models.layers.crf import CRF; crf = CRF(41, batch_first=True); "
        "e = torch.randn(2, 5, 41, requires_grad=True); t = time.process_time(); "
        "crf(e, torch.zeros(2, 5, dtype=torch.long)).backward(); s = time.process_time(); crf.decode(e); "
        "print(s - t, time.process_time() - s)"
    )
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    training, decoding = output.stdout.split()
    return round(float(training), 2), round(float(decoding), 2)


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="The CRF layer against pytorch-crf 0.7.2.")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/crf.json")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers, emissions, tags, mask = build()
    theirs, free, constrained = layers["theirs"], layers["free"], layers["constrained"]
    check(layers, emissions, tags, mask)
    loss = in_turn(
        {
            "theirs": lambda: gradients(theirs, emissions, lambda e: theirs(e, tags, mask)),
            "numba": lambda: gradients(free, emissions, lambda e: free(e, tags, mask)),
            "constrained": lambda: gradients(constrained, emissions, lambda e: constrained(e, tags, mask)),
            "torch": lambda: gradients(free, emissions, lambda e: torch_loss(free, e, tags, mask)),
        },
        options.rounds,
    )
    decoding = in_turn(
        {
            "theirs": lambda: theirs.decode(emissions, mask),
            "numba": lambda: free.decode(emissions, mask),
            "constrained": lambda: constrained.decode(emissions, mask),
        },
        options.rounds,
    )
    line: dict[str, object] = {"benchmark": "crf"}
    names = {"loss_ratio": (loss, "numba"), "loss_ratio_constrained": (loss, "constrained")}
    names |= {"loss_ratio_torch": (loss, "torch"), "decode_ratio": (decoding, "numba")}
    names |= {"decode_ratio_constrained": (decoding, "constrained")}
    print(f"{'':26}{'ours, ms':>10}{'theirs, ms':>12}{'ratio':>8}   range")
    for name, (seconds, side) in names.items():
        middle, span = ratio(seconds, side)
        line[name], line[f"{name}_range"] = middle, span
        ours_ms, theirs_ms = (1000 * statistics.median(seconds[x]) for x in (side, "theirs"))
        print(f"{name:26}{ours_ms:10.2f}{theirs_ms:12.2f}{middle:8.1f}   {span[0]:.1f} to {span[1]:.1f}")
    num_tags = emissions.shape[2]
    line["gradient_error_512"] = gradient_error(num_tags, "numba")
    line["gradient_error_512_torch"] = gradient_error(num_tags, "torch")
    line["compile_seconds"], line["compile_seconds_decode"] = compile_seconds()
    line |= {"rounds": options.rounds, "real_steps": int(mask.sum()), "threads": torch.get_num_threads()}
    line |= {"torch": torch.__version__, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    print(f"largest emission-gradient error at length 512: {line['gradient_error_512']:.1e}")
    print(f"compiled at first use: {line['compile_seconds']} s training, {line['compile_seconds_decode']} s decoding")
    report(line, options.save)


if __name__ == "__main__":
    main()
