"""VOC figures of detections, by hand, and in agreement with COCO."""

import numpy as np
import pytest

from resnets.evaluation import voc
from resnets.evaluation.detection import (
    evaluate_predictions,
)

from ._helpers import found_of, split_of

pytest.importorskip("faster_coco_eval", reason="detection figures need resnets[detect]")


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
