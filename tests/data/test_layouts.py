"""Boxes as people's tools lay them out and write them: each is read right, or refused with why."""

import json
import unicodedata

import numpy as np
import pytest

from resnets.data import load
from resnets.data.dataset import guess_task
from resnets.data.issues import parse_flag, parse_number
from resnets.data.paths import split_in_name
from resnets.errors import DataError, DataErrors
from tests._helpers import needs_links

from ._helpers import picture, rows_of

BOX, XYWH = [10, 10, 30, 25], [10, 10, 20, 15]  # of 40 x 30 pixels
ROW = "0 .5 .58333333 .5 .5"
XML = (
    "<annotation><filename>{name}</filename>"
    "<size><width>40</width><height>30</height></size><object><name>cell</name><bndbox>"
    "<xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
    "</annotation>"
)


def images(root, *names):
    for k, name in enumerate(names):
        picture(root / name, shade=5 * k, size=(40, 30))


def coco(path, *names, first=1, **changes):
    """A COCO file of a box in each image; `changes` of every annotation."""
    numbers = range(first, first + len(names))
    entry = {"category_id": 1, "bbox": XYWH, "iscrowd": 0}
    content = {
        "images": [
            {"id": k, "file_name": name, "width": 40, "height": 30}
            for k, name in zip(numbers, names, strict=True)
        ],
        "annotations": [entry | {"id": k, "image_id": k} | changes for k in numbers],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def xml(path, box=(11, 11, 30, 25), name="", text=XML):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(*box, name=name), encoding="utf-8")


def label(path, text=ROW):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def boxes_of(source):
    """{split: {name of the image: its boxes, class and kind}}."""
    return {
        split: {
            path.name: rows[rows[:, 5] > 0].round().int().tolist()
            for path, rows in zip(s.images, rows_of(s.objects), strict=True)
        }
        for split, s in source.splits.items()
    }


def one_box(source, splits):
    """Whether each image of the splits has the box, of class 0, in the image of that name."""
    return boxes_of(source) == {
        split: {name: [[*BOX, 0, 1]] for name in names} for split, names in splits.items()
    }


def cvat(root):
    images(root, "images/default/a/1.png", "images/default/b/1.png")
    coco(root / "annotations/instances_default.json", "a/1.png", "b/1.png")


def cvat_subsets(root):
    images(root, "images/Train/1.png", "images/Validation/1.png")
    coco(root / "annotations/instances_Train.json", "1.png")
    coco(root / "annotations/instances_Validation.json", "1.png")


def roboflow(root):
    for split in ("train", "valid", "test"):
        images(root, f"{split}/1.png")
        coco(root / split / "_annotations.coco.json", "1.png")


def label_studio(root):
    images(root, "images/1.png")
    coco(root / "result.json", "images\\1.png")
    (root / "notes.json").write_text('{"categories": [], "info": {}}')


def copies(root):
    images(root, "train2017/1.png", "val2017/1.png")
    images(root, "1.png")
    coco(root / "annotations/instances_train2017.json", "1.png")
    coco(root / "annotations/instances_val2017.json", "1.png")


def moved(root):
    images(root, "images/1.png")
    coco(root / "annotations/instances.json", "C:\\Users\\me\\images\\1.png")


def trainval(root):
    images(root, *(f"images/{k}.png" for k in range(4)))
    names = [f"{k}.png" for k in range(4)]
    coco(root / "annotations/instances_trainval.json", *names[:3])
    coco(root / "annotations/instances_val.json", names[2], first=3)
    coco(root / "annotations/instances_test-dev.json", names[3], first=4)
    coco(root / "annotations/captions_train.json", names[3])


def other_case(root):
    names = ["Käfer 1.JPG", "sub/2.png"]
    images(root, *(f"Data/{unicodedata.normalize('NFD', name)}" for name in names))
    written = [unicodedata.normalize("NFC", name).lower() for name in names]
    coco(root / "annotations/instances.json", *written)


def labelimg(root):
    images(root, "images/1.png", "images/2.png")
    for k in (1, 2):
        xml(root / f"annotations/{k}.xml")
    (root / "images/1.json").write_text("{}")


def labelimg_flat(root):
    images(root, "1.png")
    xml(root / "1.XML", text="\ufeff" + XML)


def voc_in_splits(root):
    for split in ("train", "valid"):
        images(root, f"{split}/1.png")
        xml(root / split / "1.xml")


def voc_lists(root):
    names = ["a b", "a", "Ä.1", "d", "e"]
    images(root, *(f"JPEGImages/{name}.png" for name in names))
    images(root, "SegmentationClass/d.png")
    for name in names:
        xml(root / f"Annotations/{name}.xml", text="<?xml version='1.0' encoding='utf-8'?>" + XML)
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("\ufeffa b\r\na\r\nÄ.1.jpg\r\n", encoding="utf-8")
    (lists / "val.txt").write_text("JPEGImages\\a.png\n\n")
    (lists / "test.txt").write_text("d\n")
    (lists / "cell_train.txt").write_text("e 1\n")


def voc_named_inside(root):
    images(root, "JPEGImages/photo.png")
    xml(root / "Annotations/1.xml", name="C:\\x\\photo.jpg")


def voc_gbk(root):
    images(root, "JPEGImages/1.png")
    head = "<?xml version='1.0' encoding='GBK'?>"
    (root / "Annotations").mkdir()
    text = head + XML.format(11, 11, 30, 25, name="\u56fe.png")
    (root / "Annotations/1.xml").write_bytes(text.encode("gbk"))


def voc_years(root):
    """As VOCdevkit: years in one folder, with lists in ImageSets/Main, ImageSets, or beside."""
    for year, lists in (("VOC2007", "ImageSets/Main/"), ("VOC2012", "ImageSets/"), ("mine", "")):
        for split in ("train", "test"):
            name = f"{year}-{split}"
            images(root, f"{year}/JPEGImages/{name}.jpg", f"{year}/SegmentationClass/{name}.png")
            xml(root / year / f"Annotations/{name}.xml", name=f"{name}.jpg")
            line = name if lists else f"./JPEGImages/{name}.jpg ./Annotations/{name}.xml"
            label(root / year / f"{lists}{split}.txt", f"{line}\n")
    label(root / "VOC2007/ImageSets/Main/cell_val.txt", "VOC2007-train 1\n")


def voc_lists_of_classes(root):
    images(root, "JPEGImages/1.png")
    xml(root / "Annotations/1.xml")
    label(root / "ImageSets/Main/cell_train.txt", "1  1\n")


def roboflow_groups(root):
    """Category 0 is the group; it has the name of the class in it, and no test split was made."""
    for split in ("train", "valid"):
        images(root, f"{split}/1.png")
        table = root / split / "_annotations.coco.json"
        coco(table, "1.png")
        edited(table, lambda c: c.update(categories=[{"id": k, "name": "cell"} for k in (0, 1)]))
    edited(table, lambda c: c.update(images=[], annotations=[]))


def yolo_without_test(root):
    yolo_elsewhere(root)
    table = (
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [cell, dust]\n"
    )
    (root / "data.yaml").write_text(table)


def yolo_beside_below_images(root):
    images(root, "images/set/train/1.png")
    label(root / "images/set/train/1.txt")
    (root / "data.yaml").write_text("train: images/set/train\nnames: [cell, dust]\n")


def yolo_upper_case(root):
    images(root, "Train/Images/1.PNG")
    label(root / "Train/Labels/1.TXT")
    (root / "data.YML").write_text("train: train/images\nnames: {'0': cell, '1': dust}\n")


def yolo_suffixes(root):
    images(root, "train/1.png")
    (root / "train/1.png").rename(root / "train/1.jfif")
    images(root, "train/2.jpg")
    (root / "train/2.jpg").rename(root / "train/2.mpo")
    for k in (1, 2):
        label(root / f"train/{k}.txt")
    (root / "train/3.heic").write_text("")
    (root / "data.yaml").write_text("train: train\nnames: [cell, dust]\n")


def yolo_classes(root):
    for split in ("train", "valid"):
        images(root, f"{split}/images/1.png")
        label(root / f"{split}/labels/1.txt")
    (root / "classes.txt").write_text("cell\r\ndust\r\n")


def yolo_lists(root):
    images(root, "obj_train_data/1.png", "obj_train_data/2.png")
    for k in (1, 2):
        label(root / f"obj_train_data/{k}.txt")
    (root / "obj.names").write_text("cell\ndust\n")
    (root / "train.txt").write_text("data\\obj_train_data\\1.png\n")
    (root / "valid.txt").write_text("/content/data/obj_train_data/2.png\n")


def yolo_elsewhere(root):
    images(root, "train/images/1.png", "valid/images/1.png")
    for split in ("train", "valid"):
        label(root / split / "labels/1.txt")
    table = "path: C:\\data\ntrain: ../train/images\nval: /content/x/valid/images\ntest: null\n"
    (root / "data.yaml").write_text(table + "nc: 3\nnames:\n- cell\n- dust\n")


def yolo_rows(root):
    images(root, "train/1.png")
    polygon = "1 .25 .3333333 .75 .3333333 .75 .833333"
    label(root / "train/1.txt", f"\ufeff0.0\t5e-1 .58333333 .5 .5\r\n\r\n{polygon}\r\n")
    (root / "data.yaml").write_text("train: train\nnames: [cell, dust]\n")


LAYOUTS = {
    cvat: ({"train": ["1.png", "1.png"]}, ["2 images are found under another path"]),
    cvat_subsets: ({"train": ["1.png"], "val": ["1.png"]}, []),
    roboflow: ({"train": ["1.png"], "val": ["1.png"], "test": ["1.png"]}, []),
    label_studio: ({"train": ["1.png"]}, ["1 image is found under another path"]),
    copies: ({"train": ["1.png"], "val": ["1.png"]}, ["2 images are in several folders"]),
    moved: ({"train": ["1.png"]}, ["1 image is found under another path"]),
    trainval: (
        {"train": ["0.png", "1.png"], "val": ["2.png"], "test": ["3.png"]},
        ["1 JSON file is not read", "2 of 3 images of trainval are read as train"],
    ),
    other_case: (
        {"train": [unicodedata.normalize("NFD", "Käfer 1.JPG"), "2.png"]},
        ["2 images are found under another path"],
    ),
    labelimg: ({"train": ["1.png", "2.png"]}, []),
    labelimg_flat: ({"train": ["1.png"]}, []),
    voc_in_splits: ({"train": ["1.png"], "val": ["1.png"]}, []),
    voc_lists: (
        {"train": ["a b.png", "Ä.1.png"], "val": ["a.png"], "test": ["d.png"]},
        ["1 XML file is in no list", "2 of 3 images of trainval", "1 image beside these"],
    ),
    voc_years: (
        {s: [f"VOC2007-{s}.jpg", f"VOC2012-{s}.jpg", f"mine-{s}.jpg"] for s in ("train", "test")},
        [],
    ),
    voc_lists_of_classes: ({"train": ["1.png"]}, ["1 list is named for no split, so not read"]),
    roboflow_groups: (
        {"train": ["1.png"]},
        ["2 category ids without objects are left out"],
    ),
    yolo_without_test: (
        {"train": ["1.png"], "val": ["1.png"]},
        ["is read as", "is read as", "there is no '../test/images', so no test split"],
    ),
    voc_named_inside: ({"train": ["photo.png"]}, ["1 annotation is of the image named inside"]),
    voc_gbk: ({"train": ["1.png"]}, []),
    yolo_beside_below_images: ({"train": ["1.png"]}, []),
    yolo_upper_case: ({"train": ["1.PNG"]}, ["is read as"]),
    yolo_suffixes: (
        {"train": ["1.jfif", "2.mpo"]},
        ["1 file without an image's suffix is not read"],
    ),
    yolo_classes: ({"train": ["1.png"], "val": ["1.png"]}, []),
    yolo_lists: (
        {"train": ["1.png"], "val": ["2.png"]},
        ["2 images are found under another path"],
    ),
    yolo_elsewhere: (
        {"train": ["1.png"], "val": ["1.png"]},
        ["nc is '3', but names are 2", "'/content/x/valid/images' is read as"],
    ),
}


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_layout_is_read_and_what_was_assumed_is_noted(tmp_path, make):
    splits, notes = LAYOUTS[make]
    make(tmp_path)
    assert guess_task(tmp_path) == "detect"
    source = load(tmp_path, task="detect")
    assert one_box(source, splits)
    assert source.problems == ()
    said = [note for note in source.notes if "no object to learn from" not in note]
    assert len(said) == len(notes), said
    for part, note in zip(notes, said, strict=True):
        assert part in note


def test_rows_of_yolo_with_marks_tabs_exponents_and_a_polygon(tmp_path):
    yolo_rows(tmp_path)
    source = load(tmp_path, task="detect")
    assert boxes_of(source) == {"train": {"1.png": [[*BOX, 0, 1], [10, 10, 30, 25, 1, 1]]}}
    assert "1 row has a polygon" in source.notes[0]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"iscrowd": "0"}, 1),
        ({"iscrowd": "False"}, 1),
        ({"iscrowd": None}, 1),
        ({"bbox": ["10", "10.0", "2e1", "15"]}, 1),
        ({"category_id": "1"}, 1),
        ({"category_id": 1.0}, 1),
        ({"segmentation": []}, 1),
        ({"segmentation": [[]]}, 1),
        ({"iscrowd": True}, 2),
        ({"iscrowd": "1"}, 2),
        ({"iscrowd": "true"}, 2),
        ({"ignore": 1}, 2),
    ],
)
def test_values_of_coco_as_texts_and_marks(tmp_path, changes, kind):
    images(tmp_path, "1.png", "2.png")
    coco(tmp_path / "x.json", "1.png", "2.png")
    edited(tmp_path / "x.json", lambda content: content["annotations"][1].update(changes))
    source = load(tmp_path / "x.json", task="detect")
    assert boxes_of(source) == {"train": {"1.png": [[*BOX, 0, 1]], "2.png": [[*BOX, 0, kind]]}}
    texts = any(isinstance(v, str) for v in [*changes.values(), *changes.get("bbox", [])])
    assert texts == any("numbers written as texts" in note for note in source.notes)
    assert ("ignore" in changes) == any("marked `ignore`" in note for note in source.notes)


@pytest.mark.parametrize("kind", [str, float])
def test_ids_are_the_same_as_text_and_number(tmp_path, kind):
    images(tmp_path, *(f"{k}.png" for k in range(4)))
    coco(tmp_path / "x.json", *(f"{k}.png" for k in range(4)), first=0)
    edited(
        tmp_path / "x.json",
        lambda content: [
            a.update(image_id=kind(a["image_id"])) for a in content["annotations"][::2]
        ],
    )
    names = [f"{k}.png" for k in range(4)]
    assert one_box(load(tmp_path / "x.json", task="detect"), {"train": names})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["images"][1].update(id=1), "the id 1 is used twice: '1.png' and '2.png'"),
        (lambda c: c["images"][1].update(id="1"), "the id '1' is used twice: '1.png' and '2.png'"),
        (lambda c: c["categories"][1].update(id=1), "the id 1 is used twice: 'cell' and 'dust'"),
        (lambda c: c["images"][1].update(file_name="1.png"), "'1.png' is the file of two images"),
        (lambda c: c["images"][0].update(file_name="a" * 5000, id=1.5), "the id 1.5 is neither"),
        (lambda c: c["images"][1].update(file_name=3), "file_name is 3, not a string"),
        (lambda c: c["images"][1].update(width=-40), "-40 x 30"),
        (lambda c: c["images"][1].update(width="wide"), "'wide' is not a number"),
        (lambda c: c["images"][1].update(id=None), "the id None is neither"),
        (lambda c: c["images"][1].update(id=True), "the id True is neither"),
        (lambda c: c["categories"][0].update(name=None), "name is None, not a string"),
        (lambda c: c["categories"][0].update(name=["cell"]), r"name is \['cell'\], not a string"),
        (lambda c: c["categories"][0].update(name=5), "name is 5, not a string"),
        (lambda c: c["categories"][0].update(name=" "), "name is ' ', not a string"),
        (
            lambda c: c["annotations"][1].update(bbox="1234"),
            "broken: bbox '1234' is no",
        ),
        (
            lambda c: c["annotations"][1].update(bbox={"x": 1}),
            "broken: bbox {'x': 1} is",
        ),
        (lambda c: c.update(annotations=None), "annotations: None is not a list"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), "is not x, y, width, height"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, True, 4]), "True is not a number"),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, "1_0", 4]), "'1_0' is not a number"),
        (lambda c: c["annotations"][1].update(bbox=[30, 20, -9, -9]), "degenerate"),
        (lambda c: c["annotations"][1].update(iscrowd=2), "2 is neither 0 nor 1"),
        (lambda c: c["annotations"][1].update(iscrowd=[0]), r"\[0\] is neither 0 nor 1"),
        (lambda c: c["annotations"][1].update(segmentation=[1.0, 2, 3]), "not a list of polygons"),
        (lambda c: c["annotations"][1].update(segmentation="12"), "'12' is not a list"),
        (lambda c: c["annotations"].insert(0, 7), "annotation 0: broken"),
        (lambda c: c.update(annotations={}), "{} is not a list"),
        (
            lambda c: [a.update(bbox=[20, 10, 40, 30]) for a in c["annotations"]],
            "2 boxes leave their images as x, y, width, height",
        ),
        (
            lambda c: [a.update(bbox=[0.2, 0.1, 0.4, 0.3]) for a in c["annotations"]],
            "all boxes lie within one pixel",
        ),
    ],
)
def test_what_is_wrong_in_coco_is_refused_with_what_was_found(tmp_path, change, reason):
    images(tmp_path, "1.png", "2.png")
    coco(tmp_path / "x.json", "1.png", "2.png")
    edited(tmp_path / "x.json", change)
    with pytest.raises(DataErrors, match=reason) as caught:
        load(tmp_path / "x.json", task="detect")
    assert len(str(caught.value).splitlines()) <= 3


def test_data_of_which_all_objects_are_ignored_is_refused(tmp_path):
    images(tmp_path, "1.png", "2.png")
    coco(tmp_path / "x.json", "1.png", "2.png", iscrowd=1)
    with pytest.raises(DataError, match="2 objects, all of which are ignored: nothing to learn"):
        load(tmp_path / "x.json", task="detect")
    coco(tmp_path / "x.json", "1.png", "2.png", image_id="b")
    message = "no objects: nothing to learn.\n.*: 2 annotations are of an image that the file"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.json", task="detect")


def test_objects_that_only_the_validation_has_are_not_called_ignored(tmp_path):
    images(tmp_path, "images/train/1.png", "images/val/2.png")
    label(tmp_path / "labels/val/2.txt")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    with pytest.raises(DataError, match="1 readable image to train on and no objects: nothing"):
        load(tmp_path, task="detect")


@pytest.mark.parametrize("size", [["30", "40"], [30.0, 40]])
def test_run_lengths_as_floats_and_texts_are_the_same_mask(tmp_path, size):
    images(tmp_path, "1.png")
    runs = [10 * 30 + 10, *[15, 15] * 19, 15, 5 + 10 * 30]
    for counts in (runs, [float(k) for k in runs]):
        coco(tmp_path / "x.json", "1.png", segmentation={"size": size, "counts": counts})
        (((shape,),),) = (load(tmp_path / "x.json", task="detect").train.masks,)
        assert shape[:2] == (30, 40)
        from pycocotools import mask

        drawn = mask.decode({"size": shape[:2], "counts": shape[2]})
        wanted = np.zeros((30, 40), np.uint8)
        wanted[10:25, 10:30] = 1
        assert np.array_equal(drawn, wanted)
    for wrong in ([5, -5, 1200], [1.5, 1198.5], "5", [1199], 7):
        coco(tmp_path / "x.json", "1.png", segmentation={"size": size, "counts": wrong})
        with pytest.raises(DataErrors, match="annotation 1: broken"):
            load(tmp_path / "x.json", task="detect")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("[yes, no]", ("yes", "no")),
        (
            "[on, 010, 1e3, null, ~, 8.0, 2020-99-99]",
            ("on", "010", "1e3", "null", "~", "8.0", "2020-99-99"),
        ),
        ("{0: a, 7: b}", ("a", "b")),
        ("\n  '1': b\n  '0': a", ("a", "b")),
        ("[" + "9" * 5000 + "]", ("9" * 5000,)),
    ],
)
def test_class_names_of_yaml_are_as_they_are_written(tmp_path, names, classes):
    images(tmp_path, "train/1.png")
    label(tmp_path / "train/1.txt")
    (tmp_path / "data.yaml").write_text(f"train: train\nnames: {names}\n")
    assert load(tmp_path, task="detect").classes == tuple(classes)


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{BOMB}train: train\nnames: *a11\n", r"line 2 repeats a part by its name"),
        ("train: train\nnames: &a [*a]\n", "line 2 repeats a part"),
        ("train: train\nnames: [a, '']\n", "the name of class 1 is '', not a string"),
        ("train: train\nnames: [a, [b]]\n", r"the name of class 1 is \['b'\], not a string"),
        ("train: train\nnames: {0: a, 00: b}\n", "the same number for two classes"),
        ("train: train\nnames: {0: a, 0: b}\n", "the key '0' twice"),
        ("train: train\nnames: {-1: a}\n", "mapping from numbers below 10,000: '-1'"),
        ("train: {a: b}\nnames: [a]\n", "neither a path nor a list of paths"),
        ("train: train\nnames: [a]\nd: !!timestamp 2020-99-99\n", "line 3 has a type"),
        ("train: train\nnames: [" + "[" * 5000 + "]" * 5000 + "]", "is not YAML"),
        ("train: train\nnames: [a]\n# " + "x" * 1_000_000, "over 1,000,000 bytes"),
        ("train: /\nnames: [a]\n", "'/' lies outside the file's folder"),
        ("train: ..\nnames: [a]\n", "'..' lies outside"),
        ("train: ../../../../../../../etc/passwd\nnames: [a]\n", "passwd' lies outside"),
        ("path: /etc\ntrain: passwd\nnames: [a]\n", "'passwd' lies outside"),
        ("train: /etc/passwd\nnames: [a]\n", "passwd' lies outside"),
    ],
)
def test_a_yaml_file_that_attacks_or_is_wrong_is_refused(tmp_path, text, message):
    images(tmp_path, "train/1.png")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "data.yaml", task="detect")
    assert len(str(caught.value)) < 500


@needs_links
def test_a_yaml_file_may_name_its_own_folder_by_another_way(tmp_path):
    images(tmp_path, "real/train/1.png")
    label(tmp_path / "real/train/1.txt")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for train in (tmp_path / "real/train", tmp_path / "link", "."):
        (tmp_path / "real/data.yaml").write_text(f"train: {train}\nnames: [cell]\n")
        assert one_box(load(tmp_path / "link", task="detect"), {"train": ["1.png"]})
    for train in ("train/1.png", "data.yaml"):
        (tmp_path / "real/data.yaml").write_text(f"train: {train}\nnames: [cell]\n")
        with pytest.raises(DataError, match="neither a folder nor a list of images"):
            load(tmp_path / "link", task="detect")


def test_lists_and_labels_never_print_what_stands_in_them(tmp_path):
    images(tmp_path, "train/1.png")
    label(tmp_path / "train/1.txt", "root:x:0:0 secret\n")
    secret = tmp_path / "list.txt"
    secret.write_text("root:x:0:0\ntrain/1.png\n../../secret\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [a]\n")
    with pytest.raises(DataErrors) as caught:
        load(tmp_path, task="detect")
    assert [(place.rsplit("/", 1)[1], why) for place, why in caught.value.refused] == [
        ("list.txt, line 1", "names no image file"),
        ("list.txt, line 3", "names no image file"),
        ("1.txt, line 1", "broken: value 1 is not a number"),
    ]
    assert "root" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("0 .5 .5 .2 .2 .93", "6 values, neither a box .* confidence"),
        ("0 .5 .5 .2 .2 .93 17", "a polygon beyond 0 to 1"),
        ("0 .5 .5", "3 values, neither a box"),
        ("0", "1 values, neither a box"),
        ("0 25 25 30 30", "outside the image"),
        ("0 12 12 30 12 30 30", "a polygon beyond 0 to 1"),
        ("0,.5,.5,.2,.2", "value 1 is not a number"),
        ("0.5 .5 .5 .2 .2", "unknown class 'number 0.5'"),
        ("-1 .5 .5 .2 .2", "unknown class 'number -1'"),
        ("inf .5 .5 .2 .2", "unknown class 'number inf'"),
        ("0 .5 .5 inf .2", "not finite"),
        ("1 .5 .5 1_0 .2", "value 4 is not a number"),
    ],
)
def test_rows_that_are_neither_boxes_nor_polygons(tmp_path, row, reason):
    images(tmp_path, "train/1.png")
    label(tmp_path / "train/1.txt", row)
    (tmp_path / "data.yaml").write_text("train: train\nnames: [a]\n")
    with pytest.raises(DataErrors, match=reason):
        load(tmp_path, task="detect")


def test_texts_beside_images_that_are_called_as_lists_are_labels(tmp_path):
    images(tmp_path, "train.png", "val.png", "x.png")
    for name in ("train", "val"):
        label(tmp_path / f"{name}.txt")
    (tmp_path / "x.txt").mkdir()
    (tmp_path / "classes.txt").write_text("cell\ndust\n\n")
    source = load(tmp_path, task="detect")
    assert boxes_of(source) == {
        "train": {"train.png": [[*BOX, 0, 1]], "val.png": [[*BOX, 0, 1]], "x.png": []}
    }
    assert "1 image has no label file" in source.notes[0]
    (tmp_path / "train.txt").write_bytes(b"0 \xff")
    with pytest.raises(DataErrors, match=r"train\.txt, line 1: not UTF-8"):
        load(tmp_path, task="detect")


def test_two_keys_of_one_split_are_both_read(tmp_path):
    images(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    for name in ("a/1", "b/2", "c/3"):
        label(tmp_path / f"{name}.txt")
    (tmp_path / "data.yaml").write_text("train: a\nval: b\nvalidation: [c]\nnames: [cell]\n")
    source = load(tmp_path, task="detect")
    assert one_box(source, {"train": ["1.png"], "val": ["2.png", "3.png"]})


def test_keypoints_of_a_pose_are_no_polygon(tmp_path):
    images(tmp_path, "train/1.png")
    label(tmp_path / "train/1.txt", f"{ROW} .1 .1 .2 .2")
    label(tmp_path / "train/2.txt")
    (tmp_path / "data.yaml").write_text("train: train\nkpt_shape: [2, 2]\nnames: [a]\n")
    source = load(tmp_path, task="detect")
    assert one_box(source, {"train": ["1.png"]})
    assert "1 label file has no image" in " ".join(source.notes)
    assert "1 row has keypoints, which are not used" in " ".join(source.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (XML.replace("{0}", "1,5"), "object 1: broken: '1,5' is not a number"),
        (XML.replace("ymax", "ymux"), "object 1: broken: not one bndbox with xmin"),
        (XML.replace("annotation>", "annotations>"), "<annotations> is not VOC's <annotation>"),
        (XML.replace("<bndbox>", "<difficult>7</difficult><bndbox>"), "'7' is neither 0 nor 1"),
        (XML.replace("<width>40", "<width>-40"), "an image of '-40' x '30' pixels"),
        ("<?xml version='1.0' encoding='nonsense'?>" + XML, "unknown encoding"),
    ],
)
def test_what_is_wrong_in_voc_is_refused_with_what_was_found(tmp_path, text, reason):
    images(tmp_path, "JPEGImages/1.png")
    xml(tmp_path / "Annotations/1.xml", text=text)
    with pytest.raises(DataErrors, match=reason):
        load(tmp_path, task="detect")


def test_two_images_of_one_name_are_one_question_in_voc(tmp_path):
    images(tmp_path, "JPEGImages/1.png", "JPEGImages/1.jpg")
    xml(tmp_path / "Annotations/1.xml", name="1.jpg")
    assert one_box(load(tmp_path, task="detect"), {"train": ["1.jpg"]})
    xml(tmp_path / "Annotations/1.xml", name="1.bmp")
    with pytest.raises(DataErrors, match=r"its image is .*1\.jpg or .*1\.png"):
        load(tmp_path, task="detect")


def test_boxes_of_voc_that_begin_at_zero_are_noted(tmp_path):
    images(tmp_path, "JPEGImages/1.png")
    xml(tmp_path / "Annotations/1.xml", (0, 0, 40, 30), text=XML.replace("<width>40", "<width>0"))
    source = load(tmp_path, task="detect")
    assert boxes_of(source) == {"train": {"1.png": [[0, 0, 40, 30, 0, 1]]}}
    assert "1 box has an edge at 0; all are read as counted from 1" in source.notes[0]


def test_an_object_of_voc_with_two_boxes_is_refused(tmp_path):
    images(tmp_path, "JPEGImages/1.png")
    box = XML[XML.index("<bndbox>") : XML.index("</bndbox>") + 9]
    xml(tmp_path / "Annotations/1.xml", (1, 1, 9, 9), text=XML.replace(box, 2 * box))
    with pytest.raises(DataErrors, match="object 1: broken: not one bndbox"):
        load(tmp_path, task="detect")


def test_a_missing_image_never_takes_the_place_of_another(tmp_path):
    images(tmp_path, "images/b/1.png", "images/b/2.png")
    coco(tmp_path / "annotations/instances.json", "a/1.png", "b/2.png")
    with pytest.raises(DataError, match=r"1 of 2 files; the limit.*\n.*a/1\.png"):
        load(tmp_path, task="detect")
    images(tmp_path, "images/c/1.png")
    coco(tmp_path / "annotations/instances.json", "1.png", "2.png")
    source = load(tmp_path, task="detect", max_unreadable=0.5)
    assert one_box(source, {"train": ["2.png"]})
    assert any("'1.png'" in note and "may be one of several" in note for note in source.notes)


def test_several_forms_in_one_folder_are_told(tmp_path):
    images(tmp_path, "images/1.png", "images/2.png")
    coco(tmp_path / "annotations/instances.json", "1.png")
    label(tmp_path / "labels/1.txt")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cell]\n")
    notes = load(tmp_path, task="detect").notes
    assert any("COCO's JSON is read; data.yaml is there too" in note for note in notes)
    assert any("1 image beside these is in no annotation" in note for note in notes)
    assert any("1 class has no object to learn from, first 'dust'" in note for note in notes)


def test_images_of_no_split_among_others_are_refused(tmp_path):
    images(tmp_path, "train/1.png", "extra/2.png")
    xml(tmp_path / "train/1.xml")
    xml(tmp_path / "extra/2.xml")
    with pytest.raises(DataError, match=r"1 of 2 images has no split, first .*extra"):
        load(tmp_path, task="detect")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017", "train"),
        ("Validation", "val"),
        ("instances_Val", "val"),
        ("minival2014", "val"),
        ("image_info_test-dev2017", "test"),
        ("trainval35k", "trainval"),
        ("train_val", "trainval"),
        ("cocoTrain", "train"),
        ("constrained", None),
        ("latest", None),
        ("interval", None),
        ("train_test", None),
        ("instances", None),
    ],
)
def test_the_split_that_a_name_says(name, split):
    assert split_in_name(name) == split


def test_numbers_and_marks():
    assert [parse_number(v) for v in (1, 2.5, "3e0", " 4 ")] == [1, 2.5, 3, 4]
    for value in (True, None, "", "a", [1], {}, "1_0", 10**400):
        with pytest.raises(ValueError, match="is not a number"):
            parse_number(value)
    assert not any(map(parse_flag, (0, 0.0, False, None, "", "0", "no", "FALSE ")))
    assert all(map(parse_flag, (1, 1.0, True, "1", "true", "Yes")))
    for value in (2, "2", [], {}, "maybe", float("nan")):
        with pytest.raises(ValueError, match="neither 0 nor 1"):
            parse_flag(value)


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("path,x1,y1,x2,y2,label\n1.png,10,10,30,25,cell\n", []),
        ("\ufeffPath;X1;Y1;X2;Y2;Label\r\n1.png;10;10;30;25;cell\r\n", []),
        ("path\tx1\ty1\tx2\ty2\tlabel\n1.png\t10\t10\t30\t25\tcell\n", []),
        (
            "filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,40,30,cell,10,10,30,25\n",
            ["read by other names: 'filename' as path, 'xmin' as x1"],
        ),
        ("1.png,10,10,30,25,cell\n", ["has no header"]),
        ("path,x1,y1,x2,y2,label\n.\\1.PNG,10,10,30,25,cell\n", ["found under another path"]),
        ("path,x1,y1,x2,y2,label,patient\n1.png,10,10,30,25,cell,7\n", ["'patient'"]),
    ],
)
def test_a_csv_of_boxes_as_people_write_it(tmp_path, text, notes):
    images(tmp_path, "1.png")
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    assert guess_task(tmp_path) == "detect"
    source = load(tmp_path, task="detect")
    assert one_box(source, {"train": ["1.png"]})
    assert len(source.notes) == len(notes)
    for part, note in zip(notes, source.notes, strict=True):
        assert part in note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('path,x1,y1,x2,y2,label\n1.png,10,10,30,25,"cell\n1.png,1,1,9,9,"b\n', "line 2: a quote"),
        ("path,x1,y1,x2,y2,label\n1.png,10,10,30,25,cell,7\n", "line 2: 7 values under 6"),
        ("path,x1,y1,x2,label\n1.png,10,10,30,cell\n", "no column y2; it has 'path', 'x1'"),
        ("path,x1,y1,x2,y2,label\n1.png,.1,.1,.3,.2,cell\n", "all boxes lie within one pixel"),
        ("path;x1;y1;x2;y2;label\n1.png;1,5;1;3;2;cell\n", "line 2: broken: '1,5' is not a number"),
        (
            "path,x1,y1,x2,y2,label,split\n1.png,1,1,3,2,a,tra\n",
            "broken: unknown split 'tra'",
        ),
    ],
)
def test_a_csv_of_boxes_that_is_wrong_is_refused(tmp_path, text, message):
    images(tmp_path, "1.png")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "table.csv", task="detect")


def test_a_csv_for_each_split(tmp_path):
    images(tmp_path, "1.png", "2.png")
    head = "path,x1,y1,x2,y2,label\n"
    (tmp_path / "train.csv").write_text(f"{head}1.png,10,10,30,25,cell\n")
    (tmp_path / "val.csv").write_text(f"{head}2.png,10,10,30,25,cell\n")
    source = load(tmp_path, task="detect")
    assert one_box(source, {"train": ["1.png"], "val": ["2.png"]})
    (tmp_path / "more.csv").write_text(head)
    with pytest.raises(DataError, match=r"which of 3 tables, more\.csv, train\.csv, val\.csv\?"):
        load(tmp_path, task="detect")


@pytest.mark.parametrize(
    "name", ["a" * 5000, "a\0b.png", "\ud800.png", "/etc/passwd", "../../x", "/"]
)
def test_names_that_no_file_can_have_are_unreadable_images(tmp_path, name):
    images(tmp_path, "1.png")
    coco(tmp_path / "x.json", "1.png", name)
    source = load(tmp_path / "x.json", task="detect", max_unreadable=0.5)
    assert one_box(source, {"train": ["1.png"]})
    assert len(source.unreadable) == 1
