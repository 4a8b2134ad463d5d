"""The steps of a training, its checks on validation faces, and what is saved of it.

What is drawn at a step depends on the seed and the step alone, so that a training that was stopped ends with the
weights of one that was not.
"""

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.deploy.checkpoint import load_state_dict
from fcdeploy.deploy.recipe_beside import TRAINED_WEIGHTS
from fcdeploy.engine.batching import prefetch
from fcdeploy.errors import FcdeployError, InputError, counted
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.run import Run
from fcdeploy.systems import System
from fcdeploy.systems.training_types import Schedule, Task, Training, Value
from fcdeploy.training.choices import Choices
from fcdeploy.training.curves import draw_training, write_table
from fcdeploy.training.live import renew
from fcdeploy.training.memory import give_back
from fcdeploy.training.report import Report
from fcdeploy.training.sweep import Trial, best_trial, sweep

BEST, LAST = TRAINED_WEIGHTS
STATE, CURVES = "state.pt", "curves"
# Steps by which it is known how long one takes, behind a third of them: so many at most, an eighth of all, so that the
# rate has not fallen yet, and no fewer than four. FOR_STEPS: the share of the time for steps, the rest is for checks.
PACED, TIMED, FEWEST_PACED, FOR_STEPS = 24, 1 / 8, 4, 0.75
FEWEST_STEPS = 0.5  # share of the planned ones: with fewer, a network is worse than none
SAVE_SECONDS = 60.0  # between states that are saved while no check is due: what a kill may cost
DRAW_SECONDS = 30.0  # between pictures
# Until freed memory is given back: in pieces of unlike sizes it would become more and more.
KEEP_SECONDS = 30.0
POINTS = 50  # of the curve between two checks, at most
# Spread of what a network says, and for how many steps, at which it has collapsed.
SAME, SAME_STEPS = 1e-3, 30
PAIRWISE, BCUBED = "pairwise_f", "bcubed_f"


@dataclass
class Progressed:
    """How far a training is; all of it is saved and loaded. values: the settings found best at the best step.

    total: the steps that the time allows, once they are known; 0 until then, and where no time was given.
    """

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    stale: int = 0
    same: int = 0
    ended: str = ""
    seconds: float = 0.0
    total: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    rows: list[dict[str, Value]] = field(default_factory=list)


@dataclass
class Loop:
    """The steps of one training, its checks, and what it saves.

    until: when it is to have ended, by ``time.monotonic``; None where it has the time it takes.
    """

    net: torch.nn.Module
    networks: Mapping[str, torch.nn.Module]
    name: str
    training: Training
    task: Task
    schedule: Schedule
    choices: Choices
    config: Mapping[str, object]
    folder: Path
    device: torch.device
    train_run: Run
    held: tuple[Run, np.ndarray] | None
    report: Report
    system: System
    until: float | None = None
    at: Progressed = field(default_factory=Progressed)

    def run(self) -> Progressed:
        """Train to the end, from where an earlier run of the same settings stopped."""
        self.batch = min(self.schedule.batch, self.task.size)
        self.epoch_steps = max(1, self.task.size // self.batch)
        self.total = self.choices.steps or self.schedule.epochs * self.epoch_steps
        self.optimizer = new_optimizer(self.net, self.schedule)
        self.half = half_precision(self.device) if self.config["mixed"] else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.mean = running_mean(self.net, self.choices.average) if self.choices.average else None
        self.load()
        self.total = self.at.total or self.total
        self.saved = self.drawn = self.resumed = self.given_back = time.monotonic()
        before = self.at.seconds
        self.keep_pace()
        with self.report.steps(self.total, self.at.step):
            while not self.at.ended:
                self.steps_to(self.next_check())
                self.at.seconds = before + time.monotonic() - self.resumed
                self.check()
        self.draw()
        return self.at

    @property
    def judged(self) -> torch.nn.Module:
        """The weights that count: their running mean where there is one."""
        return self.net if self.mean is None else self.mean.module

    def keep_pace(self) -> None:
        """Time the first steps, and take fewer in all, but half of them, where as many would take too long."""
        paced = min(PACED, int(TIMED * self.total))
        first = paced // 3
        if self.until is None or self.at.total or self.at.step > first or paced < FEWEST_PACED:
            return
        with self.report.steps(self.total, self.at.step):
            self.steps_to(first)
            begun = time.monotonic()
            self.steps_to(paced)
        each = (time.monotonic() - begun) / (paced - first)
        left = FOR_STEPS * max(0.0, self.until - time.monotonic())
        planned, possible = self.total, paced + int(left / each)
        self.at.total = self.total = min(planned, max(possible, int(FEWEST_STEPS * planned)))
        if self.total < planned:
            more = (
                "" if possible >= self.total else f", longer than --minutes: {self.total * each / 60:.0f} min"
            )
            self.report.say(
                f"{self.total:,} of {planned:,} steps{more}, {each:.2g} s each; more with --minutes"
            )

    def next_check(self) -> int:
        """Return the step after which the validation faces are looked at: the end of an epoch, of a part, of all."""
        part = max(1, self.total // self.choices.checks)
        return min(*((self.at.step // every + 1) * every for every in (self.epoch_steps, part)), self.total)

    def batches(self, first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
        """Give the arrays of steps first..last-1."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(first, last):
            if step // self.epoch_steps != epoch:
                epoch = step // self.epoch_steps
                order = np.random.default_rng([self.choices.seed, 1, epoch]).permutation(self.task.size)
            at = step % self.epoch_steps * self.batch
            rng = np.random.default_rng([self.choices.seed, 2, step])
            yield self.task.batch(order[at : at + self.batch], rng)

    def prepared(self, first: int, last: int) -> Generator[dict[str, np.ndarray], None, None]:
        """Give the same a few steps ahead, in a thread of its own."""

        def batches() -> Iterator[dict[str, np.ndarray]]:
            with threads_limited(self.train_run.options.cores):  # a setting of each thread
                yield from self.batches(first, last)

        yield from prefetch(batches())

    def steps_to(self, last: int) -> None:
        """Train until step ``last``."""
        self.net.train()
        first = self.at.step
        every = max(1, (last - first) // POINTS)
        losses: list[float] = []
        with contextlib.closing(self.prepared(first, last)) as batches:
            for arrays in batches:
                lr = self.schedule.lr * 0.1 ** sum(
                    self.at.step >= drop * self.total for drop in self.schedule.drops
                )
                loss, spread = self.step(arrays, lr)
                self.at.step += 1
                losses.append(loss)
                if self.at.step % every == 0 or self.at.step == last:
                    self.at.rows.append(
                        {
                            "step": self.at.step,
                            "epoch": round(self.at.step / self.epoch_steps, 4),
                            "lr": lr,
                            "loss": float(np.mean(losses)),
                            "spread": spread,
                        }
                    )
                    losses.clear()
                self.report.advance(loss)
                self.watch(spread)
                if time.monotonic() - self.given_back > KEEP_SECONDS:
                    give_back()
                    self.given_back = time.monotonic()
                # At the last of these steps the check saves; a state from before it would have it skipped.
                if self.at.step < last and time.monotonic() - self.saved > SAVE_SECONDS:
                    self.save()

    def step(self, arrays: Mapping[str, np.ndarray], lr: float) -> tuple[float, float]:
        """Take one step; returns its loss and the spread of what the network said."""
        batch = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss, said = self.training_loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            kept = ""
            if (self.folder / BEST).exists():
                kept = f" and another --run-dir (the best weights so far are in {self.folder})"
            raise FcdeployError(
                f"the loss is no longer finite at step {self.at.step + 1:,}; start again with a lower --lr than "
                f"{self.schedule.lr:g}{kept}."
            )
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.mean is not None:
            self.mean.update_parameters(self.net)
        return value, float(said.detach().float().std()) if said.numel() > 1 else math.inf

    def training_loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.task.loss(self.net, batch)

    def watch(self, spread: float) -> None:
        """Raise FcdeployError when the network says the same of everything, and has done so for many steps."""
        self.at.same = self.at.same + 1 if spread < SAME else 0
        if self.at.same >= SAME_STEPS:
            raise FcdeployError(
                f"training collapsed: since step {self.at.step - SAME_STEPS + 1:,}, {self.name} gives the same output "
                f"for all faces (within {SAME}); start again with another --lr than {self.schedule.lr}, a larger "
                f"--batch than {self.batch}, or another --seed, in another --run-dir."
            )

    def check(self) -> None:
        """Measure the network on the validation faces, note whether it is the best so far, and save everything."""
        at = self.at
        if self.held is not None:
            measures, values = self.outcome(*self.held)
            score = float(np.mean(list(measures.values())))
            if at.rows and at.rows[-1]["step"] == at.step:
                at.rows[-1].update({**measures, **values})
        else:
            measures, values, score = {}, {}, float(at.step)
        better = score > at.best_score
        at.stale = 0 if better else at.stale + 1
        if better:
            at.best_score, at.best_step, at.measures, at.values = score, at.step, measures, values
            save_weights(self.folder / BEST, self.judged)
        if at.step >= self.total:
            at.ended = "all steps"
        elif self.choices.patience and at.stale >= self.choices.patience:
            at.ended = f"no better for {counted(at.stale, 'check')}"
        self.report.checked(
            at.step,
            self.total,
            cast(float, at.rows[-1]["loss"]) if at.rows else 0.0,
            measures,
            values,
            better,
        )
        self.save()
        if time.monotonic() - self.drawn > DRAW_SECONDS:
            self.draw()

    def outcome(self, run: Run, truth: np.ndarray) -> tuple[dict[str, float], dict[str, Value]]:
        """How good the clusters of other faces are, with the settings that suit the network best."""
        with torch.random.fork_rng():  # making copies of networks draws weights
            renew(run, f"step {self.at.step}", {self.name: self.judged})
            if self.training.outcome is not None:
                return self.training.outcome(run, truth)
            tunables = self.system.tunable(run.engines.weights, run.options)
            trials = sweep(run, lambda labels: evaluate(labels, truth), tunables, mean_f, rounds=1)
        best = best_trial(trials, tunables, mean_f)
        measures = {PAIRWISE: best.evaluation.pairwise.f, BCUBED: best.evaluation.bcubed.f}
        return measures, dict(best.values)

    def draw(self) -> None:
        draw_training(self.folder / f"{CURVES}.png", self.at.rows, list(self.at.measures))
        self.drawn = time.monotonic()

    def save(self) -> None:
        """Save all that it takes to go on."""
        save_weights(self.folder / LAST, self.judged)
        write_table(self.folder / f"{CURVES}.csv", self.at.rows)
        state = {
            "at": dataclasses.asdict(self.at),
            "net": self.net.state_dict(),
            "mean": {} if self.mean is None else self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        write_tensors(self.folder / STATE, state)
        self.saved = time.monotonic()

    def load(self) -> None:
        """Take up what ``save`` left, if it did."""
        file = self.folder / STATE
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            at = Progressed(**state["at"])
            self.net.load_state_dict(state["net"])
            if self.mean is not None:
                self.mean.load_state_dict(state["mean"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"].cpu())
            if self.device.type == "cuda" and state["cuda_rng"]:
                torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])
        except Exception as error:  # torch.load lets whatever its readers raise pass through
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(f"{file}: cannot be continued ({reason}); choose another --run-dir.") from error
        if at.best_step >= 0:  # what may become the checkpoint as it is
            try:
                load_state_dict(self.folder / BEST)
            except InputError as error:
                raise InputError(f"{str(error).rstrip('.')}; choose another --run-dir.") from error
        self.at = at
        going = f"ended at step {at.step:,}" if at.ended else f"continuing from step {at.step:,}"
        self.report.say(f"{going} of {self.total:,}, kept in {self.folder}")


def mean_f(trial: Trial) -> float:
    """The mean of pairwise and BCubed F: what makes a network the best."""
    return (trial.evaluation.pairwise.f + trial.evaluation.bcubed.f) / 2


def new_optimizer(net: torch.nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer of a schedule."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if schedule.optimizer == "adam":
        return torch.optim.Adam(parameters, schedule.lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(
        parameters, schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def running_mean(net: torch.nn.Module, decay: float) -> AveragedModel:
    """Return a copy of ``net`` that follows it: ``decay`` of what it was and the rest of what ``net`` is, each step.

    So do the statistics of its BatchNorms. What single steps add by chance is averaged out.
    """
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def half_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 on GPUs that have no other."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def save_weights(path: Path, net: torch.nn.Module) -> None:
    """Write a state_dict as the authors do: plain tensors on the CPU."""
    state = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    write_tensors(path, state)


def write_tensors(path: Path, state: Mapping[str, object]) -> None:
    """Write what ``torch.save`` makes of ``state``, whole or not at all.

    By way of memory: PyTorch makes a RuntimeError of what the system says of a full disk.
    """
    saved = io.BytesIO()
    torch.save(state, saved)
    with atomic_file(path) as file:
        file.write(saved.getbuffer())
