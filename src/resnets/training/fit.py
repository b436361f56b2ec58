"""The training loop."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from resnets.data.batches import Batch, test_batches, train_batches
from resnets.errors import DataError, Diverged
from resnets.evaluation.classify import evaluate
from resnets.nets import Network
from resnets.nets.modelfile import save
from resnets.training import checkpoint
from resnets.training.checkpoint import Writer, all_finite
from resnets.training.events import Write, open_events
from resnets.training.plan import Plan
from resnets.training.run import Run
from resnets.training.state import Course, State
from resnets.training.step import BAD_STEPS, Step
from resnets.training.stop import Stop
from resnets.training.world import ALONE, World

SAVE_SECONDS = 30.0  # at the least between checkpoints, so that saving stays under 1 % of a run
REWINDS = 3  # times that a run may go back to a checkpoint before it is given up


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


def fit(run: Run, plan: Plan, stop: Stop) -> Iterator[Progress]:
    """Train to the end or until `stop.signal`, from the newest checkpoint of `run` if it has one.

    Yields its progress about twice a second and at each evaluation. When it returns, the last state
    is saved in `run`. A value that is not finite is never saved: see `Step.update`; where steps
    cannot just be left out, training goes on from the newest checkpoint at half the rate.

    Raises:
        Diverged: values are not finite, again and again; the checkpoints are from before.
        DataError: more images turned out unreadable than the recipe allows.
        DiskError: three checkpoints in a row, the last one, or the log could not be written.
    """
    writer, notes = Writer(run.path / "checkpoints"), list[str]()
    state = begin(run, plan, notes)
    earlier, factor, rewinds = state.course.seconds, 1.0, 0
    try:
        while lost := (yield from stretch(run, plan, stop, writer, state, notes, earlier)):
            writer.wait()
            factor, rewinds = state.course.factor / 2, state.course.rewinds + 1
            if rewinds > REWINDS:
                raise Diverged(
                    f"{lost}, after going back {REWINDS} times; nothing of it was saved.\n"
                    f"Try a lower rate, for instance --set lr={plan.recipe.lr / 10:.2g}, "
                    "more --set warmup, or --set clip=1."
                )
            notes.append(f"{lost}: back to the newest checkpoint, at {factor:g} times the rate")
            state = begin(run, plan, notes)
            state.course.factor, state.course.rewinds = factor, rewinds
    finally:
        writer.wait()


def begin(run: Run, plan: Plan, notes: list[str]) -> State:
    """The state of the newest checkpoint, or of the first step; the logs are cut to it."""
    world = plan.world
    state = State.start(plan.recipe, plan.arch, plan.device, world)
    folder = run.path / "checkpoints"
    found = world.share(checkpoint.newest(folder) if world.first else None)
    if found is not None:
        state.restore(found.tensors, found.course)
        notes += found.problems
    else:
        plan.initialise(state.network, state.average)
        budget, steps = plan.recipe.budget, plan.steps
        if budget:
            steps = world.share(max(1, round(steps * budget / estimate(plan))))
        state.course = Course(steps=steps, micro=plan.micro)
    if world.first:
        # An evaluation may have been broken off after its step was saved.
        for name, last in (("metrics", state.course.logged), ("timing", state.course.logged)):
            run.truncate(f"{name}.jsonl", last)
        run.truncate("notes.jsonl", state.course.step)
    return state


def stretch(
    run: Run,
    plan: Plan,
    stop: Stop,
    writer: Writer,
    state: State,
    notes: list[str],
    earlier: float,
) -> Generator[Progress, None, str]:
    """Train to the end or a signal and return "", or until the state is lost and return why."""
    recipe, world, course, images = plan.recipe, plan.world, state.course, len(plan.train)
    every = max(1, round(recipe.eval_every * images / recipe.batch))
    events = open_events(run.path / "tensorboard", course.step) if world.first else ignore
    bad = {str(path): reason for path, reason in plan.source.unreadable}
    write_bad_files(run, bad, world)
    step, stream, first = Step.of(plan, state), batches(plan, course), course.step
    began = shown = saved = planned = time.monotonic()
    testing = 0.0  # seconds of the last evaluation

    while True:
        now = time.monotonic()
        course.seconds = earlier + now - plan.began
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
            progress = measure(run, events, plan, state, progress, stop)
            testing = time.monotonic() - now

        # What one process sees is done by all: signals, the clock, a budget's new length.
        # After a step that was left out is no place to go back to.
        free = world.first and not writer.busy and not course.skipped
        save_now = free and now - saved > SAVE_SECONDS
        wishes = [stop.signal, stop.save or save_now, 0]
        if recipe.budget and now - planned > recipe.budget / 50 and course.step > first:
            left = recipe.budget - course.seconds - plan.finishing(testing)
            pace = (now - began) / (course.step - first)
            wishes[2], planned = course.step + max(1, round(left / pace)), now
        stopping, saving, steps = world.wishes(wishes)
        if steps and not course.ended:
            course.steps = steps
        if stopping or course.ended or saving:
            if not all_finite(tensors := state.tensors()):
                return f"the state is not finite at step {course.step}"
            stop.save, saved = False, now
            if world.first:
                writer.save(tensors, course)
        if stopping or course.ended:
            writer.wait()
        notes += writer.complaints(last=bool(stopping) or course.ended)
        if stopping or course.ended or notes or progress.loss is not None or now - shown > 0.5:
            if world.first:
                for note in notes:
                    run.append("notes.jsonl", {"step": course.step, "note": note})
            yield replace(progress, notes=tuple(notes))
            notes.clear()
            shown = now
        if stopping or course.ended:
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
            write_bad_files(run, bad, world)
            refuse_too_many(bad, recipe.max_unreadable, plan.source.files)


def batches(plan: Plan, course: Course) -> Iterator[Batch]:
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
    recipe = replace(recipe, batch=plan.share, norm=norm, frozen=0.0, grow_from=0)
    own = replace(plan, world=ALONE, workers=0, recipe=recipe)
    state = State.start(own.recipe, own.arch, own.device)
    state.course = Course(steps=own.steps, micro=own.micro)
    step = Step.of(own, state)
    reading: list[float] = []
    stepping: list[float] = []
    began = time.perf_counter()
    end = began + seconds
    for batch in takewhile(lambda _: len(stepping) < 20, batches(own, state.course)):
        read = time.perf_counter()
        step.update(batch)
        done = time.perf_counter()
        reading.append(read - began)
        stepping.append(done - read)
        began = done
        if len(stepping) > 3 and done > end:
            break
    # The first step warms up. Workers decode while the network computes.
    read, stepped = (statistics.median(x[1:] or x) for x in (reading, stepping))
    return plan.steps * (max(read / plan.workers, stepped) if plan.workers else read + stepped)


def measure(
    run: Run, events: Write, plan: Plan, state: State, progress: Progress, stop: Stop
) -> Progress:
    """Log training figures since the last row, and the error on the watched split.

    A signal breaks the evaluation off; then nothing is logged, and a resume does it again.
    """
    recipe, world, course = plan.recipe, plan.world, state.course
    loss, wrong, seen = state.totals.tolist()
    row = {
        "step": progress.step,
        "epoch": progress.epoch,
        "lr": progress.rate,
        "loss": loss / max(1, seen),
        "train_error": wrong / max(1, seen),
    }
    progress = replace(progress, loss=row["loss"], train_error=row["train_error"])
    if plan.watched is not None:
        average = state.whole_average(plan.arch)
        result = evaluate(
            average,
            takewhile(lambda _: not stop.signal, tested(plan)),
            plan.source.classes,
            bfloat16=plan.bfloat16,
            total=world.sum,
        )
        if world.wishes([stop.signal])[0]:
            return replace(progress, loss=None)
        row |= {f"{recipe.watch}_error": result.error, f"{recipe.watch}_loss": result.loss}
        progress = replace(progress, watched_error=result.error)
        judge(run, plan, course, average, result.error)
    state.totals.zero_()
    course.logged = course.step
    if world.first:
        run.append("metrics.jsonl", row)
        events(row)
        speed = round(progress.images_per_second, 1)
        run.append("timing.jsonl", {"step": progress.step, "images_per_second": speed})
    return progress


def tested(plan: Plan) -> Iterator[Batch]:
    """This rank's part of the watched images."""
    assert plan.watched is not None
    return test_batches(
        plan.watched,
        preprocess=plan.preprocess,
        batch=plan.micro,
        device=plan.device,
        workers=plan.workers,
        rank=plan.world.rank,
        ranks=plan.world.size,
    )


def judge(run: Run, plan: Plan, course: Course, average: Network, error: float) -> None:
    """What a new error on the watched images means: a best state, a plateau, an early end."""
    recipe = plan.recipe
    if course.best is None or error < course.best:
        course.best, course.waited, course.waited_drop = error, 0, 0
        if recipe.keep == "best" and plan.world.first:
            save(run.best, average, plan.card)
        return
    course.waited += 1
    course.waited_drop += 1
    if recipe.schedule == "plateau" and course.waited_drop >= recipe.patience:
        course.drops, course.waited_drop = course.drops + 1, 0
    if recipe.stop_after and course.waited >= recipe.stop_after:
        course.steps = course.step


def ignore(_: object) -> None:
    """Write no events."""


def write_bad_files(run: Run, bad: dict[str, str], world: World) -> None:
    """List unreadable images with the reason; further ranks have a list of their own."""
    if bad:
        name = "bad_files.csv" if world.first else f"bad_files-{world.rank}.csv"
        run.write_csv(name, ("file", "reason"), sorted(bad.items()))


def refuse_too_many(bad: dict[str, str], allowed: float, images: int) -> None:
    """Raise DataError when more than the allowed part of the images is unreadable."""
    if len(bad) > allowed * images:
        first = next(iter(bad))
        raise DataError(
            f"{len(bad)} of {images} images are unreadable, first {first}: {bad[first]}\n"
            f"All are listed in bad_files.csv. Mend them, or allow more: --set max_unreadable=0.1"
        )
