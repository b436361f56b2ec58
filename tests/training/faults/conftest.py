import importlib.util
import sys

import pytest

# Forks, limits of a process and /proc; POSIX alone has signals that stop and kill.
if sys.platform != "linux" or not importlib.util.find_spec("resource"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def driver():
    from tests.training.faults.driver import Driver

    made = Driver()
    yield made
    made.close()


@pytest.fixture(scope="session")
def whole(driver, tmp_path_factory):
    """The folder of the run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert driver.train(run) == (0, "")
    return run
