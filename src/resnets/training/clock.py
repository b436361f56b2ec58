"""Time: the speed of a run, the length that a budget gives it, and an estimate before it starts."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from resnets.models import Network
from resnets.models.modes import evaluation_mode
from resnets.training.distributed import SINGLE_PROCESS
from resnets.training.plan import Plan
from resnets.training.state import TrainProgress
from resnets.training.step import Step

REPORT_SECONDS = 0.5
FORWARDS_PER_STEP = 3  # forward passes that take as long as a training step, about
REPLANS = 50  # times in a run that a budget's length is computed anew, at the most


@dataclass(frozen=True)
class ProgressReport:
    """What a run reports; `loss` and what follows are set where it was just evaluated."""

    step: int  # done so far
    steps: int  # of the whole run
    epoch: float  # passes over the training images so far
    images_per_second: float  # training images
    remaining_seconds: float  # an estimate, of the training; 0 before the first step
    lr: float  # learning rate of the last step
    loss: float | None = None  # mean over the steps since the evaluation before
    train_error: float | None = None  # of the same steps, on augmented images
    eval_error: float | None = None  # on the monitored images
    eval_metrics: tuple[tuple[str, float], ...] = ()  # further figures of the same images
    notes: tuple[str, ...] = ()  # for the user, each once
    run: Path = Path()  # the run folder


class Clock:
    """The speed since the step at which it was made; every figure is as of the last `tick`."""

    def __init__(self, plan: Plan, progress: TrainProgress) -> None:
        self.plan, self.progress = plan, progress
        self.first_step = progress.step
        self.began = self.now = self.last_report = self.last_replan = time.monotonic()
        self.seconds_per_eval_image = 0.0  # on all ranks together; 0 before the first evaluation
        self.seconds_per_test_image = 0.0  # in float32 on one rank, as the result is tested

    def tick(self) -> None:
        """Read the time, for each step and after an evaluation."""
        self.now = time.monotonic()
        self.progress.seconds = self.now - self.plan.began

    def record_evaluation(self, images: int) -> None:
        """Remember how long the evaluation took that began at the last tick, and tick."""
        began = self.now
        self.tick()
        self.seconds_per_eval_image = (self.now - began) / images if images else 0.0

    @property
    def report_due(self) -> bool:
        """Whether the last report is long enough ago."""
        return self.now - self.last_report > REPORT_SECONDS

    def report(self) -> ProgressReport:
        """Where the run stands."""
        recipe, progress = self.plan.recipe, self.progress
        images = (progress.step - self.first_step) * recipe.batch
        images_per_second = images / (self.now - self.began + 1e-9)  # 0 before the first step
        remaining_images = (progress.steps - progress.step) * recipe.batch
        lr = recipe.rate(max(0, progress.step - 1), progress.steps, progress.lr_drops)
        return ProgressReport(
            step=progress.step,
            steps=progress.steps,
            epoch=progress.step * recipe.batch / len(self.plan.train),
            images_per_second=images_per_second,
            remaining_seconds=remaining_images / images_per_second if images else 0.0,
            lr=progress.lr_scale * lr,
        )

    def budget_steps(self) -> int:
        """The number of steps that the recipe's budget allows; 0 without one, or if not due."""
        recipe, progress = self.plan.recipe, self.progress
        steps = progress.step - self.first_step
        if not recipe.budget or not steps or self.now - self.last_replan <= recipe.budget / REPLANS:
            return 0
        self.last_replan = self.now
        seconds_per_step = (self.now - self.began) / steps
        seconds_per_image = seconds_per_step / recipe.batch / FORWARDS_PER_STEP
        tail_seconds = self.plan.tail_seconds(
            self.seconds_per_eval_image or seconds_per_image, self.seconds_per_test_image
        )
        remaining_seconds = recipe.budget - progress.seconds - tail_seconds
        return progress.step + max(1, round(remaining_seconds / seconds_per_step))


def estimate_duration(plan: Plan, seconds: float = 2.0) -> float:
    """Seconds that the whole run will take, from real steps of a network that is thrown away."""
    recipe = plan.recipe
    # Each rank makes its own number of steps, so none may wait for another.
    norm = "batch" if recipe.norm == "sync" else recipe.norm
    # A frozen start and a small input are the cheap steps.
    recipe = replace(
        recipe, batch=plan.local_batch, norm=norm, freeze_backbone_epochs=0.0, progressive_from=0
    )
    local_plan = replace(plan, world=SINGLE_PROCESS, workers=0, recipe=recipe)
    state = local_plan.start()
    step = Step(local_plan, state)
    read_seconds, step_seconds = list[float](), list[float]()
    began = before = time.perf_counter()
    for batch in islice(local_plan.batches(state.progress), 20):
        read = time.perf_counter()
        step.update(batch)
        after = time.perf_counter()
        read_seconds.append(read - before)
        step_seconds.append(after - read)
        before = after
        if len(step_seconds) > 3 and after - began > seconds:
            break
    # The first step warms up.
    reading = statistics.median(read_seconds[1:] or read_seconds)
    stepping = statistics.median(step_seconds[1:] or step_seconds)
    steps = float(plan.steps)
    if recipe.head == "probe":  # of each training image two forward passes, of the others two too
        images = 2 * (len(plan.train) + len(plan.source.val or ()))
        steps += images / (FORWARDS_PER_STEP * plan.local_batch)
    if plan.workers:  # they decode while the network computes
        return steps * max(reading / plan.workers, stepping)
    return steps * (reading + stepping)


def seconds_per_test_image(plan: Plan, network: Network) -> float:
    """Seconds that an image takes in float32: the second of two batches counts."""
    images, *_ = plan.task.example_inputs(plan, plan.micro_batch, plan.preprocess.size)
    seconds = 0.0
    with torch.inference_mode(), evaluation_mode(network):
        for _ in range(2):
            began = time.monotonic()
            network(images)
            if plan.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.monotonic() - began
    return seconds / plan.micro_batch
