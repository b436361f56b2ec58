"""Points of images, and the same picture twice."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from resnets.analysis import embedding
from resnets.analysis.embedding import (
    duplicates,
    embeddings,
    nearest_neighbours,
    perceptual_hashes,
    project,
)
from resnets.config.families import get_arch
from resnets.config.recipe import Preprocess
from resnets.data.splits import Split
from resnets.data.transforms import grey
from resnets.evaluation.predictor import Model
from resnets.models import build
from resnets.models.io.model_file import ModelMetadata


def photographs(count, seed=0):
    """Smooth random images with some detail, 48 x 48."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(
            torch.randn(count, 3, side, side, generator=generator), (48, 48), mode="bicubic"
        )
        for side in (4, 8, 16)
    ]
    x = 128 + 40 * layers[0] + 25 * layers[1] + 10 * layers[2]
    return x.clamp(0, 255).byte()


def split(images):
    return Split(images, torch.zeros(len(images), dtype=torch.int64))


def model():
    torch.manual_seed(0)
    description = replace(get_arch("resnet20"), classes=2)
    see = Preprocess(size=48, mean=(0.5,) * 3, std=(0.25,) * 3)
    card = ModelMetadata(arch=description, classes=("a", "b"), preprocess=see)
    return Model(build(description).eval(), card, torch.device("cpu"))


def recompressed(image):
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=50)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


CHANGES = {
    "the same": lambda x: x,
    "shifted": lambda x: torch.cat([x[:, :, :1], x[:, :, :-1]], 2),
    "recompressed": recompressed,
    "brighter": lambda x: (x.float() * 1.2).clamp(0, 255).byte(),
    "grey": lambda x: grey(x[None].float())[0].expand(3, -1, -1).byte(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_made_duplicates_are_found_and_nothing_else(change):
    train = photographs(200)
    test = photographs(40, seed=1)
    made = {3: 17, 11: 150, 39: 0}  # image of the test split: image of the training split
    for i, j in made.items():
        test[i] = CHANGES[change](train[j])
    found = duplicates(split(test), split(train))
    assert {pair.first: pair.second for pair in found} == made
    assert [p.correlation for p in found] == sorted((p.correlation for p in found), reverse=True)
    if change == "the same":
        assert all(pair[2:] == (0, pytest.approx(1, abs=1e-5)) for pair in found)


def test_a_model_decides_where_the_prints_are_less_sure(monkeypatch):
    """Moved by two pixels the hash alone is too far; the network sees the same."""
    train, test = photographs(100), photographs(20, seed=1)
    test[5] = torch.roll(train[0], 2, 2)
    assert duplicates(split(test), split(train)) == []
    (found,) = duplicates(split(test), split(train), model=model())
    assert (found.first, found.second) == (5, 0)
    assert 10 < found.distance <= 16
    monkeypatch.setattr(embedding, "COSINE", 1.1)
    assert duplicates(split(test), split(train), model=model()) == []


def test_pictures_of_one_colour_are_nobodys_duplicates():
    flat = torch.full((3, 3, 48, 48), 200, dtype=torch.uint8)
    assert duplicates(split(flat), split(flat)) == []


def test_files_and_memory_have_the_same_prints_and_bad_files_none(tmp_path):
    images = photographs(4)
    files = [tmp_path / f"{k}.png" for k in range(5)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    files[4].write_bytes(b"broken")
    files[1], files[4] = files[4], files[1]
    on_disk = Split(tuple(files), torch.zeros(5, dtype=torch.int64))
    some, whole = perceptual_hashes(on_disk), perceptual_hashes(split(images))
    assert some.rows.tolist() == [0, 2, 3, 4]
    order = [0, 2, 3, 1]
    assert torch.equal(some.bits, whole.bits[order])
    torch.testing.assert_close(some.thumbnails, whole.thumbnails[order], atol=0.01, rtol=0)
    assert [pair[:2] for pair in duplicates(on_disk, split(images[1:2]))] == [(4, 0)]
    assert embeddings(model(), on_disk)[1].tolist() == [0, 2, 3, 4]


def test_the_hash_says_whether_a_cell_is_darker_than_the_next():
    ramp = torch.arange(36).repeat_interleave(2)[None, None, None].expand(1, 3, 72, 72) * 7
    found = perceptual_hashes(split(ramp.byte().contiguous()))
    assert found.bits.unique().tolist() == [1]
    assert perceptual_hashes(split(ramp.flip(3).byte().contiguous())).bits.unique().tolist() == [-1]
    norm = found.thumbnails.norm(), found.thumbnails.mean()
    torch.testing.assert_close(torch.stack(norm), torch.tensor([1.0, 0]), atol=1e-6, rtol=0)


def test_vectors_are_what_the_classifier_sees():
    whole, images = model(), photographs(5)
    points, rows = embeddings(whole, split(images))
    assert (points.shape, rows.tolist()) == ((5, 64), [0, 1, 2, 3, 4])
    seen = []
    whole.network.fc.register_forward_pre_hook(lambda _, x: seen.extend(x))
    whole.network((images.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(points, F.normalize(seen[0]))
    torch.testing.assert_close(embeddings(whole, split(images), batch=2)[0], points)


def test_neighbours_are_the_points_of_largest_cosine():
    points = F.normalize(torch.tensor([[1.0, 0], [10, 10], [0, 2], [-1, 0]]))
    queries = F.normalize(torch.tensor([[5.0, 0], [0.1, 0.2]]))
    cosines, rows = nearest_neighbours(points, queries, 2)
    assert rows.tolist() == [[0, 1], [1, 2]]
    assert nearest_neighbours(points, queries, 9)[1][0].tolist() == [
        0,
        1,
        2,
        3,
    ]  # all that there are
    torch.testing.assert_close(cosines, torch.tensor([[1, 0.5**0.5], [3 / 10**0.5, 2 / 5**0.5]]))


def test_a_map_keeps_groups_apart():
    torch.manual_seed(0)
    centres = 10 * F.one_hot(torch.arange(2).repeat_interleave(20), 6).float()
    placed = project(centres + torch.randn(40, 6))
    assert list(placed) == ["PCA", "t-SNE"]
    for points in placed.values():
        assert points.shape == (40, 2)
        distance = torch.cdist(points.double(), points.double())
        assert distance[:20, :20].max() < distance[:20, 20:].min()
