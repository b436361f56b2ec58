"""From a budget to the ledger and the page."""

import gzip
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from resnets.cli.main import main
from resnets.config.recipe import Recipe
from resnets.errors import DataError, Interrupted, UsageError, format_count
from resnets.papers import ledger, measures, planning, reproduce, results, status
from resnets.papers.budgets import Job, jobs, select_experiments
from resnets.papers.experiment import Arm, Experiment
from resnets.papers.experiments import get_experiment

ROOT = Path(__file__).parents[2]
SMALL = Recipe(model="resnet8", data="digits", lr=0.1)
ONE = Experiment(
    id="t.one",
    title="One",
    arms=(Arm(name="resnet8", recipe=SMALL, paper={"test_error": 8.75}),),
    short_run_claim="order",
)


def row(**changes):
    known = {"experiment": "r1.fig1", "arm": "plain20", "budget": "cpu", "seed": 0}
    shape = {"layers": 20, "data": "cifar10", "size": 16, "images": 12800, "precision": "bfloat16"}
    errors = {"iterations": 500, "train_error": 40.0, "test_error": 50.0, "protocol": False}
    return known | shape | errors | changes


def test_a_run_is_made_once_and_then_read_from_the_ledger(tmp_path):
    job = Job(ONE, ONE.arms[0], "smoke", 0)
    first = reproduce.reproduce_job(job, tmp_path, device="cpu")
    assert not first["protocol"]
    assert first["iterations"] == 2
    assert first["images"] == 256
    assert first["layers"] == 8
    assert (tmp_path / first["curve"]).exists()
    folder = tmp_path / "runs" / "smoke" / job.name
    assert (folder / "model.safetensors").exists()
    assert not (folder / "checkpoints").exists()
    seen = []
    assert reproduce.reproduce_job(job, tmp_path, device="cpu", on_progress=seen.append) == first
    assert not seen
    assert len(ledger.read(tmp_path)) == 1
    other = reproduce.reproduce_job(replace(job, seed=1), tmp_path, device="cpu")
    assert other["seed"] == 1
    assert len(ledger.read(tmp_path)) == 2


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_as_the_unbroken_one(tmp_path):
    import signal

    one = replace(ONE, steps={"cpu": 12}, cpu_units=2)  # an evaluation in 2 steps
    job = Job(one, ONE.arms[0], "cpu", 0)

    def stop(progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        reproduce.reproduce_job(job, tmp_path / "broken", device="cpu", on_progress=stop)
    assert caught.value.exit_code == 143
    assert "the same command" in str(caught.value)
    assert ledger.read(tmp_path / "broken") == []
    again = reproduce.reproduce_job(job, tmp_path / "broken", device="cpu")
    whole = reproduce.reproduce_job(job, tmp_path / "whole", device="cpu")
    assert all(again[key] == whole[key] for key in ("train_error", "test_error"))


def test_the_status_of_a_run_and_the_log_of_its_interruptions(tmp_path, monkeypatch, capsys):
    import signal

    job = Job(replace(ONE, steps={"cpu": 12}, cpu_units=2), ONE.arms[0], "cpu", 0)
    folder = tmp_path / "runs" / "cpu" / job.name
    seen = []

    def stop(progress):
        if progress.step == 4:
            seen.extend(status.status(tmp_path))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        reproduce.reproduce_job(job, tmp_path, device="cpu", on_progress=stop)
    (row,) = status.status(tmp_path)
    stopped = int(max((folder / "checkpoints").iterdir()).name.removeprefix("step-"))
    assert stopped in (4, 5)
    assert (row["run"], row["seed"]) == (f"runs/cpu/{job.name}", 0)
    assert (row["step"], row["steps"], row["interruptions"]) == (stopped, 12, 0)
    assert 0 < row["train_error"] < 1
    assert 0 < row["left"] < 60
    assert row["written"] < 60
    assert seen[0]["step"] <= 4
    monkeypatch.chdir(tmp_path)
    for options in (["--status"], []):
        with pytest.raises(SystemExit) as caught:
            main(["reproduce", *options])
        assert caught.value.code == 0
    out = capsys.readouterr()
    assert f"{stopped}     12" in out.out
    assert "1 under way" in out.err
    # Taken over from a version that left no log of starts, under another name of the folder.
    (folder / "starts.jsonl").unlink()
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    (folder / "tensorboard").mkdir()
    for k in (1, 2):
        (folder / "tensorboard" / f"events.out.tfevents.179600000{k}.vm.{k}.0").touch()
    folder.rename(folder.with_name(folder.name[:-8] + "0" * 8))
    line = reproduce.reproduce_job(job, tmp_path, device="cpu")
    assert line["interruptions"] == 2
    dates, steps = zip(*((s["date"], s.get("step")) for s in line["starts"]), strict=True)
    assert dates[:2] == ("2026-11-30T00:53:21+00:00", "2026-11-30T00:53:22+00:00")
    assert steps == (None, None, stopped)
    assert not folder.exists()
    assert status.status(tmp_path) == []


def test_the_status_of_folders_that_are_damaged_or_no_experiments(tmp_path):
    damaged, study = (tmp_path / "runs" / name for name in ("full/resnet20-1", "study/trial-0"))
    for folder in (damaged, study):
        (folder / "checkpoints" / "step-00000007").mkdir(parents=True)
        (folder / "recipe.json").write_text("{")
        (folder / "checkpoints" / "step-00000007" / "state.json").write_text("[")
    (row,) = status.status(tmp_path)
    assert (row["run"], row["step"], row["left"]) == ("runs/full/resnet20-1", 0, None)


def test_an_arm_and_a_seed_are_chosen_by_name(tmp_path):
    one = get_experiment("r1.tab6")
    work = list(jobs(one, "full", seeds=2, seed=1, arms=["resnet20"]))
    assert [(job.arm.name, job.seed, job.iterations) for job in work] == [
        ("resnet20", 1, 64_000),
        ("resnet20", 2, 64_000),
    ]
    counted = jobs(get_experiment("r1.tab1"), "full", seeds=2, seed=3, arms=["plain18"])
    assert [job.seed for job in counted] == [0]
    rows = [row(experiment="r1.tab6", arm="resnet20", budget="full", iterations=64_000, seed=1)]
    assert [len(job.ledger_rows(rows)) for job in work] == [1, 0]  # a line in bfloat16
    for precision, count in (("bfloat16", 1), ("float32", 0)):
        assert len(replace(work[0], precision=precision).ledger_rows(rows)) == count
    assert [
        one.id for one in select_experiments(["r1.fig1", "r1.tab6"], "full", arms=["plain20"])
    ] == ["r1.fig1"]
    with pytest.raises(UsageError, match="resnet20"):
        select_experiments(["r1.tab6"], "full", arms=["resnet21"])


def test_a_diverged_run_is_a_line_without_an_error(tmp_path):
    wild = replace(SMALL, lr=1e30, lr_batch=64)
    job = Job(replace(ONE, steps={"smoke": 40}), Arm(name="wild", recipe=wild), "smoke", 0)
    found = reproduce.reproduce_job(job, tmp_path, device="cpu")
    assert found["test_error"] is None
    assert "not finite" in found["notes"][0]
    assert ledger.format_mean_std([found["test_error"]]) == "fail (1 of 1 diverged)"


def test_a_line_that_a_crash_cut_is_replaced_and_a_wrong_one_named(tmp_path):
    ledger.append(tmp_path, row())
    path = tmp_path / "results" / "ledger.jsonl"
    whole = path.read_text()
    for torn in ('{"experiment": "r1', "{", '{"a": "\\', "1", "[" * 5000):
        path.write_text(whole + torn)
        assert [line["seed"] for line in ledger.read(tmp_path)] == [0]
        path.write_text(whole + torn + "\n")
        with pytest.raises(DataError, match="line 2"):
            ledger.read(tmp_path)
    path.write_bytes(whole.encode() + b'{"a": "\xc3')  # within a character
    ledger.append(tmp_path, row(seed=1))
    path.write_text(path.read_text().rstrip("\n"))  # its end alone is lost: the line counts
    ledger.append(tmp_path, row(seed=2))
    assert [line["seed"] for line in ledger.read(tmp_path)] == [0, 1, 2]
    assert path.read_text().count("\n") == 3


def test_a_torn_line_does_not_stop_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results" / "ledger.jsonl"
    path.parent.mkdir()
    path.write_text('{"experiment": "r1')
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            main(["reproduce", "r1.tab1", "--budget", "cpu", "--arm", "plain18", "-q"])
        assert caught.value.code == 0
    (line,) = ledger.read(tmp_path)
    assert (line["arm"], len(line["versions"]["code"])) == ("plain18", 16)
    assert line["command"] == "resnets reproduce r1.tab1 --budget cpu --arm plain18 --seed 0"
    assert "plain18  cpu  seed 0: macs 1.79 G, parameters 11.5 M" in capsys.readouterr().out


def test_of_two_processes_one_does_a_job(tmp_path):
    """In the time of the first the second leaves it out; then it finds it in the ledger."""
    job = Job(ONE, ONE.arms[0], "smoke", 0)
    meanwhile = []

    def other(_):
        meanwhile.append(reproduce.reproduce_job(job, tmp_path, device="cpu"))

    first = reproduce.reproduce_job(job, tmp_path, device="cpu", on_progress=other)
    assert set(meanwhile) == {None}
    assert reproduce.reproduce_job(job, tmp_path, device="cpu") == first
    assert len(ledger.read(tmp_path)) == 1


def test_lines_of_many_processes_do_not_mix(tmp_path):
    code = (
        "import sys; from pathlib import Path; from resnets.papers import ledger\n"
        "for k in range(20): ledger.append(Path(sys.argv[1]), {'a': sys.argv[2] * 9000})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    there = [subprocess.Popen([*command, name]) for name in "xyz"]
    assert [process.wait() for process in there] == [0, 0, 0]
    assert sorted(line["a"][0] for line in ledger.read(tmp_path)) == sorted("xyz" * 20)


def test_a_small_run_never_stands_in_the_column_of_the_protocol(tmp_path):
    full = {"budget": "full", "iterations": 64_000}
    for line in (
        row(arm="resnet20", test_error=8.0),
        row(arm="resnet20", test_error=1.0, iterations=70, seed=2),  # of another length
        row(arm="resnet32", test_error=7.0) | full,
        row(arm="resnet44", protocol="paper", test_error=7.1, precision="float32") | full,
        row(arm="resnet44", protocol=True, test_error=7.5, seed=1, precision="float32") | full,
        row(arm="resnet56", protocol="paper in bfloat16", test_error=6.9) | full,
        row(arm="resnet56", protocol=True, test_error=7.1, seed=1) | full,  # of an older version
        row(arm="resnet56", protocol="paper", test_error=7.3, seed=2, precision="float32") | full,
    ):
        ledger.append(tmp_path, line | {"experiment": "r1.tab6"})
    page = results.write_page(tmp_path).read_text()
    deviation = f"{math.sqrt(0.08):.2f}"
    assert "| resnet20 | 8.75 |  |" in page
    assert "| resnet32 | 7.51 |  |" in page
    assert f"| resnet44 | 7.17 | 7.30 ± {deviation} (2) |" in page
    assert f"| resnet56 | 6.97 | 7.30, 7.00 ± {math.sqrt(0.02):.2f} (2) (in bfloat16) |" in page
    assert "| resnet20 | 20 layers, cifar10 at 16 px, 500 iterations" in page
    assert "| 40.00 | 8.00 |" in page


def test_a_verdict_counts_seeds_and_diverged_runs():
    one = get_experiment("r1.fig1")
    rows = [row(), row(seed=1), row(seed=2)]
    rows += [row(arm="plain56", train_error=e, seed=n) for n, e in enumerate((60.0, 30.0, None))]
    (said,) = results.check_order(one, rows)
    assert said.startswith("train error of plain56 above plain20: in 2 of 3 seeds, by 5.00")


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.8e9, "1.8 G"), (269_722, "0.27 M"), (19.4e6, "19.4 M"), (1.36e15, "1.36 P"), (93, "93"),
     (3_857_973_248, "3.86 G"), (8.75, "8.75"), (-54, "-54"), (0.0, "0"), (54_321, "54,321")],
)  # fmt: skip
def test_large_numbers_are_as_people_read_them(number, text):
    assert format_count(number) == text


def test_the_time_is_that_of_this_machines_runs():
    rows = [
        row(machine="a", seconds=10.0, multiply_adds=1e6),
        row(machine="a", seconds=30.0, multiply_adds=1e6, layers=56),
        row(machine="a", seconds=70.0, multiply_adds=1e6, layers=56),
        row(machine="b", seconds=9e9, multiply_adds=1e6),
    ]
    image = 12800 * 1e6
    assert ledger.seconds_per_mac(rows, "a", 20, 16) == pytest.approx(10 / image)
    assert ledger.seconds_per_mac(rows, "a", 110, 32) == pytest.approx(
        50 / image
    )  # the nearest are of 56
    assert ledger.seconds_per_mac(rows[3:], "a", 20, 16) == pytest.approx(
        9e9 / image
    )  # none of this machine
    assert ledger.seconds_per_mac([], "a", 20, 16) == ledger.SECONDS_PER_MAC


def test_the_estimate_is_near_the_seconds_of_the_ledger():
    """Each run of the ledger, by all others: half of them within a fifth or so, most within 2.5."""
    rows = [line for line in ledger.read(ROOT) if line.get("images")]
    ratios = []
    for line in rows:
        rest = [other for other in rows if other["curve"] != line["curve"]]
        pace = ledger.seconds_per_mac(rest, line["machine"], line["layers"], line["size"])
        ratios.append(line["seconds"] / (line["images"] * line["multiply_adds"]) / pace)
    assert 0.7 < statistics.median(ratios) < 1.4
    assert sum(0.4 < ratio < 2.5 for ratio in ratios) > 0.8 * len(ratios)


@pytest.mark.slow
def test_a_plan_on_a_new_machine_measures_its_dearest_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "MAX_TIMED", 1)
    short = jobs(get_experiment("r1.fig1"), "cpu")
    begun = time.monotonic()
    cheap, dear = planning.plan_jobs(list(short), tmp_path, "cpu")
    spent = time.monotonic() - begun
    assert dear["seconds"] / cheap["seconds"] == pytest.approx(125 / 41, rel=0.1)
    # 500 steps take longer than the few that were measured, and not as long as a day.
    assert spent / 10 < dear["seconds"] < 3600 * 12
    ledger.append(tmp_path, row(machine=status.machine_name("cpu"), seconds=1e4, multiply_adds=1e7))
    (cheap, _) = planning.plan_jobs(list(jobs(get_experiment("r1.fig1"), "cpu")), tmp_path, "cpu")
    assert cheap["in_ledger"]
    assert cheap["seconds"] == pytest.approx(41e6 / 4 * 64_000 * 1e4 / (12_800 * 1e7), rel=0.1)


def test_runs_at_full_length_stand_one_by_one_with_their_curves(tmp_path):
    kept = reproduce.curve_file(tmp_path, "full", "one")
    kept.parent.mkdir(parents=True)
    points = [{"step": 391 * k, "train_error": 0.5 / k, "test_error": 0.6 / k} for k in (1, 2, 3)]
    kept.write_bytes(gzip.compress("".join(json.dumps(p) + "\n" for p in points).encode()))
    starts = [{"date": "2026-11-30", "code": "a" * 16}, {"date": "2026-12-01", "step": 8200}]
    line = row(arm="resnet20", budget="full", iterations=64_000, protocol="paper", test_error=8.51)
    line |= {"experiment": "r1.tab6", "precision": "float32", "seconds": 36_000.0, "machine": "m"}
    line |= {"interruptions": 1, "starts": starts, "versions": {"code": "b" * 16}}
    ledger.append(tmp_path, line | {"digest": "d" * 64, "curve": str(kept.relative_to(tmp_path))})
    page = results.write_page(tmp_path).read_text()
    assert "| resnet20 | 8.75 | 8.51 |" in page
    shown = (
        "| resnet20 | 0 | float32 | 40.00 | 8.51 | 10.0 | m | 1 (at 8,200) | aaaaaaaa, bbbbbbbb |"
    )
    assert f"{shown} dddddddd |" in page
    assert (tmp_path / "docs" / "pictures" / "r1.tab6-full.png").stat().st_size > 5000


def test_the_command_lists_plans_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "MAX_TIMED", 0)
    for command, code in (
        (["reproduce", "--json"], 0),
        (["reproduce", "r1.fig1", "--budget", "cpu", "--dry-run", "--json"], 0),
        (["reproduce", "r1.tab7", "--budget", "cpu"], 2),
        (["reproduce", "r1.fig11", "--budget", "cpu"], 2),
        (["reproduce", "r1.tab2", "--budget", "full"], 2),
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == code
        out = capsys.readouterr()
        if code == 0:
            assert len(json.loads(out.out)) >= 2
        else:
            assert any(text in out.err for text in ("detect", "r1.fig1", "--data FOLDER"))
    assert not list(tmp_path.iterdir())


def test_without_ids_what_needs_data_is_left_out():
    every = {one.id for one in select_experiments([], "smoke")}
    small = {one.id for one in select_experiments([], "cpu")}
    full = {one.id for one in select_experiments([], "full")}
    assert every - small == {"r1.tab7", "r1.tab8", "r1.tab9", "r1.tab12", "r1.tab13"}
    assert small - full >= {"r1.tab2", "r2.tab5", "later.rsb"}
    assert len(select_experiments(["r1.tab8", "r1.tab9"], "full", "coco")) == 2
    with pytest.raises(UsageError, match="coco, voc"):
        select_experiments(["r1.tab7", "r1.tab8"], "full", "coco")


def test_runs_of_one_data_set_are_found_wherever_it_lies():
    one = get_experiment("r1.tab8")
    there = [Job(one, one.arms[0], "full", 0, place, "a/b") for place in ("x", "/y/x")]
    assert len({job.name for job in there}) == 1
    refined = get_experiment("r1.tab9").arms[1]
    assert replace(there[0], arm=refined).name == there[0].name


def test_what_waits_for_another_part_is_refused_by_name():
    with pytest.raises(UsageError, match="resnets detect"):
        select_experiments(["r1.tab10"])


@pytest.mark.parametrize(
    ("model", "evaluate", "names"),
    [
        (
            "fasterrcnn_tiny_c4",
            partial(measures.detector_metrics, True, (1.0, 2.0)),
            {"map50", "voc07"},
        ),
        (
            "localizer_tiny",
            partial(measures.localizer_metrics, (1.0, 2.0)),
            {"given_error", "five_error"},
        ),
    ],
)
@pytest.mark.slow
def test_detection_and_localisation_are_lines_of_the_ledger(tmp_path, model, evaluate, names):
    recipe = Recipe(model=model, data="voc", lr=0.01, norm="frozen")
    one = replace(ONE, metric=min(names))
    job = Job(one, Arm(name="first", recipe=recipe, evaluate=evaluate), "smoke", 0)
    row = reproduce.reproduce_job(job, tmp_path, device="cpu", workers=0)
    assert all(0 <= row[name] <= 100 for name in names)
    assert (row["images"], row["layers"], row["protocol"]) == (4, 18, False)
    assert (tmp_path / "digits-detection" / "boxes.csv").exists()
    # Another arm that is trained alike uses the same run.
    other = replace(job, arm=replace(job.arm, name="second"))
    again = reproduce.reproduce_job(
        other, tmp_path, device="cpu", on_progress=lambda _: pytest.fail("trained")
    )
    assert {name: again[name] for name in names} == {name: row[name] for name in names}


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_experiment_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "--budget", "smoke", "-q"])
    assert caught.value.code == 0
    root = tmp_path / "runs" / "smoke"
    known = {(line["experiment"], line["arm"]) for line in ledger.read(root)}
    for one in results.EXPERIMENTS.values():
        assert one.not_runnable or known >= {(one.id, arm.name) for arm in one.arms}
    page = (root / "docs" / "results.md").read_text()
    assert all(f" ({name})\n" in page for name in results.EXPERIMENTS)
