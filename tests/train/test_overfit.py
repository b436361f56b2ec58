"""Eight photographs of COCO, learnt by heart: what cannot even do that is broken."""

import json
import shutil

import pytest

import resnets
from resnets import scenes

COUNT = 8
FIELDS = {
    "batch": COUNT,
    "augment.crop": "none",
    "augment.flip": False,
    "weight_decay": 0.0,
    "lr": 2e-3,
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
    for folder in ("annotations", "images", "masks"):
        (root / folder).mkdir()
    table = {"images": images, "annotations": rows, "categories": kinds}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(table))
    shutil.copy(data / "semantic_classes.yaml", root / "semantic_classes.yaml")
    for image in images:
        name = image["file_name"]
        shutil.copy(data / "images" / "train2017" / name, root / "images" / name)
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["fasterrcnn_tiny_fpn", "maskrcnn_tiny_fpn"])
def test_eight_photographs_are_detected(shared, tmp_path, model):
    data = eight(shared, tmp_path)
    fields = FIELDS | {"size": 288, "steps": 250}
    resnets.train(str(data), task="detect", model=model, overrides=fields, run=tmp_path / "run")
    result = scenes.evaluate("detect", tmp_path / "run", str(data), split="train")
    assert result.map50 > 0.9
    assert result.masks is None or result.masks.map50 > 0.85
