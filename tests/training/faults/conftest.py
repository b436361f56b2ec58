import pytest

from tests.training.faults.driver import Driver


@pytest.fixture(scope="session")
def driver():
    made = Driver()
    yield made
    made.close()


@pytest.fixture(scope="session")
def whole(driver, tmp_path_factory):
    """The folder of the run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert driver.train(run) == (0, "")
    return run
