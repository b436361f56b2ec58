"""Tiny runs, each in a fork of a process that has loaded everything, with faults from outside.

A fork costs a hundredth of a new Python. Nothing in the product knows that it is being broken.
"""

import errno
import fnmatch
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

RECIPE = {
    "model": "resnet8", "size": 8, "steps": 24, "batch": 32, "val_fraction": 100, "ema": 0.99,
    "eval_every": 0.2, "precision": "float32", "lr": 0.1, "augment": {"crop": "pad", "pad": 1},
}  # fmt: skip
STUCK = 120  # seconds after which a run counts as hung
BROKEN = 99  # the exit code for an exception that no person should see


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th passing of a point.

    `at` is a kind of `disk.Call`, "io" for any that writes, a name of `calls()`, or "clock", where
    `n` is seconds. `do` is a signal, or the name of an errno that the call then raises; "TORN"
    kills in the middle of a write. `where` is a pattern of the file below the run folder.
    """

    at: str
    n: float = 1
    do: str = "SIGKILL"
    where: str = "*"


class Driver:
    """The warm process; `train` runs one job in a fork of it."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.faults.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def train(
        self,
        run: Path,
        *faults: Fault,
        recipe: dict | None = None,
        save_seconds: float = 0,
        under: str = "",
    ) -> tuple[int, str]:
        """Start a run or go on with it: the exit code, or minus the signal; what it printed."""
        job = {
            "run": str(run),
            "faults": [asdict(fault) for fault in faults],
            "recipe": RECIPE | (recipe or {}),
            "save_seconds": save_seconds,
            "under": under,
        }
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(job), file=self.process.stdin, flush=True)
        code, told = json.loads(self.process.stdout.readline())
        return code, told

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def calls() -> dict[str, tuple[object, str]]:
    """Functions of the product that are points of a fault: the namespace and the name."""
    from resnets.api import training
    from resnets.evaluation import scores
    from resnets.training import loop, runner, step

    return {
        "created": (runner, "run_folder"),
        "report": (training, "write_report"),
        "begin": (loop, "load_or_init"),
        "evaluated batch": (scores, "predict_batch"),
        "step": (step.Step, "update"),
    }


def injected(faults: list[Fault], run: Path) -> AbstractContextManager[None]:
    """Patch the product's functions at once, and what reaches the disk while it is entered."""
    from resnets.training import checkpoint, step
    from tests.training.faults.disk import Call, watched

    passed = [0] * len(faults)
    writing = threading.Event()

    def reach(point: str, file: str = "", call: Call | None = None) -> None:
        for i, fault in enumerate(faults):
            kinds = (point, "io") if call and call.kind != "read" else (point,)
            if fault.at not in kinds or not fnmatch.fnmatch(file, fault.where):
                continue
            passed[i] += 1
            if passed[i] == fault.n:
                act(fault, call)

    def act(fault: Fault, call: Call | None) -> None:
        fired(run).touch()
        if fault.do.startswith("E"):
            if call and call.kind == "write":
                call.write(call.data[: len(call.data) // 2])
            number = getattr(errno, fault.do)
            raise OSError(number, os.strerror(number))
        if fault.do == "TORN" and call:
            call.write(call.data[: len(call.data) // 2])
        os.kill(os.getpid(), getattr(signal, "SIGKILL" if fault.do == "TORN" else fault.do))

    def point(name: str, function):
        def told(*rest, **named):
            reach(name)
            return function(*rest, **named)

        return told

    for name, (place, attribute) in calls().items():
        setattr(place, attribute, point(name, getattr(place, attribute)))

    write, update = checkpoint.write, step.Step.update

    def slowly(*rest):
        writing.set()
        time.sleep(0.005)
        write(*rest)
        writing.clear()

    def beside(self, batch):
        if writing.is_set():
            reach("step while writing")
        return update(self, batch)

    if any(fault.at == "step while writing" for fault in faults):
        checkpoint.write, step.Step.update = slowly, beside
    for fault in faults:
        if fault.at == "clock":
            threading.Timer(fault.n, act, (fault, None)).start()
    return watched(run, lambda call: reach(call.kind, call.path, call))


def fired(run: Path) -> Path:
    """A file beside the run folder that is there once a fault came."""
    return run.with_name(run.name + ".fired")


def surround(under: str, folder: Path) -> None:
    """An unusual environment."""
    if under == "umask":
        os.umask(0o077)
    elif under == "no home":
        for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
            os.environ.pop(name, None)
    elif under == "read-only folder":
        os.chdir("/proc")  # nobody may write there, not even root
    elif under == "clock":
        real, days = time.time, iter(range(10**9))
        time.time = lambda: real() + 86400 * (-1) ** next(days)
    elif under == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    assert under in ("", "umask", "no home", "read-only folder", "clock", "file size")


def work(job: dict) -> int:
    """One run, in this process; its exit code."""
    import resnets
    from resnets.errors import ResnetsError
    from resnets.training import saver

    run = Path(job["run"])
    saver.SAVE_SECONDS = job["save_seconds"]
    surround(job["under"], run)
    try:
        with injected([Fault(**fault) for fault in job["faults"]], run):
            if (run / "recipe.json").exists():
                resnets.resume(run)
            else:
                resnets.train("digits", run=run, overrides=job["recipe"])
    except ResnetsError as error:
        print(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return BROKEN
    return 0


def main() -> None:
    """Answer each job of standard input in a fork."""
    import torch

    from resnets.api import training  # all that a run needs
    from resnets.data import dataset

    # A shell lets what it starts in the background ignore SIGINT, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    dataset.load("digits")
    assert training
    out = os.dup(1)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            signal.alarm(STUCK)
            code = work(job)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        os.close(writing)
        threading.Thread(target=wake, args=(child,), daemon=True).start()
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        status = os.waitpid(child, 0)[1]
        os.write(out, (json.dumps([os.waitstatus_to_exitcode(status), told]) + "\n").encode())


def wake(child: int) -> None:
    """Continue a process that was stopped, 50 ms later."""
    while True:
        time.sleep(0.05)
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T":
                os.kill(child, signal.SIGCONT)
        except OSError:
            return


def results(run: Path) -> dict[str, str]:
    """SHA-256 of everything that a kill must not change, once the run is finished."""
    from resnets.training import checkpoint

    last = checkpoint.list_finished(run / "checkpoints")[-1]
    parts = dict(json.loads((last / "state.json").read_text())["tensors"])
    parts["progress"] = str(asdict(checkpoint.read(last).progress) | {"seconds": 0, "logs": 0})
    for name in ("metrics.jsonl", "model.safetensors", "result.json", "best.safetensors"):
        if (run / name).exists():
            parts[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    return parts


if __name__ == "__main__":
    main()
