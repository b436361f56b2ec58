"""Names that attack the terminal, the page, the card or a spreadsheet are written out."""

import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.analysis import drawing
from resnets.cli import terminal
from resnets.config import families
from resnets.config.recipe import Preprocess
from resnets.data.splits import Split
from resnets.escape import csv_cell, escape_lines, escape_markdown, visible
from resnets.evaluation.detections import SplitDetections
from resnets.models import build
from resnets.models.io.model_file import ModelMetadata, save
from tests._helpers import needs_posix_files

EVIL = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H\x9b31m",
    "line": "a\nresnets: everything is fine\rb",
    "marks": "a\u202egnp.exe\u2066b\u200e\u200f\u2029c\u2028d",
    "nothing": "a\u200bb\u200d\ufeff\u00ad\u2060c\U000e0041",
    "markup": "[bold red]cat[/] :smile: [link=x]y",
    "formula": "=HYPERLINK(1)",
    "html": "<img src=x onerror=alert(1)>&",
}
NAMES = [*EVIL.values()]


def harmless(text):
    """Whether all signs show, and no line but ours begins as ours do."""
    bad = {f"U+{ord(c):04X}" for c in text if c != "\n" and not shows(c)}
    assert not bad, (bad, text)
    assert "\nresnets: everything" not in text
    return text


def shows(sign):
    return unicodedata.category(sign) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_every_sign_that_does_not_show_is_written_out():
    every = [chr(k) for k in range(sys.maxunicode + 1)]
    text = visible("".join(every))
    assert all(map(shows, text))
    assert all(visible(c) == c for c in "aé猫🐈½ ~'\"\\\u00a0\u3000\ufe0f")
    hidden = ("\x1b", "\n", "\x7f", "\x9b", "\u202e", "\u3164", "\udcff", "\U000e0041")
    assert [visible(c) for c in hidden] == [
        "\\u001b", "\\n", "\\u007f", "\\u009b", "\\u202e", "\\u3164", "\\udcff", "\\udb40\\udc41",
    ]  # fmt: skip
    assert escape_lines("one\ntwo\r") == "one\n  two\\r"


def test_bytes_of_a_file_name_are_read_as_utf_8_where_they_are_it():
    assert visible("b\udcc3\udcb6r") == "bör"
    assert visible("\udcff ö \ud800") == "\\udcff ö \\ud800"
    assert visible("\udce2\udc80\udcae") == "\\u202e"  # and what they hold is escaped


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", " =1", "\uff1d1", "\t=1", "\r=1"])
def test_a_cell_is_no_formula(text):
    assert csv_cell(text)[0] in "'\\"
    assert (csv_cell(-1.5), csv_cell("a=1"), csv_cell("x-1.png")) == (-1.5, "a=1", "x-1.png")


def test_markdown_is_text():
    wild = "# [a](http://x) <b> `c` | *d* _e_ ~f~ $g$ &amp; @h www.i.org :smile: j\nk"
    text = escape_markdown(wild)
    assert not re.search(r"[\[\]<>`|*_~$@]|://|www\.|:smile:|\n", text)
    assert re.sub(r"&#(\d+);", lambda sign: chr(int(sign[1])), text) == wild.replace("\n", "\\n")
    assert [escape_markdown(t)[0] for t in ("- a", "+ a", "= a")] == ["&"] * 3
    assert [escape_markdown(t) for t in ("1. a", "12) a")] == ["1&#46; a", "12&#41; a"]
    assert [escape_markdown(t) for t in ("5:30, 0.5 x-1", "3.4 minutes")] == [
        "5:30, 0.5 x-1",
        "3.4 minutes",
    ]


def picture(path, level=0):
    pixels = np.random.default_rng(level).integers(40 * level, 40 * level + 60, (8, 8), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file whose classes have the names."""
    arch = replace(families.get_arch("resnet8"), classes=len(NAMES), size=8)
    see = Preprocess(size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    path = tmp_path_factory.mktemp("model") / "evil.safetensors"
    save(path, build(arch), ModelMetadata(arch=arch, classes=tuple(NAMES), preprocess=see))
    return path


@pytest.fixture
def data(tmp_path):
    """Class folders with the names, and an unreadable file in each."""
    if os.name != "posix":
        pytest.skip("Windows has no control characters in names")
    for k, name in enumerate(NAMES):
        for split, count in (("train", 2), ("test", 1)):
            for i in range(count):
                picture(tmp_path / "data" / split / name / f"{i}{EVIL['clear']}.png", k % 5)
    (tmp_path / "data" / "train" / NAMES[0] / f"{EVIL['line']}.png").write_bytes(b"no image")
    return tmp_path / "data"


@pytest.mark.slow
def test_training_on_evil_folders_leaves_harmless_files(cli, data, tmp_path):
    run = tmp_path / "runs" / "=\x1b[2J\u202e[bold]"
    small = ("--model", "resnet8", "--set", "size=8", "--set", "steps=2", "--set", "batch=8")
    small = (*small, "--set", "max_unreadable=0.5", "--workers", "0")
    code, out, err = cli("train", data, "--run", run, *small)
    assert code == 0, err
    harmless(out), harmless(err)
    assert "\\u001b[2J" in out
    assert "[bold]" in out
    page = harmless((run / "report.html").read_text())
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    card = harmless((run / "README.md").read_text())
    assert "<img" not in card
    assert "[bold red]" not in card.replace('"', "").partition("\n---")[2]
    for name in ("bad_files.csv", "split.csv"):
        if (run / name).exists():
            table = harmless((run / name).read_text())
            assert not re.search(r"(?m)(^|,)[=+@-]", table)
    for arguments in (
        ("evaluate", run, data, "--max-unreadable", 0.5),
        ("predict", run, data),
        ("runs", "ls"),
        ("data", "info", data),
        ("data", "check", data),
        ("explain", run, data, "--out", "why", "--max-unreadable", 0.5),
        ("resume", run),
        ("train", data, "--run", run, *small),
    ):
        code, out, err = cli(*arguments)
        harmless(out), harmless(err)
        assert "Traceback" not in err, err
    for arguments in (("predict", run, data), ("data", "check", data), ("runs", "ls")):
        code, out, err = cli(*arguments, "--json")
        harmless(err), json.loads(harmless(out))
    harmless(cli("-v", "train", data, "--run", run, *small)[2])
    for path in Path("why").glob("*.csv"):
        assert not re.search(r"(?m)(^|,)[=+@-][^0-9]", harmless(path.read_text()))


def coco(root):
    boxes = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    images = [
        {"id": k, "file_name": f"{k}\x1b[2J\u202e.png", "width": 8, "height": 8} for k in range(3)
    ]
    objects = [
        {"id": k, "image_id": k, "category_id": 1 + k % 8, "bbox": [1, 1, 5, 5]} for k in range(2)
    ]
    objects.append(
        {"id": "\x1b]0;x\x07\n\u202e", "image_id": 2, "category_id": 2, "bbox": ["\x1b"]}
    )
    picture(root / "images" / images[0]["file_name"])
    text = json.dumps({"categories": boxes, "images": images, "annotations": objects})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(text)


def csv(root):
    rows = [f'x{k}\x1b[2J.png,"{name}"' for k, name in enumerate(NAMES) if "\n" not in name]
    (root / "table.csv").write_text("path,label,\x1b]0;x\x07\n" + "\n".join(rows) + "\n")
    return root / "table.csv"


def voc(root):
    (root / "Annotations").mkdir()
    name = "\x1b]0;x\x07&#10;\u202e&lt;b&gt;".replace("\x1b", "&#155;").replace("\x07", "")
    (root / "Annotations" / "a\u202e.xml").write_text(
        f"<annotation><object><name>{name}</name><bndbox><xmin>x\u202e</xmin></bndbox></object>"
        "</annotation>"
    )


def yolo(root):
    (root / "data.yaml").write_text('train: "x\\x1b[2J\\u202e"\nnames: ["a\\x1b[2J", "b\\n"]\n')


def masks(root):
    for place in ("images", "masks"):
        picture(root / place / "a\x1b[2J\u202e.png")
    (root / "classes.txt").write_text("a\u202e\nb\x1b[2J\n")


@pytest.mark.parametrize("make", [coco, csv, voc, yolo, masks])
@needs_posix_files
def test_annotations_with_evil_names(cli, tmp_path, make):
    (tmp_path / "d").mkdir()
    place = make(tmp_path / "d") or tmp_path / "d"
    for arguments in (
        ("data", "check", place),
        ("data", "info", place),
        ("detect", "train", place, "--dry-run"),
    ):
        for more in ((), ("--json",)):
            code, out, err = cli(*arguments, *more)
            assert code in (0, 3), (code, err)
            harmless(out), harmless(err)
            if more and out:
                json.loads(out)


def test_a_model_file_with_evil_classes(cli, model, data):
    for arguments in (
        ("predict", model, data, "--top", len(NAMES)),
        ("evaluate", model, data, "--split", "test"),
        ("calibrate", model, data),
        ("predict", model, "\x1b[2J\u202e.png"),
        ("evaluate", model, "\x1b]0;x\x07"),
        ("evaluate", "\x1b]0;x\x07\nresnets: everything is fine", "digits"),
        ("train", "digits", "--set", "lr=\x1b[2J\u202e"),
        ("train", "digits", "--set", "\x1b[2J=1"),
        ("train", "digits", "--model", "\x1b[2J\u202e"),
        ("train", "digits", "--recipe", "\x1b[2J\u202e.json"),
        ("\x1b[2J\u202e",),
        ("predict", model, "--\x1b[2J"),
    ):
        code, out, err = cli(*arguments)
        harmless(out), harmless(err)
        assert "Traceback" not in err, err
        if arguments[:1] == ("predict",) and code == 0:
            assert "[bold red]cat[/] :smile:" in out


def test_explanations_hold_no_such_byte(cli, model, data):
    """Of images, which explain.json names with the class."""
    files = sorted((data / "test").rglob("*.png"))
    code, out, err = cli("explain", model, *files[:1], "--out", "why")
    assert code == 0, err
    harmless(out), harmless(err)
    text = harmless(Path("why", "explain.json").read_text())
    assert json.loads(text)["images"]


LAYERS = """
from torch import nn

def build():
    network = nn.Sequential()
    for name in ["<img src=x onerror=alert(1)>&", "=HYPERLINK(1)", "\\x1b[2J"]:
        network.add_module(name, nn.Linear(3, 3))
    return network
"""


@pytest.mark.parametrize("kind", ["signal", "gradients"])
def test_an_analysis_of_layers_with_evil_names(cli, kind):
    Path("evil.py").write_text(LAYERS)
    code, out, err = cli("analyze", kind, "evil:build", "--input", 3, "--out", "text")
    assert code == 0, err
    harmless(out), harmless(err)
    code, out, err = cli("analyze", kind, "evil:build", "--input", 3, "--out", "json", "--json")
    assert code == 0, err
    assert len(json.loads(harmless(out))["rows"]) == 3
    table = harmless(Path("json", f"{kind}.csv").read_text())
    assert "'=HYPERLINK(1)" in table
    assert "<img" not in harmless(Path("json", f"{kind}.svg").read_text())


@pytest.mark.slow
def test_an_analysis_and_an_exploration_of_evil_classes_and_files(cli, model, data):
    """Names of classes and files reach the tables as text, and no drawing as markup."""
    for split in ("train", "test"):
        shutil.rmtree(data / split / "[bold red]cat[")  # its / makes a folder of another name
    how = ("--split", "test", "--max-unreadable", 0.1)
    for command in (("analyze", "responses", model, data), ("explain", model, "--data", data)):
        code, out, err = cli(*command, *how, "--out", command[0])
        assert code == 0, err
        harmless(out), harmless(err)
        tables = [harmless(file.read_text()) for file in Path(command[0]).glob("*.csv")]
        drawings = [harmless(file.read_text()) for file in Path(command[0]).glob("*.svg")]
        assert tables
        assert not any("<img" in drawing for drawing in drawings)
    assert any("'=HYPERLINK(1)" in table for table in tables)


def test_words_on_pictures_are_written_out(monkeypatch, tmp_path):
    picture(tmp_path / "a.png")
    words = []
    monkeypatch.setattr(
        drawing, "draw_boxes", lambda image, boxes, kinds, said, masks: words.extend(said)
    )
    one = torch.zeros(1, dtype=torch.int64)
    found = SplitDetections(one, one, torch.ones(1), torch.ones(1, 4), None, one)
    split = Split((tmp_path / "a.png",), torch.zeros(1))
    drawing.draw_prediction(split, 0, found, [EVIL["title"] + EVIL["marks"]], 0.5)
    (text,) = words
    assert harmless(text).startswith("\\u001b]0;owned")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 200])
def test_a_real_terminal_gets_no_byte_of_it(model, data, columns):
    pty = pytest.importorskip("pty", reason="Windows has no terminal that a program can make")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "resnets", "predict", model, data / "test"]
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    child = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    raw = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        raw += part
    os.close(master)
    assert child.wait() == 0
    text = raw.decode().replace("\r\n", "\n")
    assert "\\u001b]0;owned" in text
    assert "[bold red]cat[/]" in text
    harmless(text)


def test_what_is_printed_is_escaped_in_one_place(capsys, monkeypatch):
    monkeypatch.setattr(terminal.out, "quiet", False)  # a command with --json may have run before
    terminal.out.print("a\x1b[2J\n\u202e[bold]:smile:")
    terminal.err.print("a\nresnets: everything is fine\x07")
    terminal.print_table([{"a\x1b_b": "c\x9b\n", "n": 1}])
    out, err = capsys.readouterr()
    assert harmless(out).startswith("a\\u001b[2J\\n\\u202e[bold]:smile:\n")
    assert harmless(err) == "a\n  resnets: everything is fine\\u0007\n"
