"""What data says otherwise than it seems to: each is read right, refused, or noted with a count."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from resnets.data import load
from resnets.data.assemble import find_copies
from resnets.data.dataset import guess_task
from resnets.errors import DataError, DataErrors

from ._helpers import classes, picture

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def indexed(path, values, palette):
    """A mask of 40 x 30 pixels in columns of `values`, and its image."""
    picture(path.parent.parent / "images" / f"{path.stem}.jpg", size=(40, 30))
    path.parent.mkdir(exist_ok=True)
    pixels = np.tile(np.repeat(values, 40 // len(values)), (30, 1)).astype(np.uint8)
    image = Image.fromarray(pixels, "P")
    grey = [(k, k, k) for k in range(len(palette), 256)]
    image.putpalette([channel for colour in (*palette, *grey) for channel in colour])
    image.save(path)


def test_palettes_that_contradict_each_other_are_refused(tmp_path):
    indexed(tmp_path / "masks/a.png", [0, 1], [BLUE, RED, GREEN])
    indexed(tmp_path / "masks/b.png", [0, 2], [BLUE, GREEN, RED])
    indexed(tmp_path / "masks/c.png", [0, 1], [BLUE, RED, GREEN])
    with pytest.raises(DataErrors) as caught:
        load(tmp_path, task="segment")
    ((_, reason),) = caught.value.refused
    assert reason.startswith("1 mask has palettes that contradict others, first ")
    assert f"b.png: RGB {RED} is 2, but 1 in {tmp_path / 'masks/a.png'}; save all" in reason


def test_other_colours_of_one_value_are_noted(tmp_path):
    indexed(tmp_path / "masks/a.png", [0, 1], [BLUE, RED, GREEN])
    indexed(tmp_path / "masks/b.png", [0, 1], [BLUE, GREEN, RED])
    (note,) = load(tmp_path, task="segment").notes
    assert "1 mask has other colours for their values; the value is the class" in note
    assert f"b.png: 1 is RGB {GREEN}, but {RED} in" in note


def test_images_to_test_on_that_are_for_training_too_are_noted(tmp_path):
    for split in ("train", "val", "test"):
        classes(tmp_path / split, {"a": 3, "b": 3})
    assert load(tmp_path).notes == ()  # files of one size, but of other bytes
    top = tmp_path / "train" / "a"
    for split, name in (("test", "b/copy.png"), ("val", "a/000.png"), ("test", "a/001.png")):
        (tmp_path / split / name).write_bytes((top / "000.png").read_bytes())
    (tmp_path / "train" / "b" / "000.png").write_bytes(b"")
    (tmp_path / "val" / "b" / "000.png").write_bytes(b"")  # unreadable files are not compared
    notes = load(tmp_path, max_unreadable=0.5).notes
    assert [note.removeprefix(f"{tmp_path}: ") for note in notes] == [
        f"{count} of {split} {verb} in train too, byte for byte, so its figures are too good, "
        f"first {tmp_path / split / 'a' / name}, which is {top / '000.png'}; remove one of each"
        for count, verb, split, name in (
            ("1 image", "is", "val", "000.png"),
            ("2 images", "are", "test", "001.png"),
        )
    ] + [
        "1 image has copies of another class, byte for byte, first "
        f"{tmp_path / 'test/b/copy.png'}, which is {top / '000.png'}"
    ]


def test_copies_are_those_of_equal_bytes(tmp_path):
    contents = [b"a" * 70_000, b"a" * 69_999 + b"b", b"c" + b"a" * 69_999, b"a" * 70_000, b"a"]
    paths = [tmp_path / str(k) for k in range(5)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert find_copies(paths) == [[paths[0], paths[3]]]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (
            ["1", "1.0", "2"],
            "1 group of classes has names .* first '1' and '1.0'",
        ),
        (
            ["1", "01", "2"],
            "1 group of classes has names .* first '01' and '1'",
        ),
        (
            ["cat", "NaN", "dog"],
            "8 labels are read as a class, each like .*, first 'NaN' in line 3 of .*; if",
        ),
        (["cat", "<NA>", "dog"], "8 labels are read as a class, each like a missing value"),
        (["a", "b;c", "d"], "8 labels have , ; or .*; write several as cat.dog, first 'b;c'"),
        (["a", "[b]", "d"], "read as one class"),
        (["1.5", "15", "2"], None),
        (["v1.0", "v1", "2"], None),
    ],
)
def test_labels_that_spreadsheets_change_are_noted(tmp_path, labels, note):
    for k in range(24):
        picture(tmp_path / f"{k}.png", shade=k)
    lines = [f"{k}.png,{labels[k % 3]}" for k in range(24)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *lines]))
    source = load(tmp_path / "table.csv")
    assert source.classes == tuple(sorted(labels))
    notes = [text for text in source.notes if "random split leaves" not in text]
    assert len(notes) == (note is not None)
    if note:
        assert re.search(note, notes[0])


def test_folders_that_are_named_as_folds_are_noted(tmp_path):
    classes(tmp_path, {"fold1": 9, "fold2": 9})
    first = [note for note in load(tmp_path).notes if "named like parts" in note]
    assert len(first) == 1
    assert "2 folders are named like parts of one data set, and are read as classes" in first[0]
    assert "fold1; if they are folds, merge them or list the images in a CSV file" in first[0]


def yolo(root, rows):
    for k, row in enumerate(rows):
        picture(root / f"train/{k}.png", shade=k, size=(40, 30))
        (root / f"train/{k}.txt").write_text(row)
    (root / "data.yaml").write_text("train: train\nnames: [cell]\n")


def test_rows_of_yolo_that_are_corners_are_refused(tmp_path):
    corners = ["0 .1 .1 .4 .5", "0 .2 .3 .9 .95", "0 .5 .5 .55 .6", "0 .6 .1 .9 .8"]
    yolo(tmp_path, corners)
    with pytest.raises(DataErrors, match="3 of 4 boxes leave their images as x, y of the centre"):
        load(tmp_path, task="detect")
    yolo(tmp_path, ["0 .5 .5 .6 .6", "0 .2 .3 .3 .5", "0 .7 .7 .2 .2", "0 .45 .5 1 .9"])
    source = load(tmp_path, task="detect")
    assert source.train.objects.boxes[0, 0].tolist() == pytest.approx([8, 6, 32, 24])


def coco(root, boxes, areas):
    picture(root / "1.png", size=(100, 100))
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "bbox": box} | area
        for k, (box, area) in enumerate(zip(boxes, areas, strict=True))
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": annotations,
    }
    (root / "x.json").write_text(json.dumps(content))
    return root / "x.json"


def test_boxes_of_coco_that_fit_as_corners_too_are_noted_or_refused_by_their_areas(tmp_path):
    boxes = [[k, k + 1, 30 + k, 20 + 2 * k] for k in range(12)]  # none leaves the image
    (note,) = load(coco(tmp_path, boxes, [{}] * 12), task="detect").notes
    assert "all 12 boxes fit as x1, y1, x2, y2 too; they are read as x, y, width, height" in note
    areas = [{"area": (x2 - x1) * (y2 - y1)} for x1, y1, x2, y2 in boxes]
    with pytest.raises(DataErrors, match="the areas of all 12 boxes are those of x1, y1, x2, y2"):
        load(coco(tmp_path, boxes, areas), task="detect")
    areas = [{"area": width * height} for _, _, width, height in boxes]
    assert load(coco(tmp_path, boxes, areas), task="detect").notes == ()
    assert load(coco(tmp_path, boxes[:9], [{}] * 9), task="detect").notes == ()
    assert load(coco(tmp_path, [*boxes, [50, 50, 9, 9]], [{}] * 13), task="detect").notes == ()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["40,31,1,2,9,9"], "annotated as 40 x 31 pixels, but it has 40 x 30"),
        (["40,30,1,2,9,9", "30,40,3,3,7,7"], "line 3: broken: height and width .40, 30., but"),
        (["-40,30,1,2,9,9"], "line 2: broken: an image of '-40' x '30' pixels"),
    ],
)
def test_sizes_in_a_csv_of_boxes_have_to_be_those_of_the_images(tmp_path, rows, message):
    picture(tmp_path / "1.png", size=(40, 30))
    table = tmp_path / "boxes.csv"
    head = "path,width,height,x1,y1,x2,y2,label\n"
    table.write_text(head + "\n".join(f"1.png,{row},cell" for row in rows))
    with pytest.raises(DataErrors, match=message):
        load(table, task="detect")
    table.write_text(f"{head}1.png,8,7,1,2,9,9,cell\n1.png,4,5,3,3,7,8,cell\n")
    (note,) = load(table, task="detect").notes
    assert "width and height are those of the boxes, and are not used" in note


def voc(root):
    """VOC's own layout, with an image without a mask and one in no list."""
    for k, name in enumerate("abcd"):
        indexed(root / f"masks/{name}.png", [0, 1, 255, k % 2], [BLUE, RED, GREEN])
    picture(root / "images/bare.jpg", size=(40, 30))
    (root / "images").rename(root / "JPEGImages")
    (root / "masks").rename(root / "SegmentationClass")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, text in {"train": "a\n", "val": "b\n", "trainval": "a\nb\nc\n"}.items():
        (lists / f"{name}.txt").write_text(text)
    return {"train": ["a", "c"], "val": ["b"]}


def ade20k(root):
    for split, name in (("training", "a"), ("validation", "b")):
        indexed(root / split / f"masks/{name}.png", [0, 1], [BLUE, RED])
        for kind, folder in (("images", "images"), ("masks", "annotations")):
            (root / folder).mkdir(exist_ok=True)
            (root / split / kind).rename(root / folder / split)
        (root / split).rmdir()
    return {"train": ["a"], "val": ["b"]}


def beside(root, folder="."):
    """x.png and x_mask.png in one folder, as BUSI's."""
    for name in "ab":
        indexed(root / f"masks/{name}.png", [0, 1], [BLUE, RED])
        to = root / folder
        to.mkdir(exist_ok=True)
        (root / f"images/{name}.jpg").rename(to / f"{name}.jpg")
        (root / f"masks/{name}.png").rename(to / f"{name}_mask.png")
    for folder in ("images", "masks"):
        (root / folder).rmdir()
    return {"train": ["a", "b"]}


def masks_with_a_suffix(root):
    for split in ("train", "val"):
        indexed(root / f"masks/{split}.png", [0, 1], [BLUE, RED])
        for kind, end in (("images", ".jpg"), ("masks", "_mask.png")):
            new = root / split / kind / f"{split}{end}"
            new.parent.mkdir(parents=True)
            (root / kind / f"{split}.{'jpg' if kind == 'images' else 'png'}").rename(new)
    for kind in ("images", "masks"):
        (root / kind).rmdir()
    return {"train": ["train"], "val": ["val"]}


@pytest.mark.parametrize(
    ("make", "notes", "problems"),
    [
        (
            voc,
            ["1 image is in no list of ImageSets/Segmentation, so left out"],
            ["1 of 5 images has no mask, so left out"],
        ),
        (ade20k, [], []),
        (beside, [], []),
        (lambda root: beside(root, "benign"), [], []),
        (masks_with_a_suffix, [], []),
    ],
)
def test_layouts_of_masks(tmp_path, make, notes, problems):
    splits = make(tmp_path)
    assert guess_task(tmp_path) == "segment"
    source = load(tmp_path, task="segment")
    assert {s: [p.stem for p in part.images] for s, part in source.splits.items()} == splits
    for part in source.splits.values():
        assert [p.stem.removesuffix("_mask") for p in part.masks] == [p.stem for p in part.images]
    assert [reason for _, reason in source.problems] == problems
    assert len(source.notes) == len(notes)
    assert all(text in note for text, note in zip(notes, source.notes, strict=True))


def test_boxes_in_annotations_are_no_masks(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").write_text("{}")
    with pytest.raises(DataError, match="no images with masks"):
        load(tmp_path, task="segment")


def test_a_yaml_file_that_names_an_outside_folder_says_where_to_copy_it(tmp_path):
    yolo(tmp_path / "data", ["0 .5 .5 .2 .2"])
    (tmp_path / "own").mkdir()
    table = tmp_path / "own/data.yaml"
    table.write_text(f"path: {tmp_path / 'data'}\ntrain: train\nnames: [cell]\n")
    with pytest.raises(DataError, match=rf"Copy data\.yaml into {tmp_path / 'data'}, or") as caught:
        load(table, task="detect")
    assert len(str(caught.value).splitlines()) == 3
    (tmp_path / "data/data.yaml").write_text(table.read_text())
    assert len(load(tmp_path / "data/data.yaml", task="detect").train) == 1
