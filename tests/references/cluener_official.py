"""CLUENER's official counting, written naively: dictionaries as in the files, type by type, line by line."""

from __future__ import annotations

LineLabels = dict[str, dict[str, list[list[int]]]]


def official_f1_of_type(predicted: list[LineLabels], gold: list[LineLabels], label: str) -> float:
    right = 0
    wrong = 0
    missed = 0
    for line in range(len(gold)):
        said = list(predicted[line].get(label, {}).keys())
        true = list(gold[line].get(label, {}).keys())
        for mention in said:
            if mention in true:
                right += 1
            else:
                wrong += 1
        for mention in true:
            if mention not in said:
                missed += 1
    if right == 0:  # the script divides by zero here
        return 0.0
    precision = right / (right + wrong)
    recall = right / (right + missed)
    return 2 * precision * recall / (precision + recall)


def official_macro_f1(predicted: list[LineLabels], gold: list[LineLabels]) -> float:
    total = 0.0
    for label in [
        "address",
        "book",
        "company",
        "game",
        "government",
        "movie",
        "name",
        "organization",
        "position",
        "scene",
    ]:
        total += official_f1_of_type(predicted, gold, label)
    return total / 10
