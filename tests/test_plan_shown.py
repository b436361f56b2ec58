"""What a plan says of a budget."""

import pytest

import resnets
from resnets.cli import format, terminal


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (6000.0, "about 0.6 epochs, less than one: some images will never be seen"),
        (60.0, "about 60 epochs"),
    ],
)
def test_a_plan_says_how_far_a_budget_reaches(monkeypatch, capsys, measured, words):
    """Of 60 epochs that take `measured` seconds a budget of 60 seconds is that part."""
    monkeypatch.setattr(terminal.out, "quiet", True)
    chosen = resnets.plan("digits", budget=60)
    format.print_plan(chosen, measured, asked_for=True)
    assert f': {words}"' in capsys.readouterr().out
