"""Rows, notes and the list of unreadable files, as single calls write them."""

from dataclasses import replace
from pathlib import Path

import pytest

from resnets.errors import DataError
from resnets.training.distributed import World
from resnets.training.log import Log
from resnets.training.run import Run

from .test_loop import small_plan

ROW = {"step": 4, "loss": 0.5}


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "run")
    made.create()
    return made


def test_rank_0_writes_the_row_its_speed_and_each_note_once(run):
    notes = ["one", "two"]
    log = Log(run, small_plan(), 0, notes)
    log.write_row(ROW, 61.26)
    assert log.write_notes(4) == ("one", "two")
    notes.append("three")
    assert log.write_notes(5) == ("three",)
    assert log.write_notes(6) == ()
    assert run.rows("metrics.jsonl") == [ROW]
    assert run.rows("timing.jsonl") == [{"step": 4, "images_per_second": 61.3}]
    rows = [(row["step"], row["note"]) for row in run.rows("notes.jsonl")]
    assert rows == [(4, "one"), (4, "two"), (5, "three")]


def test_another_rank_returns_notes_and_writes_nothing(run):
    log = Log(run, replace(small_plan(), world=World(1, 2)), 0, ["one"])
    log.write_row(ROW, 61.26)
    assert log.write_notes(4) == ("one",)
    assert [path.name for path in run.path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(("rank", "name"), [(0, "bad_files.csv"), (1, "bad_files-1.csv")])
def test_unreadable_files_are_listed_by_each_rank_until_there_are_too_many(run, rank, name):
    plan = replace(small_plan(max_unreadable=0.01), world=World(rank, 2))
    allowed = int(0.01 * plan.source.files)
    files = [(Path(f"{k:02d}.png"), "cut short") for k in range(allowed + 1)]
    log = Log(run, plan, 0, [])
    log.add_unreadable([])
    assert not (run.path / name).exists()
    log.add_unreadable(files[:allowed])
    log.add_unreadable(files[:2])  # the same files, in another epoch
    lines = (run.path / name).read_text().splitlines()
    assert lines == ["file,reason", *(f"{path},{reason}" for path, reason in files[:allowed])]
    with pytest.raises(
        DataError, match=rf"{allowed + 1} of .*first 00\.png: cut short(.|\n)*{name}"
    ):
        log.add_unreadable(files[allowed:])
