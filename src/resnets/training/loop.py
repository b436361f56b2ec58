"""The training loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from resnets.errors import Diverged
from resnets.training import checkpoint, monitor
from resnets.training.clock import Clock, ProgressReport, estimate_duration, seconds_per_test_image
from resnets.training.log import Log
from resnets.training.plan import Plan
from resnets.training.probe_start import start_from_probe
from resnets.training.run import LOGS, Run
from resnets.training.saver import Saver
from resnets.training.signals import SignalFlags
from resnets.training.state import State
from resnets.training.step import DIVERGED_AFTER, Step

MAX_ROLLBACKS = 3  # times that a run may go back to a checkpoint before it is given up


def fit(run: Run, plan: Plan, stop: SignalFlags) -> Iterator[ProgressReport]:
    """Train to the end or until `stop.signal`, from the newest checkpoint of `run` if it has one.

    Yields its progress about twice a second and at each evaluation. When it returns, the last state
    is saved in `run`. A value that is not finite is never saved: `Step.update` skips its step, and
    where it cannot, training goes on from the newest checkpoint at half the rate.

    Raises Diverged where values are not finite again and again (the checkpoints are from before),
    DataError for more unreadable images than the recipe allows, DiskError where three checkpoints
    in a row, the last one, or the log could not be written.
    """
    saver, notes = Saver(run, plan.world), list[str]()
    state = load_or_init(run, plan, notes)
    plan = replace(plan, began=plan.began - state.progress.seconds)  # as if it had never stopped
    try:
        while reason := (yield from train(run, plan, state, saver, notes, stop)):
            saver.wait()
            state = roll_back(run, plan, state, reason, notes)
    finally:
        saver.wait()


def train(
    run: Run, plan: Plan, state: State, saver: Saver, notes: list[str], stop: SignalFlags
) -> Generator[ProgressReport, None, str]:
    """Train to the end or a signal and return "", or until the state is lost and return why."""
    progress, interval = state.progress, monitor.evaluation_interval(plan, state.progress.steps)
    log = Log(run, plan, progress.step, notes)
    step, stream, clock = Step(plan, state), plan.batches(progress), Clock(plan, progress)
    if plan.recipe.budget:
        clock.seconds_per_test_image = seconds_per_test_image(plan, state.network)
    saver.last_save = clock.now
    while True:
        clock.tick()
        report = clock.report()
        if monitor.evaluation_due(progress, interval):
            report = monitor.evaluate_and_log(log, state, report, stop)
            clock.record_evaluation(len(plan.monitor_split or ()))

        # What one rank knows all ranks do: signals, saves, a budget's new length.
        flags = [stop.signal, stop.save or saver.due(progress, clock.now), clock.budget_steps()]
        signal, save, budget_steps = plan.world.all_reduce_max(flags)
        if budget_steps and not progress.done:
            progress.steps = budget_steps
        last = bool(signal) or progress.done
        if last or save:
            if not saver.save(state, clock.now):
                return f"the state is not finite at step {progress.step}"
            stop.save = False
        notes += saver.new_failures(last)
        if last or notes or report.loss is not None or clock.report_due:
            yield replace(report, notes=log.write_notes(progress.step), run=run.path)
            clock.last_report = clock.now
        if last:
            stop.signal = signal
            return ""

        batch, micro_batch = next(stream), progress.micro_batch
        match step.update(batch):
            case "diverged":
                return f"{DIVERGED_AFTER} steps to {progress.step}, or the state, are not finite"
            case "skipped":
                notes.append(f"step {progress.step} was left out: it was not finite")
        if progress.micro_batch < micro_batch:
            notes.append(
                f"out of memory: from step {progress.step} on {progress.micro_batch} images in a "
                f"forward pass, {plan.recipe.batch} in a step as before"
            )
        log.add_unreadable(batch.unreadable)


def load_or_init(run: Run, plan: Plan, notes: list[str]) -> State:
    """The state of the newest checkpoint, or of the first step; the logs are cut to it."""
    world, state = plan.world, plan.start()
    newest = checkpoint.read_newest(run.path / "checkpoints") if world.is_main else None
    saved = world.broadcast(newest)
    if saved is not None:
        state.restore(saved.tensors, saved.progress)
        notes += saved.problems
        if world.is_main:
            notes += monitor.forget_missing_best(run, plan, state.progress)
    else:
        if plan.recipe.head == "probe":
            notes.append(start_from_probe(plan, state))
        if budget := plan.recipe.budget:
            steps = max(1, round(plan.steps * budget / estimate_duration(plan)))
            state.progress.steps = world.broadcast(steps)
    if world.is_main:
        progress = state.progress
        for name in LOGS:
            # An evaluation may have been broken off after its step was saved.
            step = progress.step if name == "notes.jsonl" else progress.last_logged_step
            notes += filter(None, [run.truncate(name, step, progress.logs.get(name))])
    return state


def roll_back(run: Run, plan: Plan, lost: State, reason: str, notes: list[str]) -> State:
    """The state of the newest checkpoint, to go on at half the rate.

    The best state is kept: it was finite, and it is in its file. Raises Diverged after three times.
    """
    rollbacks, lr_scale = lost.progress.rollbacks + 1, lost.progress.lr_scale / 2
    if rollbacks > MAX_ROLLBACKS:
        raise Diverged(
            f"{reason}, after {MAX_ROLLBACKS} rollbacks; nothing of it was saved.\n"
            f"Try a lower rate, for instance --set lr={plan.recipe.lr / 10:.2g}, "
            "more --set warmup, or --set clip=1."
        )
    state = load_or_init(run, plan, notes)
    notes.append(f"{reason}: back to the newest checkpoint, at {lr_scale:g} times the rate")
    progress = state.progress
    progress.rollbacks, progress.lr_scale = rollbacks, lr_scale
    progress.best_figure, progress.best_step = lost.progress.best_figure, lost.progress.best_step
    return state
