"""Detecting, localising and segmenting as people type them."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnets
from resnets.config.recipe import Preprocess
from resnets.data import dataset
from resnets.evaluation import detection
from resnets.evaluation.detections import SplitDetections
from resnets.models import create
from resnets.models.io import model_file

SMALL = Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model file of each task, with random weights."""
    root, files = tmp_path_factory.mktemp("models"), {}
    for task, name in {
        "detect": "fasterrcnn_tiny_fpn",
        "localize": "localizer_tiny",
        "segment": "semanticfpn_tiny",
    }.items():
        torch.manual_seed(0)
        names = ("dark", "red") if task != "segment" else ("0", "1", "2")
        network = create(name, classes=len(names)).eval()
        card = model_file.ModelMetadata(arch=network.arch, classes=names, preprocess=SMALL)
        files[task] = root / f"{task}.safetensors"
        model_file.save(files[task], network, card)
    return files


def test_a_broken_image_is_named_and_the_others_are_answered(cli, models, drawn, tmp_path):
    good = drawn["segment"] / "images/test/0.png"
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "words.jpg").write_text("no image")
    Image.fromarray(np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)).save("w.png")
    (tmp_path / "wide.png").write_bytes((tmp_path / "w.png").read_bytes()[:200])
    for task in ("detect", "segment"):
        code, out, err = cli(
            task,
            "predict",
            models[task],
            "bad.png",
            good,
            "words.jpg",
            "wide.png",
            "--out",
            task,
            "--json",
        )
        assert code == 3
        rows = {row["file"]: row for row in json.loads(out)}
        assert set(rows) == {"bad.png", "words.jpg", "wide.png", str(good)}
        assert rows[str(good)]["problem"] == ""
        assert rows["bad.png"]["problem"]
        assert rows["wide.png"]["problem"]
        assert rows["words.jpg"]["problem"]
        assert "words.jpg: " in err
        assert len(list((tmp_path / task).glob("*.jpg"))) == 1


def test_answers_have_the_images_size(cli, models, tmp_path):
    Image.new("RGB", (50, 70), (200, 0, 0)).save("image.png")
    code, _, _ = cli("segment", "predict", models["segment"], "image.png", "--out", "masks")
    assert code == 0
    with Image.open(next((tmp_path / "masks").glob("*.png"))) as mask:
        assert mask.size == (50, 70)
    code, _, _ = cli("detect", "predict", models["detect"], "image.png", "--out", "boxes")
    assert code == 0
    for found in json.loads((tmp_path / "boxes/detections.json").read_text()):
        x, y, width, height = found["bbox"]
        assert 0 <= x <= x + width <= 50.01
        assert 0 <= y <= y + height <= 70.01


def test_answers_to_coco_are_scored_by_its_own_file(cli, models, tmp_path, monkeypatch):
    """Ids with gaps, a category between, and images that the file does not list."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = {
        "images": [{"id": 30 - 7 * k, "file_name": f"{k}.png"} for k in range(3)],
        "categories": [
            {"id": 9, "name": "red"},
            {"id": 4, "name": "far"},
            {"id": 5, "name": "dark"},
        ],
        "annotations": [
            {"id": k + 1, "image_id": 30 - 7 * k, "category_id": (9, 5)[k % 2], "iscrowd": 0}
            | {"bbox": [k, 2, 20, 10 + k], "area": 200 + 20 * k}
            for k in range(3)
        ],
    }
    (tmp_path / "data" / "images").mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (50, 40 + k)).save(tmp_path / f"data/images/{k}.png")
    (tmp_path / "data/result.json").write_text(json.dumps(content))
    boxes = torch.tensor([[k, 2, k + 20, 12 + k] for k in (0, 1, 2, 3)]).float()
    images, classes = torch.arange(4), torch.tensor([1, 0, 1, 0])
    found = SplitDetections(images, classes, torch.ones(4), boxes, None, images)
    monkeypatch.setattr(detection, "detect", lambda *_, **__: found)
    # the images of COCO come after the others
    order = torch.tensor([3, 0, 1, 2])
    found = replace(found, boxes=boxes[order], classes=classes[order])
    arguments = ("detect", "predict", models["detect"], "data/images/3.png", "data", "--out", "out")
    assert cli(*arguments)[0] == 0
    lines = json.loads((tmp_path / "out/detections.json").read_text())
    assert [(line["image_id"], line["category_id"], line["category"]) for line in lines] == [
        (31, 5, "dark"),
        (30, 9, "red"),
        (23, 5, "dark"),
        (16, 9, "red"),
    ]
    assert [line["file_name"][-12:] for line in lines] == [
        f"images/{k}.png"[-12:] for k in (3, 0, 1, 2)
    ]
    truth = COCO(str(tmp_path / "data/result.json"))
    result = COCOeval(truth, truth.loadRes(lines[1:]), "bbox")
    result.evaluate()
    result.accumulate()
    result.summarize()
    assert result.stats[0] == pytest.approx(1)


def test_ids_that_two_coco_files_give_to_different_images_are_refused(cli, models, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        Image.new("RGB", (50, 40)).save(tmp_path / f"data/{split}/1.png")
        content = {"images": [{"id": 1, "file_name": "1.png"}], "categories": []}
        (tmp_path / f"data/{split}/x.coco.json").write_text(json.dumps(content))
    code, _, err = cli("detect", "predict", models["detect"], "data", "--out", "out")
    assert code == 3
    assert "use the id 1 for different things; give one" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no input"),
        (("image.png", "--scroe", "0.5"), "scroe"),
        (("image.png", "--out", "."), "has files"),
    ],
)
def test_what_cannot_be_predicted_is_told(cli, models, arguments, words):
    Image.new("RGB", (50, 70)).save("image.png")
    code, _, err = cli("detect", "predict", models["detect"], *arguments)
    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("task", "demand", "code", "words"),
    [
        ("detect", "map50=0.9999", 1, "--fail-under: map50"),
        ("detect", "map50=0", 0, ""),
        ("detect", "mean_iou=0.5", 2, "known: map, map50"),
        ("detect", "map=much", 2, "write a number"),
        ("localize", "accuracy=1.01", 1, "--fail-under: accuracy"),
        ("segment", "mean_iou=1.01", 1, "--fail-under: mean_iou"),
        ("segment", "error=0.5", 2, "known: mean_iou"),
    ],
)
def test_a_figure_can_be_demanded(cli, models, drawn, task, demand, code, words):
    how = ("--fail-under", demand, "--workers", "0", "--split", "test")
    found, out, err = cli(task, "evaluate", models[task], drawn[task], *how)
    assert found == code
    assert words in err
    assert bool(out) == (code != 2)  # a demand is read before anything is evaluated


def test_models_that_kept_other_images_are_not_compared(cli, drawn, tmp_path):
    lines = drawn["detect"].read_text().splitlines()
    data = drawn["detect"].parent / "train.csv"  # beside the images that it names
    data.write_text("\n".join(line for line in lines if not line.endswith(",val")))
    network = create("fasterrcnn_tiny_fpn", classes=2).eval()
    for seed in (1, 2):  # as of two runs that kept a third of the training images
        recipe = json.dumps({"val_fraction": 0.3, "seed": seed})
        kept = {"digest": dataset.load(data, task="detect").digest, "recipe": recipe}
        card = model_file.ModelMetadata(
            arch=network.arch, classes=("dark", "red"), preprocess=SMALL, provenance=kept
        )
        model_file.save(tmp_path / f"r{seed}", network, card)
    code, _, err = cli("detect", "evaluate", "r1", "r2", data, "--split", "val", "--compare")
    assert code == 2
    assert "held out different validation images" in err


def test_a_missing_package_is_told_before_the_training(cli, drawn, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    code, _, err = cli("detect", "train", drawn["detect"], "--set", "steps=1", "--run", "run")
    assert code == 8
    assert 'pip install "resnets[detect]"' in err
    assert not (tmp_path / "run").exists()


def test_a_classifier_says_what_to_look_for(cli, models, drawn, tmp_path):
    torch.manual_seed(0)
    network = create("resnet8", classes=2).eval()
    for name, classes in {"same": ("red", "dark"), "other": ("red", "blue")}.items():
        card = model_file.ModelMetadata(
            arch=network.arch, classes=classes, preprocess=Preprocess(size=32)
        )
        model_file.save(tmp_path / name, network, card)
    how = ("localize", "evaluate", models["localize"], drawn["localize"], "--workers", "0")
    code, out, _ = cli(*how, "--classifier", "same", "--scales", "1,1.5", "--json")
    assert code == 0
    assert json.loads(out)["images"] == 6
    code, _, err = cli(*how, "--classifier", "other")
    assert code == 4
    assert "other classes" in err
    code, _, err = cli(*how, "--refine")
    assert code == 2
    assert "two-stage" in err


def test_segmentation_has_no_improvements(cli, models, drawn):
    code, _, err = cli("segment", "evaluate", models["segment"], drawn["segment"], "--refine")
    assert code == 2
    assert "--refine" in err


def test_a_model_of_another_task_and_data_of_another_task_are_sent_to_their_commands(
    cli, models, drawn, tmp_path
):
    Image.new("RGB", (50, 70)).save("image.png")
    code, _, err = cli("predict", models["detect"], "image.png")
    assert code == 2
    assert "`resnets detect predict`" in err
    voc = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    (voc / "Annotations/1.xml").write_text("<annotation><filename>1.png</filename></annotation>")
    Image.new("RGB", (50, 70)).save(voc / "JPEGImages/1.png")
    code, _, err = cli("train", "voc")
    assert code == 3
    assert "voc is data to detect: `resnets detect train voc`" in err
    assert "remove" not in err


def test_a_diagnosis_is_part_of_the_line(models, drawn):
    result = resnets.evaluate(models["detect"], drawn["detect"], workers=0)
    told = replace(result, why="No box fits.").headline()
    assert told.endswith("objects on 6 images. No box fits.")
    assert told.isprintable()
