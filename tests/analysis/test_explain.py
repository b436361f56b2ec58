"""The folders that explaining and exploring write."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.analysis import cam
from resnets.analysis.explain import contact_sheet, explain, explore, scatter
from resnets.config.families import get_arch
from resnets.config.recipe import Preprocess
from resnets.data import dataset
from resnets.data.splits import Split
from resnets.errors import Assumption, UsageError
from resnets.evaluation.predictor import Model
from resnets.evaluation.scores import Scores
from resnets.models import build
from resnets.models.io.model_file import ModelMetadata

NAMES = ("ant", "bee & wasp", "$c$")


def model(channels=3, classes=NAMES, size=8):
    torch.manual_seed(0)
    description = replace(get_arch("resnet20"), classes=len(classes), channels=channels)
    see = Preprocess(
        size=size, resize=size + 2, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels
    )
    return Model(
        build(description).eval(),
        ModelMetadata(arch=description, classes=classes, preprocess=see),
        torch.device("cpu"),
    )


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    made = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "broken.jpg"]
    for file in made[:2]:
        file.parent.mkdir()
        pixels = torch.randint(256, (12, 16, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(file)
    made[2].write_bytes(b"no picture")
    return made


@pytest.mark.parametrize("method", ["grad-cam", "occlusion"])
@pytest.mark.parametrize("channels", [1, 3])
def test_explaining_writes_a_picture_for_each_image_and_names_the_broken(
    tmp_path, files, method, channels
):
    out, whole = tmp_path / "out", model(channels)
    inputs = [*files, files[0].read_bytes()]
    *images, check = explain(whole, inputs, out, method=method, top=2)
    assert [said.file for said in images] == [*map(str, files), f"input {len(files)}"]
    assert [said.picture for said in images] == [
        "0001-x.png",
        "0002-x.png",
        None,
        "0004-input 3.png",
    ]
    assert "broken.jpg" in images[2].problem
    assert isinstance(check, cam.RandomizationCheck)
    for said, predicted in zip(images, whole.predict(inputs, top=2), strict=True):
        assert said.classes == predicted.classes
        assert said.probabilities == pytest.approx(predicted.probabilities, rel=1e-5)
    assert {path.name for path in out.iterdir()} == {
        "0001-x.png", "0002-x.png", "0004-input 3.png", "explain.json",
    }  # fmt: skip
    facts = json.loads((out / "explain.json").read_text())
    assert facts["method"] == method
    assert facts["sanity"] == {"verdict": check.verdict, "correlations": check.correlations}
    assert [said["picture"] for said in facts["images"]] == [said.picture for said in images]
    with Image.open(out / "0001-x.png") as drawn:
        width, height = drawn.size
    assert width > 2 * height  # the view and two maps, side by side


def test_nothing_is_overwritten_and_a_wrong_level_is_named(tmp_path, files):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match=r"out has files.*choose a new folder"):
        list(explain(model(), files[:1], out))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="did you mean layer"):
        list(explain(model(), files[:1], tmp_path / "new", level="layer7"))
    with pytest.raises(UsageError, match=r"occlusion .*leave out --level"):
        list(explain(model(), files[2:], tmp_path / "new", level="layer3", method="occlusion"))


def test_only_broken_images_leave_a_list_of_them(tmp_path, files):
    (said,) = explain(model(), files[2:], tmp_path / "out")
    assert said.problem
    facts = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert [image["file"] for image in facts["images"]] == [str(files[2])]
    assert "sanity" not in facts


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_nearest_known_images_stand_beside(tmp_path, files):
    torch.manual_seed(0)
    image = torch.from_numpy(np.array(Image.open(files[0]))).permute(2, 0, 1)
    known = Split(
        torch.cat([torch.randint(256, (7, 3, 12, 16)), image[None]]).byte(), torch.arange(8) % 3
    )
    said, _ = explain(model(), files[:1], tmp_path / "out", known=known)
    assert len(said.neighbours) == 5
    assert said.neighbours[0] == "image 7"  # itself
    (written,) = json.loads((tmp_path / "out" / "explain.json").read_text())["images"]
    assert tuple(written["neighbours"]) == said.neighbours
    said, _ = explain(model(), files[:1], tmp_path / "few", known=known.take(torch.tensor([7, 2])))
    assert said.neighbours == ("image 0", "image 1")  # all that are known


def large(split):
    """Every pixel four times: of fewer than 16 a side no duplicates are looked for."""
    return replace(split, images=split.images.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_exploring_digits(tmp_path):
    source = dataset.load("digits")
    whole = model(1, source.classes)
    test = large(source.test.take(torch.arange(60)))
    train = large(source.train.take(torch.arange(20))).concat(test.take(torch.tensor([7])))
    logits = 8 * torch.nn.functional.one_hot(test.labels, 10).float()
    wrong = [4, 30]
    logits[wrong] = logits[wrong].roll(1, 1)
    scores = Scores(logits, test.labels, torch.arange(60), source.classes)
    counts = explore(whole, test, scores, tmp_path / "out", train=train)
    names = {"most-wrong", "most-unsure", "mislabelled", "duplicates", "map"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        name + suffix for name in names for suffix in (".csv", ".png")
    }
    tables = {name: rows(tmp_path / "out" / f"{name}.csv") for name in names}
    assert counts == {name: len(table) for name, table in tables.items()}
    assert [row["image"] for row in tables["most-wrong"]] == ["image 4", "image 30"]
    assert tables["most-wrong"][0]["label"] == source.classes[test.labels[4]]
    assert {row["image"] for row in tables["mislabelled"]} == {"image 4", "image 30"}
    assert counts["most-unsure"] == 24
    assert [row["image"] for row in tables["map"]] == [f"image {k}" for k in range(60)]
    assert ("image 7", "image 20") in [
        (row["image"], row["training"]) for row in tables["duplicates"]
    ]
    with pytest.raises(UsageError, match="choose a new folder"):
        explore(whole, test, scores, tmp_path / "out", train=None)
    two = scores.take(torch.tensor([4, 5]))
    with pytest.warns(
        Assumption, match="1 label is likely wrong, says a model that is right on 50%"
    ):
        counts = explore(whole, source.test, two, tmp_path / "few", train=source.train)
    # Of 8 pixels a side there are no hashes, of two images there is no map.
    assert counts == {"most-wrong": 1, "most-unsure": 2, "mislabelled": 1}


def test_exploring_files_of_several_labels_and_an_answer_of_none(tmp_path, files):
    split = Split((files[0], files[2], files[1]) * 3, torch.zeros(9, 3))
    readable = torch.tensor([0, 2, 3, 5, 6, 8])
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 1]]).repeat(3, 1)
    logits = 20 * labels - 10
    logits[0] = torch.tensor([-0.5, -9, -9])
    scores = Scores(logits, labels, readable, NAMES)
    counts = explore(model(), split, scores, tmp_path / "out", train=None)
    assert counts == {"most-wrong": 1, "most-unsure": 6, "mislabelled": 0, "map": 6}
    (wrong,) = rows(tmp_path / "out" / "most-wrong.csv")
    assert list(wrong.values()) == [str(files[0]), "ant and bee & wasp", "no class", "0.3775"]
    assert not (tmp_path / "out" / "mislabelled.png").exists()
    header = (tmp_path / "out" / "mislabelled.csv").read_text()
    assert header.strip() == "image,label,answer,highest probability"
    unsure = rows(tmp_path / "out" / "most-unsure.csv")
    assert {row["label"] for row in unsure} == {"ant and bee & wasp", "$c$"}
    assert {row["image"] for row in unsure} == {str(files[0]), str(files[1])}


def test_a_sheet_keeps_long_names_short_and_formulas_as_text():
    tile = Image.new("RGB", (8, 4), "red")
    figure = contact_sheet([(tile, f"{'folder/' * 20}cat.png\n$x_1$")] * 7)
    first, *_ = figure.axes
    name, formula = first.get_title(loc="left").splitlines()
    assert name == "…" + f"{'folder/' * 20}cat.png"[-32:]
    assert formula == "$x_1$"
    assert len(figure.axes) == 12


def test_many_classes_are_not_written_over_each_other():
    few = scatter({"PCA": torch.randn(40, 2)}, [str(k % 20) for k in range(40)])
    many = scatter({"PCA": torch.randn(80, 2)}, [str(k % 40) for k in range(80)])
    assert [len(figure.axes[0].texts) for figure in (few, many)] == [20, 0]


def test_a_files_name_may_be_any_bytes(tmp_path, files):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        odd.write_bytes(files[0].read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    said, _ = explain(model(), [odd], tmp_path / "out", known=Split((odd,), torch.tensor([0])))
    assert (tmp_path / "out" / said.picture).exists()
    (image,) = json.loads((tmp_path / "out" / "explain.json").read_bytes())["images"]
    assert os.fsencode(image["file"]) == os.fsencode(odd)
    split = Split((odd,), torch.tensor([0]))
    scores = Scores(torch.tensor([[0.0, 1, 0]]), split.labels, torch.tensor([0]), NAMES)
    explore(model(), split, scores, tmp_path / "found", train=None)
    (wrong,) = rows(tmp_path / "found" / "most-wrong.csv")
    assert wrong["image"].endswith("caf\\udce9.png")
