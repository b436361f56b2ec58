"""The training loop."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import torch

from resnets.data.loader import Batch, train_batches
from resnets.errors import CheckpointError, DataError, Diverged
from resnets.models import Network
from resnets.models.io.model_file import load, save
from resnets.training import checkpoint
from resnets.training.checkpoint import Writer
from resnets.training.distributed import SINGLE_PROCESS
from resnets.training.plan import Plan
from resnets.training.run import LOGS, Run, unreadable
from resnets.training.signals import SignalFlags
from resnets.training.state import State, TrainProgress, all_finite, floating
from resnets.training.step import BAD_STEPS, Step

SAVE_SECONDS = 30.0  # at the least between checkpoints, so that saving stays under 1 % of a run
REWINDS = 3  # times that a run may go back to a checkpoint before it is given up

Write = Callable[[Mapping[str, float]], None]


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
    watched: tuple[tuple[str, float], ...] = ()  # further figures of the same images
    notes: tuple[str, ...] = ()  # what a person should know, once


def fit(run: Run, plan: Plan, stop: SignalFlags) -> Iterator[Progress]:
    """Train to the end or until `stop.signal`, from the newest checkpoint of `run` if it has one.

    Yields its progress about twice a second and at each evaluation. When it returns, the last state
    is saved in `run`. A value that is not finite is never saved: see `Step.update`; where steps
    cannot just be left out, training goes on from the newest checkpoint at half the rate.

    Raises Diverged where values are not finite again and again (the checkpoints are from before),
    DataError for more unreadable images than the recipe allows, DiskError where three checkpoints
    in a row, the last one, or the log could not be written.
    """
    writer, notes = Writer(run.path / "checkpoints"), list[str]()
    state = load_or_init(run, plan, notes)
    plan = replace(plan, began=plan.began - state.course.seconds)  # as if it had never stopped
    try:
        while lost := (yield from run_steps(run, plan, stop, writer, state, notes)):
            writer.wait()
            past = state.course
            if past.rewinds == REWINDS:
                raise Diverged(
                    f"{lost}, after going back {REWINDS} times; nothing of it was saved.\n"
                    f"Try a lower rate, for instance --set lr={plan.recipe.lr / 10:.2g}, "
                    "more --set warmup, or --set clip=1."
                )
            state, factor = load_or_init(run, plan, notes), past.factor / 2
            notes.append(f"{lost}: back to the newest checkpoint, at {factor:g} times the rate")
            # The best state is not thrown away: it was finite, and it is in its file.
            state.course.factor, state.course.rewinds = factor, past.rewinds + 1
            state.course.best = past.best
    finally:
        writer.wait()


def open_events(folder: Path, step: int, notes: list[str]) -> Write:
    """A function that writes a row of metrics.jsonl; it does nothing without tensorboard.

    A disk that fails, or a name that the locale cannot say, costs events only, which is noted: it
    does not end the run while metrics.jsonl can be written. Events after `step`, which a resumed
    run will write again, are hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=step + 1)
    except ImportError:
        return lambda row: None
    except (OSError, UnicodeError) as error:
        notes.append(f"there will be no events for TensorBoard in {folder}: {error}")
        return lambda row: None

    def write(row: Mapping[str, float]) -> None:
        with suppress(OSError, UnicodeError):
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

    return write


def load_or_init(run: Run, plan: Plan, notes: list[str]) -> State:
    """The state of the newest checkpoint, or of the first step; the logs are cut to it."""
    world, state = plan.world, plan.start()
    found = world.broadcast(checkpoint.newest(run.path / "checkpoints") if world.is_main else None)
    if found is not None:
        state.restore(found.tensors, found.course)
        notes += found.problems
        if world.is_main:
            notes += missing_best(run, plan, state.course)
    elif budget := plan.recipe.budget:
        state.course.steps = world.broadcast(max(1, round(plan.steps * budget / estimate(plan))))
    if world.is_main:
        course = state.course
        for name in LOGS:
            # An evaluation may have been broken off after its step was saved.
            step = course.step if name == "notes.jsonl" else course.logged
            notes += filter(None, [run.truncate(name, step, course.logs.get(name))])
    return state


def missing_best(run: Run, plan: Plan, course: TrainProgress) -> list[str]:
    """What to say where the best state so far is gone, which is then forgotten.

    Raises CheckpointError where it was changed.
    """
    if plan.recipe.select != "best" or course.best is None or read_best(run):
        return []
    course.best = None
    return [f"{run.best.name} is gone: the best state after this one is the result, or the last"]


def read_best(run: Run) -> Network | None:
    """The best state on the watched images, if there is one. Raises CheckpointError, DiskError."""
    try:
        run.best.read_bytes()  # what fails now may pass
        return load(run.best)[0]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(run.best, error) from None
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).splitlines()[0]}\nNothing was touched. Put back a whole copy; or move it "
            f"away, and `resnets resume {run.path}`\ngoes on without: the best state of what "
            "follows is the result, or the last one."
        ) from None


def run_steps(
    run: Run, plan: Plan, stop: SignalFlags, writer: Writer, state: State, notes: list[str]
) -> Generator[Progress, None, str]:
    """Train to the end or a signal and return "", or until the state is lost and return why."""
    recipe, world, course, images = plan.recipe, plan.world, state.course, len(plan.train)
    every = evaluation_interval(plan, course.steps)
    events = open_events(run.path / "tensorboard", course.step, notes) if world.is_main else None
    bad = {str(path): reason for path, reason in plan.source.unreadable}
    write_unreadable(run, plan, bad)
    step, stream, first = Step(plan, state), batches(plan, course), course.step
    began = shown = saved = planned = time.monotonic()
    each = 0.0  # seconds of the last evaluation for an image
    exact = seconds_per_test_image(plan, state.network) if recipe.budget else 0.0

    while True:
        now = time.monotonic()
        course.seconds = now - plan.began
        speed = (course.step - first) * recipe.batch / (now - began + 1e-9)
        progress = Progress(
            step=course.step,
            steps=course.steps,
            epoch=course.step * recipe.batch / images,
            images_per_second=speed,
            seconds_left=(course.steps - course.step) * recipe.batch / max(speed, 1e-9),
            rate=course.factor * recipe.rate(max(0, course.step - 1), course.steps, course.drops),
        )
        # Not twice within a moment at the end.
        due = course.step % every == 0 and course.steps - course.step > every // 4
        if (due or course.ended) and course.logged < course.step:
            progress = evaluate_and_log(run, events, plan, state, progress, stop)
            each = (time.monotonic() - now) / len(plan.monitor_split) if plan.monitor_split else 0.0

        # What one process sees is done by all: signals, the clock, a budget's new length.
        # After a step that was left out is no place to go back to.
        free = world.is_main and not writer.busy and not course.skipped
        save_now = free and now - saved > SAVE_SECONDS
        wishes = [stop.signal, stop.save or save_now, 0]
        if recipe.budget and now - planned > recipe.budget / 50 and course.step > first:
            pace = (now - began) / (course.step - first)
            # Before the first evaluation: a forward pass is about a third of a step.
            finishing = plan.tail_seconds(each or pace / recipe.batch / 3, exact)
            left = recipe.budget - course.seconds - finishing
            wishes[2], planned = course.step + max(1, round(left / pace)), now
        stopping, saving, steps = world.all_reduce_max(wishes)
        if steps and not course.ended:
            course.steps = steps
        over = bool(stopping) or course.ended
        if over or saving:
            if not all_finite(floating((tensors := state.tensors()).values())):
                return f"the state is not finite at step {course.step}"
            stop.save, saved = False, now
            if world.is_main:
                course.logs = run.logs()
                writer.save(tensors, course)
        if over:
            writer.wait()
        notes += writer.complaints(last=over)
        if over or notes or progress.loss is not None or now - shown > 0.5:
            for note in notes if world.is_main else ():
                run.append("notes.jsonl", {"step": course.step, "note": note})
            yield replace(progress, notes=tuple(notes))
            notes.clear()
            shown = now
        if over:
            stop.signal = stopping
            return ""

        batch, micro = next(stream), course.micro
        outcome = step.update(batch)
        if outcome == "lost":
            return f"{BAD_STEPS} steps to {course.step}, or the state, are not finite"
        if outcome == "skipped":
            notes.append(f"step {course.step} was left out: it was not finite")
        if course.micro < micro:
            notes.append(
                f"out of memory: from step {course.step} on {course.micro} images in a forward "
                f"pass, {recipe.batch} in a step as before"
            )
        if batch.unreadable:
            bad |= {str(path): reason for path, reason in batch.unreadable}
            write_unreadable(run, plan, bad)


def evaluation_interval(plan: Plan, steps: int) -> int:
    """Steps between evaluations in a run of so many."""
    recipe, least = plan.recipe, plan.recipe.evaluations
    every = max(1, round(recipe.eval_every * len(plan.train) / recipe.batch))
    # A forward pass is about a third of a step; what a tenth of the run pays for costs little.
    if least and least * len(plan.monitor_split or ()) / 3 <= 0.1 * steps * recipe.batch:
        every = min(every, max(1, steps // least))
    return every


def batches(plan: Plan, course: TrainProgress) -> Iterator[Batch]:
    """The training stream from where the course stands; a budget has no end of its own."""
    return train_batches(
        plan.train,
        preprocess=plan.preprocess,
        augment=plan.recipe.augment,
        batch=plan.recipe.batch,
        seed=plan.recipe.seed,
        start=course.step,
        stop=sys.maxsize if plan.recipe.budget else course.steps,
        device=plan.device,
        workers=plan.workers,
        rank=plan.world.rank,
        ranks=plan.world.size,
        sides=lambda step: plan.side(step, course.steps),
    )


def estimate(plan: Plan, seconds: float = 2.0) -> float:
    """Seconds that the whole run will take, from real steps of a network that is thrown away."""
    recipe = plan.recipe
    # Each rank makes its own number of steps, so none may wait for another.
    norm = "batch" if recipe.norm == "sync" else recipe.norm
    # A frozen start and a small input are the cheap steps.
    recipe = replace(
        recipe, batch=plan.local_batch, norm=norm, freeze_backbone_epochs=0.0, progressive_from=0
    )
    own = replace(plan, world=SINGLE_PROCESS, workers=0, recipe=recipe)
    step = Step(own, state := own.start())
    ticks = [time.perf_counter()]  # before and after reading a batch, and after its step
    for batch in islice(batches(own, state.course), 20):
        ticks.append(time.perf_counter())
        step.update(batch)
        ticks.append(time.perf_counter())
        if len(ticks) > 7 and ticks[-1] - ticks[0] > seconds:
            break
    # The first step warms up. Workers decode while the network computes.
    spent = [end - start for start, end in pairwise(ticks)][2 if len(ticks) > 3 else 0 :]
    read, stepped = statistics.median(spent[::2]), statistics.median(spent[1::2])
    return plan.steps * (max(read / plan.workers, stepped) if plan.workers else read + stepped)


def seconds_per_test_image(plan: Plan, network: Network) -> float:
    """Seconds that an image takes in float32: the second of two batches counts."""
    images, taken = plan.task.example_inputs(plan, plan.micro, plan.preprocess.size)[0], 0.0
    network.eval()
    for _ in range(2):
        began = time.monotonic()
        with torch.inference_mode():
            network(images)
        if plan.device.type == "cuda":
            torch.cuda.synchronize()
        taken = time.monotonic() - began
    network.train()
    return taken / plan.micro


def evaluate_and_log(
    run: Run, events: Write | None, plan: Plan, state: State, progress: Progress, stop: SignalFlags
) -> Progress:
    """Log training figures since the last row, and the error on the watched split.

    A signal breaks the evaluation off; then nothing is logged, and a resume does it again.
    """
    recipe, world, course = plan.recipe, plan.world, state.course
    loss, wrong = (state.totals[:2] / state.totals[2].clamp(min=1)).tolist()
    progress = replace(progress, loss=loss, train_error=wrong)
    row = {"step": progress.step, "epoch": progress.epoch, "lr": progress.rate}
    row |= {"loss": loss, "train_error": wrong}
    if plan.monitor_split is not None:
        average = state.whole_average(plan.arch).eval()
        found = plan.task.validate(plan, average, plan.monitor_split, lambda: bool(stop.signal))
        average.train()
        if world.all_reduce_max([stop.signal])[0]:
            return replace(progress, loss=None)
        row |= {f"{recipe.monitor}_{name}": value for name, value in found.items()}
        more = tuple((k, v) for k, v in found.items() if k not in ("error", "loss"))
        progress = replace(progress, watched_error=found["error"], watched=more)
        update_best(run, plan, course, average, found["error"])
    state.totals.zero_()
    course.logged = course.step
    if events:  # this rank writes
        run.append("metrics.jsonl", row)
        events(row)
        speed = round(progress.images_per_second, 1)
        run.append("timing.jsonl", {"step": progress.step, "images_per_second": speed})
    return progress


def update_best(
    run: Run, plan: Plan, course: TrainProgress, average: Network, error: float
) -> None:
    """What a new error on the watched images means: a best state, a plateau, an early end."""
    recipe = plan.recipe
    if course.best is None or error < course.best:
        course.best, course.waited, course.waited_drop = error, 0, 0
        if recipe.select == "best" and plan.world.is_main:
            save(run.best, average, plan.card)
        return
    course.waited += 1
    course.waited_drop += 1
    if recipe.schedule == "plateau" and course.waited_drop >= recipe.patience:
        course.drops, course.waited_drop = course.drops + 1, 0
    if recipe.early_stop_patience and course.waited >= recipe.early_stop_patience:
        course.steps = course.step


def write_unreadable(run: Run, plan: Plan, bad: dict[str, str]) -> None:
    """List unreadable images with the reason; further ranks have a list of their own.

    Raises DataError when more than the allowed part of the images is unreadable.
    """
    if not bad:
        return
    rank, first = plan.world.rank, next(iter(bad))
    name = f"bad_files-{rank}.csv" if rank else "bad_files.csv"
    run.write_csv(name, ("file", "reason"), sorted(bad.items()))
    if len(bad) > plan.recipe.max_unreadable * plan.source.files:
        raise DataError(
            f"{len(bad)} of {plan.source.files} images are unreadable, first {first}: {bad[first]}"
            f"\nAll are listed in {name}. Mend them, or allow more: --set max_unreadable=0.1"
        )
