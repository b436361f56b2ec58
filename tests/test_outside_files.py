"""Files from outside: whatever they hold, what comes out is one of our own errors."""

import io
import json
import random
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image

from resnets.config import families, recipes
from resnets.config.recipe import Preprocess
from resnets.data import dataset
from resnets.data.decode import Unreadable, decode
from resnets.data.detection.coco import read_coco
from resnets.data.detection.voc import read_voc
from resnets.data.issues import Issues
from resnets.errors import CheckpointError, DataError, ResnetsError, UsageError
from resnets.evaluation import detections, scores
from resnets.evaluation.detections import SplitDetections
from resnets.models import build
from resnets.models.io import model_file
from resnets.papers import ledger
from resnets.tensor_files import load_tensors, save_tensors, with_digest
from resnets.training import checkpoint
from resnets.training.run import Run
from resnets.training.state import TrainProgress

DEEP = "[" * 100_000
ENDLESS = "9" * 5000  # Python refuses to make a number of more than 4,300 digits
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'


def blank(path, size=(12, 10), mode="RGB", value=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


# --- JSON that is deep, endless or of other types -------------------------------------------------


@pytest.mark.parametrize("text", [DEEP, ENDLESS, '{"a": ' + ENDLESS, "[]", "7", "\xff", ""])
def test_json_that_cannot_be_read_is_named(text, tmp_path):
    data = text.encode("latin1")
    for name in ("recipe.json", "metrics.jsonl", "annotations.json", "results/ledger.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data + b"\n")
    run = Run(tmp_path)
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        run.read_json("recipe.json")
    if text:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
            run.rows("metrics.jsonl")
    assert run.truncate("metrics.jsonl", 1)
    with pytest.raises(UsageError, match=r"recipe\.json"):
        recipes.read_recipe(tmp_path / "recipe.json")
    path = tmp_path / "annotations.json"
    ((place, reason),) = read_coco(path, Issues(path)).issues.errors
    assert place.endswith("annotations.json")
    assert reason.startswith("broken")
    if text not in ("[]", ""):
        with pytest.raises(DataError, match=r"ledger\.jsonl, line 1"):
            ledger.read(tmp_path)
    if text not in ("[]", "7"):
        with pytest.raises(CheckpointError, match=r"recipe\.json"):
            checkpoint.identity(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("metrics.jsonl", {"step": 1, "epoch": "one"}, "epoch"),
        ("metrics.jsonl", {"step": 1, "epoch": True}, "epoch"),
        ("timing.jsonl", {"step": 1, "images_per_second": [1]}, "images_per_second"),
        ("notes.jsonl", {"step": 1, "note": {}}, "note"),
        ("cost.json", {"seconds": "1"}, "seconds"),
        ("environment.json", {"torch": 2}, "torch"),
        ("result.json", {"images": "many"}, "images"),
        ("result.json", {"top1_interval_95": [0.5]}, "top1_interval_95"),
        ("result.json", {"per_class": [3]}, "per_class"),
        ("source.json", {"classes": "ab"}, "classes"),
        ("source.json", {"arch": {"kind": "resnet", "blocks": "x"}}, "arch"),
        ("source.json", {"arch": {"kind": "no"}}, "arch"),
        ("source.json", {"preprocess": {"size": 10**6}}, "preprocess"),
        ("source.json", {"plan": {"a": 1}}, "plan"),
    ],
)
def test_a_wrong_value_in_a_run_is_named(name, content, key, tmp_path):
    (tmp_path / name).write_text(json.dumps(content) + "\n")
    read = Run(tmp_path).rows if name.endswith("jsonl") else Run(tmp_path).read_json
    with pytest.raises(CheckpointError, match=f"{name}: {key}"):
        read(name)


# --- Files with digests that fit ------------------------------------------------------------------

SCORES = scores.Scores(
    torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4), ("a", "b", "c")
)
FOUND = SplitDetections(
    *(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.rand(2), torch.rand(2, 4)),
    *(((9, 9, b"1"), (9, 9, b"22")), torch.arange(2)),
)


def resealed(path, module, value, key, tensors, metadata):
    """What is saved, with other tensors and metadata, and digests that fit them."""
    module.save(path, value)
    contents = load_tensors(path, key, lambda *both: both, "")
    changed_tensors, changed_metadata = contents[0] | tensors, contents[1] | metadata
    for changed in (changed_tensors, changed_metadata):
        for name in [name for name, value in changed.items() if value is None]:
            del changed[name]
    save_tensors(path, changed_tensors, key, changed_metadata)
    return module.load(path)


def test_sealed_files_are_read_back(tmp_path):
    path = tmp_path / "x.safetensors"
    same = resealed(path, scores, SCORES, "scores", {}, {})
    assert torch.equal(same.logits, SCORES.logits)
    assert resealed(path, detections, FOUND, "detections", {}, {}).masks == FOUND.masks


@pytest.mark.parametrize(
    ("tensors", "card"),
    [
        ({"logits": torch.randn(4, 4)}, {}),
        ({"logits": torch.randn(4)}, {}),
        ({"logits": torch.full((4, 3), torch.nan)}, {}),
        ({"logits": torch.ones(4, 3, dtype=torch.int64)}, {}),
        ({"labels": torch.tensor([0, 1, 2, 3])}, {}),
        ({"labels": torch.tensor([0, 1, 2, -1])}, {}),
        ({"labels": torch.tensor([0, 1])}, {}),
        ({"labels": torch.rand(4, 2)}, {}),
        ({"indices": torch.tensor([-1, 0, 1, 2])}, {}),
        ({"indices": None}, {}),
        ({}, {"classes": None}),
        ({}, {"classes": ["a", "b", 3]}),
        ({}, {"classes": 5}),
        ({}, {"seconds": []}),
        ({}, {"unreadable": [["a"]]}),
        ({}, {"unreadable": [["a", 1]]}),
    ],
)
def test_scores_that_do_not_fit_are_refused(tensors, card, tmp_path):
    with pytest.raises(CheckpointError, match=r"s\.safetensors has no scores"):
        resealed(tmp_path / "s.safetensors", scores, SCORES, "scores", tensors, card)


@pytest.mark.parametrize(
    ("tensors", "card"),
    [
        ({"boxes": torch.rand(2, 5)}, {}),
        ({"boxes": torch.full((2, 4), torch.inf)}, {}),
        ({"classes": torch.tensor([0, -2])}, {}),
        ({"classes": torch.rand(2)}, {}),
        ({"images": torch.tensor([0])}, {}),
        ({"scores": torch.tensor(1.0)}, {}),
        ({"shapes": torch.tensor([[9, 9, 1], [9, 9, 9]])}, {}),
        ({"shapes": torch.tensor([[9, 9, -1], [9, 9, 4]])}, {}),
        ({"shapes": torch.tensor([[9, 9, 3]])}, {}),
        ({"counts": None}, {}),
        ({}, {"drawn": None}),
        ({}, {"seconds": "x"}),
    ],
)
def test_detections_that_do_not_fit_are_refused(tensors, card, tmp_path):
    with pytest.raises(CheckpointError, match=r"d\.safetensors has no detections"):
        resealed(tmp_path / "d.safetensors", detections, FOUND, "detections", tensors, card)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"progress": {"step": "one"}},
            {"progress": {"logs": [1]}},
            {"progress": {"best_error": []}},
        ),
        *({"progress": 7}, {"progress": {"unknown": 1}}, {"tensors": []}, {"file": 1}, {"run": {}}),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, tmp_path):
    checkpoint.write(tmp_path / "checkpoints", {"a": torch.ones(2)}, TrainProgress(step=3))
    (path,) = checkpoint.list_finished(tmp_path / "checkpoints")
    body = json.loads((path / "state.json").read_text())
    del body["seal"]
    (path / "state.json").write_text(with_digest(body | change, "seal", sort_keys=True))
    with pytest.raises(CheckpointError, match="step-00000003"):
        checkpoint.read(path)


# --- Tables, XML and images -----------------------------------------------------------------------


def test_a_table_with_a_gigabyte_in_a_field_is_refused(tmp_path, monkeypatch):
    table = tmp_path / "a.csv"
    table.write_text("path,label\na.png," + "x" * 200_000)
    with pytest.raises(DataError, match="line 2: 200,006 characters"):
        dataset.load(table)
    with table.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(DataError, match="1,073,741,824 bytes"):
        dataset.load(table)


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "<annotation>" + "<a>" * 100_000, "<annotation>" + "<a>" * 9999 + "</a>" * 9999],
    ids=["laughs", "deep", "unclosed"],
)
def test_xml_without_end_is_refused(text, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    ((place, _),) = read_voc(tmp_path, Issues(tmp_path)).issues.errors
    assert place.endswith("a.xml")


def test_arrays_are_no_images():
    for head in (b"PK\3\4" + bytes(99), b"\x93NUMPY" + bytes(99)):
        with pytest.raises(Unreadable, match="save"):
            decode(head, 3)


# --- Bytes changed at random ----------------------------------------------------------------------


def mutated(data, draw):
    """The bytes with some flipped, cut out, put in or repeated."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 8, 50])
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = draw.randbytes(length)
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4 and at < len(data):
            data[at] = draw.choice(b"0-9.,:;\"'[]{}<>&\n\0\xff")
    return bytes(data)


def encoded(kind, mode="RGB"):
    def make(root):
        file = io.BytesIO()
        Image.effect_noise((12, 10), 60).convert(mode).save(file, kind)
        (root / "a").write_bytes(file.getvalue())
        return root / "a", lambda: decode(root / "a", 3)

    return make


def table(root):
    for name in "abc":
        blank(root / f"{name}.png")
    (root / "t.csv").write_text("path,label,split\na.png,x,train\nb.png,y,test\nc.png,y,train\n")
    return root / "t.csv", lambda: dataset.load(root / "t.csv")


def boxes(root):
    blank(root / "a.png")
    (root / "b.csv").write_text("path,x1,y1,x2,y2,label\na.png,1,1,5,5,x\na.png,2,2,9,9,y\n")
    return root / "b.csv", lambda: dataset.load(root / "b.csv", task="detect")


def coco(root):
    blank(root / "images" / "a.png")
    image = {"id": 1, "file_name": "a.png", "width": 12, "height": 10}
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}
    one["segmentation"] = [[1, 1, 6, 1, 6, 6]]
    body = {"images": [image], "annotations": [one], "categories": [{"id": 1, "name": "x"}]}
    (root / "instances.json").write_text(json.dumps(body))
    return root / "instances.json", lambda: dataset.load(root / "instances.json", task="detect")


def voc(root):
    blank(root / "JPEGImages" / "a.png")
    path = root / "Annotations" / "a.xml"
    path.parent.mkdir()
    box = "".join(
        f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), "1289", strict=True)
    )
    path.write_text(
        "<annotation><filename>a.png</filename><size><width>12</width><height>10</height></size>"
        f"<object><name>x</name><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
    )
    return path, lambda: dataset.load(root, task="detect")


def yolo(root):
    blank(root / "images" / "train" / "a.png"), blank(root / "images" / "val" / "b.png")
    for name in ("train/a", "val/b"):
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.5 0.5 0.2 0.2\n1 0.4 0.4 0.1 0.3\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: [x, y]\n"
    )
    return root, lambda: dataset.load(root, task="detect")


def yolo_labels(root):
    yolo(root)
    return root / "labels" / "train" / "a.txt", lambda: dataset.load(root, task="detect")


def yolo_yaml(root):
    yolo(root)
    return root / "data.yaml", lambda: dataset.load(root / "data.yaml", task="detect")


def masks(root):
    for k, name in enumerate("ab"):
        blank(root / "images" / f"{name}.png")
        blank(root / "masks" / f"{name}.png", mode="L", value=k)
    (root / "classes.txt").write_text("x\ny\n")
    return root / "masks" / "a.png", lambda: dataset.load(root, task="segment")


TINY = replace(
    families.get_arch("resnet8"), blocks=(1, 1), widths=(2, 4), stem_width=2, classes=2, size=8
)


def own_model(root):
    see = Preprocess(size=8, mean=(0.5,) * 3, std=(0.2,) * 3)
    path = root / "m.safetensors"
    model_file.save(
        path, build(TINY), model_file.ModelMetadata(arch=TINY, classes=("a", "b"), preprocess=see)
    )
    return path, lambda: model_file.open_model(path)


def foreign(root):
    torch.save({"state_dict": build(TINY).state_dict(), "epoch": 3}, root / "f.pth")
    return root / "f.pth", lambda: model_file.open_model(root / "f.pth")


def foreign_old(root):
    path = root / "f.pth"
    torch.save(build(TINY).state_dict(), path, _use_new_zipfile_serialization=False)
    return path, lambda: model_file.open_model(path)


def state(name):
    def make(root):
        checkpoint.write(root / "checkpoints", {"a": torch.ones(9)}, TrainProgress(step=3))
        (path,) = checkpoint.list_finished(root / "checkpoints")
        return path / name, lambda: checkpoint.read(path)

    return make


def score_file(root):
    scores.save(root / "s.safetensors", SCORES)
    return root / "s.safetensors", lambda: scores.load(root / "s.safetensors")


def recipe_file(root):
    body = {"model": "resnet20", "lr": 0.1, "augment": {"flip": True}, "milestones": [0.5]}
    (root / "r.json").write_text(json.dumps(body))
    return root / "r.json", lambda: recipes.read_recipe(root / "r.json")


def recipe_toml(root):
    (root / "r.toml").write_text('model = "resnet20"\nlr = 0.1\n[augment]\nflip = true\n')
    return root / "r.toml", lambda: recipes.read_recipe(root / "r.toml")


def log(root):
    (root / "results").mkdir()
    row = {"experiment": "r1.tab1", "seed": 1, "test_error": 8.2}
    (root / "results" / "ledger.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    return root / "results" / "ledger.jsonl", lambda: ledger.read(root)


def metrics(root):
    (root / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": null}\n' * 2)
    return root / "metrics.jsonl", lambda: Run(root).rows("metrics.jsonl")


READERS = {
    **{f"{k} {m}": encoded(k, m) for k, m in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"))},
    **{k: encoded(k) for k in ("WEBP", "GIF", "BMP", "TIFF")},
    "state.json": state("state.json"),
    "state.safetensors": state("state.safetensors"),
    **{
        make.__name__: make
        for make in (
            *(table, boxes, coco, voc, yolo_labels, yolo_yaml, masks, own_model, foreign),
            *(foreign_old, score_file, recipe_file, recipe_toml, log, metrics),
        )
    },
}


def fuzz(name, root, times):
    path, read = READERS[name](root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read()  # the file is good before
    data, draw = path.read_bytes(), random.Random(name)
    for k in range(times):
        changed = mutated(data, draw)
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except ResnetsError:
            pass
        except BaseException as error:
            raise AssertionError(f"{name}, number {k}: {changed!r}") from error


@pytest.mark.parametrize("name", READERS)
def test_changed_bytes_end_in_our_own_errors(name, tmp_path):
    fuzz(name, tmp_path, 30)


@pytest.mark.nightly
@pytest.mark.parametrize("name", READERS)
def test_more_changed_bytes_end_in_our_own_errors(name, tmp_path):
    fuzz(name, tmp_path, 2000)
