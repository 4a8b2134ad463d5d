"""What a user chooses for a training, and what was published for the rest."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from fcdeploy.errors import InputError
from fcdeploy.systems.training_types import Schedule, Training, TrainingSettings

HIGHEST_LR = 1e30  # a float32, which PyTorch makes of it, holds what is computed with it


@dataclass(frozen=True)
class Choices:
    """What a user may choose for a training; None means what was published, or what suits the machine.

    validation: share of the identities kept apart; patience: checks without a better validation F after which
    training ends (0: never). device: "auto", "cpu", "cuda" or "cuda:N". mixed: half-precision products (None: on a
    GPU). splits: sets that the faces are split into (see ``deal_faces``); singletons: share of the faces that are put
    into any of them one by one. average: decay of a running mean of the weights, which is then what is judged and saved
    (0: the weights themselves). checks: of the validation faces, at least, and one after each epoch. split_seed: of the
    people kept apart and of the sets (None: ``seed``), for trainings that are compared. settings: the network's own, by
    name.
    """

    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    validation: float = 0.1
    patience: int = 5
    seed: int = 0
    device: str = "auto"
    mixed: bool | None = None
    threads: int = 0
    splits: int = 1
    singletons: float = 0.0
    average: float = 0.0
    checks: int = 10
    split_seed: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed_of_split(self) -> int:
        return self.seed if self.split_seed is None else self.split_seed


PUBLISHED = Choices()


def chosen_schedule(published: Schedule, choices: Choices) -> Schedule:
    """Return the published schedule with what was chosen instead; raises InputError for what cannot be."""
    if choices.epochs is not None and choices.steps is not None:
        raise InputError("--epochs and --steps both say how long to train; give one of them.")
    chosen = {name: getattr(choices, name) for name in ("epochs", "batch", "lr")}
    schedule = dataclasses.replace(
        published, **{key: value for key, value in chosen.items() if value is not None}
    )
    steps = 1 if choices.steps is None else choices.steps
    if min(schedule.epochs, steps) < 1 or schedule.batch < 2:
        raise InputError("--epochs and --steps should be 1 or more, --batch 2 or more.")
    if not 0 < schedule.lr <= HIGHEST_LR:
        raise InputError(f"--lr {schedule.lr:g}: should be positive, and {HIGHEST_LR:g} at most.")
    if not 0 <= choices.validation <= 0.5:
        raise InputError(f"--validation {choices.validation}: should be a share of the identities, 0 to 0.5.")
    if not 0 <= choices.seed < 2**63:
        raise InputError(f"--seed {choices.seed}: should be a whole number from 0 to 2 ** 63 - 1.")
    if choices.splits < 1:
        raise InputError(f"--splits {choices.splits}: should be 1 or more.")
    if not 0 <= choices.singletons <= 1:
        raise InputError(f"--singletons {choices.singletons}: should be a share of the faces, 0 to 1.")
    if not 0 <= choices.average < 1:
        raise InputError(f"--average {choices.average}: should be 0 (none) or more, and less than 1.")
    if choices.singletons and choices.splits == 1:
        raise InputError(
            f"--singletons {choices.singletons}: says how faces are put into sets; give --splits, too."
        )
    return schedule


def chosen_settings(training: Training, given: Mapping[str, str], where: str) -> TrainingSettings:
    """Build a network's own training settings from texts by name; raises InputError for unknown ones."""
    fields: dict[str, type] = {
        entry.name: type(entry.default) for entry in dataclasses.fields(training.settings)
    }
    values = {}
    for key, text in given.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise InputError(f"--set {key}={text}: {where} has no such training setting; it has {known}.")
        try:
            values[key] = fields[key](text)
        except ValueError:
            raise InputError(f"--set {key}={text}: is not of type {fields[key].__name__}.") from None
    return training.settings(**values)
