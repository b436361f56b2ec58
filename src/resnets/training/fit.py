"""The training loop."""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
from torch.nn import functional as F

from resnets.data.batches import Batch, test_batches, train_batches
from resnets.errors import DataError, Diverged
from resnets.evaluation.classify import evaluate
from resnets.recipe import Recipe
from resnets.training.events import Write, open_events
from resnets.training.plan import Plan
from resnets.training.run import Run
from resnets.training.state import State, blend

SAVE_SECONDS = 30.0  # at the least between checkpoints, so that saving stays under 1 % of a run


@dataclass(frozen=True)
class Progress:
    """Where a run stands; `loss` and after it are set on the rows that end an epoch."""

    step: int
    steps: int
    epoch: float
    images_per_second: float
    seconds_left: float
    rate: float
    loss: float | None = None
    train_error: float | None = None
    watched_error: float | None = None
    notes: tuple[str, ...] = ()  # what a person should know, once


@dataclass
class Stop:
    """Ends training after the step in hand: SIGINT and SIGTERM set `signal`, a second one kills."""

    signal: int = 0
    previous: dict[int, object] = field(default_factory=dict)

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python hands signals to the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self.catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def catch(self, number: int, _: FrameType | None) -> None:
        """Remember the signal; from the second on behave as Python does."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def fit(run: Run, plan: Plan, stop: Stop) -> Iterator[Progress]:
    """Train to the end or until `stop.signal`, from the newest checkpoint of `run` if it has one.

    Yields its progress about twice a second and at each evaluation. When it returns, the last state
    is saved in `run`.

    Raises:
        Diverged: the loss is not finite; the checkpoints before it are kept.
        DataError: more images turned out unreadable than the recipe allows.
    """
    recipe, images, steps = plan.recipe, len(plan.train), plan.steps
    every = max(1, round(recipe.eval_every * images / recipe.batch))
    state = State.start(recipe, plan.arch, plan.device)
    newest = run.newest()
    if newest is not None:
        state.restore(newest.tensors, newest.step)
    run.truncate("metrics.jsonl", state.step)
    run.truncate("timing.jsonl", state.step)
    events = open_events(run.path / "tensorboard", state.step)
    bad = {str(path): reason for path, reason in plan.source.unreadable}
    first, began = state.step, time.monotonic()
    shown = saved = began

    batches = train_batches(
        plan.train,
        preprocess=plan.preprocess,
        augment=recipe.augment,
        batch=recipe.batch,
        seed=recipe.seed,
        start=state.step,
        stop=steps,
        device=plan.device,
        workers=plan.workers,
    )
    for batch in batches:
        update(state, recipe, steps, batch, bfloat16=plan.bfloat16)
        if batch.unreadable:
            bad |= {str(path): reason for path, reason in batch.unreadable}
            write_bad_files(run, bad)
            refuse_too_many(bad, recipe.max_unreadable, plan.source.files)

        # Not twice within a moment at the end.
        due = state.step == steps or (state.step % every == 0 and steps - state.step > every // 4)
        stopping = stop.signal != 0  # read once: what comes later waits for the next step
        now = time.monotonic()
        if not (due or stopping or now - shown > 0.5):
            continue
        shown = now
        speed = (state.step - first) * recipe.batch / max(1e-9, now - began)
        progress = Progress(
            step=state.step,
            steps=steps,
            epoch=state.step * recipe.batch / images,
            images_per_second=speed,
            seconds_left=(steps - state.step) * recipe.batch / speed,
            rate=recipe.rate(state.step - 1, steps),
            notes=() if newest is None else newest.problems,
        )
        newest = None
        if due:
            progress = measure(run, events, plan, state, progress)
        if stopping or state.step == steps or now - saved > SAVE_SECONDS:
            run.save(state.tensors(), state.step)
            saved = time.monotonic()
        yield progress
        if stopping:
            break
    write_bad_files(run, bad)


def estimate(plan: Plan, seconds: float = 2.0) -> float:
    """Seconds that the whole run will take, from real steps of a network that is thrown away."""
    state = State.start(plan.recipe, plan.arch, plan.device)
    batches = train_batches(
        plan.train,
        preprocess=plan.preprocess,
        augment=plan.recipe.augment,
        batch=plan.recipe.batch,
        seed=plan.recipe.seed,
        start=0,
        stop=20,
        device=plan.device,
        workers=0,
    )
    reading: list[float] = []
    stepping: list[float] = []
    began = time.perf_counter()
    end = began + seconds
    for batch in batches:
        read = time.perf_counter()
        update(state, plan.recipe, plan.steps, batch, bfloat16=plan.bfloat16)
        done = time.perf_counter()
        reading.append(read - began)
        stepping.append(done - read)
        began = done
        if len(stepping) > 3 and done > end:
            break
    # The first step warms up. Workers decode while the network computes.
    read, step = statistics.median(reading[1:]), statistics.median(stepping[1:])
    return plan.steps * (max(read / plan.workers, step) if plan.workers else read + step)


def update(state: State, recipe: Recipe, steps: int, batch: Batch, *, bfloat16: bool) -> None:
    """One optimiser step: set the rate, forward, backward, move the weights, average them."""
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step, steps)
    # Dropout and stochastic depth draw from the step's own seed, so a resume needs no generator.
    torch.manual_seed(recipe.seed * 1_000_003 + state.step)
    state.network.train()
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
        logits = state.network(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
    if not math.isfinite(loss.item()):
        raise Diverged(
            f"the loss is {loss.item()} at step {state.step}; nothing of this step was kept.\n"
            f"Try a lower rate, for instance --set lr={recipe.lr / 3:.2g}, or more --set warmup."
        )
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.step += 1
    keep = min(recipe.ema, state.step / (state.step + 9))  # short memory while weights move fast
    blend(state.average, state.network, keep)
    count = len(batch.labels)
    wrong = (logits.argmax(1) != batch.labels).sum()
    state.totals += torch.stack([loss.detach() * count, wrong, torch.full_like(wrong, count)])


def measure(run: Run, events: Write, plan: Plan, state: State, progress: Progress) -> Progress:
    """Log training figures since the last row, and the error on the watched split."""
    loss, wrong, seen = state.totals.tolist()
    state.totals.zero_()
    row = {
        "step": progress.step,
        "epoch": progress.epoch,
        "lr": progress.rate,
        "loss": loss / seen,
        "train_error": wrong / seen,
    }
    progress = replace(progress, loss=row["loss"], train_error=row["train_error"])
    watch = plan.recipe.watch
    split = plan.source.test if watch == "test" else plan.source.val
    if split is not None:
        batches = test_batches(
            split,
            preprocess=plan.preprocess,
            batch=plan.recipe.batch,
            device=plan.device,
            workers=plan.workers,
        )
        result = evaluate(state.average, batches, plan.source.classes, bfloat16=plan.bfloat16)
        row |= {f"{watch}_error": result.error, f"{watch}_loss": result.loss}
        progress = replace(progress, watched_error=result.error)
    run.append("metrics.jsonl", row)
    events(row)
    speed = round(progress.images_per_second, 1)
    run.append("timing.jsonl", {"step": progress.step, "images_per_second": speed})
    return progress


def write_bad_files(run: Run, bad: dict[str, str]) -> None:
    """List unreadable images with the reason."""
    if bad:
        run.write_csv("bad_files.csv", ("file", "reason"), sorted(bad.items()))


def refuse_too_many(bad: dict[str, str], allowed: float, images: int) -> None:
    """Raise DataError when more than the allowed part of the images is unreadable."""
    if len(bad) > allowed * images:
        first = next(iter(bad))
        raise DataError(
            f"{len(bad)} of {images} images are unreadable, first {first}: {bad[first]}\n"
            f"All are listed in bad_files.csv. Mend them, or allow more: --set max_unreadable=0.1"
        )
