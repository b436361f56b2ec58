import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from resnets.cli.main import main
from resnets.data import load
from resnets.data.dataset import guess_task
from resnets.data.detection.targets import Kind
from resnets.errors import DataError, DataErrors, MissingPackage
from tests._helpers import needs_links
from tests.data._helpers import picture, rows_of


def some_scenes(told, count):
    """(file name, width, height, [(class name, box, polygons)]) of the images with fewest boxes."""
    names = {c["id"]: c["name"] for c in told["categories"]}
    by_image = {image["id"]: [] for image in told["images"]}
    for a in told["annotations"]:
        x, y, w, h = a["bbox"]
        box = (x, y, x + w, y + h)
        by_image[a["image_id"]].append((names[a["category_id"]], box, a["segmentation"]))
    images = sorted(told["images"], key=lambda i: (len(by_image[i["id"]]), i["id"]))[:count]
    return [(i["file_name"], i["width"], i["height"], by_image[i["id"]]) for i in images]


def write_coco(root, splits, ids):
    (root / "annotations").mkdir()
    for split, scenes in splits.items():
        images, annotations = [], []
        for k, (name, width, height, objects) in enumerate(scenes):
            images.append({"id": 7 * k, "file_name": name, "width": width, "height": height})
            annotations += [
                {"id": len(annotations) + i, "image_id": 7 * k, "category_id": ids[label]}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": polygons, "iscrowd": 0}
                for i, (label, (x1, y1, x2, y2), polygons) in enumerate(objects)
            ]
        categories = [{"id": number, "name": name} for name, number in reversed(ids.items())]
        told = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(told))


def voc_object(label, box, difficult=0):
    x1, y1, x2, y2 = box
    return (
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
    )


def write_voc(root, splits):
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, scenes in splits.items():
        stems = [name.removesuffix(".jpg") for name, *_ in scenes]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem, (_, width, height, objects) in zip(stems, scenes, strict=True):
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            text = "".join(voc_object(label, box) for label, box, _ in objects)
            path = root / "Annotations" / f"{stem}.xml"
            path.write_text(f"<annotation>{size}{text}</annotation>")


def write_yolo(root, splits, names, polygons=False):
    table = "path: .\nnames:\n" + "".join(f"  {k}: {name}\n" for k, name in enumerate(names))
    for split, scenes in splits.items():
        table += f"{split}: images/{split}2017\n"
        (root / "labels" / f"{split}2017").mkdir(parents=True)
        for name, width, height, objects in scenes:
            lines = []
            for label, (x1, y1, x2, y2), shape in objects:
                values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
                values += [(x2 - x1) / width, (y2 - y1) / height]
                if polygons:
                    values = (np.reshape(shape[0], (-1, 2)) / (width, height)).ravel()
                lines.append(f"{names.index(label)} " + " ".join(f"{v:.8f}" for v in values))
            if lines:
                path = root / "labels" / f"{split}2017" / name.replace(".jpg", ".txt")
                path.write_text("\n".join(lines))
    (root / "data.yaml").write_text(table)


def write_csv(root, splits):
    lines = ["path,x1,y1,x2,y2,label,split"]
    for split, scenes in splits.items():
        for name, _, _, objects in scenes:
            path = f"images/{split}2017/{name}"
            rows = [f"{','.join(map(str, box))},{label}" for label, box, _ in objects]
            lines += [f"{path},{row},{split}" for row in rows or [",,,,"]]
    (root / "boxes.csv").write_text("\n".join(lines))


@needs_links
def test_four_layouts_of_the_same_photographs_have_the_same_targets(shared, tmp_path):
    coco128 = shared / "data" / "coco128"
    splits = {
        split: some_scenes(
            json.loads((coco128 / "annotations" / f"instances_{split}2017.json").read_text()), 10
        )
        for split in ("train", "val")
    }
    assert [] in [objects for *_, objects in splits["train"]]
    labels = [
        label for scenes in splits.values() for *_, objects in scenes for label, *_ in objects
    ]
    splits["val"] = [  # of the classes that train has, as the readers demand
        (*scene, [o for o in objects if o[0] in {o[0] for s in splits["train"] for o in s[3]}])
        for *scene, objects in splits["val"]
    ]
    names = sorted({o[0] for scene in splits["train"] for o in scene[3]})
    sources = {}
    for form in ("coco", "voc", "yolo", "csv"):
        root = tmp_path / form
        root.mkdir()
        images = root / ("JPEGImages" if form == "voc" else "images")
        for split in splits:
            to = images if form == "voc" else images / f"{split}2017"
            to.mkdir(parents=True, exist_ok=True)
            for name, *_ in splits[split]:
                (to / name).symlink_to(coco128 / "images" / f"{split}2017" / name)
        if form == "coco":
            write_coco(root, splits, {name: 3 * k + 5 for k, name in enumerate(names)})
        elif form == "yolo":
            write_yolo(root, splits, names)
        else:
            {"voc": write_voc, "csv": write_csv}[form](root, splits)
        assert guess_task(root) == "detect"
        sources[form] = load(root, task="detect")
    assert len(labels) >= 20
    for split, scenes in splits.items():
        scenes = sorted(scenes)
        for source in sources.values():
            assert source.classes == tuple(names)
            assert (source.task, source.automatic) == ("detect", False)
            part = source.splits[split]
            assert [path.name for path in part.images] == [name for name, *_ in scenes]
            assert part.sizes.tolist() == [[height, width] for _, width, height, _ in scenes]
            assert part.sizes.dtype == torch.int64
            assert part.objects.boxes.dtype == torch.float32
            assert part.objects.classes.dtype == torch.int64
            assert part.objects.kind.dtype == torch.uint8
            for rows, (*_, objects) in zip(rows_of(part.objects), scenes, strict=True):
                wanted = [[*box, names.index(label), 1] for label, box, _ in objects]
                wanted += [[0] * 6] * (len(rows) - len(wanted))
                assert rows.numpy() == pytest.approx(np.array(wanted), abs=1e-3)
    problems = {form: source.problems for form, source in sources.items()}
    assert set(problems.values()) == {()}
    notes = {form: source.notes for form, source in sources.items()}
    assert "have no label file, so no objects" in notes.pop("yolo")[0]
    assert set(notes.values()) == {()}


@pytest.mark.slow
def test_coco128_is_refused_where_its_categories_are_others(shared, tmp_path):
    coco128 = shared / "data" / "coco128"
    (tmp_path / "images").symlink_to(coco128 / "images")
    (tmp_path / "annotations").mkdir()
    tables = {}
    for path in (coco128 / "annotations").iterdir():
        table = json.loads(path.read_text())
        for annotation in table["annotations"]:
            annotation["category_id"] += 1  # 12, 26, ... were never used
        (tmp_path / "annotations" / path.name).write_text(json.dumps(table))
    with pytest.raises(DataErrors, match="annotation 9: unknown class 'category 26'") as caught:
        load(tmp_path, task="detect")
    assert (len(caught.value.refused), caught.value.exit_code) == (108, 3)
    for path in (coco128 / "annotations").iterdir():
        tables[path.name] = json.loads(path.read_text())
        (tmp_path / "annotations" / path.name).write_text(json.dumps(tables[path.name]))
    source = load(tmp_path, task="detect")
    assert source.problems == ()
    assert len(source.classes) == 80
    for split, objects in (("train", 746), ("val", 712)):
        part = source.splits[split]
        assert (len(part), int(part.objects.is_object.sum())) == (100, objects)
        told = tables[f"instances_{split}2017.json"]
        shapes = [[tuple(map(float, p)) for p in a["segmentation"]] for a in told["annotations"]]
        assert sorted(list(s) for image in part.masks for s in image) == sorted(shapes)
        # The YOLO labels of the same images have the same classes.
        for path, rows in zip(part.images, rows_of(part.objects), strict=True):
            text = (coco128 / "labels" / f"{split}2017" / path.name).with_suffix(".txt")
            said = (
                {int(x.split()[0]) for x in text.read_text().splitlines()} if rows.any() else set()
            )
            assert set(rows[rows[:, 5] == 1, 4].tolist()) <= said


@pytest.mark.slow
def test_bccd_has_two_boxes_without_width(shared):
    source = load(shared / "data" / "bccd", task="detect")
    assert source.classes == ("Platelets", "RBC", "WBC")
    assert [len(s) for s in source.splits.values()] == [205, 87, 72]
    assert sum(int(s.objects.is_object.sum()) for s in source.splits.values()) == 4888 - 2
    assert [place.rsplit("/", 1)[1] for place, _ in source.problems] == [
        "BloodImage_00338.xml, object 13",
        "BloodImage_00343.xml, object 4",
    ]
    assert all(reason.startswith("degenerate") for _, reason in source.problems)
    assert (source.train.objects.boxes >= 0).all()


# One image of 40 x 30 pixels, p.png, and what each form says of it.
def coco(root, annotations=(), **changes):
    picture(root / "p.png", size=(40, 30))
    told = {
        "images": [{"id": 1, "file_name": "p.png", "width": 40, "height": 30}],
        "categories": [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}],
        "annotations": [{"id": 100 + k, "image_id": 1} | a for k, a in enumerate(annotations)],
    } | changes
    path = root / "table.json"
    path.write_text(json.dumps(told))
    return path


def voc(root, text, size="<size><width>40</width><height>30</height></size>", head=""):
    picture(root / "JPEGImages" / "p.png", size=(40, 30))
    (root / "Annotations").mkdir()
    path = root / "Annotations" / "p.xml"
    path.write_text(f"{head}<annotation>{size}{text}</annotation>")
    return root


def yolo(root, text):
    picture(root / "images" / "p.png", size=(40, 30))
    (root / "labels").mkdir()
    (root / "labels" / "p.txt").write_text(text)
    (root / "data.yaml").write_text("train: images\nnames: [a, b]\n")
    return root


def boxes(root, text, columns=""):
    picture(root / "p.png", size=(40, 30))
    (root / "boxes.csv").write_text(f"path,x1,y1,x2,y2,label{columns}\n{text}")
    return root / "boxes.csv"


def one(box, category=3, **more):
    x1, y1, x2, y2 = box
    return {"category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], **more}


GOOD = (2.0, 3.0, 12.0, 23.0)
NAN = float("nan")
BROKEN_BOX = "<object><name>a</name><bndbox><xmin>1</xmin></bndbox></object>"


@pytest.mark.parametrize(
    ("make", "what", "place", "reason"),
    [
        (coco, [one(GOOD), one((5, 5, 5, 9))], "annotation 101", "degenerate: box 5 5 5 9"),
        (coco, [one((40, 3, 50, 9))], "annotation 100", "outside the image: box 40 3 50 9"),
        (coco, [one((-9, 3, 0, 9))], "annotation 100", "outside the image"),
        (coco, [one((1, NAN, 5, 9))], "annotation 100", "not finite: box 1 nan"),
        (coco, [one((1, 1, float("inf"), 9))], "annotation 100", "not finite"),
        (coco, [one(GOOD, 4)], "annotation 100", "unknown class 'category 4'"),
        (coco, [{"category_id": 3}], "annotation 100", "broken: 'bbox' is missing"),
        (coco, [{"category_id": 3, "bbox": [1, 2, "x", 4]}], "100", "broken: 'x' is not a number"),
        (
            coco,
            [one(GOOD, segmentation=[[1, 2, 3, 4]])],
            "annotation 100",
            "three or more finite points",
        ),
        (coco, [one(GOOD, segmentation={"size": [30, 40], "counts": [5, 5]})], "100", "broken"),
        (coco, [one(GOOD, segmentation={"size": [40, 30], "counts": [1200]})], "100", "30 x 40"),
        (voc, voc_object("a", (5, 5, 4, 9)), "p.xml, object 1", "degenerate"),
        (voc, voc_object("a", GOOD) + voc_object("a", (5, 30, 9, 39)), "object 2", "outside"),
        (voc, voc_object("a", GOOD) + BROKEN_BOX, "object 2", "broken"),
        (voc, voc_object("a", (5, 5, 6, 9)), "object 1", "degenerate"),
        (voc, voc_object("", GOOD), "p.xml, object 1", "broken: no name"),
        (voc, "<object>", "p.xml", "broken: mismatched tag"),
        (yolo, "0 .5 .5 .2 .2\n2 .5 .5 .2 .2", "p.txt, line 2", "unknown class 'number 2'"),
        (yolo, "0 .5 .5 .2 .2\n\n0 .5 .5 -.2 .2", "p.txt, line 3", "degenerate: box 24 12 16 18"),
        (yolo, "1 1.5 .5 .2 .2", "p.txt, line 1", "outside"),
        (yolo, "1 nan .5 .2 .2", "p.txt, line 1", "not finite"),
        (yolo, "1 .5 .5 .2", "p.txt, line 1", "broken: 4 values, neither a box"),
        (yolo, "cat .5 .5 .2 .2", "p.txt, line 1", "broken: value 1 is not a number"),
        (boxes, "p.png,1,2,1,4,a", "boxes.csv, line 2", "degenerate"),
        (boxes, "p.png,1,2,3,4,a\np.png,1,-9,3,-2,a", "boxes.csv, line 3", "outside"),
        (boxes, "p.png,1,2,3,,a", "boxes.csv, line 2", "broken: '' is not a number"),
        (boxes, "p.png,1,2,3,4,", "boxes.csv, line 2", "broken: no label"),
        (boxes, ",1,2,3,4,a", "boxes.csv, line 2", "broken: no path"),
    ],
)
def test_what_training_refuses_is_named_with_its_place(tmp_path, make, what, place, reason):
    data = make(tmp_path, what)
    with pytest.raises(DataErrors) as caught:
        load(data, task="detect")
    assert caught.value.exit_code == 3
    ((where, why),) = caught.value.refused
    assert place in where
    assert reason in why
    assert place in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"images": [{"id": 1, "file_name": "p.png", "width": 41, "height": 30}]},
            "41 x 30 pixels",
        ),
        ({"images": [{"file_name": "p.png"}]}, "broken: 'id' is missing"),
        ({"categories": 5}, "broken"),
    ],
)
def test_a_coco_file_that_is_wrong_as_a_whole(tmp_path, changes, reason):
    with pytest.raises(DataErrors, match=reason):
        load(coco(tmp_path, [one(GOOD)], **changes), task="detect")


def test_two_categories_of_one_name_with_objects_are_refused(tmp_path):
    table = coco(
        tmp_path,
        [one(GOOD), one(GOOD) | {"category_id": 4}],
        categories=[{"id": 3, "name": "a"}, {"id": 4, "name": "a"}],
    )
    with pytest.raises(DataErrors, match="two categories have the same name"):
        load(table, task="detect")


def test_what_is_no_json_at_all(tmp_path):
    for text in ("{", "[" * 100_000, "[]", '{"images": 3}'):
        path = tmp_path / "table.json"
        path.write_text(text)
        with pytest.raises(DataErrors, match=r"table\.json: broken"):
            load(path, task="detect")


def test_a_document_type_is_refused(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    with pytest.raises(DataErrors, match=r"p\.xml: broken: a DOCTYPE is refused"):
        load(voc(tmp_path, voc_object("&b;", GOOD), head=bomb), task="detect")


def test_every_problem_is_collected_and_some_are_only_noted(tmp_path, capsys):
    said = [
        one(GOOD),
        one((2.3, 3.4, 12.1, 23.2)),  # a duplicate, within half a pixel
        one((2.3, 3.4, 12.1, 23.2), 9),  # of another class
        one((2.6, 3.0, 12.0, 23.0)),  # farther than that
        one((-0.9, 0, 40.9, 30)),  # less than a pixel outside
        one((-1.1, 0, 44, 30), 9),  # more
        {"category_id": 3, "bbox": [1, 2, 3, 4], "image_id": 77},
    ]
    path = coco(tmp_path, said)
    source = load(path, task="detect")
    assert source.train is not None
    rows = rows_of(source.train.objects[0])
    assert rows[4, :4].tolist() == rows[5, :4].tolist() == [0, 0, 40, 30]
    assert rows[:, 4].tolist() == [0, 0, 1, 0, 0, 1]
    named = [(place.rsplit(" ", 1)[1], reason) for place, reason in source.problems]
    assert [number for number, _ in named] == ["105", "101", "103"]
    assert [reason[:17] for _, reason in named] == [
        "box -1.1 0 44 30 ",
        "the same box and ",
        "the same box and ",
    ]
    assert "reaches 4 pixels" in named[0][1]
    assert named[2][1].endswith("annotation 101")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(path)])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 4

    with pytest.raises(DataErrors) as caught:
        load(coco(tmp_path, [*said, one(GOOD, 5), one((1, 1, 1, 1))]), task="detect")
    assert (len(caught.value.refused), len(caught.value.noted)) == (2, 4)
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(path), "--json"])
    assert ended.value.code == 3
    rows = json.loads(capsys.readouterr().out)
    assert [row["refused"] for row in rows] == [True] * 2 + [False] * 4
    assert rows[0]["place"].endswith("annotation 107")
    assert rows[0]["problem"] == "unknown class 'category 5'"


def test_data_that_is_right_checks_out_and_is_counted(tmp_path, capsys):
    path = boxes(tmp_path, "p.png,1,2,3,4,a,2\np.png,5,2,9,4,b,1\np.png,5,9,9,12,b,", ",kind")
    printed = []
    for verb in ("check", "info"):
        with pytest.raises(SystemExit) as ended:
            main(["data", verb, str(path), "--json"])
        assert ended.value.code == 0
        printed.append(json.loads(capsys.readouterr().out))
    problems, facts = printed
    assert problems == facts["problems"] == []
    assert facts["classes"] == ["a", "b"]
    assert facts["objects"] == {"train": [0, 2]}
    assert facts["images"] == {"train": [0, 1]}


def test_a_few_boxes_without_width_are_left_out_and_more_are_refused(tmp_path):
    flat = one((7, 7, 7, 9))
    many = [one((k % 30, 1, k % 30 + 2 + k / 30, 9)) for k in range(99)]
    source = load(coco(tmp_path, [*many, flat]), task="detect")
    assert source.train.objects.kind.shape == (1, 99)
    assert [p for p in source.problems if "degenerate" in p[1]] == [
        (f"{tmp_path / 'table.json'}, annotation 199", "degenerate: box 7 7 7 9; left out")
    ]
    with pytest.raises(DataErrors) as caught:
        load(coco(tmp_path, [*many, flat, flat]), task="detect")
    assert len(caught.value.refused) == 2
    # A width that float32 has no room for is none either.
    with pytest.raises(DataErrors, match="degenerate"):
        load(coco(tmp_path, [one((30, 1, 30 + 1e-7, 9))]), task="detect")


def test_pascal_voc_counts_pixels_from_one_and_ignores_the_difficult(tmp_path):
    text = voc_object("b", (-1, 0, 40, 30)) + voc_object("a", (0, 0, 2, 1.5), difficult=1)
    source = load(voc(tmp_path, text), task="detect")
    assert source.automatic
    assert source.classes == ("a", "b")
    assert rows_of(source.train.objects).tolist() == [[[0, 0, 40, 30, 1, 1], [0, 0, 2, 1.5, 0, 2]]]
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("p  1\n\n")
    source = load(tmp_path, task="detect")
    assert list(source.splits) == ["train"]
    (lists / "test.txt").write_text("p\nq\n")
    with pytest.raises(DataErrors, match=r"test\.txt, line 2: there is no .*q\.xml"):
        load(tmp_path, task="detect")
    (lists / "test.txt").write_text("p\n")
    ((place, reason),) = load(tmp_path, task="detect").problems
    assert (place, reason[:42]) == (str(tmp_path), "1 image is listed again, in one split or t")


def test_a_class_that_only_the_test_images_have_is_unknown(tmp_path):
    rows = "p.png,1,2,3,4,a,train\nq.png,1,2,3,4,b,test"
    picture(tmp_path / "q.png")
    with pytest.raises(DataErrors, match="line 3: unknown class 'b'"):
        load(boxes(tmp_path, rows, ",split"), task="detect")


def test_run_lengths_are_those_of_pycocotools(tmp_path):
    from pycocotools import mask

    drawn = np.zeros((30, 40), dtype=np.uint8)
    drawn[3:23, 2:12] = drawn[10:12, 5:33] = 1
    drawn[::7, ::3] ^= 1
    packed = mask.encode(np.asfortranarray(drawn))
    flat = drawn.T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=2 - flat[-1]))
    counts = np.diff(ends, prepend=0).tolist()
    texts = {"size": [30, 40], "counts": packed["counts"].decode()}
    numbers = {"size": [30, 40], "counts": counts}
    said = [one(GOOD, segmentation=texts, iscrowd=1), one(GOOD, 9, segmentation=numbers)]
    source = load(coco(tmp_path, said), task="detect")
    assert source.train.masks == (((30, 40, packed["counts"]),) * 2,)
    assert source.train.objects.kind[0].tolist() == [Kind.IGNORED, Kind.OBJECT]
    # Where an object has no mask, none is used, and that is said.
    source = load(coco(tmp_path, [*said, one((1, 2, 3, 4))]), task="detect")
    assert source.train.masks == ()
    assert "2 of 3 objects have masks, but not" in source.problems[0][1]


def test_polygons_of_yolo_are_shapes_with_their_boxes(tmp_path):
    source = load(yolo(tmp_path, "1 .1 .1 .5 .2 .25 .9"), task="detect")
    assert source.classes == ("a", "b")
    assert rows_of(source.train.objects[0]).tolist() == [pytest.approx([4, 3, 20, 27, 1, 1])]
    (((polygon,),),) = source.train.masks
    assert polygon == pytest.approx((4, 3, 20, 6, 10, 27))


METHODS = {  # what makes the stored image of the upright one
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def extent(image):
    """Where the image is red: x1, y1, x2, y2."""
    ys, xs = np.nonzero(np.asarray(image)[..., 0] > 128)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


def turned(root, orientation, form="png"):
    """A stored image with a red field that EXIF turns, and where the field is in it."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[4:11, 7:27, 0] = 255
    stored = Image.fromarray(pixels).transpose(METHODS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = root / f"p{orientation}.{form}"
    stored.save(path, exif=exif)
    with Image.open(path) as image:
        assert extent(ImageOps.exif_transpose(image)) == [7, 4, 27, 11]
    return path.name, stored.size, extent(stored)


def told(images, frame):
    """A COCO table of such images, of the stored or of the upright frame."""
    scenes, annotations = [], []
    for k, (name, size, box) in enumerate(images):
        (width, height), (x1, y1, x2, y2) = (
            (size, box) if frame == "stored" else ((40, 30), (7, 4, 27, 11))
        )
        scenes.append({"id": k, "file_name": name, "width": width, "height": height})
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
        annotations.append(
            {"id": k, "image_id": k, "segmentation": [polygon]} | one((x1, y1, x2, y2))
        )
    return {"images": scenes, "annotations": annotations, "categories": [{"id": 3, "name": "a"}]}


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_boxes_stand_where_the_upright_image_has_the_object(tmp_path, frame):
    images = [turned(tmp_path, o) for o in METHODS] + [turned(tmp_path, 6, "tiff")]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(told(images, frame)))
    source = load(path, task="detect")
    assert source.problems == ()
    for split in source.splits.values():
        assert split.sizes.tolist() == [[30, 40]] * len(split)
        assert split.objects.boxes[:, 0].tolist() == [[7, 4, 27, 11]] * len(split)
        for ((polygon,),) in split.masks:
            points = np.reshape(polygon, (-1, 2))
            assert [*points.min(0), *points.max(0)] == [7, 4, 27, 11]
            assert len(np.unique(points, axis=0)) == 4


def test_of_an_image_upside_down_its_size_says_nothing(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(told([turned(tmp_path, 3)], "upright")))
    source = load(path, task="detect")
    assert source.train.objects.boxes[0, 0].tolist() == [7, 4, 27, 11]
    ((place, reason),) = source.problems
    assert (place, reason[:13]) == (str(tmp_path / "p3.png"), "EXIF turns it")
    # Neither does a table that is of two minds.
    tables = [told([turned(tmp_path, o)], f) for o, f in ((6, "stored"), (8, "upright"))]
    both = told([turned(tmp_path, 3)], "upright")
    for k, table in enumerate(tables, 1):
        both["images"].append(table["images"][0] | {"id": k})
        both["annotations"].append(table["annotations"][0] | {"id": k, "image_id": k})
    path.write_text(json.dumps(both))
    source = load(path, task="detect")
    assert source.train.objects.boxes[:, 0].tolist() == [[7, 4, 27, 11]] * 3
    assert source.problems == ((place, reason),)


def test_a_header_alone_says_how_an_image_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("resnets.data.assemble.CHECKED", 1)
    images = [turned(tmp_path, o, form) for o in METHODS for form in ("png", "jpg", "tiff", "webp")]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(told(images, "stored")))
    source = load(path, task="detect")
    for split in source.splits.values():
        assert split.sizes.tolist() == [[30, 40]] * len(split)


def test_images_without_objects_stay_and_an_automatic_split_is_told(tmp_path):
    for k in range(40):
        picture(tmp_path / "images" / f"{k:02}.png", shade=k, size=(40, 30))
    rows = [f"images/{k:02}.png,1,2,{10 + k / 4},9,{'ab'[k % 2]}" for k in range(30)]
    rows += [f"images/{k:02}.png" for k in range(30, 40)]
    table = tmp_path / "boxes.csv"
    table.write_text("path,x1,y1,x2,y2,label\n" + "\n".join(rows))
    source = load(tmp_path, task="localize", seed=1)
    assert source.automatic
    assert [len(s) for s in (source.train, source.val, source.test)] == [32, 4, 4]
    assert sum(int(s.objects.is_padding.all(1).sum()) for s in source.splits.values()) == 10
    assert source.train.counts(2).tolist() == [12, 12]
    assert load(tmp_path, task="detect", seed=1).split_table() == source.split_table()
    other = load(tmp_path, task="detect", seed=2)
    assert other.split_table() != source.split_table()
    assert other.digest == source.digest
    table.write_text(table.read_text().replace("10.25", "10.5"))
    assert load(tmp_path, task="detect").digest != source.digest
    table.write_text("path,x1,y1,x2,y2,label\nimages/00.png")
    with pytest.raises(DataError, match="1 readable image to train on and no objects"):
        load(table, task="detect")
    table.write_text("path,x1,y1,x2,y2,label\n")
    with pytest.raises(DataError, match=r"boxes\.csv has no rows"):
        load(table, task="detect")


def test_missing_images_are_unreadable(tmp_path):
    rows = "p.png,1,2,3,4,a\ngone.png,1,2,3,4,a"
    with pytest.raises(DataError, match=r"1 of 2 files"):
        load(boxes(tmp_path, rows), task="detect")
    source = load(tmp_path, task="detect", max_unreadable=0.5)
    assert [path.name for path, _ in source.unreadable] == ["gone.png"]
    assert len(source.train) == 1


def test_yolo_finds_images_by_folder_list_and_moved_place(tmp_path, monkeypatch):
    yolo(tmp_path, "0 .5 .5 .2 .2")
    monkeypatch.chdir(tmp_path)
    for place in (".", "data.yaml"):
        assert load(place, task="detect").problems == ()
    table = tmp_path / "data.yaml"
    for train in ("images", "../images", str(tmp_path / "images"), "[images, images]"):
        table.write_text(f"path: gone\ntrain: {train}\nval:\nnames: {{0: a, 7: b}}\n")
        source = load(tmp_path, task="detect")
        assert (source.classes, list(source.splits)) == (("a", "b"), ["train"])
    (tmp_path / "train.txt").write_text("./images/p.png\n\n")
    table.write_text("train: train.txt\nnames: [a]\n")
    assert len(load(table, task="detect").train) == 1
    for text, message in (
        ("train: none\nnames: [a]", "there is no"),
        ("train: images\nnames: 3", "names is neither a list"),
        ("train: images\nnames: [a, a]", "'a' is the name of two classes"),
        ("train: [\nnames: [a]", "is not YAML"),
        ("train: images\nnames: !!python/object/apply:os.system [x]", "is not YAML"),
        ("3", "has no keys"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            load(table, task="detect")


def test_yolo_without_pyyaml_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingPackage, match=r"resnets\[detect\]"):
        load(yolo(tmp_path, ""), task="detect")


def test_what_is_in_no_known_form_is_told_with_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"(?s)no boxes in a known form.*COCO.*VOC.*YOLO.*csv"):
        load(tmp_path, task="detect")
    with pytest.raises(DataError, match="neither boxes nor masks"):
        load("digits", task="detect")
    (tmp_path / "annotations").mkdir()
    for name in ("instances_train1.json", "instances_train2.json"):
        (tmp_path / "annotations" / name).write_text('{"images": 3}')
    with pytest.raises(DataError, match="one split has 2 files"):
        load(tmp_path, task="detect")
    assert guess_task("digits") == "classify"
