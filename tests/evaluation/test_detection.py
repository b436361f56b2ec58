"""Detections of a network on images, and their figures: equal to those of pycocotools."""

import contextlib
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from resnets.config.recipe import Preprocess
from resnets.data.detection.targets import DetectionTargets
from resnets.errors import MissingPackage, UsageError
from resnets.evaluation import voc
from resnets.evaluation.coco import CocoMetrics
from resnets.evaluation.detection import (
    compare_detections,
    detect,
    evaluate_predictions,
)
from resnets.evaluation.detections import (
    SplitDetections,
    concatenate,
)
from resnets.evaluation.loader import LoaderOptions
from resnets.models.detection.boxes import BatchDetections
from tests.data._helpers import rows_of, split_of_rows

from ._helpers import drawn_detections, found_of, split_of

pytest.importorskip("faster_coco_eval", reason="detection figures need resnets[detect]")
SEE = Preprocess(size=64)


def oracle(split, found, kind, kinds):
    """What pycocotools says: its twelve numbers and the precision array."""
    from pycocotools import mask as coding
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, rows = COCO(), []
        for image in found.indices.tolist():
            for k, (x1, y1, x2, y2, which, state) in enumerate(
                rows_of(split.objects[image]).tolist()
            ):
                if not state:
                    continue
                area = (x2 - x1) * (y2 - y1)
                row = {"id": len(rows) + 1, "image_id": image, "category_id": int(which)}
                row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(state == 2)}
                if split.masks:
                    shape = split.masks[image][k]
                    if isinstance(shape[0], int):
                        whole = {"size": shape[:2], "counts": shape[2]}
                    else:
                        size = split.sizes[image].tolist()
                        whole = coding.merge(coding.frPyObjects(list(map(list, shape)), *size))
                    area, row["segmentation"] = float(coding.area(whole)), whole
                rows.append(row | {"area": area})
        truth.dataset = {
            "info": {},
            "images": [
                {"id": i, "height": int(split.sizes[i, 0]), "width": int(split.sizes[i, 1])}
                for i in found.indices.tolist()
            ],
            "categories": [{"id": k} for k in range(kinds)],
            "annotations": rows,
        }
        truth.createIndex()
        given = []
        for d in range(len(found.scores)):
            x1, y1, x2, y2 = found.boxes[d].tolist()
            row = {"image_id": int(found.images[d]), "category_id": int(found.classes[d])}
            row["score"] = float(found.scores[d])
            if kind == "bbox":
                row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                height, width, counts = found.masks[d]
                row["segmentation"] = {"size": [height, width], "counts": counts}
            given.append(row)
        test = COCOeval(truth, truth.loadRes(given), kind)
        test.evaluate()
        test.accumulate()
        test.summarize()
    return test.stats, test.eval["precision"]


def numbers(figures):
    """The twelve in COCO's order, -1 where there is none."""
    names = list(CocoMetrics.__dataclass_fields__)[:12]
    return [-1 if getattr(figures, n) is None else getattr(figures, n) for n in names]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_are_those_of_pycocotools(seed, capsys):
    split, found = drawn_detections(seed)
    result = evaluate_predictions(found, split, tuple("abcdef"))
    assert capsys.readouterr() == ("", "")
    stats, precision = oracle(split, found, "bbox", 6)
    assert np.allclose(numbers(result), stats, rtol=0, atol=1e-6)
    assert result.map > 0.05
    for k in range(6):
        own = precision[:, :, k, 0, 2]
        if k >= 4:
            assert own.max() == -1
            assert (result.ap[k], result.ap50[k], result.precision[k]) == (None, None, ())
        else:
            assert result.ap[k] == pytest.approx(own.mean(), abs=1e-6)
            assert result.ap50[k] == pytest.approx(own[0].mean(), abs=1e-6)
            assert np.allclose(result.precision[k], own[0], rtol=0, atol=1e-6)
    assert result.ap[1] == 0


def test_figures_of_masks_are_those_of_pycocotools(capsys):
    split, found = drawn_detections(3, masks=True)
    result = evaluate_predictions(found, split, tuple("abcdef"))
    assert capsys.readouterr() == ("", "")
    for figures, kind in ((result, "bbox"), (result.masks, "segm")):
        stats, _ = oracle(split, found, kind, 6)
        assert np.allclose(numbers(figures), stats, rtol=0, atol=1e-6)
    assert result.masks.map50 not in (None, 0.0, result.map50)
    assert "mask_ap" in result.per_class()[0]


def test_only_images_that_were_looked_at_count():
    split, found = drawn_detections(4)
    kept = found.images >= 20
    columns = {
        name: getattr(found, name)[kept] for name in ("images", "classes", "scores", "boxes")
    }
    part = replace(found, **columns, indices=torch.arange(20, 40))
    result = evaluate_predictions(part, split, tuple("abcdef"))
    stats, _ = oracle(split, part, "bbox", 6)
    assert np.allclose(numbers(result), stats, rtol=0, atol=1e-6)
    assert (result.images, result.objects) == (20, int(split.objects[20:].is_object.sum()))


def test_counts_and_json():
    split = split_of([[(0, 0, 10, 10, 0, 1), (0, 0, 9, 9, 0, 1), (5, 5, 9, 9, 1, 2)], []])
    result = evaluate_predictions(
        found_of([(0, 0, 0.9, 0, 0, 10, 10)], 2), split, ("cat", "dog", "cow")
    )
    assert (result.images, result.objects) == (2, 2)
    assert result.counts == ((1, 2), (0, 0), (0, 0))
    assert (result.map_large, result.ap[1:]) == (None, (None, None))
    assert result.error == pytest.approx(1 - result.map50)
    said = json.loads(json.dumps(result.summary(), allow_nan=False))
    assert said["map_large"] is None
    assert said["map50"] == round(result.map50, 6)
    assert said["per_class"][1] == {
        "class": "dog", "images": 0, "objects": 0, "ap": None, "ap50": None
    }  # fmt: skip
    json.dumps(asdict(result), allow_nan=False, default=str)


@pytest.mark.parametrize("images", [0, 3])
def test_nothing_found_where_nothing_is(images):
    split = split_of([[]] * 3)
    split = replace(split, objects=DetectionTargets.empty(3, 0))
    result = evaluate_predictions(found_of([], images), split, ("a", "b"))
    assert (result.map, result.map50, result.voc, result.objects) == (None, None, 0.0, 0)
    assert "no objects" in result.why
    json.dumps(result.summary(), allow_nan=False)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingPackage, match=r'pip install "resnets\[detect\]"'):
        evaluate_predictions(found_of([]), split_of([[(0, 0, 9, 9, 0, 1)]]), ("a",))


def test_weights_are_copies_of_images():
    split, found = drawn_detections(5, images=8)
    flags = voc.flags(found, split, 6)
    weights = np.array([[2, 0, 1, 3, 1, 0, 1, 1]])
    chosen = torch.from_numpy(np.repeat(np.arange(8), weights[0]))
    parts = []
    for copy, image in enumerate(chosen.tolist()):
        mine = found.images == image
        columns = [getattr(found, name)[mine] for name in ("classes", "scores", "boxes")]
        parts.append(
            SplitDetections(
                torch.full((int(mine.sum()),), copy), *columns, None, torch.tensor([copy])
            )
        )
    copies = voc.flags(concatenate(parts), split.take(chosen), 6)
    # the copies of one score are told apart by their order, weights count them at once
    assert voc.weighted_map(flags, weights.astype(float))[0] == pytest.approx(
        voc.all_points(copies), abs=0.02
    )
    assert voc.weighted_map(flags, np.ones((1, 8)))[0] == voc.all_points(flags)


def test_the_interval_holds_the_value_and_shrinks_with_the_images():
    widths = []
    for images in (30, 480):
        split, found = drawn_detections(6, images=images)
        result = evaluate_predictions(found, split, tuple("abcdef"))
        low, high = result.interval
        assert low < result.voc < high
        assert result.interval == evaluate_predictions(found, split, tuple("abcdef")).interval
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5  # 1 / sqrt(16)


def test_a_paired_difference_is_surer_than_two_figures():
    split, found = drawn_detections(7, images=200)
    shaken = replace(found, boxes=found.boxes + 3)
    same = compare_detections(found, found, split, 6)
    assert (same.images, same.difference, same.interval) == (200, 0.0, (0.0, 0.0))
    worse = compare_detections(found, shaken, split, 6)
    one, other = (evaluate_predictions(f, split, tuple("abcdef")) for f in (found, shaken))
    assert worse.difference == pytest.approx(other.voc - one.voc)
    assert worse.interval[0] < worse.difference < worse.interval[1]
    apart = one.interval[1] - one.interval[0] + other.interval[1] - other.interval[0]
    assert worse.interval[1] - worse.interval[0] < 0.7 * apart
    with pytest.raises(UsageError, match="different images"):
        compare_detections(found, replace(found, indices=torch.arange(100)), split, 6)


def photograph(path, height, width):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 60)).save(path)
    return path


def split_on_disk(folder, sizes):
    files = tuple(photograph(folder / f"{k}.png", *size) for k, size in enumerate(sizes))
    return split_of_rows(files, torch.zeros(len(sizes), 1, 6), (), torch.tensor(sizes))


class Told:
    """A network that says the middle half of each image, its whole, and nothing more."""

    def __init__(self, masks=False):
        self.masks, self.shapes = masks, []

    def __call__(self, images, *, sizes):
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        assert (sizes <= torch.tensor(images.shape[2:])).all()
        self.shapes.append(tuple(images.shape))
        whole = F.pad(sizes.flip(1), (2, 0)).float()
        half = (whole[:, 2:] - whole[:, :2]) / 4
        middle = torch.cat([half, whole[:, 2:] - half], 1)
        boxes = torch.stack([middle, whole + 3, torch.zeros_like(whole)], 1)
        scores = torch.tensor([[0.9, 0.5, 0.0]]).expand(len(images), 3)
        classes = torch.tensor([[1, 0, -1]]).expand(len(images), 3)
        masks = torch.ones(len(images), 3, 28, 28) if self.masks else None
        return BatchDetections(boxes, scores, classes, masks)


SIZES = [(40, 90), (120, 61), (64, 64), (500, 300), (33, 32)]


@pytest.mark.parametrize("workers", [0, 2])
def test_boxes_come_back_in_pixels_of_the_image(tmp_path, workers):
    split = split_on_disk(tmp_path, SIZES)
    loader = LoaderOptions(preprocess=SEE, device="cpu", batch=2, workers=workers)
    found = detect(Told(), split, loader)
    assert found.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert found.classes.tolist() == [1, 0] * 5
    assert found.scores.tolist() == pytest.approx([0.9, 0.5] * 5)
    assert found.masks is None
    assert found.seconds > 0
    whole = split.sizes.flip(1).float()
    expected = torch.stack([torch.cat([whole / 4, 3 * whole / 4], 1), F.pad(whole, (2, 0)) + 0], 1)
    expected[:, 1, :2] = 3 * whole / torch.tensor([detect_size(*s) for s in SIZES]).flip(1)
    torch.testing.assert_close(found.boxes.view(5, 2, 4), expected, rtol=1e-5, atol=1e-4)


def detect_size(height, width):
    from resnets.data.joint_transforms import fit_side

    return fit_side(height, width, SEE.size)


def test_ranks_find_together_what_one_finds(tmp_path):
    split = split_on_disk(tmp_path, SIZES)
    broken = tmp_path / "1.png"
    broken.write_bytes(b"")
    loader = LoaderOptions(preprocess=SEE, device="cpu", batch=2)
    alone = detect(Told(masks=True), split, loader)
    assert alone.indices.tolist() == [0, 2, 3, 4]
    assert [(path, bool(why)) for path, why in alone.unreadable] == [(broken, True)]
    parts = [
        detect(Told(masks=True), split, replace(loader, rank=rank, ranks=2)) for rank in (1, 0)
    ]
    both = concatenate(parts)
    for name in ("images", "classes", "scores", "boxes", "indices"):
        assert torch.equal(getattr(both, name), getattr(alone, name)), name
    assert (both.masks, both.unreadable) == (alone.masks, alone.unreadable)


def test_it_breaks_off(tmp_path):
    network, loader = Told(), LoaderOptions(preprocess=SEE, device="cpu", batch=2)
    said = iter([False, True])
    loader = replace(loader, stopped=lambda: next(said))
    found = detect(network, split_on_disk(tmp_path, SIZES), loader)
    assert found.indices.tolist() == [0, 1]
    assert len(network.shapes) == 1


@pytest.mark.slow
def test_five_thousand_images_take_seconds():
    import time

    split, found = many()
    began = time.monotonic()
    result = evaluate_predictions(found, split, tuple(map(str, range(80))))
    assert result.map > 0
    assert time.monotonic() - began < 30


def many(images=5000, objects=7, each=50, kinds=80):
    rng = np.random.default_rng(0)
    corner, side = (
        rng.uniform(0, 400, (images, objects, 2)),
        rng.uniform(10, 200, (images, objects, 2)),
    )
    which = rng.integers(0, kinds, (images, objects, 1))
    labels = np.concatenate([corner, corner + side, which, np.ones_like(which)], 2)
    of = rng.integers(0, objects, (images, each))
    boxes = np.take_along_axis(labels, of[..., None], 1)
    boxes[..., :4] += rng.normal(0, 8, (images, each, 4))
    given = np.where(
        rng.random((images, each)) < 0.6, boxes[..., 4], rng.integers(0, kinds, of.shape)
    )
    found = SplitDetections(
        torch.arange(images).repeat_interleave(each),
        torch.from_numpy(given.astype(int)).flatten(),
        torch.from_numpy(rng.random(images * each)).float(),
        torch.from_numpy(boxes[..., :4]).float().flatten(0, 1),
        None,
        torch.arange(images),
    )
    files = tuple(Path(f"{k}.jpg") for k in range(images))
    sizes = torch.tensor([[480, 640]]).expand(images, 2)
    return split_of_rows(files, torch.from_numpy(labels), (), sizes), found
