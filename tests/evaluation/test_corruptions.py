import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from resnets.data.dataset import Split
from resnets.evaluation.classification import classification_metrics
from resnets.evaluation.corruptions import STRENGTHS, corrupt, mean_corruption_error, robustness

from ._helpers import scores
from .test_tta import made, pictures

INDICES = torch.tensor([5, 3, 9])


def photographs(side=64):
    """Three parts of a photograph: uint8 (3, 3, side, side)."""
    china = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    small = F.interpolate(china.float(), (side, 3 * side // 2), mode="area").byte()
    return torch.cat([small[..., x : x + side] for x in (0, side // 4, side // 2)])


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_corruption_is_a_function_of_image_and_index_and_grows(kind):
    images = photographs()
    distances = []
    for strength in range(1, 6):
        x = corrupt(images, INDICES, kind=kind, strength=strength)
        assert (x.dtype, x.shape) == (torch.uint8, images.shape)
        alone = corrupt(images[1:2], INDICES[1:2], kind=kind, strength=strength)
        assert torch.equal(x[1:2], alone)
        distances.append(float((x.float() - images.float()).square().mean()))
    assert distances == sorted(distances)
    assert 0 < distances[0] < distances[-1] / 2
    grey = corrupt(images[:, :1], INDICES, kind=kind, strength=3)
    assert grey.shape == (3, 1, 64, 64)


def test_noise_differs_between_images_and_has_its_strength():
    flat = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    noisy = corrupt(flat, INDICES, kind="gaussian-noise", strength=3).float()
    assert not torch.equal(noisy[0], noisy[1])
    assert float(noisy.mean()) == pytest.approx(128, abs=0.5)
    assert float(noisy.std()) == pytest.approx(255 * 0.12, rel=0.02)
    shot = corrupt(flat, INDICES, kind="shot-noise", strength=3).float()
    assert float(shot.std()) == pytest.approx(255 * (0.06 * 128 / 255) ** 0.5, rel=0.02)
    salt = corrupt(flat, INDICES, kind="impulse-noise", strength=4)
    assert float((salt == 0).float().mean()) == pytest.approx(0.05, abs=0.005)
    assert float((salt == 255).float().mean()) == pytest.approx(0.05, abs=0.005)


def test_a_motion_is_sideways():
    bars = (torch.arange(64) // 8 % 2 * 255).byte().expand(1, 3, 64, 64)  # they stand upright
    lying = bars.transpose(2, 3)
    one = torch.tensor([0])
    assert not torch.equal(corrupt(bars, one, kind="motion-blur", strength=3), bars)
    assert torch.equal(corrupt(lying, one, kind="motion-blur", strength=3), lying)


def test_the_mean_corruption_error_by_hand():
    rows = [("fog", 1, 0.2), ("fog", 2, 0.4), ("noise", 1, 0.1), ("noise", 2, 0.3)]
    assert mean_corruption_error(rows) == pytest.approx(0.25)


def test_a_view_of_a_model_is_tried_under_every_strength():
    model, split = made(), pictures()
    rows = list(robustness(lambda change: model.scores(split, view="flip", change=change), 3))
    assert [row[:2] for row in rows] == [(kind, k) for kind in STRENGTHS for k in range(1, 6)]
    bright = Split((split.images + 255 * 0.3).round().clamp(0, 255).byte(), split.labels)
    other = classification_metrics(model.scores(bright, view="flip"))
    assert rows[27] == ("brightness", 3, pytest.approx(other.error))


def test_grey_images_are_not_saturated():
    rows = list(robustness(lambda _: scores([[1.0, 0.0], [1.0, 0.0]], [0, 1]), 1))
    assert {kind for kind, _, _ in rows} == {*STRENGTHS} - {"saturate"}
    assert {error for _, _, error in rows} == {0.5}
