"""The command `search`: hits, the picture, copies, outliers, and its cache."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import resnets
from resnets.config.recipe import Preprocess
from resnets.evaluation import feature_store
from resnets.models.io.model_file import ModelMetadata, save

COLOURS = {"red": (220, 30, 30), "green": (20, 200, 40), "blue": (30, 40, 210)}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    network = resnets.create("resnet8", classes=2, channels=3).eval()
    preprocess = Preprocess(size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    metadata = ModelMetadata(arch=network.arch, classes=("a", "b"), preprocess=preprocess)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save(path, network, metadata)
    return path


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Six images of each of three colours, in folders of that name, and a copy of one of them."""
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "album" / name).mkdir(parents=True)
        for k in range(6):
            noise = generator.integers(-25, 25, (40, 40, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            pixels[5 * k : 5 * k + 12, 8:30] = 255 - pixels[5 * k : 5 * k + 12, 8:30] // 4
            Image.fromarray(pixels).save(tmp_path / "album" / name / f"{k}.png")
    with Image.open(tmp_path / "album" / "red" / "2.png") as picture:
        picture.resize((60, 60)).save(tmp_path / "album" / "red" / "copy.jpg", quality=90)
    return tmp_path / "album"


def test_what_is_alike_is_found_and_drawn(album, model_file, tmp_path, cli):
    query = album / "green" / "3.png"
    code, out, _ = cli("search", model_file, album, query, "--top", 4, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["images"] == 19
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4]
    assert all(hit["file"].startswith("green/") for hit in answer["hits"])
    assert "green/3.png" not in [hit["file"] for hit in answer["hits"]]
    code, out, err = cli(
        "search", model_file, album, query, album / "red" / "0.png", "--top", 3,
        "--out", tmp_path / "found.png",
    )  # fmt: skip
    assert code == 0
    assert "red/" in out
    assert "found.png" in err
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > picture.height  # two rows of four


def test_a_second_search_computes_the_query_alone(album, model_file, monkeypatch):
    first = resnets.search(model_file, album, album / "red" / "0.png", workers=0)
    computed = []
    monkeypatch.setattr(feature_store, "feature_batches", lambda *_: computed.append(1) or iter(()))
    second = resnets.search(model_file, album, album / "red" / "0.png", workers=0)
    assert second.hits == first.hits
    assert not computed
    monkeypatch.undo()


def test_retrieval_copies_and_outliers(album, model_file):
    scores = {row.figure: row for row in resnets.search(model_file, album, evaluate=True).scores}
    assert list(scores) == ["recall@1", "recall@5", "recall@10", "mAP@R"]
    assert scores["recall@1"].value == 1
    low, high = scores["mAP@R"].interval
    assert 0.5 < low <= scores["mAP@R"].value <= high <= 1
    copies = resnets.search(model_file, album, duplicates=True).copies
    assert [(pair.first, pair.second) for pair in copies] == [("red/2.png", "red/copy.jpg")]
    Image.new("RGB", (40, 40), (255, 255, 0)).save(album / "green" / "odd.png")
    far = resnets.search(model_file, album, outliers=True, top=3).outliers
    assert len(far) == 3
    assert far[0].file == "green/odd.png"
    assert far[0].beyond
    asked = resnets.search(
        model_file, album, album / "green" / "odd.png", album / "red" / "1.png", outliers=True
    )
    assert [row.beyond for row in asked.outliers] == [True, False]


def test_what_cannot_be_searched_is_answered(album, model_file, tmp_path, cli):
    (tmp_path / "notes.txt").write_text("no image")
    code, _, err = cli("search", model_file, album, tmp_path / "notes.txt")
    assert (code, "notes.txt" in err) == (3, True)
    code, _, err = cli("search", model_file, album)
    assert (code, "name an image" in err) == (2, True)
    code, _, err = cli("search", model_file, tmp_path / "nowhere", "a.png")
    assert code == 3
    (tmp_path / "empty").mkdir()
    code, _, err = cli("search", model_file, tmp_path / "empty", album / "red" / "0.png")
    assert (code, "holds no image" in err) == (3, True)
    code, _, err = cli("search", model_file, album, album / "red" / "0.png", "--level", "layer7")
    assert (code, "Levels: stem, layer1, layer2, layer3, pre_logits" in err) == (2, True)
    code, _, err = cli("search", model_file, album, "--duplicates", "--out", "x.jpg")
    assert (code, "call it .png" in err) == (2, True)
    query = album / "red" / "0.png"
    code, _, err = cli("search", model_file, album, query, "--outliers", "--out", "x.png")
    assert (code, "draws images of the folder" in err) == (2, True)
