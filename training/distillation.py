"""Distillation: a model learns what others say of a text, beside the gold, and where there is no gold.

Source: Hinton, Vinyals and Dean 2015, section 2: temperature^2 times the Kullback-Leibler divergence from the teacher's softened
distribution to the student's. For a CRF the distributions are the marginals of the tokens; a teacher's and a student's have to be
of one form (`Model.target_form`). Several teachers: the mean of what they say (an ensemble).

    loss of a sentence = (1 - weight) * hard + weight * soft        # without gold: weight * soft

A sentence without gold is a further training item like any other; a teacher's word weighs the same on both. The soft part stands
outside of all that changes the hard loss (R-Drop, focal, class weights ...), takes the output of the first pass, and is the same
in the passes of an attack: the teacher saw the clean text.

The teachers run once, before the training, on the texts as inference sees them; what they say lies in `targets/` of the run
directory: targets.bin (float32, little-endian, one row after the other, memory-mapped in training), places.npy ((items, 2) int64:
first row, number of rows) and targets.json (from what it was made, and the SHA-256 of targets.bin). A resumed run uses it, or makes
it again to the same bits.

Cost: the teachers' one pass; a step pays for the soft loss alone (a CRF: its marginals and their gradient).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hanzoo.data.files import expanded
from hanzoo.errors import RecipeError, RunError, StorageError
from hanzoo.models.model import Model, TargetForm, TeacherSettings
from hanzoo.training.checkpoint import recover, sha256, write_folder
from hanzoo.training.distributed import gather_objects, num_ranks, on_first, rank
from hanzoo.training.trick import Loss, LossFunction, Trick

VALUES_FILE, PLACES_FILE, FACTS_FILE = "targets.bin", "places.npy", "targets.json"
VALUES = np.dtype("<f4")

Round = list[list[tuple[int, np.ndarray]]]  # for each rank: items and their rows


class DistillationSettings(TeacherSettings):
    """The `distillation` section of a recipe; see also `TeacherSettings`.

    Attributes:
        temperature: divides all scores of teacher and student in the soft part.
        weight: of the soft part; the hard loss has the rest.
        unlabelled: files of further texts: labelled ones too, but their labels are not looked at. As given, or in $HANZOO_DATA.
        format: of those files: text (one a line) or a reader's; None = recognised.
    """

    section: ClassVar[str] = "distillation"

    temperature: float = Field(default=2.0, gt=0.0)
    weight: float = Field(default=0.5, ge=0.0, le=1.0)
    unlabelled: str | list[str] = Field(default_factory=list)
    format: str | None = None

    def located(self) -> Self:
        """See `TeacherSettings.located`; what lies in $HANZOO_DATA is left as it is."""
        files = [str(expanded(name).absolute()) if expanded(name).is_file() else name for name in self.files]
        return super().located().model_copy(update={"unlabelled": files})

    @property
    def target_temperature(self) -> float:
        return self.temperature

    @property
    def files(self) -> list[str]:
        return [self.unlabelled] if isinstance(self.unlabelled, str) else self.unlabelled


def common_form(student: Model, name: str, teacher: Model) -> TargetForm:
    """What the student learns, if the teacher teaches exactly that.

    Args:
        student: to be trained.
        name: what a message shall call the teacher.
        teacher: any model; it need not be of the student's class.

    Raises:
        RecipeError: one of them has no soft targets, or they have different ones.
    """
    learnt, taught = student.target_form(), teacher.target_form()
    must = (
        f"distillation.teacher: {name} ({type(teacher).__name__}) must teach what the student ({type(student).__name__}) "
        "learns, but teaches"
    )
    if learnt is None or taught is None:
        none = "nothing that can be learnt: it has no soft targets"
        raise RecipeError(f"{must} {taught or none}; the student learns {learnt or none}. Take other models.")
    if learnt.kind != taught.kind:
        raise RecipeError(f"{must} {taught.kind}; the student learns {learnt.kind}. Take a teacher of that kind.")
    if learnt.classes != taught.classes:
        alone = [
            f"only the {whose} has {', '.join(sorted(extra)[:5])}{' ...' if len(extra) > 5 else ''}"
            for whose, extra in (
                ("teacher", set(taught.classes) - set(learnt.classes)),
                ("student", set(learnt.classes) - set(taught.classes)),
            )
            if extra
        ] or ["their order differs"]
        raise RecipeError(
            f"{must} {taught}; the student learns {learnt}: {'; '.join(alone)}. "
            "Train both on the same labels, with the same tag scheme (model.tag_scheme)."
        )
    return learnt


def describe_targets(
    form: TargetForm, temperature: float, teachers: Sequence[str], texts: Sequence[str]
) -> dict[str, Any]:
    """All that soft targets depend on, as JSON values.

    Args:
        form: of teachers and student.
        temperature: of the targets.
        teachers: SHA-256 of each one's weights.
        texts: of the training items, in order.
    """
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return {
        "kind": form.kind,
        "classes": list(form.classes),
        "temperature": temperature,
        "teachers": list(teachers),
        "texts": digest.hexdigest(),
        "items": len(texts),
    }


class SoftTargets:
    """What the teachers say of every training item, memory-mapped.

    Args:
        folder: written by `ensure_targets`.
    """

    def __init__(self, folder: Path) -> None:
        self._places = np.load(folder / PLACES_FILE, allow_pickle=False)
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        shape = (int(self._places[:, 1].sum()), len(facts["classes"]))
        self._values = np.memmap(folder / VALUES_FILE, dtype=VALUES, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self._places)

    def of(self, item_ids: Sequence[int], device: torch.device) -> list[Tensor]:
        """For each item its distributions, (rows, classes) float32."""
        rows = [self._values[first : first + count] for first, count in self._places[list(item_ids)].tolist()]
        return [torch.from_numpy(np.array(row, dtype=np.float32)).to(device) for row in rows]


def ensure_targets(
    folder: Path, facts: Mapping[str, Any], load: Callable[[], Sequence[Model]], items: Sequence[Any]
) -> None:
    """Have the targets in `folder`: made there where there are none, or they are damaged. Collective.

    The batches are the same for any number of ranks, and so are the bits.

    Args:
        folder: `targets/` of the run directory.
        facts: of `describe_targets`.
        load: gives the teachers, on the device that they shall run on; called where they are needed, and they are not kept.
        items: all training items, without their gold.

    Raises:
        RunError: the targets there are of other teachers or texts, or a teacher says what is no distribution.
        StorageError: no room.
    """
    if not on_first(lambda: _usable(folder, facts)):
        failure: StorageError | None = None
        teachers = load()
        features = [[teacher.featurize(item) for item in items] for teacher in teachers]
        rounds = _rounds(teachers, features, float(facts["temperature"]))
        if rank() == 0:
            try:
                write_folder(folder, lambda target: _write(target, facts, rounds))
            except StorageError as error:
                failure = error
        for _ in rounds:  # the other ranks; after a failure also the first, which they wait for
            pass
        on_first(lambda: _raise(failure))


def _raise(failure: StorageError | None) -> None:
    if failure is not None:
        raise failure


def _usable(folder: Path, facts: Mapping[str, Any]) -> bool:
    recover(folder)
    try:
        found = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        whole: bool = sha256(folder / VALUES_FILE) == found["sha256"]
        whole = whole and len(np.load(folder / PLACES_FILE, allow_pickle=False)) == facts["items"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # what they must be is known: they are made again
    changed = [name for name, value in facts.items() if found.get(name) != value]
    if changed:
        raise RunError(
            f"{folder}: {', '.join(changed)} of the soft targets must be what the run began with, but differ. "
            "Restore the teacher and the texts, or start another run with --run."
        )
    return whole


@torch.inference_mode()
def _rounds(teachers: Sequence[Model], features: Sequence[Sequence[Any]], temperature: float) -> Iterator[Round]:
    """What all ranks find, one batch a rank and round. Collective."""
    for teacher in teachers:
        teacher.eval()
    batches = list(teachers[0].batches_by_length([item.length for item in features[0]]))
    for at in range(0, len(batches), num_ranks()):
        mine: list[tuple[int, np.ndarray]] = []
        if at + rank() < len(batches):
            indices = batches[at + rank()]
            mine = list(zip(indices, _taught(teachers, features, indices, temperature), strict=True))
        found = gather_objects(mine)
        if not all(np.isfinite(rows).all() for part in found for _, rows in part):
            raise RunError(
                "distillation.teacher: must give finite probabilities, but does not. Train the teacher again."
            )
        yield found


def _taught(
    teachers: Sequence[Model], features: Sequence[Sequence[Any]], indices: Sequence[int], temperature: float
) -> list[np.ndarray]:
    total: list[Tensor] = []
    for teacher, own in zip(teachers, features, strict=True):
        batch = teacher.collate([own[i] for i in indices]).to(teacher.device)
        rows = [row.double() for row in teacher.soft_targets(teacher(batch), batch, temperature)]
        total = [one + other for one, other in zip(total, rows, strict=True)] if total else rows
    return [(row / len(teachers)).cpu().numpy().astype(VALUES) for row in total]


def _write(target: Path, facts: Mapping[str, Any], rounds: Iterator[Round]) -> None:
    places = np.zeros((facts["items"], 2), dtype=np.int64)
    digest, at = hashlib.sha256(), 0
    with (target / VALUES_FILE).open("wb") as file:
        for found in rounds:
            for part in found:
                for item, rows in part:
                    places[item] = at, len(rows)
                    at += len(rows)
                    content = rows.tobytes()
                    digest.update(content)
                    file.write(content)
    np.save(target / PLACES_FILE, places, allow_pickle=False)
    text = json.dumps({**facts, "sha256": digest.hexdigest()}, ensure_ascii=False, indent=1)
    (target / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


class Distillation(Trick):
    """Mixes the soft loss into the finished hard loss: the outermost of what wraps the loss.

    Not in `tricks/`: it cannot be made from settings alone.

    Args:
        settings: the recipe's section.
        folder: where the targets of all training items lie when training starts.
        num_labelled: items before this number have gold, the others none.
    """

    Settings: ClassVar[type[DistillationSettings]] = DistillationSettings
    rank: ClassVar[int] = 100

    def __init__(self, settings: DistillationSettings, folder: Path, num_labelled: int) -> None:
        super().__init__(settings)
        self.folder = folder
        self.num_labelled = num_labelled

    @cached_property
    def targets(self) -> SoftTargets:
        """What the teachers say."""
        return SoftTargets(self.folder)

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        weight, temperature = self.settings.weight, self.settings.temperature

        def taught(batch: Any) -> Loss:
            found = loss(batch)
            targets = self.targets.of(batch.item_ids, model.device)
            soft = model.soft_losses(found.output, targets, batch, temperature)
            labelled = torch.tensor([item < self.num_labelled for item in batch.item_ids], device=model.device)
            values = {
                part: (1 - weight) * torch.where(labelled, value, 0.0) + weight * soft[part]
                for part, value in found.weighted().items()
            }
            return Loss(values, found.output)

        return taught
