import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from resnets.config.recipe import Augment, Preprocess
from resnets.data import joint_transforms, loader
from resnets.data.detection.targets import MASK_SIZE, DetectionTargets
from resnets.data.rng import uniform
from resnets.data.splits import Split
from resnets.data.transforms import DRAWS
from resnets.errors import DataError, UsageError
from tests.data._helpers import rows_of, split_of_rows

INPUT = Preprocess(size=64, mean=(0.2, 0.1, 0.3), std=(0.5, 0.5, 0.5))
FILL = torch.tensor([51, 26, 76], dtype=torch.uint8).view(3, 1, 1)
CROPS = (
    Augment(flip=True),
    Augment(crop="scale", scale=(40, 110), flip=True),
    Augment(crop="area", area=(0.2, 1.0), flip=True),
)


def drawn(count):
    return uniform(7, torch.tensor(0), torch.arange(count), DRAWS)


def noise(height, width):
    """An image that is nowhere bright."""
    seed = torch.Generator().manual_seed(height)
    return torch.randint(0, 70, (3, height, width), dtype=torch.uint8, generator=seed)


def objects(*rows, count=4):
    return F.pad(torch.tensor(rows, dtype=torch.float32).view(-1, 6), (0, 0, 0, count - len(rows)))


def moved(image, rows, draw, side, preprocess, augment, masks=()):
    """The view of an image with rows of objects, and what became of them."""
    split = split_of_rows(image[None], rows[None], masks)
    view = joint_transforms.augment_views(split, draw.view(1, -1), side, preprocess, augment)
    return view.images, view.objects[0]


def extent(bright):
    """x1, y1, x2, y2 of where a (H, W) is true."""
    ys, xs = bright.any(1).nonzero(), bright.any(0).nonzero()
    return torch.cat([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]).float()


def overlap(a, b):
    return ((a & b).sum() / (a | b).sum().clamp(min=1)).item()


def pasted(targets, shape):
    """Whether the mask of the first object is at a pixel of the view."""
    x1, y1, x2, y2 = targets.boxes[0].tolist()
    ys = (torch.arange(shape[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1
    xs = (torch.arange(shape[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), 2)
    return (
        F.grid_sample(
            targets.masks[None, :1], grid[None], align_corners=False, padding_mode="zeros"
        )[0, 0]
        > 0.5
    )


lengths = st.integers(10, 5000)


@settings(max_examples=40)
@given(lengths, lengths, st.sampled_from([600, 800, 320]))
def test_a_whole_image_has_torchvisions_sides_and_boxes(height, width, size):
    reference = GeneralizedRCNNTransform(size, size * 5 // 3, [0.0], [1.0])
    reference.eval()
    image = torch.empty(1, height, width, device="meta")
    expected, _ = reference.resize(image)
    sides = joint_transforms.fit_side(height, width, size)
    assert expected.shape[1:] == sides
    assert max(sides) <= size * 5 // 3
    assert min(sides) in (size, size - 1) or max(sides) >= size * 5 // 3 - 1


@pytest.mark.parametrize("augment", CROPS)
@pytest.mark.parametrize(("height", "width"), [(90, 140), (150, 70), (50, 60)])
def test_boxes_follow_the_pixels(augment, height, width):
    box = [width // 3, height // 4, width // 3 + 31, height // 4 + 24]
    image = noise(height, width)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    label = objects((*box, 5, 1), count=2)
    gone = 0
    for draw in drawn(120):
        views, targets = moved(image, label, draw, 64, INPUT, augment)
        found = rows_of(targets)
        bright = views[0].float().mean(0) > 150
        assert views.dtype == torch.uint8
        assert views.shape[2] % 32 == views.shape[3] % 32 == 0
        assert found.shape == (2, 6)
        assert targets.masks is None
        assert not found[1].any()
        if found[0, 5] == 0:
            gone += 1
            assert not found.any()
            continue
        assert found[0, 4:].tolist() == [5, 1]
        assert (found[0, :4] - extent(bright)).abs().max() <= 1
    assert gone < 120 // 2
    assert (gone > 0) == (augment.crop != "none" and max(height, width) > 64)


def test_a_view_is_mirrored_for_half_of_the_draws():
    image, label = noise(64, 64), objects((0, 0, 20, 20, 0, 1))
    found = [moved(image, label, draw, 64, INPUT, Augment(flip=True)) for draw in drawn(400)]
    left = torch.tensor([targets.boxes[0, 0].item() == 0 for _, targets in found])
    assert abs(left.float().mean() - 0.5) < 0.06
    for mirrored, (view, targets) in zip(~left, found, strict=True):
        assert torch.equal(view[0], image.flip(2) if mirrored else image)
        expected = [44, 0, 64, 20] if mirrored else [0, 0, 20, 20]
        assert targets.boxes[0].tolist() == expected


def test_an_object_is_one_while_a_fifth_of_it_is_seen():
    image, boxes = noise(64, 64), ((0, 0, 10, 10), (25, 25, 45, 40))
    label = objects((*boxes[0], 0, 1), (*boxes[1], 1, 2))
    augment = Augment(crop="scale", scale=(64, 64))
    see = replace(INPUT, size=32)
    draws, kept = torch.zeros(1, DRAWS), set()
    for top in range(0, 33, 2):
        for left in range(0, 33, 2):
            draws[0, :2] = (torch.tensor([top, left]) + 0.5) / 33
            rows = rows_of(moved(image, label, draws, 32, see, augment)[1])
            expected = []
            for which, (x1, y1, x2, y2) in enumerate(boxes):
                seen = [max(0, x1 - left), max(0, y1 - top), min(32, x2 - left), min(32, y2 - top)]
                across, down = max(0, seen[2] - seen[0]), max(0, seen[3] - seen[1])
                if 5 * across * down >= (x2 - x1) * (y2 - y1):
                    expected.append([*seen, which, which + 1])
            assert rows.tolist() == objects(*expected).tolist()
            kept.add(tuple(rows[:, 5].tolist()))
    assert kept == {(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (1, 2, 0, 0)}


def test_what_is_outside_of_the_image_is_the_mean_colour():
    for augment in CROPS[:2]:
        see = replace(INPUT, size=64)
        views, _ = moved(noise(20, 30), objects(), drawn(1), 40, see, augment)
        assert views.shape == (1, 3, 64, 64)
        assert torch.equal(views[0, :, 48:], FILL.expand(3, 16, 64))
    ((view,), _) = moved(noise(30, 33), objects(), drawn(1), 30, INPUT, Augment())
    assert torch.equal(view[:, 30:], FILL.expand(3, 2, 64))
    assert torch.equal(view[:, :, 33:], FILL.expand(3, 32, 31))
    assert torch.equal(view[:, :30, :33], noise(30, 33))


def polygons(height, width):
    """An L and a triangle beside it, an object of an image of this size."""
    x, y = np.array([0.2, 0.5, 0.5, 0.35, 0.35, 0.2]), np.array([0.3, 0.3, 0.5, 0.5, 0.8, 0.8])
    letter = np.stack([x * width, y * height], 1).ravel().tolist()
    triangle = [0.55 * width, 0.8 * height, 0.9 * width, 0.8 * height, 0.9 * width, 0.2 * height]
    return tuple(letter), tuple(triangle)


def rasterised(shape, height, width):
    """Whether the middle of each pixel is inside: bool (H, W)."""
    middles = np.stack(np.meshgrid(np.arange(width), np.arange(height)), 2).reshape(-1, 2) + 0.5
    inside = [Path(np.reshape(p, (-1, 2))).contains_points(middles) for p in shape]
    return torch.from_numpy(np.any(inside, 0).reshape(height, width))


def runs(pixels):
    mask = pytest.importorskip("faster_coco_eval.core.mask", reason="decodes run lengths")
    return (
        *pixels.shape,
        mask.encode(np.asfortranarray(pixels.numpy().astype(np.uint8)))["counts"],
    )


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
@pytest.mark.parametrize("augment", CROPS)
def test_masks_of_objects_follow_the_pixels(augment, kind):
    height, width = 180, 240
    shape = polygons(height, width)
    pixels = rasterised(shape, height, width)
    image = noise(height, width)
    image[:, pixels] = 255
    shapes = ((shape if kind == "polygons" else runs(pixels),),)
    label = objects((*extent(pixels).tolist(), 3, 1), count=2)
    found = 0
    for draw in drawn(40):
        see = replace(INPUT, size=128)
        views, targets = moved(image, label, draw, 128, see, augment, shapes)
        assert targets.masks.shape == (2, MASK_SIZE, MASK_SIZE)
        assert not rows_of(targets)[1].any()
        assert not targets.masks[1].any()
        assert 0 <= targets.masks.min() <= targets.masks.max() <= 1
        bright = views[0].float().mean(0) > 150
        if targets.is_object[0] and bright.sum() > 300:
            assert overlap(pasted(targets, bright.shape), bright) > 0.9
            found += 1
    assert found > 10


def test_a_mask_belongs_to_its_object_after_others_are_gone():
    image, draws = noise(64, 64), torch.zeros(1, DRAWS)
    draws[0, :2] = 0.99  # the crop at the bottom right
    label = objects((0, 0, 9, 9, 0, 1), (40, 40, 60, 60, 1, 2), (50, 40, 60, 60, 2, 1))
    full, upper = ((40.0, 40, 60, 40, 60, 60, 40, 60),), ((50.0, 40, 60, 40, 60, 50, 50, 50),)
    shapes = (((0.0, 0, 9, 0, 9, 9),), full, upper)
    see, augment = replace(INPUT, size=32), Augment(crop="scale", scale=(64, 64))
    _, targets = moved(image, label, draws, 32, see, augment, (shapes,))
    masks, rows = targets.masks, rows_of(targets)
    assert rows[:2].tolist() == [[8, 8, 28, 28, 1, 2], [18, 8, 28, 28, 2, 1]]
    assert (masks[0] == 1).all()
    half = MASK_SIZE // 2
    assert (masks[1, : half - 1] == 1).all()
    assert not masks[1, half + 1 :].any()
    assert not rows[2:].any()
    assert not masks[2:].any()


def test_polygons_and_run_lengths_are_the_same_cells():
    shape = polygons(450, 600)
    pixels = rasterised(shape, 450, 600)
    whole = tuple(extent(pixels).tolist())
    for window in (whole, (150.5, 100.25, 500.0, 401.0), (450, 50, 100, 350)):
        ours, theirs = (
            joint_transforms.rasterize_mask(x, np.array(window)) for x in (shape, runs(pixels))
        )
        assert (ours - theirs).abs().mean() < 0.02
        assert overlap(ours > 0.5, theirs > 0.5) > 0.97
        assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.03)


@pytest.mark.parametrize("part", [0, 0.001, 0.3, 1])
def test_run_lengths_are_read_exactly(part):
    side = MASK_SIZE * 4
    pixels = torch.rand(side, side, generator=torch.Generator().manual_seed(0)) < part
    pixels[40:150, 60:70] = part > 0  # long runs and short ones
    found = joint_transforms.rasterize_mask(runs(pixels), np.array([0, 0, side, side]))
    assert torch.equal(found, F.avg_pool2d(pixels.float()[None], 4)[0])


@pytest.mark.parametrize("mode", ["P", "L"])
@pytest.mark.parametrize("augment", CROPS)
def test_classes_of_pixels_follow_them(tmp_path, augment, mode):
    height, width = 150, 200
    pixels = rasterised(polygons(height, width), height, width)
    image = noise(height, width)
    image[:, pixels] = 255
    classes = np.where(pixels, 7, 2).astype(np.uint8)
    classes[0, :] = 255
    picture = Image.fromarray(classes)
    if mode == "P":
        picture.putpalette(np.random.default_rng(0).bytes(768))
    path = tmp_path / "mask.png"
    picture.save(path)
    with Image.open(path) as picture:
        assert picture.mode == mode
    for draw in drawn(40):
        split = Split(image[None], torch.ones(1, 9), (path,))
        views, found, none = joint_transforms.augment_views(
            split, draw[None], 128, replace(INPUT, size=128), augment
        )
        assert none is None
        assert found.dtype == torch.uint8
        assert found.shape == views.shape[:1] + views.shape[2:]
        assert set(found.unique().tolist()) <= {2, 7, 255}
        filled = (views[0] == FILL).all(0)
        assert (found[0, filled] == 255).all()
        bright = views[0].float().mean(0) > 150
        if bright.sum() > 300:
            assert overlap(found[0] == 7, bright) > 0.9


@pytest.fixture
def photographs(tmp_path):
    """11 scenes of different shapes as files, one without any object."""
    paths, labels, sizes, shapes = [], [], [], []
    rng = np.random.default_rng(3)
    for i in range(11):
        height, width = rng.integers(40, 90, 2).tolist()
        image, box = noise(height, width), [5 + i, 8, 25 + i, 30]
        image[:, box[1] : box[3], box[0] : box[2]] = 255
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
        x1, y1, x2, y2 = map(float, box)
        labels.append(objects(*([(*box, i, 1)] if i else []), count=3))
        shapes.append((((x1, y1, x2, y1, x2, y2, x1, y2),),) if i else ())
        sizes.append((height, width))
    return split_of_rows(tuple(paths), torch.stack(labels), tuple(shapes), torch.tensor(sizes))


def training(split, augment, *, batch=4, stop=6, preprocess=INPUT, **changes):
    return list(
        loader.train_batches(
            split,
            preprocess=preprocess,
            augment=augment,
            batch=batch,
            seed=5,
            start=0,
            stop=stop,
            device="cpu",
            **changes,
        )
    )


def shown(split, *, batch=4, **changes):
    return list(loader.test_batches(split, preprocess=INPUT, batch=batch, device="cpu", **changes))


def same_targets(a, b):
    """Whether labels or objects are equal."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    masks = [targets.masks for targets in (a, b) if targets.masks is not None]
    return torch.equal(rows_of(a), rows_of(b)) and (not masks or torch.equal(*masks))


def same(ours, theirs):
    return all(
        torch.equal(a.images, b.images)
        and same_targets(a.targets, b.targets)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(ours, theirs, strict=True)
    )


def levels(batch):
    """The uint8 views again."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (INPUT.mean, INPUT.std))
    return ((batch.images * std + mean) * 255).round()


@pytest.mark.parametrize("augment", [replace(a, colour="jitter") for a in CROPS])
def test_workers_change_no_scene(photographs, augment):
    assert same(training(photographs, augment), training(photographs, augment, workers=2))
    if augment.crop == "none":
        assert same(shown(photographs), shown(photographs, workers=2))


def test_batches_of_scenes_are_filled_up_and_have_their_objects(photographs):
    found = shown(photographs)
    assert [len(b.images) for b in found] == [4, 4, 3]
    assert torch.cat([b.indices for b in found]).tolist() == list(range(11))
    for b in found:
        views = levels(b)
        sides = [
            joint_transforms.fit_side(*size, INPUT.size)
            for size in photographs.sizes[b.indices].tolist()
        ]
        longest = torch.tensor(sides).amax(0)
        assert b.images.shape[2:] == tuple(((longest + 31) // 32 * 32).tolist())
        for view, targets, (height, width), i in zip(
            views, b.objects, sides, b.indices.tolist(), strict=True
        ):
            assert (view[:, height:] == FILL).all()
            assert (view[:, :, width:] == FILL).all()
            bright = view.mean(0) > 150
            rows = rows_of(targets)
            assert targets.masks.shape == (3, MASK_SIZE, MASK_SIZE)
            assert not rows[1:].any()
            assert not targets.masks[1:].any()
            if i == 0:
                assert not rows.any()
                continue
            assert rows[0, 4:].tolist() == [i, 1]
            assert (rows[0, :4] - extent(bright)).abs().max() <= 1
            assert (targets.masks[0] > 0.9).all()
    for crops in ("whole", "corners"):
        again = shown(photographs, crops=crops)
        assert torch.equal(torch.cat([b.indices for b in again]), torch.arange(11))
        assert same_targets(*(DetectionTargets.cat([b.objects for b in x]) for x in (again, found)))


def test_boxes_and_images_of_training_are_mirrored_once(photographs):
    plain = replace(photographs, masks=())
    for colour in ("none", "jitter+pca"):
        augment = Augment(flip=True, colour=colour)
        sides = set()
        for b in training(plain, augment, stop=12):
            for view, targets, i in zip(b.images, b.objects, b.indices.tolist(), strict=True):
                if i:
                    level = view.mean(0)
                    x1, y1, x2, y2 = targets.boxes[0].round().int().tolist()
                    inside = level[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
                    left, right = level[y1:y2, : max(0, x1 - 2)], level[y1:y2, x2 + 2 :]
                    for outside in (left, right):
                        if outside.numel():
                            assert inside.mean() > outside.mean() + 0.2
                    sides.add((i, x1))
        assert len(sides) > 12  # of 10 images


def test_classes_of_pixels_of_a_batch(photographs, tmp_path):
    masks = []
    for i, (height, width) in enumerate(photographs.sizes.tolist()):
        masks.append(tmp_path / f"mask{i}.png")
        Image.fromarray(np.full((height, width), i, np.uint8)).save(masks[-1])
    split = Split(photographs.images, torch.eye(11), tuple(masks), photographs.sizes)
    for b in shown(split) + training(split, CROPS[0]):
        assert b.labels.dtype == torch.uint8
        assert b.labels.shape == b.images.shape[:1] + b.images.shape[2:]
        for view, classes, i in zip(levels(b), b.labels, b.indices.tolist(), strict=True):
            height, width = joint_transforms.fit_side(*photographs.sizes[i].tolist(), INPUT.size)
            assert (classes[:height, :width] == i).all()
            assert (classes == 255).sum() == classes.numel() - height * width
            assert (view[:, classes == 255] == FILL[..., 0]).all()
    assert same(training(split, CROPS[1]), training(split, CROPS[1], workers=2))

    Image.new("RGB", (8, 8)).save(masks[2])
    Image.new("L", (8, 8)).save(masks[3])
    masks[5].write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("L", (8, 8)).save(masks[7], "JPEG")
    bad = {path: why for b in shown(split, workers=1) for path, why in b.unreadable}
    assert set(bad) == {masks[i] for i in (2, 3, 5, 7)}
    assert "RGB PNG" in bad[masks[2]]
    assert "8 x 8, but its image is" in bad[masks[3]]
    assert "L JPEG" in bad[masks[7]]
    seen = torch.cat([b.indices for b in shown(split)])
    assert seen.tolist() == [0, 1, 4, 6, 8, 9, 10]


def test_scenes_in_memory_are_those_of_files(tmp_path):
    images = torch.stack([noise(50, 70) + i for i in range(6)])
    paths = tuple(tmp_path / f"{i}.png" for i in range(6))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    labels = torch.stack([objects((i, 2, 40 + i, 33, i, 1)) for i in range(6)])
    shapes = tuple((((i, 2.0, 40, 2, 40, 30),),) for i in range(6))
    memory, files = (split_of_rows(x, labels, shapes) for x in (images, paths))
    for augment in CROPS:
        assert same(training(memory, augment), training(files, augment))
    assert same(shown(memory), shown(files))
    assert shown(memory, rank=7, ranks=8) == []


def test_a_scene_that_cannot_be_read_is_reported_and_its_row_dropped(photographs, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    broken = replace(photographs, images=(*photographs.images[:5], bad, *photographs.images[6:]))
    augment = CROPS[1]
    for workers in (0, 1):
        for whole, rest in zip(
            training(photographs, augment), training(broken, augment, workers=workers), strict=True
        ):
            good = whole.indices != 5
            assert torch.equal(rest.indices, whole.indices[good])
            assert torch.equal(rest.images, whole.images[good])
            assert same_targets(rest.objects, whole.objects[good])
            assert [path for path, _ in rest.unreadable] == [bad] * int((~good).sum())
    nothing = replace(photographs, images=(bad,) * 11)
    assert [len(b.images) for b in shown(nothing)] == [0, 0, 0]
    with pytest.raises(DataError, match="no image of a batch"):
        training(nothing, augment)


def test_five_hundred_objects_stay_in_order(photographs):
    corners = torch.arange(500.0) % 60
    rows = torch.stack([corners, corners / 2, corners + 9, corners / 2 + 7], 1)
    rows = torch.cat([rows, torch.arange(500.0)[:, None], torch.ones(500, 1)], 1)
    split = split_of_rows(photographs.images[:1], rows[None])
    (batch,) = training(split, Augment(crop="area", area=(0.3, 0.6)), batch=1, stop=1)
    found = rows_of(batch.objects[0])
    assert found.shape == (500, 6)
    kept = found[:, 5] > 0
    assert 20 < kept.sum() < 480
    assert kept[: kept.sum()].all()
    assert (found[kept, 4].diff() > 0).all()
    assert not found[~kept].any()
    assert (found[kept, 2:4] > found[kept, :2]).all()


def test_boxes_are_of_the_upright_image(tmp_path):
    upright = noise(60, 90)
    upright[:, 10:30, 50:80] = 255
    lying = Image.fromarray(upright.rot90(1, (1, 2)).permute(1, 2, 0).contiguous().numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying.save(tmp_path / "turned.png", exif=exif)
    split = split_of_rows((tmp_path / "turned.png",), objects((50, 10, 80, 30, 0, 1))[None])
    (batch,) = shown(split)
    assert batch.images.shape == (1, 3, 64, 96)
    assert (batch.objects.boxes[0, 0] - extent(levels(batch)[0].mean(0) > 150)).abs().max() <= 1


def test_a_request_has_the_labels_of_its_images_alone(photographs, monkeypatch):
    asked, answer = [], loader.Decode.__getitem__

    def noted(self, request):
        asked.append(pickle.loads(request))
        return answer(self, request)

    monkeypatch.setattr(loader.Decode, "__getitem__", noted)
    found = training(photographs, CROPS[0], stop=2)
    for (indices, split, *_), batch in zip(asked, found, strict=True):
        assert indices.tolist() == batch.indices.tolist()
        assert same_targets(split.objects, photographs.objects[batch.indices])
        assert split.labels.tolist() == photographs.labels[batch.indices].tolist()
        assert split.images == tuple(photographs.images[i] for i in indices)
        assert split.masks == tuple(photographs.masks[i] for i in indices)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop="pad"),
        Augment(cutout=3),
        Augment(policy="randaugment"),
        Augment(random_erasing=0.1),
        Augment(mixup=0.1),
        Augment(cutmix=0.1),
        Augment(crop="scale", scale=(70, 60)),
    ],
)
def test_what_boxes_and_masks_do_not_follow_is_refused(photographs, augment):
    (name,) = {"crop", "cutout", "policy", "random_erasing", "mixup", "cutmix", "scale"} & {
        "scale" if augment.crop == "scale" else name
        for name in ("crop", "cutout", "policy", "random_erasing", "mixup", "cutmix")
        if getattr(augment, name) != getattr(Augment(), name)
    }
    with pytest.raises(UsageError, match=rf"augment\.{name}="):
        training(photographs, augment)


def test_a_mean_of_each_pixel_is_refused(photographs):
    pixels = replace(INPUT, mean=(0.5,) * 3 * 64**2, std=(1.0,) * 3)
    with pytest.raises(UsageError, match="set normalize=data"):
        training(photographs, Augment(), preprocess=pixels)
