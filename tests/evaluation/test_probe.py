"""Probes against scikit-learn, neighbours by hand, episodes where the answer is known."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import resnets
from resnets import errors
from resnets.config.recipe import Preprocess
from resnets.evaluation import few_shot, probe
from resnets.evaluation.features import Features
from resnets.models.io.model_file import ModelMetadata, save


def drawn(count=60, classes=3, size=5, seed=0, distance=2.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = distance * np.eye(classes, size)
    scales = 10.0 ** np.arange(size)  # of very different size
    vectors = (centres[labels] + generator.normal(size=(count, size))) * scales + 3
    names = tuple(f"class{k}" for k in range(classes))
    return Features(
        vectors.astype(np.float32), torch.from_numpy(labels), torch.arange(count), "layer3",
        classes=names,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns(classes):
    train, test = drawn(classes=classes), drawn(classes=classes, seed=1)
    fitted = probe.fit_probe(train, strengths=[0.1])
    scaler = StandardScaler().fit(train.vectors.astype(float))
    model = LogisticRegression(C=0.1, max_iter=1000)
    model.fit(scaler.transform(train.vectors.astype(float)), train.labels)
    expected = model.predict_proba(scaler.transform(test.vectors.astype(float)))
    logits = fitted.logits(test.vectors)
    np.testing.assert_allclose(logits.double().softmax(1), expected, atol=1e-5)
    assert fitted.weight.shape == (classes, 5)


def test_plain_features_are_divided_by_one_number():
    train = drawn()
    x = train.vectors.astype(float)
    mean, scale = probe.feature_scale(x, standardize=False)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(scale, np.full(5, math.sqrt(x.var(0).mean())))
    constant = np.full((4, 2), 7.0)
    np.testing.assert_array_equal(probe.feature_scale(constant, standardize=True)[1], [1, 1])


def test_validation_images_choose_the_strength_and_are_learned_from():
    train, val = drawn(count=30, distance=1.0), drawn(count=90, seed=1, distance=1.0)
    chosen = probe.fit_probe(train, val)
    assert chosen.chosen_by == "90 validation images"
    assert [row[0] for row in chosen.tried] == list(probe.STRENGTHS)
    best = min(chosen.tried, key=lambda row: row[2])
    assert chosen.strength == best[0]
    alone = probe.fit_probe(train, strengths=[chosen.strength])
    both = probe.fit_probe(probe.concat(train, val), strengths=[chosen.strength])
    np.testing.assert_allclose(chosen.weight, both.weight)
    without = probe.fit_probe(train, val, refit=False)
    np.testing.assert_allclose(without.weight, alone.weight)
    loss = probe.accuracy_and_loss(alone.logits(val.vectors), val)[1]
    assert best[2] == pytest.approx(loss, abs=0.01)  # which came from a warm start


def test_without_validation_images_folds_choose():
    assert probe.fit_probe(drawn()).chosen_by == "5-fold cross-validation of 60 images"
    rare = drawn(count=9)
    assert probe.fit_probe(rare).chosen_by == "3-fold cross-validation of 9 images"
    single = probe.fit_probe(drawn(count=5))
    assert single.chosen_by == "default, since a class has a single image"
    assert single.strength == probe.FEW


def test_a_class_without_training_images_is_not_predicted():
    train = drawn()
    train = train.take(torch.nonzero(train.labels != 1)[:, 0])
    logits = probe.fit_probe(train, strengths=[1.0]).logits(train.vectors)
    assert logits.shape == (40, 3)
    assert logits.softmax(1)[:, 1].max() == 0


def test_what_no_probe_can_learn_from_is_refused():
    train = drawn()
    with pytest.raises(errors.UsageError, match="of one class"):
        probe.fit_probe(train.take(torch.tensor([0, 3, 6])))
    several = Features(train.vectors, torch.ones(60, 3), train.indices, "", classes=train.classes)
    with pytest.raises(errors.UsageError, match="several labels"):
        probe.fit_probe(several)
    unknown = Features(train.vectors, torch.full((60,), -1), train.indices, "")
    with pytest.raises(errors.UsageError, match="images with classes"):
        probe.fit_probe(unknown)


def test_votes_of_neighbours_by_hand():
    angles = torch.tensor([0.0, 0.3, 0.4, 2.0])
    bank = Features(
        torch.stack([angles.cos(), angles.sin()], 1).numpy() * 5, torch.tensor([0, 1, 1, 2]),
        torch.arange(4), "", classes=("a", "b", "c"),
    )  # fmt: skip
    query = Features(
        np.array([[2.0, 0.0]], np.float32), torch.tensor([0]), torch.arange(1), "",
        classes=bank.classes,
    )  # fmt: skip
    votes = few_shot.knn_logits(bank, query, 3)[0]
    expected = [1.0, sum(math.exp((math.cos(a) - 1) / 0.07) for a in (0.3, 0.4))]
    np.testing.assert_allclose(votes[:2].exp(), expected, rtol=1e-5)
    assert votes[2] < -60  # it is not among the three nearest
    assert few_shot.knn_logits(bank, query, 200).shape == (1, 3)


def test_few_labels_are_drawn_class_by_class():
    train = drawn()
    some = few_shot.draw_labelled(train, 4, seed=0)
    assert torch.bincount(some.labels).tolist() == [4, 4, 4]
    other = few_shot.draw_labelled(train, 4, seed=1)
    assert some.indices.tolist() != other.indices.tolist()
    assert few_shot.draw_labelled(train, 99, seed=0).indices.tolist() == list(range(60))


def test_episodes_of_what_can_be_told_apart_and_of_what_cannot():
    generator = np.random.default_rng(0)
    labels = torch.arange(200) % 10
    noise = generator.normal(size=(200, 16)).astype(np.float32)
    names = tuple(map(str, range(10)))
    centres = 50 * generator.normal(size=(10, 16)).astype(np.float32)
    apart = Features(noise + centres[labels], labels, torch.arange(200), "", classes=names)
    for row in few_shot.few_shot_episodes(apart, episodes=5, way=5, shots=1):
        assert (row.accuracy, row.interval) == (1.0, (1.0, 1.0))
    chance = Features(noise, labels, torch.arange(200), "", classes=names)
    for row in few_shot.few_shot_episodes(chance, episodes=40, way=5, shots=2):
        low, high = row.interval
        assert 0.1 < low < row.accuracy < high < 0.3
    with pytest.raises(errors.UsageError, match="10 classes have more than 5 images"):
        few_shot.few_shot_episodes(chance, episodes=1, way=11, shots=5)


def test_the_interval_of_a_mean_by_hand():
    mean, (low, high) = few_shot.mean_interval([0.2, 0.4, 0.6])
    # Student's t of 2 degrees of freedom: 4.302653; deviation 0.2
    half = 4.302653 * 0.2 / math.sqrt(3)
    assert mean == pytest.approx(0.4)
    assert (low, high) == (0.0, pytest.approx(0.4 + half))


@pytest.fixture
def random_weights(tmp_path, monkeypatch):
    """A model file whose network was never trained: also its features tell digits apart."""
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = resnets.create("resnet8", classes=2, channels=1).eval()
    preprocess = Preprocess(size=8, channels=1, mean=(0.3,), std=(0.4,))
    metadata = ModelMetadata(arch=network.arch, classes=("a", "b"), preprocess=preprocess)
    save(tmp_path / "model.safetensors", network, metadata)
    return tmp_path / "model.safetensors"


def test_a_probe_becomes_a_model_file_that_predicts_the_same(random_weights, tmp_path):
    run = random_weights
    out = tmp_path / "probe.safetensors"
    result = resnets.probe(run, "digits", out=out)
    (score,) = result.scores
    assert result.split == "test"
    assert result.chosen_by == "5-fold cross-validation of 899 images"
    assert score.accuracy > 0.8
    evaluated = resnets.evaluate(out, "digits")
    assert evaluated.confusion == score.metrics.confusion
    assert evaluated.loss == pytest.approx(score.metrics.loss, abs=1e-4)
    again = resnets.probe(run, "digits", knn=True)  # whose features are in the cache
    assert [row.setting for row in again.scores] == ["k=20", "k=200"]
    assert all(row.accuracy > 0.7 for row in again.scores)
    with pytest.raises(errors.UsageError, match="nothing here overwrites"):
        resnets.probe(run, "digits", out=out)
    with pytest.raises(errors.UsageError, match="leave out --level"):
        resnets.probe(run, "digits", level="layer2", out=tmp_path / "other.safetensors")
    with pytest.raises(errors.UsageError, match="give one"):
        resnets.probe(run, "digits", knn=True, episodes=3)
    few = resnets.probe(run, "digits", shots=3)
    assert few.trained_on == "30 images"
    episodes = resnets.probe(run, "digits", episodes=20, shots=5)
    assert [row.method for row in episodes.scores] == [
        "centroid of episodes", "logistic of episodes",
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"knn": True}, {"shots": 2}, {"episodes": 2}])
def test_several_labels_are_refused_by_every_method(options, random_weights, tmp_path):
    rows = []
    for k in range(12):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'a|b' if k % 2 else 'a'},{'train' if k < 8 else 'test'}")
    (tmp_path / "labels.csv").write_text("path,label,split\n" + "\n".join(rows))
    with pytest.raises(errors.UsageError, match="several labels"):
        resnets.probe(random_weights, tmp_path / "labels.csv", workers=0, **options)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_probe_on_photographs_reaches_what_the_page_says(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
    file = shared / "checkpoints" / "resnet50_thin_v1.safetensors"
    model = resnets.load(file, overrides=["arch.stride_on=1x1"])
    model = model.normalized((0.482353, 0.458824, 0.407843), (1 / 255,) * 3)
    photographs = shared / "data" / "clothing"
    out = tmp_path / "probe.safetensors"
    result = resnets.probe(model, photographs, out=out)
    (score,) = result.scores
    assert result.chosen_by == "120 validation images"
    assert score.accuracy >= 0.75  # 77.5 % where it was measured; one image is 0.8 points
    evaluated = resnets.evaluate(out, photographs)
    assert evaluated.top1 == pytest.approx(score.accuracy, abs=0.01)
    neighbours = resnets.probe(model, photographs, knn=True)
    assert max(row.accuracy for row in neighbours.scores) >= 0.55
