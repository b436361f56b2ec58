"""Features against the network itself; their files, and what a kill leaves."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import resnets
from resnets import errors
from resnets.config.families import get_arch
from resnets.config.recipe import Preprocess
from resnets.data.loader import test_batches as batches_of
from resnets.evaluation import feature_store, features
from resnets.evaluation.feature_files import FeatureFile, write_features
from resnets.evaluation.feature_store import FeatureOptions, store_features
from resnets.evaluation.image_set import read_image_set
from resnets.evaluation.predictor import Model
from resnets.models.heads import classifier_layer
from resnets.models.io.model_file import ModelMetadata

CPU = torch.device("cpu")


def make_model(name="resnet8", size=16, classes=3):
    torch.manual_seed(0)
    network = resnets.create(name, classes=classes, channels=3).eval()
    names = tuple(f"class{k}" for k in range(classes))
    preprocess = Preprocess(size=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    metadata = ModelMetadata(arch=network.arch, classes=names, preprocess=preprocess)
    return Model(network, metadata, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten images of each of two classes, in train and test."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(5):
                pixels = generator.integers(100 * k, 100 * k + 120, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def read(data):
    return read_image_set(data, split=None, max_unreadable=0.01)


SMALL = {
    "vit_b_16": {"blocks": 1, "size": 32, "width": 24, "heads": 2},
    "vgg11": {"hidden": 8, "widths": ((4,), (8, 8))},
}


@pytest.mark.parametrize("name", ["resnet8", "densenet_bc100_12", "preresnet20", *SMALL])
def test_what_the_last_layer_gets_gives_the_logits(name):
    model = make_model(size=32) if name in SMALL else make_model(name)
    if name in SMALL:
        network = resnets.create(replace(get_arch(name), **SMALL[name]), classes=3).eval()
        model = replace(model, network=network)
    network, side = model.network, model.metadata.preprocess.size
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        rows = features.feature_function(model)(images)
        torch.testing.assert_close(classifier_layer(network)(rows), network(images))


def test_features_of_a_split_are_those_of_the_network(folder):
    model, images = make_model(), read(folder)
    found = features.extract(model, images.split, level="layer2", batch=7)
    preprocess = model.metadata.preprocess
    (batch,) = batches_of(images.split, preprocess=preprocess, batch=99, device="cpu")
    with torch.no_grad():
        maps = model.network.features(batch.images)["layer2"]
    torch.testing.assert_close(torch.from_numpy(found.vectors), maps.mean((2, 3)))
    whole = features.extract(model, images.split, level="layer2", pooled=False)
    torch.testing.assert_close(torch.from_numpy(whole.vectors), maps)
    assert found.labels.tolist() == images.split.labels.tolist()
    with torch.no_grad():
        other = model.network.features(batch.images.flip(-1))["layer2"].mean((2, 3))
    both = features.extract(model, images.split, level="layer2", mirrored=True)
    torch.testing.assert_close(torch.from_numpy(both.vectors), (maps.mean((2, 3)) + other) / 2)


def test_a_loaded_model_gives_features_of_images_in_every_form(folder):
    model, images = make_model(), read(folder)
    expected = torch.from_numpy(features.extract(model, images.split).vectors)
    torch.testing.assert_close(model.features(list(images.split.images), batch=3), expected)
    one = model.features(Image.open(images.split.images[4]))
    torch.testing.assert_close(one, expected[4])
    maps = model.features(images.split.images[:2], level="layer1", pooled=False)
    assert maps.shape == (2, 16, 16, 16)
    with pytest.raises(errors.DataError, match="nothing"):
        model.features([images.split.images[0], "nothing.png"])


def test_a_level_that_is_not_there_is_answered_with_those_that_are():
    model = make_model()
    with pytest.raises(errors.UsageError, match=r"did you mean layer3.*stem, layer1.*pre_logits"):
        features.feature_function(model, "layer4")
    with pytest.raises(errors.UsageError, match="no maps: one of stem, layer1, layer2, layer3"):
        features.feature_function(model, "pre_logits", pooled=False)


def test_a_network_of_another_task_is_refused(tmp_path, folder):
    with torch.device("meta"):
        network = resnets.create("fcn_resnet50", classes=2)
    metadata = ModelMetadata(arch=network.arch, classes=("a", "b"), preprocess=Preprocess(size=64))
    with pytest.raises(errors.UsageError, match="is a network to segment, not to classify"):
        resnets.features(Model(network.eval(), metadata, CPU), folder)


class Killed(Exception):
    pass


def test_a_killed_extraction_goes_on_where_it_was(folder, tmp_path, monkeypatch):
    model, images = make_model(), read(folder)
    options = FeatureOptions(batch=4)
    monkeypatch.setattr(feature_store, "SAVE_SECONDS", 0.0)

    def stop(done, total):
        assert total == 20
        if done == 12:
            raise Killed

    with pytest.raises(Killed):
        store_features(tmp_path / "some", model, images, options, stop)
    seen = []
    rest = store_features(
        tmp_path / "some", model, images, options, lambda done, _: seen.append(done)
    )
    assert seen == [12, 16, 20]  # the state of the last batch had not been noted
    whole = store_features(tmp_path / "whole", model, images, options)
    assert np.array_equal(rest.vectors, whole.vectors)
    assert rest.names == whole.names == images.names
    assert isinstance(rest.vectors, np.memmap)
    seen.clear()
    store_features(tmp_path / "some", model, images, options, lambda done, _: seen.append(done))
    assert seen == []  # nothing is left to do


def test_what_was_begun_with_another_model_or_data_is_refused(folder, tmp_path):
    model, images = make_model(), read(folder)
    store_features(tmp_path / "some", model, images, FeatureOptions())
    with torch.no_grad():
        model.network.fc.bias += 1
    with pytest.raises(errors.UsageError, match="begun with another model"):
        store_features(tmp_path / "some", model, images, FeatureOptions())
    with torch.no_grad():
        model.network.fc.bias -= 1
    other = replace(images, digest="other")
    with pytest.raises(errors.UsageError, match="begun with another data and level"):
        store_features(tmp_path / "some", model, other, FeatureOptions(level="layer1"))


def test_an_unreadable_image_has_no_row(folder, tmp_path):
    files = []
    for k in range(6):
        file = tmp_path / f"{k}.png"
        Image.new("RGB", (20, 20), (40 * k,) * 3).save(file)
        files.append(file)
    files[2].write_bytes(files[2].read_bytes()[:60])
    model, images = make_model(), read(tmp_path)
    options = FeatureOptions(batch=2, max_unreadable=0.5)
    found = store_features(tmp_path / "store", model, images, options)
    assert found.names == ("0.png", "1.png", "3.png", "4.png", "5.png")
    assert [path.name for path, _ in found.unreadable] == ["2.png"]
    direct = features.extract(model, images.split, batch=2)
    assert np.array_equal(found.vectors, direct.vectors)
    assert found.indices.tolist() == direct.indices.tolist() == [0, 1, 3, 4, 5]
    assert found.labels.tolist() == [-1] * 5
    with pytest.raises(errors.DataError, match=r"1 of 6 images, first .*2\.png"):
        store_features(tmp_path / "store", model, images, FeatureOptions())


def test_files_have_what_was_computed(folder, tmp_path):
    model, images = make_model(), read(folder)
    expected = features.extract(model, images.split)
    for suffix in (".npz", ".safetensors"):
        written = write_features(tmp_path / f"f{suffix}", model, images, FeatureOptions())
        assert (written.images, written.shape, written.level) == (20, (64,), "pre_logits")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "f.safetensors"]
    with np.load(tmp_path / "f.npz") as file:
        assert np.array_equal(file["vectors"], expected.vectors)
        assert file["names"].tolist() == list(images.names)
        assert file["splits"].tolist() == ["train"] * 10 + ["test"] * 10
        assert file["labels"].tolist() == images.split.labels.tolist()
        assert (file["classes"].tolist(), str(file["level"])) == (["cat", "dog"], "pre_logits")
    tensors = load_file(tmp_path / "f.safetensors")
    assert np.array_equal(tensors["vectors"], expected.vectors)
    assert tensors["labels"].tolist() == images.split.labels.tolist()
    with safe_open(tmp_path / "f.safetensors", "np") as file:
        facts = json.loads(file.metadata()["features"])
    assert facts["names"] == list(images.names)
    assert facts["classes"] == ["cat", "dog"]
    with pytest.raises(errors.UsageError, match="nothing here overwrites"):
        write_features(tmp_path / "f.npz", model, images, FeatureOptions())


def test_a_parquet_file(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    model, images = make_model(), read(folder)
    write_features(tmp_path / "f.parquet", model, images, FeatureOptions(level="layer1"))
    table = parquet.read_table(tmp_path / "f.parquet")
    expected = features.extract(model, images.split, level="layer1").vectors
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), expected)
    assert table["class"].to_pylist() == [images.classes[k] for k in images.split.labels]
    assert table["name"].to_pylist() == list(images.names)


def test_parquet_without_its_package(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    model, images = make_model(), read(folder)
    with pytest.raises(errors.MissingPackage, match=r"pip install 'resnets\[parquet\]'"):
        write_features(tmp_path / "f.parquet", model, images, FeatureOptions())
    with pytest.raises(errors.UsageError, match=r"\.npz, \.safetensors, \.parquet"):
        write_features(tmp_path / "f.csv", model, images, FeatureOptions())


def test_any_folder_of_images_will_do(tmp_path, folder):
    model = make_model()
    (tmp_path / "album" / "deep" / "deeper").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "deep/deeper/c.jpg"):
        Image.new("RGB", (20, 20), 90).save(tmp_path / "album" / name)
    found = resnets.features(model, tmp_path / "album", workers=0)
    assert found.names == ("a.png", "deep/b.png", "deep/deeper/c.jpg")
    assert (found.labels.tolist(), found.classes) == ([-1] * 3, ())
    with pytest.raises(errors.DataError, match="has no test split"):
        resnets.features(model, tmp_path / "album", split="test")
    labelled = resnets.features(model, folder, split="test", workers=0)
    assert (len(labelled), labelled.classes) == (10, ("cat", "dog"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.DataError, match="holds no image; its files: 0"):
        resnets.features(model, tmp_path / "empty")
    written = resnets.features(model, folder, out=tmp_path / "f.npz", workers=0)
    assert isinstance(written, FeatureFile)
    assert written.file.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, "5", '{"identity": 5}', '{"identity": {"images": 2}, "done": "x"}',
        '{"identity": {"images": 2}, "done": 2}', '{"identity": {"images": 2}, "done": 9}',
        '{"identity": {"images": 2}, "shape": [3], "done": 1}',
    ],
)  # fmt: skip
def test_damaged_progress_begins_anew(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    np.save(tmp_path / "vectors.npy", np.zeros((2, 3)))  # float64, which is not of ours
    known = {"images": 2}
    assert feature_store.read_progress(tmp_path, known) == feature_store.Progress(known)
