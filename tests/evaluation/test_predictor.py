"""A model asked about images: one answer for one, a list for several, by task."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import resnets
from resnets.config.families import get_arch
from resnets.config.recipe import Preprocess
from resnets.data.dataset import unlabelled_split
from resnets.errors import DataError, UsageError
from resnets.evaluation import detection, detections, segmentation
from resnets.evaluation.loader import LoaderOptions
from resnets.evaluation.predictor import Model
from resnets.models import create
from resnets.models.io.model_file import ModelMetadata, save

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)


def made(name, classes=3, size=32):
    torch.manual_seed(0)
    described = replace(get_arch(name), classes=classes, size=size)
    names = tuple("abcdefgh"[:classes])
    metadata = ModelMetadata(arch=described, classes=names, preprocess=Preprocess(size=size))
    return Model(create(described).eval(), metadata, torch.device("cpu"))


def test_one_image_has_one_answer_and_several_have_a_list(tmp_path):
    model = made("resnet8")
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    one = model.predict(IMAGES[0], top=2)
    assert (one.file, len(one.classes), one.problem) == ("input 0", 2, None)
    answers = model.predict([tmp_path / "x.png", IMAGES[0], *IMAGES], top=2)
    assert [a.file for a in answers] == [
        str(tmp_path / "x.png"),
        *(f"input {k}" for k in (1, 2, 3, 4)),
    ]
    assert {(a.classes, a.probabilities) for a in answers[:3]} == {(one.classes, one.probabilities)}
    assert model.predict(IMAGES, top=2) == [
        replace(a, file=f"input {k}") for k, a in enumerate(answers[2:])
    ]
    assert model(str(tmp_path / "x.png"), top=2) == replace(one, file=str(tmp_path / "x.png"))
    assert isinstance(model.predict(str(tmp_path)), list)
    lazy = model.predict(iter([IMAGES[0]]))
    assert next(lazy).classes[0] == one.classes[0]


def test_an_image_that_cannot_be_read_raises_alone_and_is_named_among_others(tmp_path):
    model = made("resnet8")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        model.predict(tmp_path / "bad.png")
    bad, good = model.predict([tmp_path / "bad.png", IMAGES[0]])
    assert "cannot read" in bad.problem
    assert good.problem is None
    with pytest.raises(DataError, match=r"^input 1: floats from"):
        model.predict([IMAGES[0], IMAGES[0] / 1.0])
    with pytest.raises(UsageError, match="no input"):
        model.predict([])
    with pytest.raises(DataError, match="no such file"):
        model.predict("none.png")


def test_a_detector_gives_boxes_labels_and_scores():
    model = made("fasterrcnn_tiny_fpn", size=64)
    found = model.predict(IMAGES[0], score=0)
    assert found.boxes.shape == (len(found.labels), 4)
    assert len(found.scores) == len(found.labels) > 0
    assert set(found.labels) <= set("abc")
    assert found.scores == tuple(sorted(found.scores, reverse=True))
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
    assert (found.boxes <= torch.tensor([50, 40, 50, 40])).all()
    least = found.scores[len(found.scores) // 2]
    assert all(score >= least for score in model.predict(IMAGES[0], score=least).scores)
    assert len(model.predict(IMAGES[:2])) == 2


def test_a_segmenter_gives_the_class_of_each_pixel():
    model = made("semanticfpn_tiny", size=64)
    found = model.predict(IMAGES[0])
    assert found.class_map.shape == (40, 50)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) <= set("abc")


def test_a_localizer_gives_a_class_and_a_box():
    found = made("localizer_tiny", size=64).predict(IMAGES[0])
    x1, y1, x2, y2 = found.box
    assert found.label in "abc"
    assert 0 <= x1 <= x2 <= 50
    assert 0 <= y1 <= y2 <= 40


def test_a_model_says_what_it_is_and_escapes_it(tmp_path):
    model = made("resnet8")
    names = ("<script>", "a\u202eb", "c")
    model = replace(model, metadata=replace(model.metadata, classes=names))
    assert repr(model).startswith("Model(resnet8, 3 x 32 x 32, 3 classes: <script>, ")
    html = model._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "\u202e" not in html
    assert f"{sum(p.numel() for p in model.network.parameters()):,}" in html


def test_a_loaded_model_is_taken_wherever_a_path_is(tmp_path):
    model = made("resnet8", classes=10)
    names = tuple("0123456789")
    metadata = replace(
        model.metadata, classes=names, provenance={"data": "digits", "labels": "one"}
    )
    metadata = replace(metadata, preprocess=Preprocess(size=32, resize=32))
    save(tmp_path / "m.safetensors", model.network, metadata)
    loaded = resnets.load(tmp_path / "m.safetensors")
    path = resnets.evaluate(tmp_path / "m.safetensors", "digits", batch=500)
    assert resnets.evaluate(loaded, "digits", batch=500) == path
    assert resnets.predict(loaded, IMAGES[0]) == loaded.predict(IMAGES[0])
    assert len(resnets.predict(tmp_path / "m.safetensors", [IMAGES[0], IMAGES[1]])) == 2


@pytest.mark.parametrize("name", ["maskrcnn_tiny_fpn", "semanticfpn_tiny"])
def test_the_answers_are_those_of_an_evaluation(tmp_path, name):
    model = made(name, size=64)
    Image.fromarray(IMAGES[0]).save(tmp_path / "x.png")
    split, _ = unlabelled_split([tmp_path / "x.png"])
    reading = LoaderOptions(preprocess=model.metadata.preprocess, device=model.device, batch=1)
    found = model.predict(tmp_path / "x.png", score=0)
    if name == "semanticfpn_tiny":
        ((_, (class_map,)),) = segmentation.predict_class_maps(model.network, split, reading)
        assert torch.equal(found.class_map, class_map)
        return
    pytest.importorskip("faster_coco_eval")
    expected = detection.detect(model.network, split, reading)
    assert torch.equal(found.boxes, expected.boxes)
    assert found.scores == tuple(expected.scores.tolist())
    assert found.labels == tuple("abc"[k] for k in expected.classes.tolist())
    masks = torch.stack([torch.as_tensor(detections.decode_mask(m)).bool() for m in expected.masks])
    assert torch.equal(found.masks, masks)
    with pytest.raises(UsageError, match="need a folder for pictures: out="):
        resnets.predict(model, IMAGES[0], refine=True)


@pytest.mark.parametrize(
    "option", [{"top": -1}, {"top": "a"}, {"score": "a"}, {"score": 2}, {"batch": 0}]
)
def test_a_number_out_of_range_is_refused(option):
    (name,) = option
    with pytest.raises(UsageError, match=f"^{name}="):
        made("resnet8").predict(IMAGES[0], **option)


def test_what_is_for_classifiers_refuses_a_detector():
    model = made("fasterrcnn_tiny_fpn", size=64)
    split, _ = unlabelled_split([])
    with pytest.raises(UsageError, match="is a network to detect, not to classify"):
        model.scores(split)
    with pytest.raises(UsageError, match="run is a Model: give the path of a folder"):
        resnets.report(model)
