"""Training sentences per second of the CLUENER recipe at 1 x 256, against the same network written plainly; in turns.

    HANZOO_DATA=... HANZOO_VECTORS=... python benchmarks/training_speed.py [--rounds 9] [--steps 40] [--threads 1] [--save]

Ours is the trainer as the recipe runs it: plan, collation, random draws, loss, clipping, schedule, fused AdamW, log.
Plain is what one writes in an afternoon: the same learnt tables (one row for each of our learnt rows), the
same dropout rates (nn.Dropout), a packed nn.LSTM, pytorch-crf 0.7.2, batches of the same size in the order of the file,
torch.optim.AdamW as it comes, no clipping, no schedule. Both read features that were computed before.

First both are checked to be one network: with equal weights they give equal emissions. Then each side trains `--steps` steps in
turn; a ratio is the median over rounds of (our sentences/s / theirs in the same round), its range the smallest and the largest.
With one thread, seconds are processor seconds of this process, so that other work on the machine counts less; else wall-clock
seconds. A line of JSON ends the output; --save also writes it to benchmarks/results/training_speed.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout that is not installed works too

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torchcrf  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence  # noqa: E402

from benchmarks.report import report  # noqa: E402
from benchmarks.sides import Side, difference_of_emissions, in_turn, our_side  # noqa: E402
from hanzoo.build import load_data  # noqa: E402
from hanzoo.data.randomness import reseed  # noqa: E402
from hanzoo.models.bilstm_crf import BiLSTMCRF  # noqa: E402
from hanzoo.recipe import Recipe, load_recipe  # noqa: E402


class PlainNetwork(nn.Module):
    """The recipe's network as tutorials write it."""

    def __init__(self, of: BiLSTMCRF) -> None:
        super().__init__()
        assert of.bigrams is not None
        config = of.config
        self.characters = nn.Embedding(of.characters.num_trained, of.characters.dimension, padding_idx=0)
        self.bigrams = nn.Embedding(of.bigrams.num_trained, of.bigrams.dimension, padding_idx=0)
        self.dropout_embedding = nn.Dropout(config.dropout_embedding)
        self.dropout_hidden = nn.Dropout(config.dropout_hidden)
        width = of.characters.dimension + of.bigrams.dimension
        self.lstm = nn.LSTM(width, config.hidden, config.num_layers, batch_first=True, bidirectional=True)
        self.emission = nn.Linear(2 * config.hidden, of.emission.out_features)
        self.crf = torchcrf.CRF(of.emission.out_features, batch_first=True)

    def copy_weights(self, of: BiLSTMCRF) -> None:
        """Start from the same numbers."""
        assert of.bigrams is not None
        self.characters.load_state_dict({"weight": of.characters.weight})
        self.bigrams.load_state_dict({"weight": of.bigrams.weight})
        self.emission.load_state_dict(of.emission.state_dict())
        layers = zip(of.lstm.forward_layers, of.lstm.backward_layers, strict=True)
        weights = {}
        for number, (forward, backward) in enumerate(layers):
            for suffix, layer in (("", forward), ("_reverse", backward)):
                for name, value in layer.state_dict().items():
                    weights[f"{name.removesuffix('0')}{number}{suffix}"] = value
        self.lstm.load_state_dict(weights)

    def emissions(self, characters: Tensor, bigrams: Tensor, lengths: Tensor) -> Tensor:
        embedded = torch.cat([self.characters(characters), self.bigrams(bigrams)], dim=-1)
        packed = pack_padded_sequence(self.dropout_embedding(embedded), lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        scores: Tensor = self.emission(self.dropout_hidden(hidden))
        return scores

    def forward(self, characters: Tensor, bigrams: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        emissions = self.emissions(characters, bigrams, lengths)
        mask = torch.arange(characters.shape[1]) < lengths.unsqueeze(1)
        loss: Tensor = -self.crf(emissions.float(), tags, mask, reduction="mean")
        return loss


def plain_batches(features: Sequence[Any], batch_size: int) -> Iterator[list[Tensor]]:
    """Characters, bigrams, tags, lengths, in the order of the file, without end."""
    rows = [[torch.from_numpy(row) for row in (item.characters, item.bigrams, item.tags)] for item in features]
    for start in cycle(range(0, len(rows) - batch_size + 1, batch_size)):
        batch = rows[start : start + batch_size]
        padded = [pad_sequence(list(column), batch_first=True) for column in zip(*batch, strict=True)]
        yield [*padded, torch.tensor([len(row[0]) for row in batch])]


def learnt_rows(model: BiLSTMCRF, features: Sequence[Any]) -> list[Any]:
    """The features with the few tokens of train that borrow a frozen row (another width or case) as unknown: the plain tables
    have the learnt rows alone."""
    assert model.bigrams is not None
    tables = {"characters": model.characters.num_trained, "bigrams": model.bigrams.num_trained}
    return [
        replace(
            item,
            **{name: np.where(getattr(item, name) < rows, getattr(item, name), 1) for name, rows in tables.items()},
        )
        for item in features
    ]


def plain_side(recipe: Recipe, model: BiLSTMCRF, features: Sequence[Any], autocast: bool) -> Side:
    """The plain loop."""
    network = PlainNetwork(model)
    network.copy_weights(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.train.optimizer.learning_rate)
    batches = plain_batches(learnt_rows(model, features), recipe.train.batch_size)

    def train(steps: int) -> int:
        torch.use_deterministic_algorithms(False)
        network.train()
        sentences = 0
        for characters, bigrams, tags, lengths in islice(batches, steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = network(characters, bigrams, tags, lengths)
            loss.backward()
            optimizer.step()
            sentences += len(lengths)
        return sentences

    return train


def build_model(recipe: Recipe, data: Any) -> BiLSTMCRF:
    """The recipe's untrained model."""
    reseed(recipe.train.seed, "weights")
    assert isinstance(recipe.model, BiLSTMCRF.Config)
    return BiLSTMCRF.build(recipe.model, data)


def check(model: BiLSTMCRF, features: Sequence[Any], batch_size: int) -> float:
    """Largest difference of emissions under equal weights; fails unless small, and unless other weights differ."""
    network = PlainNetwork(model).eval()
    features = learnt_rows(model, features[:batch_size])
    characters, bigrams, _, lengths = next(plain_batches(features, batch_size))
    batch = model.eval().collate(features)
    with torch.no_grad():
        other = network.emissions(characters, bigrams, lengths)
        network.copy_weights(model)
        found, wanted = network.emissions(characters, bigrams, lengths), model(batch)
    return difference_of_emissions(found, wanted, other, batch.mask)


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description="Training speed against the same network written plainly.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each side a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/training_speed.json")
    options = parser.parse_args()
    if min(options.rounds, options.steps, options.threads) < 1:
        parser.error("--rounds, --steps and --threads must be at least 1")
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    sizes = ["model.hidden=256", "model.num_layers=1"]
    recipe = load_recipe("cluener_bilstm_crf", sizes)
    data = load_data(recipe)
    model = build_model(recipe, data)
    assert model.bigrams is not None
    features = [model.featurize(document) for document in data.train if document.text]
    difference = check(model, features, recipe.train.batch_size)

    precision = recipe.train.precision
    with tempfile.TemporaryDirectory() as folder:
        sides: dict[str, Side] = {}
        for name in dict.fromkeys((precision, "float32")):
            of_side = load_recipe("cluener_bilstm_crf", [*sizes, f"train.precision={name}"])
            sides[f"ours {name}"] = our_side(of_side, build_model(of_side, data), features, Path(folder) / name)
        sides["plain float32"] = plain_side(recipe, model, features, autocast=False)
        plain_autocast = plain_side(recipe, model, features, autocast=True)
        try:
            plain_autocast(1)
            sides["plain bfloat16"] = plain_autocast
        except RuntimeError as error:
            sys.stderr.write(f"plain under bfloat16 autocast does not run: {error}\n")
        speeds = in_turn(sides, options.rounds, options.steps, clock)

    line: dict[str, object] = {"benchmark": "training_speed", "precision": precision}
    pairs = {
        "ratio": (f"ours {precision}", "plain float32"),
        "ratio_float32": ("ours float32", "plain float32"),
        "ratio_bfloat16": ("ours bfloat16", "plain bfloat16"),
    }
    print(f"{'':16}{'ours, sentences/s':>19}{'plain':>8}{'ratio':>8}   range")
    for name, (ours, plain) in pairs.items():
        if ours not in speeds or plain not in speeds:
            continue
        ratios = [a / b for a, b in zip(speeds[ours], speeds[plain], strict=True)]
        line[name] = round(statistics.median(ratios), 2)
        line[f"{name}_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
        medians = [statistics.median(speeds[side]) for side in (ours, plain)]
        print(f"{name:16}{medians[0]:19.0f}{medians[1]:8.0f}{line[name]:8.2f}   {min(ratios):.2f} to {max(ratios):.2f}")
    line["sentences_per_second"] = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    line |= {"data": data.name, "sentences": len(features), "batch_size": recipe.train.batch_size}
    line |= {"characters_rows": model.characters.num_trained, "bigrams_rows": model.bigrams.num_trained}
    line |= {"emission_difference": difference, "rounds": options.rounds, "steps": options.steps}
    line |= {"threads": options.threads, "clock": clock.__name__, "torch": str(torch.__version__)}
    line["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    report(line, options.save)


if __name__ == "__main__":
    main()
