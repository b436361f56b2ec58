"""The life of a run: its folder is created, it is trained, tested, and its result written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from resnets.config import arch as archs
from resnets.config import recipe as recipes
from resnets.device import environment
from resnets.errors import CheckpointError, UsageError
from resnets.evaluation import scores as score_files
from resnets.evaluation.classification import classification_metrics
from resnets.evaluation.load import load
from resnets.evaluation.predictor import Model
from resnets.files import check_outside, code_option, resume_command
from resnets.models.io.model_file import save
from resnets.training import checkpoint
from resnets.training.clock import ProgressReport
from resnets.training.distributed import SINGLE_PROCESS, launched
from resnets.training.loop import fit
from resnets.training.memory import peak_bytes
from resnets.training.monitor import read_best, selected_step
from resnets.training.plan import Plan, Task, TaskMetrics
from resnets.training.precise_bn import precise_bn
from resnets.training.run import Run, log_test_access
from resnets.training.signals import SignalFlags
from resnets.training.state import State, TrainProgress
from resnets.training.tasks import TASKS, task_of_run

PAGES = ("README.md", "report.html")  # written after the result


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run: Path  # the run folder
    result: TaskMetrics | None  # on the test split, else on the validation split, if there is one
    seconds: float  # of training
    task: str  # classify, detect, localize or segment
    compared: dict[str, Any] | None = None  # of several seeds: `runs_compare` of their runs


def run_folder(plan: Plan, path: str | Path | None = None) -> Run:
    """The run folder of a plan; without a path runs/DATA-MODEL, numbered if that is taken.

    Raises UsageError for the folder of a run, or one inside the data. Under torchrun, which may
    start a command again, an existing run is left to `create_run`.
    """
    stem = default_folder(plan)
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    free = next(folder for folder in map(Path, names) if not folder.exists())
    run = Run(free if path is None else Path(path))
    check_outside(run.path, plan.recipe.data)
    if not launched():
        run.check_free()
    return run


def default_folder(plan: Plan) -> str:
    """The default run folder of a plan."""
    network = plan.recipe.model.replace(":", "-")  # my_module:build
    return f"runs/{Path(plan.recipe.data).stem or 'data'}-{network}"


def seed_runs(plan: Plan, path: str | Path | None, seeds: int) -> dict[int, Run]:
    """The runs of a plan with its seed and those that follow: PATH-seed0, PATH-seed1, ...

    Existing ones are resumed. Raises UsageError where one is of another recipe or other data, or
    under torchrun; and as `Run.check_free`.
    """
    if launched():
        raise UsageError("torchrun trains one seed at a time: --seed N")
    base, first = Path(path or default_folder(plan)), plan.recipe.seed
    runs = {seed: Run(Path(f"{base}-seed{seed}")) for seed in range(first, first + seeds)}
    for seed, run in runs.items():
        check_outside(run.path, plan.recipe.data)
        if not (run.path / "recipe.json").exists():
            run.check_free()
            continue
        expected = recipes.to_dict(plan.recipe) | {"seed": seed, "digest": plan.source.digest}
        stored = recipes.to_dict(run.read_recipe())
        stored["digest"] = run.read_json("source.json")["digest"]
        if other := [key for key in expected if expected[key] != stored[key]]:
            raise UsageError(
                f"{run.path} holds a run with other {', '.join(other)}: repeat its command, or "
                "give another folder with --run"
            )
    return runs


def create_run(plan: Plan, path: str | Path | None = None) -> Run:
    """Create the run folder of a plan, unless it goes on with one.

    Errors as in `run_folder`, and DiskError. Under torchrun, which starts a command again after a
    failure, an existing run is resumed.
    """
    if plan.resumes is not None:
        return Run(plan.resumes)
    world, run = plan.world, Run(Path(path or "."))
    if launched():
        if path is None:
            raise UsageError("under torchrun name a folder that its restarts share: --run DIR")
        if world.broadcast(run.finished and not missing_results(run)):
            command = f"resnets {plan.task.text.command}evaluate {path} DATA{code_option(path)}"
            raise UsageError(f"{path} is finished; `{command}` uses it")
        if world.broadcast((run.path / "recipe.json").exists()):
            return run
    if not world.is_main:
        return run
    while True:
        run = run_folder(plan, path)
        with suppress(FileExistsError):  # another process took that number first
            run.create(fresh=path is None)
            break
    with run.locked():
        run.check_free()
        source = {
            "task": plan.task.name,
            "data": plan.recipe.data,
            "digest": plan.source.digest,
            "classes": plan.source.classes,
            "arch": archs.to_dict(plan.arch),
            "preprocess": asdict(plan.preprocess),
            "images": len(plan.train),
            "plan": plan.summary(),
            "licence": find_licence(plan.source.root),
            "replaced": replaced_parts(plan.task),
        }
        run.write_json("source.json", source)
        run.write_json("environment.json", environment())
        if table := plan.source.split_table():
            run.write_csv("split.csv", ("file", "label", "split"), table)
        run.write_json("recipe.json", recipes.to_dict(plan.recipe))  # last: now it is a run
    return run


def replaced_parts(task: Task) -> list[str]:
    """The fields of a task that were replaced, as make_loss: a recipe does not say it."""
    standard, names = TASKS.get(task.name, task), [field.name for field in fields(task)]
    return [name for name in names if getattr(task, name) != getattr(standard, name)]


def missing_results(run: Run) -> list[str]:
    """The files that a run without a result, or one interrupted after it, still lacks."""
    if not run.finished:
        return ["result.json"]
    result, task = run.read_json("result.json"), task_of_run(run.read_json("source.json"))
    names = ["model.safetensors", "cost.json", *PAGES]
    if task.details and result["images"]:
        names.append(task.details)
    missing = [name for name in names if not (run.path / name).exists()]
    errors = [row.get("error") for row in run.test_accesses()]
    if result.get("split") == "test" and result["error"] not in errors:
        missing.append("test_access.jsonl")
    return missing


def train_and_test(
    run: Run, plan: Plan, write_pages: Callable[[Run, Plan], None]
) -> Generator[ProgressReport, None, TrainResult]:
    """Train from where a run stands to its end, test it, and write its result and its pages.

    What is there already stays. Yields the progress. The run is locked, and signals are flags.
    """
    world, resumed_by = plan.world, resume_command(run.path)
    with run.locked() if world.is_main else nullcontext(), SignalFlags() as stop:
        if not world.broadcast(run.finished):
            with world.report_dead_ranks():
                yield from fit(run, plan, stop)
                world.leave()
        with stop.interruptible(resumed_by):
            seconds = time.monotonic() - plan.began
            if not world.is_main:
                return TrainResult(run.path, None, seconds, plan.task.name)
            result = finish(run, plan, seconds)
            if not set(PAGES).isdisjoint(missing_results(run)):
                write_pages(run, plan)
            return result


def finish(run: Run, plan: Plan, seconds: float) -> TrainResult:
    """Write the calibrated model.safetensors, its scores and its metrics, tested once.

    If there is a result already, only what is missing beside it is written.
    """
    task, missing = plan.task, missing_results(run)
    no_model = not run.finished or "model.safetensors" in missing
    no_cost = not (run.path / "cost.json").exists()
    if no_model or no_cost:
        state = last_state(run, plan)
    if no_model:
        write_model(run, plan, state)
    if no_cost:
        seconds_spent = round(state.progress.seconds, 1)
        cost = {"seconds": seconds_spent, "peak_memory": peak_bytes(plan.device)}
        run.write_json("cost.json", cost)
    result = None
    if plan.result_split is not None and not {"result.json", task.details}.isdisjoint(missing):
        model = load(run.model, device=plan.device, network=plan.external)
        split = "test" if plan.source.test else "val"
        result = task.test(run.path, plan, model, plan.result_split, split)
    if not run.finished:
        for name in PAGES:  # of the unfinished run: they say less
            (run.path / name).unlink(missing_ok=True)
        summary = result.summary() if result else {"images": 0}
        if plan.recipe.select != "last":
            summary |= {"selected_step": selected_step(plan.recipe, state.progress)}
        run.write_json("result.json", summary)
    ended = run.read_json("result.json")
    if "test_access.jsonl" in missing_results(run):
        log_test_access(run.path, plan.source.digest, ended["split"], ended["error"])
    return TrainResult(run.path, result, seconds, plan.task.name)


def find_licence(root: Path | None) -> str:
    """The licence of the data by its LICENSE file or COCO annotations; empty if there is none."""
    if root is None or not root.is_dir():
        return ""
    for path in sorted(root.iterdir()):
        if path.is_file() and re.match(r"(?i)(licen[cs]e|copying)(\.(txt|md))?$", path.name):
            lines = path.read_bytes()[:2000].decode(errors="replace").splitlines()
            return next((line.strip(" #")[:100] for line in lines if line.strip(" #")), "")
    names = set[str]()
    for path in (*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_*.json")):
        try:
            data = json.loads(path.read_bytes()) if path.stat().st_size < 2**26 else {}
            names |= {str(row["name"])[:100] for row in data.get("licenses", ()) if row["name"]}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return ", ".join(sorted(names)[:5])


def write_model(run: Run, plan: Plan, last: State) -> None:
    """Write model.safetensors from the last state or the best, calibrated on validation images."""
    network = last.average
    if plan.recipe.select != "last" and (best := read_best(run, plan)):
        network = best.to(plan.device)
    if plan.recipe.precise_bn:
        # At the final size of a growing input, and without a budget's endless stream.
        plain = replace(plan, recipe=replace(plan.recipe, budget=0.0, progressive_from=0))
        stream = plain.batches(TrainProgress(steps=plan.recipe.precise_bn))
        precise_bn(network, (batch.images for batch in stream))
    step = selected_step(plan.recipe, last.progress)
    steps = {"steps": str(last.progress.step if step is None else step)}
    metadata = replace(plan.metadata, provenance=plan.metadata.provenance | steps)
    temperature = plan.task.fit_temperature(plan, Model(network.eval(), metadata, plan.device))
    save(run.model, network, replace(metadata, temperature=temperature))


def last_state(run: Run, plan: Plan) -> State:
    """The state after the last step. Raises CheckpointError where it is gone."""
    newest = checkpoint.read_newest(run.path / "checkpoints")
    if newest is None or not newest.progress.done:
        raise CheckpointError(
            f"{run.path} has no checkpoint of its last step to write the result from"
        )
    state = replace(plan, world=SINGLE_PROCESS, pretrained=None).start()
    state.restore(newest.tensors, newest.progress)
    return state


def rescale_scores(run: Run, factor: float) -> None:
    """Divide the logits of a run's scores by a factor of its temperature, and renew its figures."""
    path = run.path / "scores.safetensors"
    if path.exists():
        scores = score_files.load(path)
        scores = replace(scores, logits=scores.logits / factor)
        score_files.save(path, scores)
        ended = run.read_json("result.json")
        renewed = classification_metrics(scores, ended["split"]).summary()
        run.write_json("result.json", ended | renewed)
