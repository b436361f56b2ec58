"""Figures of detections: equal to pycocotools', VOC's by hand, and why they are next to nothing."""

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
from resnets.errors import CheckpointError, MissingPackage, UsageError
from resnets.evaluation import detection, voc
from resnets.evaluation.detection import (
    compare_detections,
    detect,
    evaluate_predictions,
    paste_mask,
)
from resnets.evaluation.diagnosis import diagnose
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.predictions import NO_DETECTIONS, SplitDetections, concatenate, load, save
from resnets.models.detection.boxes import BatchDetections
from tests.data._helpers import rows_of, split_of_rows

pytest.importorskip("faster_coco_eval", reason="detection figures need resnets[detect]")
SEE = Preprocess(size=64)


def split_of(labels, height=100, width=200, masks=()):
    """Images of one size with objects: a list of lists of (x1, y1, x2, y2, class, kind)."""
    most = max(map(len, labels))
    rows = [F.pad(torch.tensor(r).float().view(-1, 6), (0, 0, 0, most - len(r))) for r in labels]
    files = tuple(Path(f"{k}.jpg") for k in range(len(labels)))
    sizes = torch.tensor([[height, width]] * len(labels))
    return split_of_rows(files, torch.stack(rows), masks, sizes)


def found_of(rows, images=1, masks=None):
    """Rows of image, class, score, x1, y1, x2, y2."""
    rows = torch.tensor(rows, dtype=torch.float64).view(-1, 7)
    columns = rows[:, 0].long(), rows[:, 1].long(), rows[:, 2].float(), rows[:, 3:].float()
    return SplitDetections(*columns, masks, torch.arange(images))


def boxes_in(rng, count, height, width):
    """Whole numbers, so that areas and overlaps have ties."""
    x, y = rng.integers(0, width - 8, count), rng.integers(0, height - 8, count)
    w, h = rng.integers(4, width // 2, count), rng.integers(4, height // 2, count)
    return np.stack([x, y, np.minimum(x + w, width), np.minimum(y + h, height)], 1).astype(float)


def polygon(box, rng):
    """A closed curve about a box."""
    x1, y1, x2, y2 = box
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angles)
    y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angles)
    return tuple(np.stack([x, y], 1).ravel().tolist())


def drawn(seed=0, images=40, kinds=6, height=240, width=320, masks=False):
    """A split and detections on it: objects shaken, others by chance, crowds, empty images.

    The last class never occurs, the one before has crowds only, one is never detected.
    """
    from faster_coco_eval.core import mask as coding

    rng = np.random.default_rng(seed)
    labels, shapes, rows, rles = [], [], [], []
    for image in range(images):
        count = 0 if image % 7 == 0 else int(rng.integers(1, 9))
        boxes = boxes_in(rng, count, height, width)
        classes = rng.integers(0, kinds - 1, count)
        state = np.where((classes == kinds - 2) | (rng.random(count) < 0.1), 2, 1)
        labels.append(np.concatenate([boxes, classes[:, None], state[:, None]], 1).tolist())
        drawings = [coding.frPyObjects([list(polygon(box, rng))], height, width) for box in boxes]
        crowds = [(height, width, coded["counts"]) for (coded,) in drawings]
        polygons = [(polygon(box, rng),) for box in boxes]
        pairs = zip(state, crowds, polygons, strict=True)
        shapes.append(tuple(crowd if s == 2 else plain for s, crowd, plain in pairs))
        near = np.repeat(boxes, 3, 0) + rng.integers(-12, 12, (3 * count, 4))
        given = np.concatenate([near, boxes_in(rng, int(rng.integers(0, 20)), height, width)])
        given = np.clip(given, 0, [width, height, width, height])
        given[:, 2:] = np.maximum(given[:, 2:], given[:, :2] + 1)
        which = np.concatenate([np.repeat(classes, 3), rng.integers(0, kinds, len(given))])
        for box, k in zip(given, which[: len(given)], strict=True):
            if k == 1 or image % 11 == 0:
                continue
            rows.append([image, k, np.round(rng.random(), 2), *box])
            if not masks:
                continue
            shape = [list(polygon(box, rng))]
            coded = coding.merge(coding.frPyObjects(shape, height, width))
            rles.append((height, width, coded["counts"]))
    split = split_of(labels, height, width, tuple(shapes) if masks else ())
    return split, found_of(rows, images, tuple(rles) if masks else None)


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
    names = list(detection.CocoMetrics.__dataclass_fields__)[:12]
    return [-1 if getattr(figures, n) is None else getattr(figures, n) for n in names]


# --- COCO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_are_those_of_pycocotools(seed, capsys):
    split, found = drawn(seed)
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
    split, found = drawn(3, masks=True)
    result = evaluate_predictions(found, split, tuple("abcdef"))
    assert capsys.readouterr() == ("", "")
    for figures, kind in ((result, "bbox"), (result.masks, "segm")):
        stats, _ = oracle(split, found, kind, 6)
        assert np.allclose(numbers(figures), stats, rtol=0, atol=1e-6)
    assert result.masks.map50 not in (None, 0.0, result.map50)
    assert "mask_ap" in result.per_class()[0]


def test_only_images_that_were_looked_at_count():
    split, found = drawn(4)
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


# --- VOC ------------------------------------------------------------------------------------------


def flags_of(rights, objects):
    """Detections of one class and image, the surest first, that are right or not."""
    right = np.array(rights, bool)
    zeros = np.zeros(len(right), np.int64)
    return voc.Flags(zeros, zeros, right, np.array([[float(objects)]]))


def test_average_precision_by_hand():
    # precision at the three hits: 1, 2/3, 3/5; four objects
    flags = flags_of([1, 0, 1, 0, 1], 4)
    assert voc.all_points(flags) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # recall 0..0.2 -> 1; 0.3, 0.4, 0.5 -> 2/3; 0.6, 0.7 -> 3/5; beyond 0.75 nothing
    assert voc.eleven_points(flags) == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    # what comes later and is more precise counts: 1/2 and 2/3 are both 2/3
    assert voc.all_points(flags_of([0, 1, 1], 2)) == pytest.approx(2 / 3)
    assert voc.eleven_points(flags_of([0, 1, 1], 2)) == pytest.approx(2 / 3)
    assert voc.all_points(flags_of([1] * 10, 10)) == voc.eleven_points(flags_of([1] * 10, 10)) == 1
    assert voc.all_points(flags_of([], 3)) == voc.eleven_points(flags_of([], 3)) == 0


def test_eleven_points_meet_a_recall_of_three_tenths_exactly():
    assert voc.eleven_points(flags_of([1, 1, 1], 10)) == pytest.approx(4 / 11)
    assert voc.eleven_points(flags_of([1] * 6, 20)) == pytest.approx(4 / 11)


def test_which_detections_are_right():
    split = split_of(
        [
            [(0, 0, 10, 10, 0, 1), (20, 0, 30, 10, 0, 2), (40, 0, 50, 10, 1, 1)],
            [(0, 0, 10, 10, 0, 1)],
        ]
    )
    rows = [
        (0, 0, 0.9, 0, 0, 10, 9),  # right
        (0, 0, 0.95, 0, 0, 10, 5),  # surer, and exactly half: it claims the object instead
        (0, 0, 0.8, 20, 0, 30, 10),  # on an ignored one: neither
        (0, 0, 0.7, 20, 0, 29, 10),  # that one too
        (0, 0, 0.6, 40, 0, 50, 10),  # of another class
        (0, 1, 0.5, 40, 0, 50, 4.9),  # too small
        (1, 0, 0.4, 0, 0, 10, 10),  # right, in another image
        (1, 2, 0.3, 0, 0, 10, 10),  # of a class that nothing has
    ]
    flags = voc.flags(found_of(rows, 2), split, 3)
    assert flags.classes.tolist() == [0, 0, 0, 1, 0, 2]
    assert flags.correct.tolist() == [True, False, False, False, True, False]
    assert flags.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert flags.objects.tolist() == [[1, 1, 0], [1, 0, 0]]
    # class 0: hits at 1 and 2/4 of 2 objects; class 1: nothing; class 2 does not occur
    assert voc.all_points(flags) == pytest.approx((1 + 2 / 4) / 2 / 2)


def test_a_class_beyond_those_of_the_data_takes_no_object_of_the_next_image():
    split = split_of([[], [(0, 0, 10, 10, 0, 1)]])
    flags = voc.flags(found_of([(0, 3, 0.9, 0, 0, 10, 10)], 2), split, 3)
    assert not flags.correct.any()


def test_voc_and_coco_agree_where_their_rules_do():
    # Objects far apart: no detection has a choice, and recall is a multiple of 1/100.
    rng = np.random.default_rng(0)
    labels = [[(20 * k, 0, 20 * k + 10, 10, 0, 1) for k in range(10)] for _ in range(10)]
    rows = [
        (image, 0, rng.random(), x + shift, 0, x + 10 + shift, 10)
        for image in range(10)
        for x in range(0, 200, 20)
        for shift in (rng.integers(0, 7), 8)
    ]
    split, found = split_of(labels, width=220), found_of(rows, 10)
    result = evaluate_predictions(found, split, ("a",))
    assert 0.1 < result.map50 < 0.95
    # COCO counts a recall of 0 too; some of its recalls are a rounding above k / 100
    first = result.precision[0][0]
    assert result.voc == pytest.approx((101 * result.map50 - first) / 100, abs=1e-4)
    eleven = np.mean([result.precision[0][k] for k in range(0, 101, 10)])
    assert result.voc07 == pytest.approx(eleven, abs=1e-9)


# --- Intervals ------------------------------------------------------------------------------------


def test_weights_are_copies_of_images():
    split, found = drawn(5, images=8)
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
        split, found = drawn(6, images=images)
        result = evaluate_predictions(found, split, tuple("abcdef"))
        low, high = result.interval
        assert low < result.voc < high
        assert result.interval == evaluate_predictions(found, split, tuple("abcdef")).interval
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5  # 1 / sqrt(16)


def test_a_paired_difference_is_surer_than_two_figures():
    split, found = drawn(7, images=200)
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


# --- Why ------------------------------------------------------------------------------------------


CLASSES = ("cat", "dog", "cow", "hen")


def scenes(images=20):
    """Objects that are neither square nor in the middle."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(40, 90, (images, 3)), rng.integers(2, 30, (images, 3))
    w, h = rng.integers(30, 90, (images, 3)), rng.integers(20, 60, (images, 3))
    boxes = np.stack([x, y, x + w, y + h], 2).clip(0, [200, 100, 200, 100])
    k = rng.integers(0, 3, (images, 3, 1))
    return split_of(np.concatenate([boxes, k, np.ones_like(k)], 2).tolist())


def reason(change, classes=lambda k: k, score=0.9):
    """`why` of detections that are the objects, changed."""
    split = scenes()
    boxes, kinds = split.objects.boxes.flatten(0, 1), split.objects.classes.flatten()
    images = torch.arange(20).repeat_interleave(3)
    scores = torch.full((60,), score)
    given = SplitDetections(
        images, classes(kinds.long()), scores, change(boxes), None, torch.arange(20)
    )
    result = evaluate_predictions(given, split, CLASSES)
    if result.map50 >= 0.01:
        assert result.why == ""
    return result.why


def test_nothing_to_explain():
    assert reason(lambda b: b) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: torch.cat([b[:, :2], b[:, 2:] - b[:, :2]], 1), "read as x, y, width and height"),
        (
            lambda b: torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1),
            "read as centre, width and height",
        ),
        (lambda b: b[:, [1, 0, 3, 2]], "read as y before x"),
        (lambda b: b / torch.tensor([200, 100, 200, 100]), "parts of the image's width and height"),
    ],
)
def test_boxes_in_another_format_are_named(change, said):
    why = reason(change)
    assert said in why
    assert "detections" in why


def test_annotations_in_another_format_are_named():
    split = scenes()
    boxes, sides = split.objects.boxes.flatten(0, 1), split.objects.boxes.clone()
    sides[..., 2:] -= sides[..., :2]
    images, kinds = torch.arange(20).repeat_interleave(3), split.objects.classes.flatten()
    found = SplitDetections(images, kinds, torch.full((60,), 0.9), boxes, None, torch.arange(20))
    said = diagnose(found, replace(split, objects=replace(split.objects, boxes=sides)), CLASSES)
    assert "boxes of the data" in said
    assert "x, y, width and height" in said


def test_shifted_classes_are_named():
    assert "class is +1 from the true one" in reason(lambda b: b, lambda k: k + 1)
    assert "class is -1 from the true one" in reason(lambda b: b, lambda k: k - 1)
    assert "in another order" in reason(lambda b: b, lambda k: torch.tensor([3, 2, 0])[k])


def test_low_scores_nothing_and_the_rest():
    far = lambda b: torch.rand(b.shape) * 5 + torch.tensor([0, 90, 5, 95])  # noqa: E731
    assert "No score is above 0.05, the highest is 0.030" in reason(far, score=0.03)
    assert "not trained" in reason(far)
    assert "Nothing was detected" in diagnose(found_of([], 20), scenes(), CLASSES)
    assert "no objects" in diagnose(found_of([]), split_of([[(0, 0, 9, 9, 0, 2)]]), CLASSES)
    for said in (reason(far), reason(far, score=0.03), reason(lambda b: b, lambda k: k + 1)):
        assert len(said) < 250


# --- Finding --------------------------------------------------------------------------------------


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


# --- Masks ----------------------------------------------------------------------------------------


def test_masks_are_pasted_as_torchvision_pastes_them():
    from pycocotools import mask as coding
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    height, width, count = 90, 130, 60
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 10, height - 10])
    side = torch.rand(count, 2, generator=generator) * 70
    boxes = torch.cat([corner, corner + side], 1)
    boxes[:4] = torch.tensor(
        [[0, 0, 130, 90], [5, 5, 5, 5], [129.5, 89.5, 130, 90], [0, 0, 0.2, 90]]
    )
    boxes = boxes.minimum(torch.tensor([width, height, width, height]))
    masks = torch.rand(count, 1, 6, 6, generator=generator)
    masks = F.interpolate(masks, (28, 28), mode="bicubic").clamp(0, 1)
    masks[4], masks[5], masks[0] = 0, 1, 1
    expected = paste_masks_in_image(masks, boxes, (height, width))[:, 0] > 0.5
    for mask, box, pixels in zip(masks[:, 0], boxes, expected, strict=True):
        h, w, counts = paste_mask(mask, box, height, width)
        assert (h, w) == (height, width)
        assert isinstance(counts, bytes)
        assert (coding.decode({"size": [h, w], "counts": counts}) == pixels.numpy()).all()
        canonical = coding.encode(np.asfortranarray(pixels.numpy().astype(np.uint8)))
        assert counts == canonical["counts"]


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_kept(tmp_path, masks):
    _, found = drawn(8, images=9, masks=masks)
    found = replace(found, unreadable=((Path("x.jpg"), "empty"),), seconds=2.5)
    save(tmp_path / "d.safetensors", found)
    again = load(tmp_path / "d.safetensors")
    for name in ("images", "classes", "scores", "boxes", "indices"):
        assert torch.equal(getattr(again, name), getattr(found, name)), name
    assert again.masks == found.masks
    assert (again.unreadable, again.seconds) == (found.unreadable, 2.5)
    save(tmp_path / "e.safetensors", NO_DETECTIONS)
    assert load(tmp_path / "e.safetensors").masks is None


def test_another_file_is_refused(tmp_path):
    (tmp_path / "d.safetensors").write_bytes(b"no detections at all")
    with pytest.raises(CheckpointError, match="no detections"):
        load(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="no detections"):
        load(tmp_path / "none.safetensors")


# --- Speed ----------------------------------------------------------------------------------------


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
