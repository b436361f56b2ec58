import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.data import load
from resnets.data.dataset import guess_task
from resnets.data.joint_transforms import class_map
from resnets.errors import DataError, DataErrors

from ._helpers import picture


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
    assert guess_task(tmp_path) == "segment"
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


def test_values_far_apart_without_names_are_refused_and_few_gaps_noted(tmp_path):
    path = pair(tmp_path, [0, 128])
    with pytest.raises(DataErrors, match="values are 0, 128; 127 classes below 128 have no pixel"):
        load(tmp_path, task="segment")
    mask(path, [*range(0, 78, 2), 200], mode="L")  # as of a mask that was resized
    with pytest.raises(DataErrors, match=r"values are 0, 2, 4, 6, 8, 10, \.\.\.; 161 classes"):
        load(tmp_path, task="segment")
    mask(path, [0, 3])
    notes = load(tmp_path, task="segment").notes
    assert any("values are 0, 3; 2 classes below 3 have no pixel" in note for note in notes)


def test_names_come_from_a_yaml_file_and_those_between_are_numbers(tmp_path):
    path = pair(tmp_path, [0, 3])
    for text in ("names: {0: sky, 3: sea}", "path: x\nclasses:\n  0: sky\n  3: sea\n"):
        (tmp_path / "classes.yaml").write_text(text)
        assert load(tmp_path, task="segment").classes == ("sky", "1", "2", "sea")
    mask(path, [0, 1, 3, 4])
    with pytest.raises(DataErrors, match=r"masks/a\.png: values \[1, 4\] are not classes"):
        load(tmp_path, task="segment")


def test_masks_that_cannot_be_used_are_named(tmp_path):
    pair(tmp_path, [0, 1])
    pair(tmp_path, [0, 1], name="colour", mode="RGB")
    pair(tmp_path, [0, 1], name="broken").write_bytes(b"\x89PNG")
    picture(tmp_path / "images" / "large.jpg", size=(41, 30))
    mask(tmp_path / "masks" / "large.png", [0, 1])
    mask(tmp_path / "masks" / "alone.png", [0, 1])
    picture(tmp_path / "images" / "bare.jpg")
    with pytest.raises(DataErrors) as caught:
        load(tmp_path, task="segment")
    assert caught.value.exit_code == 3
    refused = {place.rsplit("/", 1)[1]: reason for place, reason in caught.value.refused}
    assert sorted(refused) == ["broken.png", "colour.png", "large.png"]
    assert "RGB" in refused["colour.png"]
    assert "40 x 30" in refused["large.png"]
    for name in refused:
        (tmp_path / "masks" / name).unlink()
    assert load(tmp_path, task="segment").problems == (
        (str(tmp_path / "masks" / "alone.png"), "no image of this name"),
        (str(tmp_path / "images"), "4 of 5 images have no mask, so left out"),
    )


def grey_png(path, values, bits):
    """A grey PNG as optimisers store it: `bits` a value."""
    height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % (8 // bits))))
    digits = np.unpackbits(padded[..., None].astype(np.uint8), axis=2)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(height, -1), axis=1)

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("indexed", [False, True])
def test_the_value_as_it_is_stored_is_the_class(tmp_path, bits, indexed):
    values = (np.arange(30 * 41).reshape(30, 41) % min(2**bits, 40)).astype(np.uint16)
    path = tmp_path / "mask.png"
    if bits == 16:
        Image.fromarray(values).save(path)
    elif indexed:
        picture = Image.fromarray(values.astype(np.uint8), "P")
        picture.putpalette([k * 7 % 256 for k in range(3 * 2**bits)])
        picture.save(path, bits=bits)
    else:
        grey_png(path, values, bits)
    assert np.array_equal(class_map(path, 30, 41), values)


def test_a_mask_of_16_bits_with_great_values_is_refused(tmp_path):
    Image.fromarray(np.full((30, 40), 1000, np.uint16)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="its value 1000 is over 255"):
        class_map(tmp_path / "mask.png", 30, 40)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            [0, 255],
            "back\nfront\n",
            r"1 of 2 .* 'front' \(1\).*50.0% of the pixels.* 255 -> 1",
        ),
        (
            [0, 1, 255, 255],
            "a\nb\nc\n",
            r"1 of 3 .* 'c' \(2\).*50.0% of the pixels.* 255 -> 2",
        ),
        ([0, 0], "back\nfront\n", r"1 of 2 .* 'front' \(1\).*remove the names of absent classes"),
    ],
)
def test_a_named_class_without_a_pixel_is_refused(tmp_path, values, names, message):
    pair(tmp_path, values)
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataErrors, match=message):
        load(tmp_path, task="segment")


def test_a_foreground_of_255_in_some_masks_is_noted(tmp_path):
    pair(tmp_path, [0, 1], name="a", mode="1")
    pair(tmp_path, [0, 255], name="b", mode="L")
    pair(tmp_path, [1, 255], name="c", mode="L")
    path = pair(tmp_path, [0, 0], name="d", mode="L").with_name("b.png")
    (note,) = load(tmp_path, task="segment").notes
    told = f"1 of 4 masks has no values but 0 and 255, which is ignored, first {path}: if 255 is"
    assert told in note


def test_few_of_many_named_classes_are_noted(tmp_path):
    pair(tmp_path, [0, 1])
    (tmp_path / "other").mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\n\ne\n")
    source = load(tmp_path, task="segment")
    assert source.classes == ("a", "b", "c", "3", "e")
    assert [note.split(": ")[1] for note in source.notes] == [
        "2 of 4 named classes have no pixel in any mask, first 'c' (2)",
        f"1 folder is not read, first {tmp_path / 'other'}",
    ]


def test_masks_that_are_no_png_and_names_that_stand_twice_are_refused(tmp_path):
    pair(tmp_path, [0, 1])
    picture(tmp_path / "images" / "b.jpg", size=(40, 30))
    picture(tmp_path / "masks" / "b.jpg", size=(40, 30))
    picture(tmp_path / "images" / "a.png", size=(40, 30))
    with pytest.raises(DataErrors) as caught:
        load(tmp_path, task="segment")
    assert [reason[:26] for _, reason in caught.value.refused] == [
        "another image is called a.",
        "1 mask is not PNG, this fi",
    ]


def test_a_foreground_of_255_is_told(tmp_path):
    pair(tmp_path, [0, 255])
    for values in ([0, 255], [255, 1]):  # with 255 as the background, too
        mask(tmp_path / "masks" / "a.png", values)
        with pytest.raises(DataError, match=r"(?s)fewer than two.*use 1 for the foreground"):
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
        "28 of 128 images have no mask, so left out"
    ] * 2
