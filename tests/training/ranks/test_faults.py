"""What happens to a run when one of its processes fails."""

import datetime
import multiprocessing
import os
import random
import re
import signal
import time

import psutil
import pytest

from resnets.cli.main import main
from resnets.errors import DiskError, ResnetsError, UsageError
from resnets.tensor_files import digest
from resnets.training import checkpoint
from resnets.training.distributed import join, watch_parent
from resnets.training.signals import SignalFlags

from ._helpers import FORKS, command, start, together

FIELDS = (
    "model=resnet8",
    "size=8",
    "batch=32",
    "precision=float32",
    "val_fraction=0.2",
    "steps=200",
    "eval_every=1",
)
TRAIN = ["train", "digits", "--run", "run", *(w for field in FIELDS for w in ("--set", field))]
RESUME = ["resume", "run"]


def until(condition, what, seconds=100):
    """The first true value of condition()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


def rows(folder):
    path = folder / "run" / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n")


def saved(folder):
    return [p for p in (folder / "run" / "checkpoints").glob("step-*") if not p.suffix]


def ranks_of(process):
    """The processes that train, below a launcher."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [c for c in children if "RANK" in environment(c)]


def environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def trains(folder, process):
    """The ranks of a run that is under way and has a checkpoint."""
    until(lambda: rows(folder), "row in the log")
    ranks = ranks_of(process)
    ranks[-1].send_signal(signal.SIGUSR1)  # any rank may be asked to save
    until(lambda: saved(folder), "checkpoint")
    return ranks


def ended(process):
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def state(folder):
    found = checkpoint.read_newest(folder / "run" / "checkpoints")
    return found.progress.step, {name: digest(value) for name, value in found.tensors.items()}


def as_torchrun(world, folder):
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    os.chdir(folder)
    main(TRAIN)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The last state of an unbroken run on so many ranks."""
    known = {}

    def find(ranks):
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f"whole{ranks}")
            together(ranks, as_torchrun, folder)
            known[ranks] = state(folder)
        return known[ranks]

    return find


@pytest.mark.slow
def test_a_killed_process_loses_nothing(tmp_path, unbroken):
    process = command(tmp_path, TRAIN)
    until(lambda: rows(tmp_path), "row in the log")
    os.kill(process.pid, signal.SIGUSR1)
    until(lambda: saved(tmp_path), "checkpoint")
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert ended(command(tmp_path, RESUME)) == 0
    assert state(tmp_path) == unbroken(1)


TORCHRUN = ["torchrun", "--nproc-per-node", "2", "--standalone", "--max-restarts", "2", "-m", "--"]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        pytest.param(2, [*TRAIN, "--devices", "2"], marks=pytest.mark.slow),
        pytest.param(4, [*TRAIN, "--devices", "4"], marks=pytest.mark.nightly),
        pytest.param(2, [*TORCHRUN, "resnets", *TRAIN], marks=pytest.mark.nightly),
    ],
)
def test_a_killed_rank_starts_again_with_the_others(ranks, words, tmp_path, unbroken):
    process = command(tmp_path, words)
    victims = trains(tmp_path, process)
    assert len(victims) == ranks
    random.choice(victims).kill()
    assert ended(process) == 0
    assert state(tmp_path) == unbroken(ranks)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves(tmp_path, unbroken):
    process = command(tmp_path, [*TRAIN, "--devices", "2"])
    until(lambda: rows(tmp_path), "row in the log")
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert 0 < state(tmp_path)[0] < 200
    assert ended(command(tmp_path, [*RESUME, "--devices", "2"])) == 0
    assert state(tmp_path) == unbroken(2)


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_saves(tmp_path):
    process = command(tmp_path, [*TRAIN, "--devices", "2"])
    until(lambda: rows(tmp_path), "row in the log")
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == 128 + signal.SIGINT
    assert 0 < state(tmp_path)[0] < 200


@pytest.mark.slow
def test_the_exit_code_of_the_rank_that_failed_is_the_runs(tmp_path):
    process = command(tmp_path, [*TRAIN, "--devices", "2"])
    until(lambda: rows(tmp_path), "row in the log")
    log = tmp_path / "run" / "metrics.jsonl"
    log.rename(log.with_suffix(".old"))
    log.mkdir()  # so that no row can be written
    assert ended(process) == DiskError.exit_code
    assert "could not be written" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_launchers_death_saves(tmp_path, unbroken):
    process = command(tmp_path, [*TRAIN, "--devices", "2"])
    until(lambda: rows(tmp_path), "row in the log")
    ranks = ranks_of(process)
    process.kill()
    process.join()
    psutil.wait_procs(ranks, 30)
    assert not any(rank.is_running() for rank in ranks)
    assert 0 < state(tmp_path)[0] < 200
    assert "stopped; everything is saved" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_stopped_rank_is_woken_to_save_with_the_others(tmp_path):
    process = command(tmp_path, [*TRAIN, "--devices", "2"])
    until(lambda: rows(tmp_path), "row in the log")
    ranks_of(process)[-1].suspend()
    time.sleep(1)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    assert 0 < state(tmp_path)[0] < 200


def waits(folder, ranks):
    with SignalFlags() as stop:
        watch_parent(ranks)
        (folder / "ready").touch()
        while not stop.signal:
            time.sleep(0.01)
    (folder / "signal").write_text(str(stop.signal))


def launches(folder):
    # Its own child, not the fork server's.
    multiprocessing.get_context("fork").Process(target=waits, args=(folder, [])).start()
    time.sleep(100)


def test_a_rank_whose_launcher_died_stops_as_by_sigterm(tmp_path):
    launcher = FORKS.Process(target=launches, args=(tmp_path,))
    launcher.start()
    until((tmp_path / "ready").exists, "rank")
    launcher.kill()
    until(lambda: (tmp_path / "signal").exists() and (tmp_path / "signal").read_text(), "end")
    assert (tmp_path / "signal").read_text() == "15"


def test_a_signal_wakes_the_other_ranks(tmp_path):
    sleeper = FORKS.Process(target=time.sleep, args=(100,))
    sleeper.start()
    os.kill(sleeper.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, "stop")
    rank = FORKS.Process(target=waits, args=(tmp_path, [sleeper.pid]))
    rank.start()
    until((tmp_path / "ready").exists, "rank")
    os.kill(rank.pid, signal.SIGTERM)
    until(lambda: psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED, "waking")
    rank.join()
    sleeper.kill()


def endless(world, folder):
    try:
        with world.report_dead_ranks():
            while True:
                world.all_reduce_max([1])
                (folder / f"{world.rank}.at").touch()
                time.sleep(0.01)
    except ResnetsError as error:
        (folder / f"{world.rank}.txt").write_text(str(error))


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        pytest.param(2, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.slow),
        (0, signal.SIGKILL),
    ],
)
def test_a_rank_that_hangs_or_dies_is_named_by_the_others(victim, number, tmp_path):
    patience = datetime.timedelta(seconds=3)
    processes = start(4, endless, tmp_path, patience=patience)
    until(lambda: len(list(tmp_path.glob("*.at"))) == 4, "message of each")
    os.kill(processes[victim].pid, number)
    others = [process for process in processes if process is not processes[victim]]
    for process in others:
        process.join(30)
    processes[victim].kill()
    assert [process.exitcode for process in others] == [0, 0, 0]
    told = [path.read_text() for path in tmp_path.glob("*.txt")]
    named = [
        re.match("rank ([0-9, ]+) of 4 does not respond: ", text)[1].split(", ") for text in told
    ]
    assert len(named) == 3
    assert all(str(victim) in names for names in named)
    # A death is noticed first by those that wait for that very rank, a hang by all at a time.
    assert number == signal.SIGKILL or named == [[str(victim)]] * 3


def test_restarts_that_would_hang_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UsageError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join("cpu")
