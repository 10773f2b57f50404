"""Training sentences per second of encoder_crf, against the same encoder under pytorch-crf in a plain loop; in turns.

    HANZOO_DATA=... HANZOO_ENCODERS=... python benchmarks/encoder_speed.py [--rounds 7] [--steps 10] [--threads 2] [--save]

Ours is the trainer as the recipe cluener_encoder_crf runs it: batches by length, our CRF, clipping, schedule, fused AdamW, log.
Plain is what one writes in an afternoon: transformers' AutoModel as it comes, dropout, a linear layer, pytorch-crf 0.7.2, batches
of the same size in the order of the file, each padded to its longest text, torch.optim.AdamW as it comes, no clipping, no schedule.
Both have the recipe's precision (bfloat16 autocast; the CRF in float32) and read pieces that were made before. Asked: 1.5 times.

First both are checked to be one network: with equal weights they give equal emissions. Then each side trains `--steps` steps in
turn; a ratio is the median over rounds of (our sentences/s / theirs in the same round), its range the smallest and the largest.
With one thread, seconds are processor seconds of this process, so that other work on the machine counts less; else wall-clock
seconds. `--profile` adds where a step of each side spends its time. A line of JSON ends the output; --save also puts it into
benchmarks/results/encoder_speed.json, beside those of other numbers of threads.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import torch  # noqa: E402
import torchcrf  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pad_sequence  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from transformers import AutoModel  # noqa: E402

from benchmarks.report import last, report  # noqa: E402
from benchmarks.sides import WARM_UP, Side, difference_of_emissions, in_turn, our_side  # noqa: E402
from hanzoo.build import describe_machine, load_data  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.data.subwords import find_encoder, quiet  # noqa: E402
from hanzoo.models.encoder_crf import EncoderCRF  # noqa: E402
from hanzoo.recipe import Recipe, load_recipe  # noqa: E402


class PlainNetwork(nn.Module):
    """The recipe's network as tutorials write it."""

    def __init__(self, of: EncoderCRF) -> None:
        super().__init__()
        with quiet():
            folder = str(find_encoder(of.config.encoder))
            self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        self.dropout = nn.Dropout(of.config.dropout_hidden)
        self.emission = nn.Linear(of.encoder.width, of.emission.out_features)
        self.crf = torchcrf.CRF(of.emission.out_features, batch_first=True)

    def emissions(self, pieces: Tensor, mask: Tensor) -> Tensor:
        """Scores of the characters: without [CLS] and [SEP]."""
        states = self.encoder(input_ids=pieces, attention_mask=mask.long()).last_hidden_state
        scores: Tensor = self.emission(self.dropout(states[:, 1:-1]))
        return scores

    def forward(self, pieces: Tensor, mask: Tensor, tags: Tensor) -> Tensor:
        emissions = self.emissions(pieces, mask)
        loss: Tensor = -self.crf(emissions.float(), tags, mask[:, 2:], reduction="mean")
        return loss


def plain_batches(model: EncoderCRF, features: Sequence[Any], batch_size: int) -> Iterator[list[Tensor]]:
    """Pieces with [CLS] and [SEP], mask, tags, in the order of the file, each padded to its longest text, without end."""
    ends = torch.tensor([model.subwords.first]), torch.tensor([model.subwords.last])
    rows = [
        (torch.cat([ends[0], torch.from_numpy(item.pieces), ends[1]]), torch.from_numpy(item.tags)) for item in features
    ]
    for start in cycle(range(0, len(rows) - batch_size + 1, batch_size)):
        pieces, tags = zip(*rows[start : start + batch_size], strict=True)
        lengths = torch.tensor([len(row) for row in pieces])
        padded = pad_sequence(list(pieces), batch_first=True, padding_value=model.subwords.padding)
        yield [padded, torch.arange(padded.shape[1]) < lengths.unsqueeze(1), pad_sequence(list(tags), batch_first=True)]


def plain_side(recipe: Recipe, model: EncoderCRF, features: Sequence[Any]) -> Side:
    """The plain loop."""
    network = PlainNetwork(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.train.optimizer.learning_rate)
    batches = plain_batches(model, features, recipe.train.batch_size)
    autocast = recipe.train.precision == "bfloat16"

    def train(steps: int) -> int:
        torch.use_deterministic_algorithms(False)
        network.train()
        sentences = 0
        for pieces, mask, tags in islice(batches, steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = network(pieces, mask, tags)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sentences += len(pieces)
        return sentences

    return train


def build_model(recipe: Recipe, data: Any) -> EncoderCRF:
    """The recipe's untrained model."""
    reseed(recipe.train.seed, "weights")
    assert isinstance(recipe.model, EncoderCRF.Config)
    return EncoderCRF.build(recipe.model, data)


def check(model: EncoderCRF, features: Sequence[Any], batch_size: int) -> float:
    """Largest difference of emissions under equal weights; fails unless small, and unless another head differs."""
    network = PlainNetwork(model).eval()
    pieces, mask, _ = next(plain_batches(model, features, batch_size))
    batch = model.eval().collate(features[:batch_size])
    with torch.no_grad():
        other = network.emissions(pieces, mask)
        network.emission.load_state_dict(model.emission.state_dict())
        found, wanted = network.emissions(pieces, mask), model(batch)
    return difference_of_emissions(found, wanted, other, batch.mask)


def where_time_goes(side: Side, steps: int) -> str:
    """A table of the operations that take most of a side's processor time."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        side(steps)
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=60)
    return table


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Training speed of encoder_crf against a plain loop with pytorch-crf.")
    parser.add_argument("--recipe", default="cluener_encoder_crf", help="its data, batch size and precision are taken")
    parser.add_argument("--encoders", default="m3e-small,albert-tiny-zh")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each side a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="also say where each side's time goes")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/encoder_speed.json")
    options = parser.parse_args()
    if min(options.rounds, options.steps, options.threads) < 1:
        parser.error("--rounds, --steps and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    plain = load_recipe(options.recipe)
    data = load_data(plain)
    measured: dict[str, Any] = {}
    print(f"{'encoder':20}{'ours, sentences/s':>19}{'plain':>8}{'ratio':>8}   range")
    for encoder in options.encoders.split(","):
        recipe = load_recipe(options.recipe, [f"model.encoder={encoder}"])
        model = build_model(recipe, data)
        features = [model.featurize(document) for document in data.train if document.text]
        difference = check(model, features, recipe.train.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            sides = {
                "ours": our_side(recipe, model, features, Path(folder) / "run"),
                "plain": plain_side(recipe, model, features),
            }
            speeds = in_turn(sides, options.rounds, options.steps, clock)
            if options.profile:
                for name, side in sides.items():
                    sys.stderr.write(f"{encoder}, {name}\n{where_time_goes(side, options.steps)}\n")
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)]
        ours, theirs = (statistics.median(speeds[name]) for name in ("ours", "plain"))
        measured[encoder] = {
            "ratio": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
            "sentences_per_second": {"ours": round(ours, 1), "plain": round(theirs, 1)},
            "emission_difference": difference,
        }
        low, high = measured[encoder]["range"]
        print(f"{encoder:20}{ours:19.1f}{theirs:8.1f}{measured[encoder]['ratio']:8.2f}   {low:.2f} to {high:.2f}")
    line = {"benchmark": "encoder_speed", "asked": 1.5, "precision": plain.train.precision, "data": data.name}
    line |= {"batch_size": plain.train.batch_size, "torch": str(torch.__version__)}
    line["threads"] = last("encoder_speed").get("threads", {}) if options.save else {}
    line["threads"][str(options.threads)] = {
        **measured, "clock": clock.__name__, "rounds": options.rounds, "steps": options.steps, "warm_up": WARM_UP,
        "machine": describe_machine(torch.device("cpu")),
    }  # fmt: skip
    report(line, options.save)


if __name__ == "__main__":
    main()
