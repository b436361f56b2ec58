"""The public functions: what they refuse, what they show, how fast an error is answered."""

import inspect
import json
import os
import pydoc
import rlcompleter
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import resnets
from resnets.cli import terminal
from resnets.cli.main import app, main
from resnets.errors import SYNONYMS, DataError, UsageError

PLACE = {
    "analyze": ("signal", "resnet8"), "calibrate": ("run", "digits"), "create": ("resnet8",),
    "data_check": ("digits",), "data_get": ("cifar10",), "data_info": ("digits",),
    "evaluate": ("run", "digits"), "explain": ("run", "x.png"), "lr_range_test": (None,),
    "fit": (None,), "load": ("run",), "plan": ("digits",), "predict": ("run", "x.png"),
    "report": ("run",), "train": ("digits",), "tune": ("digits",),
}  # fmt: skip


@pytest.mark.parametrize("name", resnets.__all__)
def test_a_public_function_refuses_what_it_does_not_know_and_says_what_it_does(name):
    function = getattr(resnets, name)
    with pytest.raises(UsageError, match="unknown argument 'zzz'"):
        function(*PLACE.get(name, ()), zzz=1)
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert function.__doc__
    assert name in dir(resnets)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: resnets.train("digits", epoch=1), UsageError, "did you mean epochs"),
        (lambda: resnets.train("digits", learning_rate=1), UsageError, "did you mean lr"),
        (lambda: resnets.plan("digits", overrides={"lrr": 1}), UsageError, "did you mean lr"),
        (lambda: resnets.plan("digits", overrides=["imgsz=8"]), UsageError, "did you mean size"),
        (lambda: resnets.plan("digits", lr=1, overrides={"lr": 2}), UsageError, "given twice"),
        (lambda: resnets.plan("digits", lr=-1), UsageError, "lr"),
        (lambda: resnets.plan("digits", lr=True), UsageError, "lr=True"),
        (lambda: resnets.plan("digits", recipe=5), UsageError, "unknown recipe '5'"),
        (lambda: resnets.plan("digits", overrides=[("lr", 1)]), UsageError, "FIELD=VALUE"),
        (lambda: resnets.plan("digits", batch=0), UsageError, "batch"),
        (lambda: resnets.plan("digits", weights="imagenet"), UsageError, "no published weights"),
        (lambda: resnets.plan("digits", device="gpu"), UsageError, "did you mean cuda"),
        (lambda: resnets.plan("digits", task="detekt"), UsageError, "did you mean detect"),
        (lambda: resnets.evaluate("run", "digits", veiw="flip"), UsageError, "did you mean view"),
        (lambda: resnets.evaluate("run"), UsageError, "name a model and the data"),
        (lambda: resnets.evaluate("run", "digits", split="tset"), UsageError, "did you mean test"),
        (lambda: resnets.train("digist"), DataError, "did you mean digits"),
        (lambda: resnets.predict(__file__, "no.png"), DataError, "no such file"),
        (lambda: resnets.predict(__file__, []), UsageError, "no input"),
        (lambda: resnets.create(), UsageError, "missing a required argument"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_nearest(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_plan_that_is_made_takes_no_other_options():
    plan = resnets.plan("digits", model="resnet8", size=8, batch=16, lr=0.05, device="cpu")
    recipe = plan.recipe
    assert (recipe.size, recipe.batch, recipe.lr) == (8, 16, 0.05)
    with pytest.raises(UsageError, match="lr is an argument of `plan`"):
        resnets.train(plan, lr=0.1)


WRONG = [
    ("train digits --modle resnet18", 2), ("train digits --model resnet5O", 2),
    ("train digist", 3), ("train digits --recipe paper-cifar", 2), ("train digits --set lrr=1", 2),
    ("train digits --device gpu", 2), ("train digits --run .", 2), ("train digits --batch 0", 2),
    ("train digits --weights none.pth", 2), ("resume nothing", 2), ("resume", 2),
    ("evaluate nothing digits", 2), ("evaluate . digits", 2), ("predict nothing x.png", 2),
    ("explain nothing x.png --out why", 2), ("calibrate nothing digits", 2), ("report nothing", 2),
    ("analyze signal resnet5O", 2), ("detect train nothing", 3), ("detect evaluate a b", 2),
    ("tune digits --model resnet5O", 2), ("data info nothing", 3), ("data get mnist", 2),
    ("runs compare nothing", 2), ("train digits --set model=resnet5O", 2),
]  # fmt: skip


def test_a_typing_error_is_answered_before_torch_is_there(tmp_path):
    code = f"""
import sys, time
from resnets.cli.main import main
for line, code in {WRONG!r}:
    began = time.process_time()
    try: main(line.split())
    except SystemExit as end: assert end.code == code, (line, end.code)
    assert not {{"torch", "numpy"}} & set(sys.modules), line
    assert time.process_time() - began < 1, line
"""
    (tmp_path / "recipe.json").write_text("{}")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) <= 2 * len(WRONG), done.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "train digits --pretrained",
            "--weights imagenet, or another name",
        ),
        ("train digits --amp", "--set precision=bfloat16"),
        ("train digits --learning-rate 1", "--lr X"),
        ("train digits --batch-size=4", "--batch N"),
        ("train digits --imgsz 8", "--size N"),
        ("train digits --output x", "--run DIR"),
        ("train digits model=resnet18", "write --model resnet18"),
        ("train digits weight_decay=0.1", "--set weight_decay=0.1"),
        ("train digits --weight-decay 1", "--set weight_decay=VALUE"),
        ("train digits --augment.flip", "--set augment.flip=VALUE"),
        ("detect predict m x.png --conf 0.5", "--score X"),
        ("predict m x.png --topk 5", "--top K"),
        ("predict m x.png --conf 0.5", "--help lists the options"),
        ("evaluate m digits --tta", "--view flip"),
        ("evaluate m digits --wd 1", "--help lists the options"),
        ("evaluate m digits --weight-decay 1", "--help lists the options"),
    ],
)
def test_the_options_of_other_programs_are_answered_with_ours(cli, typed, words):
    code, _, err = cli(*typed.split())
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("--batch", "1.5"), "--batch: '1.5' is not a whole number"),
        (("--seeds=2_0",), "--seeds: '2_0' is not a whole number"),
        (("--run", ""), "--run is empty"),
        (("--set", "lr=0.1", "--set", "lr=0.2"), "lr is given twice, by two --set"),
    ],
)
def test_a_value_is_neither_rounded_nor_dropped(cli, typed, words):
    code, _, err = cli("train", "digits", *typed, "--dry-run")
    assert code == 2
    assert words in err


def test_what_a_synonym_stands_for_is_an_option(cli):
    known = " ".join(cli(*command, "--help")[1] for command in COMMANDS)
    for usage in SYNONYMS:
        if usage.startswith("--") and not usage.startswith("--set"):
            assert usage.split()[0].rstrip(",;") in known


GROUPS = ("data", "runs", "weights", "detect", "segment")
COMMANDS = [
    (*path, name)
    for path, group in [((), app), *(((n,), app[n]) for n in GROUPS)]
    for name in group
    if not name.startswith("-") and name not in (*GROUPS, "localize")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_commands_help(cli, command):
    code, out, _ = cli(*command, "--help")
    assert code == 0
    for option in ("--verbose", "--quiet", "--json"):
        assert out.count(option) == 1
    lines = [line.strip("│ ").strip() for line in out.splitlines()]
    short = [a for a, b in pairwise(lines) if len(a) < 25 and b[:1].islower()]
    assert not short, "a line that ends in the middle of a sentence"
    if command[0] in ("detect", "localize", "segment"):
        assert "digits" not in out


def test_every_field_of_a_recipe_is_listed_with_its_meaning(cli):
    rows = json.loads(cli("train", "--help-fields", "--json")[1])
    fields = {row["field"]: row for row in rows}
    assert fields["lr"]["default"] == "0.1"
    assert "augment.mixup" in fields
    assert "cosine" in fields["schedule"]["meaning"]
    recipe = resnets.config.recipe.to_dict(resnets.config.recipe.Recipe(model="resnet8"))
    flat = recipe.keys() | {f"augment.{name}" for name in recipe["augment"]}
    assert fields.keys() == flat - {"model", "data", "augment"}


def test_an_old_run_is_resumed_after_a_question(cli, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text("broken")
    code, _, err = cli("resume")  # the newest of the last day: named, and gone on with
    assert "runs/old" in err
    assert code == 4
    os.utime(run / "recipe.json", (0, time.time() - 90_000))
    code, _, err = cli("resume")
    assert code == 2
    assert "resnets resume runs/old" in err
    assert cli("resume", "--yes")[0] == 4
    with pytest.raises(UsageError, match="older than a day"):
        resnets.resume()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert cli("resume")[0] == 4
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    assert cli("resume")[0] == 2


class Terminal:
    def __init__(self, answer):
        self.answer = answer

    def isatty(self):
        return True

    def readline(self):
        return self.answer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("train --help-fields >&-", 0),
        ("train --help-fields >/dev/full", 6),
        ("train --help-fields | head -1; exit ${PIPESTATUS[0]}", 0),
        ("train digist 2>&-", 3),
        ("train digist 2>/dev/full", 3),
        ("train digist >&- 2>&- <&-", 3),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, line, code):
    command = f"{sys.executable} -m resnets {line}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_that_nobody_reads_does_not_end_a_training(monkeypatch):
    class Gone(terminal.Console):
        def print(self, *_, **__):
            raise BrokenPipeError

    monkeypatch.setattr(terminal, "err", Gone())
    terminal.note("3.0  0.5", always=True)


def test_importing_the_package_costs_nothing():
    code = "import sys, resnets; dir(resnets); assert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(main)


def test_the_budget_of_each_seed_begins_with_its_training(monkeypatch, tmp_path):
    from resnets.training import runner

    began = []

    def train_and_test(run, plan, write_pages):
        yield from ()
        began.append(time.monotonic() - plan.began)
        run.write_json("result.json", {})
        return runner.TrainResult(run.path, None, 0.0, "classify")

    monkeypatch.setattr(runner, "train_and_test", train_and_test)
    monkeypatch.setattr("resnets.api.training.runs_compare", lambda *runs: {"runs": runs})
    plan = resnets.plan("digits", model="resnet8", budget=60)
    late = replace(plan, began=plan.began - 1000)  # a program that was slow to start
    result = resnets.train(late, run=tmp_path / "r", seeds=2)
    assert result.compared == {"runs": (tmp_path / "r-seed0", tmp_path / "r-seed1")}
    assert len(began) == 2
    assert all(0 <= seconds < 10 for seconds in began)


def test_old_names_of_functions_and_arguments_warn_and_work(monkeypatch):
    from resnets.training import lr_range_test, tune

    monkeypatch.setattr(lr_range_test, "lr_range_test", lambda *values: values)
    monkeypatch.setattr(tune, "search", lambda *values: iter([values]))
    plan = resnets.plan("digits", model="resnet8")
    with pytest.warns(FutureWarning, match="find_rate is now lr_range_test"):
        assert resnets.find_rate(plan, steps=3) == (plan, 1e-5, 10.0, 3)
    with pytest.warns(FutureWarning, match="watch= is now on_progress="):
        (values,) = resnets.tune(plan, watch=print)
    assert values[-1] is print


def test_help_and_completion_list_everything():
    completer = rlcompleter.Completer({"resnets": resnets})
    found = [completer.complete("resnets.", k) for k in range(len(dir(resnets)))]
    assert {f"resnets.{name}" for name in resnets.__all__} <= {str(x).split("(")[0] for x in found}
    for name in resnets.__all__:
        function = getattr(resnets, name)
        text = pydoc.render_doc(function, renderer=pydoc.plaintext)
        for parameter in inspect.signature(function).parameters:
            assert parameter in text


def test_data_and_seed_of_a_recipe_are_not_taken_silently():
    with pytest.raises(UsageError, match="--set data: the data is the first argument"):
        resnets.plan("digits", overrides={"data": "cifar10"})
    with pytest.raises(UsageError, match="seed"):
        resnets.plan("digits", seed=-1)
    with pytest.raises(DataError, match="no data ''"):
        resnets.plan("")
