"""Eight photographs of COCO, learnt by heart: what cannot even do that is broken."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import resnets

COUNT = 8
FIELDS = {
    "batch": COUNT,
    "augment.crop": "none",
    "augment.flip": False,
    "weight_decay": 0.0,
    "lr": 2e-3,
    "size": 224,
    "steps": 160,
    "ema": 0.9,
    "eval_every": 1000,
}


def eight(shared, root):
    """The photographs, their objects in one table, and their masks."""
    data = shared / "data" / "coco128"
    told = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    images = told["images"][:COUNT]
    numbers = {image["id"] for image in images}
    rows = [a for a in told["annotations"] if a["image_id"] in numbers]
    # The table's numbers of classes are not those of its annotations: here they have no names.
    kinds = [{"id": k, "name": str(k)} for k in sorted({a["category_id"] for a in rows})]
    for folder in ("annotations", "images"):
        (root / folder).mkdir(parents=True)
    table = {"images": images, "annotations": rows, "categories": kinds}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(table))
    for image in images:
        name = image["file_name"]
        shutil.copy(data / "images" / "train2017" / name, root / "images" / name)
    return root


def masked(shared, root):
    """The photographs that have masks, and these, under classes that occur."""
    data = shared / "data" / "coco128"
    files = sorted((data / "semantic_masks" / "train2017").iterdir())[:COUNT]
    for folder in ("images", "masks"):
        (root / folder / "train").mkdir(parents=True)
    present = sorted({int(k) for file in files for k in np.unique(Image.open(file))})
    table = np.full(256, 255, np.uint8)
    table[present] = range(len(present))
    for file in files:
        Image.fromarray(table[np.asarray(Image.open(file))]).save(root / "masks/train" / file.name)
        name = f"{file.stem}.jpg"
        shutil.copy(data / "images" / "train2017" / name, root / "images/train" / name)
    return root


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_eight_photographs_are_segmented(shared, tmp_path):
    data = masked(shared, tmp_path / "data")
    fields = FIELDS | {"size": 160, "steps": 300}
    resnets.train(str(data), task="segment", overrides=fields, run=tmp_path / "run")
    result = resnets.evaluate(tmp_path / "run", str(data), split="train")
    assert result.mean_iou > 0.9


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["fasterrcnn_tiny_fpn", "maskrcnn_tiny_fpn"])
def test_eight_photographs_are_detected(shared, tmp_path, model):
    data = eight(shared, tmp_path / "data")
    resnets.train(str(data), task="detect", model=model, overrides=FIELDS, run=tmp_path / "run")
    result = resnets.evaluate(tmp_path / "run", str(data), split="train")
    assert result.map50 > 0.9
    assert result.masks is None or result.masks.map50 > 0.85
