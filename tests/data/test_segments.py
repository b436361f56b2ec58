import numpy as np
import pytest
import torch
from made import picture
from PIL import Image

from resnets.data import load
from resnets.data.sources import task_of
from resnets.errors import DataError, Refused


def mask(path, values, mode="P"):
    """A PNG whose columns have these values, 30 high and 40 wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.tile(np.repeat(values, 40 // len(values)), (30, 1)).astype(np.uint8))
    if mode == "P":
        image.putpalette([255 - k // 3 for k in range(768)])
    image.convert(mode).save(path)
    return path


def pair(root, values, image="images", masks="masks", name="a", mode="P"):
    picture(root / image / f"{name}.jpg", size=(40, 30))
    return mask(root / masks / f"{name}.png", values, mode)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("images/{}2017", "semantic_masks/{}2017"),
    ],
)
def test_layouts_with_splits(tmp_path, images, masks):
    for split, values in (("train", [0, 2]), ("val", [1, 1]), ("test", [2, 255])):
        for name in "ab":
            pair(tmp_path, values, images.format(split), masks.format(split), name)
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n\n")
    assert task_of(tmp_path) == "segment"
    source = load(tmp_path, task="segment")
    assert (source.task, source.automatic, source.problems) == ("segment", False, ())
    assert source.classes == ("sky", "sea", "land")
    for split, shares in (("train", [0.5, 0, 0.5]), ("val", [0, 1, 0]), ("test", [0, 0, 1])):
        part = source.splits[split]
        assert part.labels.dtype == torch.float32
        assert part.labels.tolist() == [shares] * 2
        assert part.sizes.tolist() == [[30, 40]] * 2
        assert (
            [path.stem for path in part.images] == [path.stem for path in part.masks] == ["a", "b"]
        )
        assert all(path.suffix == ".png" for path in part.masks)


def test_without_splits_they_are_drawn_and_without_names_classes_are_numbers(tmp_path):
    for k in range(20):
        pair(tmp_path, [0, 3 if k % 2 else 1], name=f"deep/{k:02}", mode="PL"[k % 2])
    pair(tmp_path, [255], name="nothing")
    source = load(tmp_path, task="segment")
    assert source.classes == ("0", "1", "2", "3")
    assert source.automatic
    assert [len(s) for s in (source.train, source.val, source.test)] == [17, 2, 2]
    counts = torch.stack([s.counts(4) for s in source.splits.values()])
    assert counts.sum(0).tolist() == [20, 10, 0, 10]
    rows = torch.cat([split.labels for split in source.splits.values()])
    assert sorted(rows.sum(1).tolist()) == [0] + [1] * 20
    mask(tmp_path / "masks" / "nothing.png", [0])
    assert load(tmp_path, task="segment").digest != source.digest


def test_names_come_from_a_yaml_file_and_those_between_are_numbers(tmp_path):
    path = pair(tmp_path, [0, 3])
    for text in ("names: {0: sky, 3: sea}", "path: x\nclasses:\n  0: sky\n  3: sea\n"):
        (tmp_path / "classes.yaml").write_text(text)
        assert load(tmp_path, task="segment").classes == ("sky", "1", "2", "sea")
    mask(path, [0, 1, 3, 4])
    with pytest.raises(Refused, match=r"masks/a\.png: values \[1, 4\] are no classes"):
        load(tmp_path, task="segment")


def test_masks_that_cannot_be_used_are_named(tmp_path):
    pair(tmp_path, [0, 1])
    pair(tmp_path, [0, 1], name="colour", mode="RGB")
    pair(tmp_path, [0, 1], name="broken").write_bytes(b"\x89PNG")
    picture(tmp_path / "images" / "large.jpg", size=(41, 30))
    mask(tmp_path / "masks" / "large.png", [0, 1])
    mask(tmp_path / "masks" / "alone.png", [0, 1])
    picture(tmp_path / "images" / "bare.jpg")
    with pytest.raises(Refused) as caught:
        load(tmp_path, task="segment")
    assert caught.value.exit_code == 3
    refused = {place.rsplit("/", 1)[1]: reason for place, reason in caught.value.refused}
    assert sorted(refused) == ["broken.png", "colour.png", "large.png"]
    assert "RGB" in refused["colour.png"]
    assert "40 x 30" in refused["large.png"]
    for name in refused:
        (tmp_path / "masks" / name).unlink()
    assert load(tmp_path, task="segment").problems == (
        (str(tmp_path / "masks" / "alone.png"), "no such image"),
        (str(tmp_path / "images"), "4 of 5 images have no mask and are left out"),
    )


def test_a_foreground_of_255_is_told(tmp_path):
    pair(tmp_path, [0, 255])
    with pytest.raises(DataError, match=r"(?s)hold 1 classes.*has to become 1"):
        load(tmp_path, task="segment")


def test_another_layout_is_told(tmp_path):
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"no images with masks .*images/ and masks/"):
        load(tmp_path, task="segment")


@pytest.mark.slow
def test_coco128_has_its_masks_and_names(shared):
    root = shared / "data" / "coco128"
    source = load(root, task="segment")
    assert len(source.classes) == 201
    assert (source.classes[0], source.classes[12], source.classes[200]) == (
        "unlabeled",
        "12",
        "rug-merged",
    )
    for split in (source.train, source.val):
        assert len(split) == 100
        assert split.labels.sum(1).tolist() == pytest.approx([1] * 100)
        with Image.open(split.masks[7]) as picture:
            found = np.bincount(np.asarray(picture).ravel(), minlength=201) / np.prod(picture.size)
        assert split.labels[7].tolist() == pytest.approx(found.tolist(), abs=1e-6)
    assert [reason for _, reason in source.problems] == [
        "28 of 128 images have no mask and are left out"
    ] * 2
