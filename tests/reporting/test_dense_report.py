"""Reports of detectors, localisers and segmenters: short runs on drawn pictures, and by hand."""

import json
import re

import pytest
import torch
from PIL import Image

import resnets
from resnets.api.info import write_report
from resnets.evaluation.detections import SplitDetections, paste_mask
from resnets.reporting import compare, dense, plots
from resnets.reporting import detection as report
from resnets.reporting.facts import percent, read_facts
from resnets.training import runner
from resnets.training.run import Run
from tests.data._helpers import split_of_rows

from .test_report import Page

yaml = pytest.importorskip("yaml")
SHORT = {"size": 64, "batch": 4, "augment.scale": [56, 80], "precision": "float32"}
TASKS = ("detect", "localize", "segment")


@pytest.fixture(scope="module")
def runs(drawn, tmp_path_factory):
    """A finished run of each task."""
    root = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        how = {"overrides": SHORT | {"steps": 3}, "workers": 0, "device": "cpu"}
        resnets.train(str(drawn[task]), task=task, run=root / task, **how)
    return root


def page(run):
    found = Page((run / "report.html").read_text())
    found.text = re.sub(r"\s+", " ", found.text)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_page_has_the_figures_the_classes_and_the_pictures(runs, task):
    found, ended = page(runs / task), read_facts(Run(runs / task)).ended
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(drawing["aria-labelledby"] in ids for drawing in found.all("svg"))
    pictures = found.all("img")
    assert all(picture["alt"] for picture in pictures)
    assert all(picture["src"].startswith("data:image/webp;base64,") for picture in pictures)
    for name in read_facts(Run(runs / task)).text.figures:
        if ended.get(name) is not None:
            assert percent(ended[name]).replace("\u00a0", " ") in found.text
    names = [" red ", " dark "] if task != "segment" else [" 0 ", " 1 ", " 2 "]
    assert all(name in found.text.split("Images and figures")[1] for name in names)
    assert f"resnets {task} predict" in found.text
    # Six images, each as it is and as the network sees it, and of a detector the misses too.
    misses = len([p for p in pictures if p["alt"] in ("The object", "The objects")])
    assert len(pictures) == 2 * (6 + misses)
    assert (misses > 0) == (task == "detect")


def test_a_table_has_what_is_in_the_data(runs):
    text = page(runs / "detect").text
    heads = ("class", "train images", "train objects", "test images", "test objects", "AP")
    assert re.search(" ?".join(heads), text)
    assert re.search("dark ?6 ?6 ?3 ?3 ?", text)
    assert "Of 12 training objects 12 are small" in text


def test_a_segmenters_page_has_its_confusion_in_percent(runs):
    confusion = json.loads((runs / "segment" / "result.json").read_text())["confusion"]
    row = " ".join(str(round(100 * count / sum(confusion[0]))) for count in confusion[0])
    assert f"0 {row} 1 " in page(runs / "segment").text


@pytest.mark.parametrize(
    ("task", "pipeline", "metric", "figure"),
    [
        ("detect", "object-detection", "mAP50", "map50"),
        ("localize", "object-detection", "localization_error", "error"),
        ("segment", "image-segmentation", "mean_iou", "mean_iou"),
    ],
)
def test_the_card_says_the_task_and_the_figures(runs, task, pipeline, metric, figure):
    _, header, body = (runs / task / "README.md").read_text().split("---\n", 2)
    card, ended = yaml.safe_load(header), read_facts(Run(runs / task)).ended
    assert card["pipeline_tag"] == pipeline
    first = card["model-index"][0]["results"][0]["metrics"][0]
    assert first == {"type": metric, "value": ended[figure]}
    assert f"    resnets {task} predict {task} IMAGE\n" in body
    assert ("dark, red" in body) == (task != "segment")


def test_errors_are_called_what_they_are(runs):
    compared = compare.table_rows(compare.compare([Run(runs / t) for t in TASKS]))
    (row,) = [r for r in compared if r["what"] == "error"]
    labels = ("1 - mAP at IoU 0.5", "localisation error", "1 - mean IoU")
    for task, label in zip(TASKS, labels, strict=True):
        error = read_facts(Run(runs / task)).ended["error"]
        assert row[str(runs / task)] == f"{percent(error)} ({label}), test"
    assert [row["error_is"] for row in resnets.runs(runs)] == list(labels)


def test_an_unfinished_run_has_a_page_too(drawn, tmp_path):
    fields = SHORT | {"model": "fasterrcnn_tiny_fpn"}
    plan = resnets.plan(str(drawn["detect"]), task="detect", overrides=fields, workers=0)
    run = runner.create_run(plan, tmp_path / "run")
    row = {"step": 3, "epoch": 1.0, "loss": 1.5, "train_error": 0.25}
    run.append("metrics.jsonl", row | {"val_error": 0.6, "val_map": 0.1, "val_map50": 0.4})
    write_report(run)
    found = page(run.path)
    assert "not trained to the end" in found.text
    assert "Figures of val images by epoch." in found.text
    assert "resnets resume" in found.text
    assert found.all("img") == []


def made(folder):
    """An image of 160 x 120 pixels, its objects, the last one ignored, and what was found."""
    Image.new("RGB", (160, 120), (90, 90, 90)).save(folder / "a.png")
    objects = [
        [10, 10, 30, 30, 0, 1],
        [50, 50, 70, 70, 1, 1],
        [10, 50, 30, 70, 0, 1],
        [90, 0, 150, 60, 1, 1],
        [0, 80, 40, 120, 0, 2],
    ]
    given = [
        (0, 0.9, [10, 10, 30, 32]),  # right
        (0, 0.8, [10, 12, 30, 30]),  # the same once more
        (0, 0.7, [50, 50, 70, 70]),  # a dog
        (0, 0.6, [20, 50, 40, 70]),  # IoU 1/3
        (1, 0.95, [100, 100, 120, 120]),  # nothing
        (0, 0.5, [5, 85, 15, 95]),  # within what is ignored
    ]
    shapes = [((x1, y1, x2, y1, x2, y2, x1, y2),) for x1, y1, x2, y2, *_ in objects]
    labels, size = torch.tensor([objects]).float(), torch.tensor([[120, 160]])
    split = split_of_rows((folder / "a.png",), labels, (tuple(shapes),), size)
    classes, scores, boxes = zip(*given, strict=True)
    zeros = torch.zeros(len(given), dtype=torch.int64)
    columns = torch.tensor(classes), torch.tensor(scores), torch.tensor(boxes).float()
    square = paste_mask(torch.ones(28, 28), columns[2][0], 120, 160)
    return split, SplitDetections(zeros, *columns, (square,) * len(given), torch.tensor([0]))


def test_every_miss_is_of_its_kind(tmp_path):
    split, found = made(tmp_path)
    right, wrong = report.misses(found, split, ("cat", "dog"))
    assert right == 1
    assert [(miss.kind, miss.row) for miss in wrong] == [
        (report.BACKGROUND, 4),
        (report.DUPLICATE, 1),
        (report.WRONG_CLASS, 2),
        (report.POORLY_PLACED, 3),
        (report.MISSED, 3),  # the other two that are not found are explained by wrong boxes
    ]
    assert [miss.text for miss in report.worst(wrong)] == [
        "“dog” of 60 x 60 pixels is not found",
        "“dog” with 0.95, where none is marked",
        "“cat” with 0.70, marked as “dog”",
    ]


def test_without_detections_all_is_missed_and_without_objects_nothing(tmp_path):
    split, found = made(tmp_path)
    none = found.take(found.scores > 1)
    right, wrong = report.misses(none, split, ("cat", "dog"))
    assert (right, {miss.kind for miss in wrong}, len(wrong)) == (0, {report.MISSED}, 4)
    empty = split_of_rows(split.images, torch.zeros(1, 1, 6), sizes=split.sizes)
    right, wrong = report.misses(found, empty, ("cat", "dog"))
    assert (right, {miss.kind for miss in wrong}, len(wrong)) == (0, {report.BACKGROUND}, 6)


def test_only_the_largest_and_the_surest_are_shown():
    wrong = [
        report.Miss(kind, 0, k, torch.zeros(4), k / 20, "")
        for kind in (report.MISSED, report.BACKGROUND, report.POORLY_PLACED)
        for k in range(20)
    ]
    shown = report.worst(wrong)
    assert [(m.kind, m.row) for m in shown[:5]] == [(report.MISSED, k) for k in range(19, 14, -1)]
    assert [(m.kind, m.row) for m in shown[5:]] == [
        (report.BACKGROUND, k) for k in range(19, 15, -1)
    ]


def test_objects_and_what_was_found_are_drawn_with_their_masks(tmp_path):
    split, found = made(tmp_path)
    picture = report.draw_objects(split, 0, ("cat", "dog"), slice(3, 4))
    inside, outside = picture[:, 30, 120].tolist(), picture[:, 20, 20].tolist()
    assert outside == [90, 90, 90] != inside
    (shown,) = report.gallery(found, split, ("cat", "dog"), str)
    assert shown["verdict"] == "True: 3 cat, 2 dog. Found: 5 cat, 1 dog"
    _, wrong = report.misses(found, split, ("cat", "dog"))
    for miss in wrong:
        near = report.zoom(miss, found, split, ("cat", "dog"), str)
        assert len(near["images"]) == 2


def test_pictures_stop_where_the_page_would_become_large():
    pictures = [{"images": [("x" * (dense.MAX_LETTERS // 4), "")] * 2} for _ in range(5)]
    assert len(dense.limit_size(pictures)) == 2


@pytest.mark.parametrize("classes", [2, 30])
def test_curves_of_precision_name_what_can_be_told_apart(classes):
    curves = {f"_$x {k} 🐈": [1.0] * 51 + [0.0] * 50 for k in range(classes)}
    svg = plots.svg(plots.precision(curves), "precision")
    assert ("$x 1" in svg) == (classes == 2)
    assert ("mean" in svg) == (classes == 30)
