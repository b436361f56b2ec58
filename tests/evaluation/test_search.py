"""Search against a comparison of all with all; figures of retrieval by hand and by a loop."""

import numpy as np
import pytest
import torch

from resnets import errors
from resnets.evaluation import search
from resnets.evaluation.features import Features


def vectors(count=50, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


@pytest.mark.parametrize("piece", [7 * 6, 2**24])
def test_the_nearest_are_those_of_all_comparisons(piece, monkeypatch):
    monkeypatch.setattr(search, "PIECE", piece)
    monkeypatch.setattr(search, "QUERIES", 4)
    known, queries = vectors(), vectors(11, seed=1)
    near = search.nearest(known, queries, 9)
    expected = cosines(queries, known)
    order = np.argsort(-expected, axis=1)[:, :9]
    np.testing.assert_array_equal(near.rows, order)
    np.testing.assert_allclose(near.cosines, np.take_along_axis(expected, order, 1), atol=1e-6)
    assert search.nearest(known, queries, 99).rows.shape == (11, 50)


def test_an_image_is_not_among_its_own_neighbours():
    known = vectors(20)
    known[5] = known[3]  # a copy, which is the nearest, and the other way round
    near = search.nearest_others(known, 4)
    assert near.rows.shape == (20, 4)
    assert not (near.rows == torch.arange(20)[:, None]).any()
    assert near.rows[3, 0] == 5
    assert near.rows[5, 0] == 3
    same = np.ones((6, 3), np.float32)  # each has more copies than are asked for
    rows = search.nearest_others(same, 2).rows
    assert not (rows == torch.arange(6)[:, None]).any()


def labelled(points, labels):
    names = tuple(map(str, range(max(labels) + 1)))
    count = torch.arange(len(labels))
    return Features(points.astype(np.float32), torch.tensor(labels), count, "", classes=names)


def test_retrieval_by_hand():
    angles = np.radians([0, 10, 25, 90, 200])
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = search.retrieval(labelled(points, [0, 1, 0, 0, 2]), counts=(1, 2))
    assert found.without == 2  # the images of classes 1 and 2 are alone
    # From 0 degrees: 10 (wrong), 25 (right), ... From 25: 10 (wrong), 0 (right). From 90: 25, then
    # 10. R is 2 each time: (1/2) / 2, (1/2) / 2, (1) / 2.
    assert found.precision.tolist() == [0.25, 0.25, 0.5]
    assert found.recall[1].tolist() == [0, 0, 1]
    assert found.recall[2].tolist() == [1, 1, 1]


def reference(points, labels, counts):
    """Musgrave et al. 2020, section 3.2, as a loop."""
    similarity = cosines(points, points)
    recall, precision = {k: [] for k in counts}, []
    for query, label in enumerate(labels):
        order = [k for k in np.argsort(-similarity[query]) if k != query]
        right = [labels[k] == label for k in order]
        r = sum(right)
        if not r:
            continue
        precision.append(sum(right[i] * sum(right[: i + 1]) / (i + 1) for i in range(r)) / r)
        for k in counts:
            recall[k].append(any(right[:k]))
    return recall, precision


def test_retrieval_is_that_of_the_definition():
    points = vectors(60, 4).astype(float)
    labels = np.random.default_rng(2).integers(0, 7, 60).tolist()
    found = search.retrieval(labelled(points, labels), counts=(1, 3, 10))
    recall, precision = reference(points, labels, (1, 3, 10))
    np.testing.assert_allclose(found.precision, precision, atol=1e-12)
    for k, values in recall.items():
        assert found.recall[k].tolist() == values


def test_retrieval_needs_classes_with_two_images():
    with pytest.raises(errors.UsageError, match="no class has two images"):
        search.retrieval(labelled(vectors(3), [0, 1, 2]))
    with pytest.raises(errors.UsageError, match="one class each"):
        search.retrieval(Features(vectors(3), torch.full((3,), -1), torch.arange(3), ""))


def test_what_is_like_nothing_else_is_farthest():
    generator = np.random.default_rng(0)
    cluster = np.array([5.0, 0, 0, 0]) + 0.3 * generator.normal(size=(60, 4))
    cluster[17] = [0, 0, -4, 0]
    far = search.outliers(cluster.astype(np.float32))
    assert far.distances.argmax() == 17
    assert far.neighbours == 10
    similarity = np.sort(cosines(cluster, cluster) - 2 * np.eye(60), axis=1)
    np.testing.assert_allclose(far.distances, 1 - similarity[:, -10], atol=1e-5)
    assert float((far.distances > far.threshold).float().mean()) == pytest.approx(0.05)
    queries = np.array([[5, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    near, distant = search.outliers(cluster.astype(np.float32), queries).distances.tolist()
    assert near < far.threshold < distant
    with pytest.raises(errors.DataError, match="a single one"):
        search.outliers(vectors(count=1))


def test_faiss_finds_nearly_the_same():
    pytest.importorskip("faiss")
    known, queries = vectors(4000, 16), vectors(20, 16, seed=1)
    exact, other = search.nearest(known, queries, 10), search.approximate(known, queries, 10)
    shared = [
        len({*a} & {*b}) for a, b in zip(exact.rows.tolist(), other.rows.tolist(), strict=True)
    ]
    assert np.mean(shared) > 9


def test_faiss_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(errors.MissingPackage, match=r"pip install 'resnets\[faiss\]'"):
        search.approximate(vectors(), vectors(2), 3)
