"""The n-th call that writes fails: nothing whole is lost, and the way on is one line."""

import itertools
import json
import shutil

import pytest

from resnets.models.io.model_file import load
from resnets.training import checkpoint
from resnets.training.run import Run
from tests.training.faults.driver import Fault, fired
from tests.training.faults.kills import differences, loads

SHORT = {"steps": 4, "eval_every": 0.08, "select": "best"}
ERRORS = ("ENOSPC", "EIO", "EROFS", "EMFILE")


@pytest.fixture(scope="module")
def short(driver, tmp_path_factory):
    run = tmp_path_factory.mktemp("short") / "run"
    assert driver.train(run, recipe=SHORT) == (0, "")
    return run


def survives(driver, short, run, fault):
    """The run goes on or stops with the code of a disk error, and all that is there is whole."""
    code, told = driver.train(run, fault, recipe=SHORT)
    assert code in (0, 6), told
    if "event_file_writer.py" not in told:  # a thread of tensorboard's tells its own end
        assert "Traceback" not in told
        assert bool(told) == bool(code)
    assert all(map(loads, checkpoint.list_finished(run / "checkpoints")))
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    for path in run.glob("[bm]*.safetensors"):  # best and model
        load(path)
    for path in run.glob("*.jsonl"):
        rows = Run(run).rows(path.name)
        assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows)
    if not (run / "result.json").exists():
        assert driver.train(run, recipe=SHORT) == (0, "")
    assert differences(run, short) == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("write", 1, "ENOSPC", "metrics.jsonl"),
        *(
            pytest.param(fault, marks=pytest.mark.slow)
            for fault in (
                Fault("write", 1, "ENOSPC", "checkpoints/*"),
                Fault("rename", 1, "EROFS", "checkpoints/*"),
                Fault("fsync", 1, "EIO", "checkpoints"),
                Fault("mkdir", 1, "EIO", "checkpoints/*"),
                Fault("create", 1, "EMFILE", "tensorboard/*"),
                Fault("create", 1, "ENOSPC", ".report.html*"),
            )
        ),
    ],
    ids=str,
)
def test_a_call_fails(driver, short, tmp_path, fault):
    run = tmp_path / "run"
    survives(driver, short, run, fault)
    assert fired(run).exists()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_every_third_call_fails_once(driver, short, tmp_path):
    for n in itertools.count(1, 3):
        run = tmp_path / f"run-{n}"
        survives(driver, short, run, Fault("io", n, ERRORS[n % 4]))
        shutil.rmtree(run, ignore_errors=True)
        if not fired(run).exists():
            break
    assert n > 100


@pytest.mark.slow
def test_a_limit_of_the_file_size_stops_the_run_and_its_end_goes_on(driver, short, tmp_path):
    """A real one: the kernel refuses the checkpoints, which are larger than the model file."""
    run = tmp_path / "run"
    code, told = driver.train(run, recipe=SHORT, under="file size")
    assert code == 6
    assert "File too large" in told
    assert list((run / "checkpoints").iterdir()) == []
    assert driver.train(run, recipe=SHORT) == (0, "")
    assert differences(run, short) == []
