"""What comes after the last step: broken off anywhere, it is done once, and nothing twice."""

import multiprocessing
import shutil

import pytest

import resnets
from resnets.errors import UsageError
from resnets.training import runner
from resnets.training.run import Run
from tests.training.faults.driver import Fault
from tests.training.faults.kills import differences

PIECES = ("model.safetensors", "scores.safetensors", "cost.json", "result.json")
PAGES = ("README.md", "report.html")


def copied(whole, run, *without):
    """The finished run without some of its files."""
    shutil.copytree(whole, run)
    for name in without:
        (run / name).unlink()


def ends_as(whole, run):
    assert runner.missing_results(Run(run)) == []
    assert differences(run, whole) == []
    assert len(Run(run).rows("test_access.jsonl")) == 1
    assert list(run.rglob("*.tmp")) == []
    assert (run / "scores.safetensors").stat().st_size == (
        whole / "scores.safetensors"
    ).stat().st_size


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param((*PIECES, *PAGES, "test_access.jsonl"), marks=pytest.mark.slow),
        PAGES,
        pytest.param(PIECES[:3], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_missing_is_written(driver, whole, tmp_path, gone):
    run = tmp_path / "run"
    copied(whole, run, *gone)
    assert set(gone) & set(runner.missing_results(Run(run)))
    assert driver.train(run) == (0, "")
    ends_as(whole, run)
    code, told = driver.train(run)
    assert (code, "is finished" in told) == (2, True)


def test_nothing_is_trained_again_for_a_model_that_is_gone(driver, whole, tmp_path):
    run = tmp_path / "run"
    copied(whole, run, "model.safetensors")
    shutil.rmtree(run / "checkpoints")
    code, told = driver.train(run)
    assert (code, "no checkpoint of its last step" in told) == (4, True)
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PIECES, "test_access.jsonl", *PAGES])
def test_a_kill_before_each_piece(driver, whole, tmp_path, name):
    run = tmp_path / "run"
    copied(whole, run, *PIECES, *PAGES, "test_access.jsonl")
    where = f".{name}*" if name != "test_access.jsonl" else name
    point = Fault("rename" if where[0] == "." else "create", where=where)
    assert driver.train(run, point)[0] == -9
    assert not (run / name).exists()
    assert driver.train(run) == (0, "")
    ends_as(whole, run)


@pytest.mark.parametrize(
    ("at", "name", "code"),
    [
        pytest.param("evaluated batch", "SIGTERM", 143, marks=pytest.mark.slow),
        ("report", "SIGINT", 130),
        pytest.param("report", "SIGHUP", 0, marks=pytest.mark.slow),
        pytest.param("report", "SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("report", "SIGUSR1", 0, marks=pytest.mark.slow),
        pytest.param("evaluated batch", "SIGINT", 130, marks=pytest.mark.slow),
        pytest.param("evaluated batch", "SIGHUP", 0, marks=pytest.mark.slow),
        pytest.param("evaluated batch", "SIGUSR1", 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_after_the_last_step(driver, whole, tmp_path, at, name, code):
    run = tmp_path / "run"
    gone = PAGES if at == "report" else ("result.json",)
    copied(whole, run, *gone)
    ended, told = driver.train(run, Fault(at, 1, name))
    assert ended == code
    if code:
        assert told == (f"stopped; everything is saved. Resume with `resnets resume {run}`\n")
        assert not (run / gone[0]).exists()
        assert driver.train(run) == (0, "")
    ends_as(whole, run)


FORKS = multiprocessing.get_context("fork")


def create(plan, path, start, answers):
    start.wait()
    try:
        answers.put((plan.recipe.seed, str(runner.create_run(plan, path).path)))
    except UsageError as error:
        answers.put((plan.recipe.seed, error))


def together(plans, path):
    """What two processes get that create a run at the same moment, by seed."""
    start, answers = FORKS.Barrier(2), FORKS.SimpleQueue()
    pair = [FORKS.Process(target=create, args=(plan, path, start, answers)) for plan in plans]
    for process in pair:
        process.start()
    got = dict(answers.get() for _ in pair)
    for process in pair:
        process.join()
    return got


@pytest.fixture(scope="module")
def plans():
    few = {"size": 8, "steps": 2}
    return [resnets.plan("digits", model="resnet8", seed=n, overrides=few) for n in (1, 2)]


@pytest.mark.parametrize("pairs", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_of_two_trainings_in_one_folder_one_is_refused(plans, tmp_path, pairs):
    for n in range(pairs):
        run = tmp_path / str(n)
        got = together(plans, run)
        refused = [seed for seed, answer in got.items() if isinstance(answer, UsageError)]
        assert len(refused) == 1, got
        assert "another process" in str(got[refused[0]]) or "already holds" in str(got[refused[0]])
        assert Run(run).read_json("recipe.json")["seed"] == 3 - refused[0]


def test_two_trainings_without_a_name_take_two_folders(plans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = together(plans, None)
    assert set(got.values()) == {"runs/digits-resnet8", "runs/digits-resnet8-2"}
