"""Signals, two processes in one folder, and unusual surroundings."""

import pytest

from resnets.training import checkpoint
from resnets.training.run import Run
from tests.training.faults.driver import Fault
from tests.training.faults.kills import differences

SELDOM = 1e9  # seconds between checkpoints: only those that are asked for


def steps(run):
    return [int(path.name[5:13]) for path in checkpoint.list_finished(run / "checkpoints")]


@pytest.mark.parametrize("at", ["step", pytest.param("evaluated batch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.slow)]
)
def test_one_signal_saves_and_ends(driver, whole, tmp_path, at, name, code):
    run = tmp_path / "run"
    ended, told = driver.train(run, Fault(at, 10, name), save_seconds=SELDOM)
    assert ended == code
    assert told.startswith("stopped; everything is saved. Resume with `resnets resume")
    assert len(steps(run)) == 1
    rows = Run(run).rows("metrics.jsonl")
    if at == "evaluated batch":  # broken off: nothing is logged of it
        assert rows[-1]["step"] < steps(run)[0]
    assert driver.train(run) == (0, "")
    assert differences(run, whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_second_signal_ends_at_once(driver, whole, tmp_path, name):
    run = tmp_path / "run"
    faults = [Fault("step", 10, name)] * 2  # both within one step
    assert driver.train(run, *faults, save_seconds=SELDOM)[0] == 130
    assert steps(run) == []
    assert driver.train(run) == (0, "")
    assert differences(run, whole) == []


@pytest.mark.parametrize("at", ["step", pytest.param("evaluated batch", marks=pytest.mark.slow)])
def test_a_checkpoint_now_and_the_run_goes_on(driver, tmp_path, at):
    run = tmp_path / "run"
    faults = Fault(at, 6, "SIGUSR1"), Fault("step", 20)
    assert driver.train(run, *faults, save_seconds=SELDOM)[0] == -9
    assert steps(run) == ([6] if at == "step" else [10])


@pytest.mark.slow
@pytest.mark.parametrize("at", ["step", "evaluated batch"])
@pytest.mark.parametrize("name", ["SIGHUP", "SIGSTOP"])
def test_others_change_nothing(driver, whole, tmp_path, at, name):
    assert driver.train(tmp_path / "run", Fault(at, 6, name)) == (0, "")
    assert differences(tmp_path / "run", whole) == []


WITHOUT_END = {
    "early stop": {"early_stop_patience": 1, "select": "best", "lr": 0.6, "steps": 48},
    "plateau": {"schedule": "plateau", "patience": 1, "lr": 0.6, "select": "best"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_END)
@pytest.mark.parametrize("at", ["step", "evaluated batch"])
def test_what_evaluations_decide_is_the_same_with_interruptions(driver, tmp_path, name, at):
    recipe = WITHOUT_END[name]
    assert driver.train(tmp_path / "whole", recipe=recipe) == (0, "")
    rows = Run(tmp_path / "whole").rows("metrics.jsonl")
    assert rows[-1]["step"] < 48
    assert len({row["lr"] for row in rows}) > 1
    run = tmp_path / "run"
    # Every evaluation, of four batches, is broken off once; the last signal comes in the test.
    # How soon it stops depends on the processor: every third step before its last one.
    every_third = [3] * ((rows[-1]["step"] - 1) // 3)
    for passing in [1, *[5] * len(rows)] if at == "evaluated batch" else every_third:
        assert driver.train(run, Fault(at, passing, "SIGINT"), recipe=recipe)[0] == 130
    assert driver.train(run, recipe=recipe) == (0, "")
    assert differences(run, tmp_path / "whole") == []


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused(driver, whole, tmp_path):
    run = tmp_path / "run"
    assert driver.train(run, Fault("step", 8))[0] == -9
    with Run(run).locked():
        code, told = driver.train(run)
    assert code == 2
    assert "another process is training" in told
    assert driver.train(run) == (0, "")
    assert differences(run, whole) == []


@pytest.mark.slow
@pytest.mark.parametrize("under", ["umask", "no home", "read-only folder", "clock"])
def test_unusual_surroundings(driver, whole, tmp_path, under):
    run = tmp_path / "a run 🐌 'quoted' %s"
    assert driver.train(run, Fault("step", 8, "SIGTERM"), under=under)[0] == 143
    assert driver.train(run, under=under) == (0, "")
    assert differences(run, whole) == []
    if under == "umask":
        assert all(path.stat().st_mode & 0o077 == 0 for path in run.rglob("*"))
