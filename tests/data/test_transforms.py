import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from resnets.config.recipe import Augment, Preprocess
from resnets.data import auto_augment, transforms
from resnets.data.rng import uniform
from resnets.data.transforms import DRAWS, center_crop, crop_resize, geometry, normalize, statistics

sides = st.integers(1, 700)


def noise(*shape, seed=0):
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def drawn(n, seed=0):
    return uniform(seed, torch.tensor(0), torch.arange(n), DRAWS)


@given(sides, sides, st.integers(1, 256), st.integers(0, 300))
def test_the_test_time_view_is_torchvisions(height, width, size, resize):
    resize = max(resize, size)
    where = center_crop(height, width, Preprocess(size=size, resize=resize))
    short, long = sorted((height, width))
    assert sorted(where.sides) == sorted((resize, int(resize * long / short)))
    picture = torch.arange(where.sides[0] * where.sides[1]).view(1, *where.sides)
    top, left = where.corner
    expected = v2.functional.center_crop(picture, [size, size])
    assert torch.equal(picture[:, top : top + size, left : left + size], expected)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 90), (224, 224)])
def test_pixels_are_pillows_to_one_level(height, width):
    smooth = noise(1, 3, height // 5, width // 5).float()
    image = F.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)
    preprocess = Preprocess(size=224, resize=256)
    found = (
        crop_resize(image, center_crop(height, width, preprocess), preprocess)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    expected = np.asarray(reference(Image.fromarray(image[0].permute(1, 2, 0).numpy())))
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


def test_an_input_of_the_right_side_is_untouched():
    images, same = noise(3, 1, 8, 8), Preprocess(size=8)
    assert torch.equal(crop_resize(images, center_crop(8, 8, same), same), images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("interpolation", "levels"), [("bilinear", 1), ("bicubic", 0)])
def test_resizing_is_that_of_pillow(channels, interpolation, levels):
    """Up and down, of a checkerboard too, where a bicubic filter overshoots the most."""
    filtering = Image.Resampling[interpolation.upper()]
    board = (torch.arange(40)[:, None] + torch.arange(50)) % 2 * 255
    images = torch.stack([noise(channels, 40, 50), board.to(torch.uint8).expand(channels, -1, -1)])
    for height, width in ((16, 20), (56, 70), (40, 25)):
        found = transforms.resized(images, (height, width), interpolation)
        in_float = transforms.resized_in_float(images, (height, width), interpolation)
        assert found.dtype == in_float.dtype == torch.uint8
        for image, ours, as_on_a_gpu in zip(images, found, in_float, strict=True):
            resized = to_pil_image(image).resize((width, height), filtering)
            expected = pil_to_tensor(resized).int()
            assert (ours.int() - expected).abs().max() <= levels
            assert (as_on_a_gpu.int() - expected).abs().max() <= 1


def test_every_view_is_resized_with_the_interpolation_of_the_preprocessing():
    image, draws = noise(1, 3, 60, 80), uniform(0, torch.tensor([0]), torch.tensor([0]), DRAWS)
    for augment in (Augment(), Augment(crop="scale", scale=(24, 30)), Augment(crop="area")):
        smooth = Preprocess(size=24, resize=30)
        sharp = replace(smooth, interpolation="bicubic")
        found = [transforms.views(image, draws, 24, x, augment) for x in (smooth, sharp)]
        where = geometry(60, 80, smooth, augment, draws[0].tolist())
        assert torch.equal(found[1], crop_resize(image, where, sharp))
        assert not torch.equal(*found)
    for crops in ("center", "corners", "whole"):
        found = [transforms.test_view(image, draws, 24, x, crops) for x in (smooth, sharp)]
        assert not torch.equal(*found)


unit = st.floats(0, 1 - 2.0**-24, width=32)


@given(sides, sides, st.lists(unit, min_size=DRAWS, max_size=DRAWS))
def test_every_crop_lies_inside_and_has_the_inputs_side(height, width, draws):
    preprocess = Preprocess(size=64)
    for augment in (
        Augment(crop="scale", scale=(64, 120)),
        Augment(crop="area"),
        Augment(crop="area", area=(0.9, 1.0)),
    ):
        where = geometry(height, width, preprocess, augment, draws)
        top, left, h, w = where.box
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert 0 <= where.corner[0] <= where.sides[0] - 64
        assert 0 <= where.corner[1] <= where.sides[1] - 64
        if augment.crop == "scale":
            assert 64 <= min(where.sides) <= 120


def test_the_scale_crop_is_even_over_scales_and_places():
    preprocess, augment = Preprocess(size=8), Augment(crop="scale", scale=(8, 11))
    found = [geometry(20, 20, preprocess, augment, row) for row in drawn(8000).tolist()]
    sides = np.bincount([where.sides[0] for where in found])[8:]
    assert np.abs(sides / 8000 - 1 / 4).max() < 0.02
    corners = [where.corner for where in found if where.sides == (11, 11)]
    counts = np.unique(corners, axis=0, return_counts=True)[1]
    assert len(counts) == 16
    assert np.abs(counts / len(corners) - 1 / 16).max() < 0.02


def test_the_area_crop_has_the_area_and_shape_that_it_draws():
    preprocess, augment = Preprocess(size=8), Augment(crop="area")
    found = [geometry(1000, 1000, preprocess, augment, row) for row in drawn(4000).tolist()]
    areas = np.array([where.box[2] * where.box[3] / 1e6 for where in found])
    shapes = np.array([where.box[3] / where.box[2] for where in found])
    assert 0.079 < areas.min() < 0.09
    assert 0.99 < areas.max() <= 1.0
    assert 0.74 < shapes.min() < shapes.max() < 1.34
    assert abs(np.log(shapes).mean()) < 0.01
    # places are even in what is left free: corner / (1001 - side) is uniform
    free = np.array([where.box[0] / (1001 - where.box[2]) for where in found if where.box[2] < 900])
    assert abs(free.mean() - 0.5) < 0.02


def test_normalize_by_channel_and_by_pixel():
    images = noise(2, 3, 4, 4)
    mean, std = statistics(Preprocess(size=4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), "cpu")
    assert mean.shape == std.shape == (3, 1, 1)
    found = normalize(images, mean, std)
    assert found.dtype == torch.float32
    assert found[1, 2, 3, 0].item() == pytest.approx((images[1, 2, 3, 0].item() / 255 - 0.3) / 0.7)
    per_pixel = tuple((images.double().mean(0) / 255).flatten().tolist())
    mean, std = statistics(Preprocess(size=4, mean=per_pixel, std=(1.0, 1.0, 1.0)), "cpu")
    assert mean.shape == (3, 4, 4)
    assert normalize(images, mean, std).mean(0).abs().max() < 1e-7


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_shift_is_a_naive_loop(reflect, pad):
    images, draws = noise(40, 2, 6, 6).float(), drawn(40)[:, :2]
    found = transforms.shift(images, pad, reflect, draws)
    for n, (image, (u, v)) in enumerate(zip(images, draws.tolist(), strict=True)):
        top, left = int(u * (2 * pad + 1)) - pad, int(v * (2 * pad + 1)) - pad
        for y in range(6):
            for x in range(6):
                row, column = y + top, x + left
                if reflect:
                    row, column = (5 - abs(5 - abs(i)) for i in (row, column))
                outside = not (0 <= row < 6 and 0 <= column < 6)
                expected = torch.zeros(2) if outside else image[:, row, column]
                assert torch.equal(found[n, :, y, x], expected)


def test_pad_and_flip_are_even_over_all_162_views():
    marked = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    marked[0, 0, 4, 3] = 255
    marked[0, 0, 4, 4] = 100
    n = 30_000
    views = transforms.augment(
        marked.expand(n, -1, -1, -1),
        Augment(crop="pad", pad=4, flip=True),
        torch.zeros(1, 1, 1),
        torch.ones(1, 1, 1),
        drawn(n),
    )
    kinds, counts = views.unique(dim=0, return_counts=True)
    # the mark leaves the picture at one side, where the second value alone is seen
    assert len(kinds) == 162
    assert (counts / n * 162 - 1).abs().max() < 6 * (162 / n) ** 0.5


def test_what_is_padded_is_the_mean():
    images = torch.full((50, 3, 8, 8), 77, dtype=torch.uint8)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    views = transforms.augment(images, Augment(crop="pad"), mean, torch.ones(3, 1, 1), drawn(50))
    inside = torch.tensor(77 / 255) - mean[:, 0, 0]
    values = views.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    assert torch.allclose(values, torch.stack([torch.zeros(3), inside]), atol=1e-6)


def test_flip_mirrors_half_of_the_images():
    images, draws = noise(4000, 1, 3, 3), drawn(4000)
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    views = transforms.augment(images, Augment(flip=True), zero, one, draws) * 255
    plain = (views.round() == images).flatten(1).all(1)
    mirrored = (views.round() == images.flip(3)).flatten(1).all(1)
    assert (plain | mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.03


@pytest.mark.parametrize("side", [1, 4, 5, 20])
def test_cutout_is_a_naive_loop(side):
    images, draws = noise(30, 2, 7, 9).float() + 1, drawn(30)[:, :2]
    found = transforms.cutout(images, side, draws)
    for n, (u, v) in enumerate(draws.tolist()):
        top, left = int(u * 7) - side // 2, int(v * 9) - side // 2
        for y in range(7):
            for x in range(9):
                hole = top <= y < top + side and left <= x < left + side
                assert torch.equal(found[n, :, y, x], images[n, :, y, x] * (not hole))


def test_erasing_by_hand():
    images = torch.ones(4, 2, 10, 10)
    draws = torch.tensor(
        [
            [0.4, 0.0, 0.5, 0.0, 0.0],  # area 2, aspect sqrt(0.99): 1 x 1 at the corner
            [0.4, 1.0, 0.5, 0.999, 0.5],  # area 33, 6 x 6 of 5 x 5 places
            [0.4, 1.0, 0.999, 0.5, 0.5],  # 10.4 x 3.2 is cut to 10 x 3
            [0.5, 1.0, 0.5, 0.0, 0.0],  # not hit
        ]
    )
    found = transforms.random_erasing(images, 0.5, draws)
    for image, (top, bottom, left, right) in zip(
        found, [(0, 1, 0, 1), (4, 10, 2, 8), (0, 10, 4, 7), (0, 0, 0, 0)], strict=True
    ):
        expected = torch.ones(2, 10, 10)
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(image, expected)


def test_erased_rectangles_have_the_papers_areas_and_shapes():
    n = 1500
    draws = uniform(0, torch.tensor(0), torch.arange(n), DRAWS)
    images = torch.ones(n, 1, 100, 100)
    found = transforms.augment(
        (images * 200).byte(),
        Augment(random_erasing=0.25),
        torch.zeros(1, 1, 1),
        torch.ones(1, 1, 1),
        draws,
    )
    hole = found[:, 0] == 0
    hit = hole.flatten(1).any(1)
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.03)
    area = hole[hit].flatten(1).float().mean(1)
    high, wide = hole[hit].any(2).sum(1).float(), hole[hit].any(1).sum(1).float()
    assert torch.equal((high * wide / 10_000), area)
    assert 0.018 < area.min() < 0.03
    assert 0.3 < area.max() < 0.335
    assert area.mean().item() == pytest.approx(0.175, abs=0.01)
    assert (high / wide).log().mean().item() == pytest.approx(math.log(0.99) / 2, abs=0.1)
    assert (high / wide).min() > 0.28
    assert (high / wide).max() < 3.5


def test_another_side_scales_every_length():
    augment = Augment(crop="pad", pad=4, cutout=9, scale=(40, 60))
    preprocess = Preprocess(size=32, resize=36)
    assert transforms.scale_to_side(preprocess, augment, 32) == (preprocess, augment)
    smaller = transforms.scale_to_side(preprocess, augment, 16)
    assert smaller == (
        Preprocess(size=16, resize=18),
        Augment(crop="pad", pad=2, cutout=4, scale=(20, 30)),
    )


@given(st.integers(2, 300), st.integers(0, 100), st.integers(1, 300))
def test_what_can_be_done_at_one_side_can_be_done_at_all(size, more, side):
    preprocess = Preprocess(size=size)
    augment = Augment(pad=size - 1, scale=(size + more, size + 2 * more))
    small, change = transforms.scale_to_side(preprocess, augment, side)
    assert small.size == side <= change.scale[0] <= change.scale[1]
    assert change.pad < side


def test_the_view_is_the_crop_and_then_the_policy():
    image, few = noise(1, 3, 30, 40), drawn(1)
    count = transforms.draw_count(Augment(policy="augmix"))
    draws = uniform(0, torch.tensor(0), torch.arange(1), count)
    assert torch.equal(draws[:, :DRAWS], few)  # what others draw is what it was
    assert transforms.draw_count(Augment()) == DRAWS == 45
    preprocess, crop = Preprocess(size=16), Augment(crop="area")
    plain, row = transforms.views(image, draws, 16, preprocess, crop), draws[0].tolist()
    for policy, expected in (
        ("trivialaugment", auto_augment.trivial_augment(plain, row[32:])),
        ("randaugment", auto_augment.rand_augment(plain, 9, 1.0, row[32:40])),
        ("autoaugment", auto_augment.auto_augment(plain, row[32:40])),
        ("augmix", auto_augment.augmix(plain, row[45:])),
    ):
        augment = Augment(crop="area", policy=policy, randaugment=(9, 1.0))
        found = transforms.views(image, draws, 16, preprocess, augment)
        assert torch.equal(found, expected)


def test_pca_is_fb_resnet_torchs_lighting():
    n = 20_000
    images = noise(n, 3, 1, 1).float() / 255
    change = (transforms.pca(images, drawn(n)[:, 5:12]) - images)[:, :, 0, 0].double()
    vectors = torch.tensor(transforms._EIGENVECTORS).double()
    values = torch.tensor(transforms._EIGENVALUES).double()
    assert torch.allclose(vectors.T @ vectors, torch.eye(3).double(), atol=1e-3)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    assert change.mean(0).abs().max() < 1e-3
    assert torch.allclose(change.T.cov(), expected, atol=2e-5)
    alpha = change @ vectors / (0.1 * values)  # normal: 68.3 % within one deviation
    assert ((alpha.abs() < 1).double().mean(0) - 0.6827).abs().max() < 0.02


def test_jitter_and_pca_have_draws_of_their_own():
    images, draws = noise(5, 3, 4, 4), drawn(5)
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    found = transforms.augment(images, Augment(colour="jitter+pca"), zero, one, draws)
    jittered = transforms.jitter(images / 255, draws[:, 5:9])
    assert torch.allclose(found, transforms.pca(jittered, draws[:, 9:12]), atol=1e-6)


def test_jitter_is_a_naive_loop():
    images, draws = noise(60, 3, 5, 5).float() / 255, drawn(60)[:, 5:12]
    found = transforms.jitter(images, draws)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    seen = set()
    for image, row, result in zip(images, draws.tolist(), found, strict=True):
        order = orders[math.floor(row[3] * 6)]
        seen.add(order)
        x = image
        for kind in order:
            grey = (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]).expand(3, -1, -1)
            other = (torch.zeros_like(x), grey.mean().expand_as(x), grey)[kind]
            factor = 0.6 + 0.8 * row[kind]
            x = factor * x + (1 - factor) * other
        assert torch.allclose(result, x, atol=1e-5)
    assert len(seen) == 6


def test_grey_and_colour():
    grey, colour = noise(2, 1, 4, 4), noise(2, 3, 4, 4)
    assert torch.equal(transforms.recolour(grey, 3), grey.repeat(1, 3, 1, 1))
    assert transforms.recolour(colour, 3) is colour
    for image, found in zip(colour, transforms.recolour(colour, 1), strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert np.abs(np.asarray(expected).astype(int) - found[0].numpy()).max() <= 1
