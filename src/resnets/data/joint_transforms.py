"""Images whose boxes and masks move with the pixels.

A view is an image or a part of it, filled up at the bottom and on the right with the mean colour,
so that its sides are multiples of 32. Boxes are in pixels of the view.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from resnets.config.arch import IGNORE_INDEX, STRIDE
from resnets.config.recipe import Augment, Preprocess
from resnets.config.types import Interpolation
from resnets.data import transforms
from resnets.data.decode import Unreadable, open_image
from resnets.data.detection.targets import MASK_SIZE, DetectionTargets
from resnets.data.splits import Shape, Split
from resnets.data.transforms import Geometry
from resnets.errors import UsageError

MIN_VISIBLE = 1 / 5  # of its area: an object of which a view shows less is none any more
_SAMPLES = 4  # of a cell, across and down


def fit_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The sides of a whole image: the shorter one `size`, or else the longer one 5/3 of that.

    So 600 and 1000 pixels for VOC (Ren et al. 2015), 800 and 1333 for COCO (Lin et al. 2016).
    Rounding is torchvision's, so that published weights see boxes where they were measured.
    """
    scale = min(size / min(height, width), size * 5 // 3 / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


class View(NamedTuple):
    """Decoded images as a network gets them, but for normalisation, and their labels."""

    images: Tensor  # uint8 (B, C, h, w)
    labels: Tensor  # as the split's; of masks that are files, class maps: uint8 (B, h, w)
    objects: DetectionTargets | None = None  # in pixels of the views


def check_augmentation(preprocess: Preprocess, augment: Augment) -> None:
    """Raise UsageError if images with boxes or masks cannot be augmented so."""
    if len(preprocess.mean) != preprocess.channels:
        raise UsageError("normalize=pixel is for images of one size: set normalize=data")
    if augment.crop in ("scale", "resize") and not 0 < augment.scale[0] <= augment.scale[1]:
        raise UsageError(f"augment.scale={augment.scale} must be two sides, the shorter first")
    plain = Augment(crop="none" if augment.crop == "pad" else augment.crop)
    for name in ("crop", "cutout", "policy", "random_erasing", "mixup", "cutmix"):
        if (value := getattr(augment, name)) != getattr(plain, name):
            raise UsageError(f"augment.{name}={value} is for classes only, not for boxes and masks")


def augment_views(
    split: Split, draws: Tensor, side: int, preprocess: Preprocess, augment: Augment
) -> View:
    """What a network gets of decoded images of one size at an input side of `side` pixels.

    Crops "none" and "resize" are the whole image; "scale" is a random side x side of it with its
    shorter side at a random length; "area" a random part, made side x side. Mirroring is done here.

    Images are uint8 (B, C, H, W), draws (B, DRAWS); views are uint8 (B, channels, h, w). Where
    masks are files, the labels of the views are their classes, uint8 (B, h, w). Otherwise objects
    that are hardly visible become padding, and have masks where the split has shapes.

    Raises Unreadable for the file of a mask.
    """
    from torchvision import tv_tensors  # takes 1.7 s
    from torchvision.transforms.v2.functional import pad

    fill = transforms.colour(preprocess).tolist()
    preprocess, augment = transforms.scale_to_side(preprocess, augment, side)
    assert isinstance(split.images, Tensor)
    height, width = split.images.shape[2:]
    views, maps, targets = [], list[Tensor](), list[DetectionTargets]()
    for i, image in enumerate(transforms.recolour(split.images, preprocess.channels)):
        where = Geometry((0, 0, height, width), fit_side(height, width, side), (0, 0))
        cut = where.sides
        if augment.crop not in ("none", "resize"):
            where = transforms.geometry(height, width, preprocess, augment, draws[i].tolist())
            cut = side, side
        mirrored = augment.flip and draws[i, transforms.FLIP].item() < 0.5
        move = partial(
            transform_view,
            where=where,
            cut=cut,
            mirrored=mirrored,
            interpolation=preprocess.interpolation,
        )
        view, mask = move(tv_tensors.Image(image)), split.masks[i] if split.masks else None
        bottom = -(-cut[0] // STRIDE) * STRIDE - view.shape[1]
        padding = [0, 0, -(-cut[1] // STRIDE) * STRIDE - view.shape[2], bottom]
        views.append(pad(view, padding, fill=fill))
        if isinstance(mask, Path):
            classes = move(tv_tensors.Mask(torch.from_numpy(class_map(mask, height, width))))
            maps.append(pad(classes, padding, fill=IGNORE_INDEX))
        elif split.objects is not None:
            targets.append(_move_objects(split.objects[i], mask, (height, width), move, mirrored))
    return View(
        torch.stack(views),
        torch.stack(maps) if maps else split.labels,
        DetectionTargets.stack(targets) if targets else None,
    )


def transform_view(
    x: Tensor, where: Geometry, cut: tuple[int, int], mirrored: bool, interpolation: Interpolation
) -> Tensor:
    """A tv_tensor of an image, boxes or classes, as it lies in a view that is not filled up yet.

    `cut` is the height and width of the view, of which a smaller image is all; boxes that reach
    beyond it do so still.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional
    from torchvision.tv_tensors import Mask

    # by the pixels' centres: plain nearest is half a pixel of the view off when it makes smaller
    nearest = InterpolationMode.NEAREST_EXACT
    kind = nearest if isinstance(x, Mask) else InterpolationMode(interpolation)
    x = functional.resize(functional.crop(x, *where.box), where.sides, kind)
    top, left = (max(0, start) for start in where.corner)
    x = functional.crop(x, top, left, *map(min, cut, where.sides))
    return functional.horizontal_flip(x) if mirrored else x


def _move_objects(
    targets: DetectionTargets,
    shapes: tuple[Shape, ...] | None,
    canvas: tuple[int, int],
    move: Callable[[Tensor], Tensor],
    mirrored: bool,
) -> DetectionTargets:
    """The M objects of an image of height and width `canvas`, as they lie in a view.

    `move` takes a tv_tensor of the image to one of the view.
    """
    from torchvision.transforms.v2.functional import clamp_bounding_boxes
    from torchvision.tv_tensors import BoundingBoxes

    rows, objects = len(targets), targets[~targets.is_padding]
    boxes = objects.boxes
    moved = move(BoundingBoxes(boxes, format="XYXY", canvas_size=canvas, clamping_mode=None))
    clipped = clamp_bounding_boxes(moved, clamping_mode="hard").as_subclass(Tensor)
    moved = moved.as_subclass(Tensor)
    visible, area = ((b[:, 2:] - b[:, :2]).prod(1) for b in (clipped, moved))
    kept = ((visible > 0) & (visible >= MIN_VISIBLE * area)).nonzero()[:, 0]
    masks = None if shapes is None else torch.zeros(len(kept), MASK_SIZE, MASK_SIZE)
    if shapes and masks is not None:
        # The same part of the box in the image, from right to left where the view is mirrored.
        boxes = boxes[:, [2, 1, 0, 3]] if mirrored else boxes
        (a, b), (c, d) = (x.view(-1, 2, 2).chunk(2, 1) for x in (moved, boxes))
        windows = torch.lerp(c, d, (clipped.view(-1, 2, 2) - a) / (b - a)).flatten(1).numpy()
        for row, i in enumerate(kept.tolist()):
            masks[row] = rasterize_mask(shapes[i], windows[i])
    targets = DetectionTargets(clipped[kept], objects.classes[kept], objects.kind[kept], masks)
    return targets.pad(rows)


def collate(views: list[View], fill: Tensor) -> View:
    """Views of one image each as one batch; smaller ones are filled up with the colour `fill`."""
    targets = [view.objects for view in views if view.objects is not None]
    return View(
        collate_padded([view.images for view in views], fill[:, None, None]),
        collate_padded([view.labels for view in views], IGNORE_INDEX),
        DetectionTargets.cat(targets) if targets else None,
    )


def collate_padded(views: list[Tensor], fill: Tensor | int) -> Tensor:
    """[(n, ...)] -> (B, ...); of [(1, ..., h, w)] smaller ones are filled up as views are."""
    if len({view.shape[1:] for view in views}) == 1:
        return torch.cat(views)
    height, width = (max(view.shape[axis] for view in views) for axis in (-2, -1))
    batch = views[0].new_empty(len(views), *views[0].shape[1:-2], height, width)
    batch[:] = fill
    for row, view in zip(batch, views, strict=True):
        row[..., : view.shape[-2], : view.shape[-1]] = view[0]
    return batch


def rasterize_mask(shape: Shape, window: NDArray[np.float32]) -> Tensor:
    """How much of each cell of a window an object covers, 0..1: float32 (MASK, MASK).

    The window is x1, y1, x2, y2 in pixels of the image; with x2 < x1 it is seen mirrored. Only its
    own samples are looked at: of 12 megapixels an object takes 0.4 ms, where decoding its run
    lengths takes 24. Pillow draws polygons half a sample too large all around.
    """
    samples = MASK_SIZE * _SAMPLES
    corner, sides = window[:2], window[2:] - window[:2]
    if shape and isinstance(shape[0], int):
        height, width, counts = shape
        middles = corner + (np.arange(samples)[:, None] + 0.5) / samples * sides
        columns, rows = middles.astype(int).clip(0, (width - 1, height - 1)).T
        grid = np.searchsorted(_run_ends(counts), rows[:, None] + columns * height, "right") & 1
    else:
        canvas = Image.new("L", (samples, samples))
        for polygon in shape:
            points = (np.reshape(polygon, (-1, 2)) - corner) / sides * samples - 0.5
            ImageDraw.Draw(canvas).polygon(points.ravel().tolist(), fill=1)
        grid = np.array(canvas)
    return F.avg_pool2d(torch.from_numpy(grid).float()[None], _SAMPLES)[0]


def _run_ends(counts: bytes) -> NDArray[np.int64]:
    """The ends of the runs that COCO's compressed `counts` mean, down the columns from outside.

    A character has 5 bits of a number, the lowest first, and one that says that more follow; the
    number is signed, and from the fourth on it is what a run is longer than its last but one.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    last = codes & 32 == 0
    number = np.cumsum(last) - last
    first = np.flatnonzero(np.diff(number, prepend=-1))
    shift = 5 * (np.arange(len(codes)) - first[number])
    runs = np.add.reduceat((codes & 31) << shift, first) - ((codes & 16) << shift + 1)[last]
    for start in (1, 2):
        runs[start::2] = runs[start::2].cumsum()
    return np.cumsum(runs)


def class_map(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """The classes of the pixels of an image of this size, 255 for none: uint8 (H, W).

    They are the values of an indexed or grey PNG as they are stored, with 1 to 16 bits; its palette
    does not matter. Raises Unreadable.
    """
    with open_image(path) as picture:
        if picture.format != "PNG" or picture.mode not in ("P", "L", "1", "I;16"):
            kind = f"{picture.mode} {picture.format}"
            reason = f"{kind}, not indexed or grey PNG: a mask holds the classes' numbers"
            raise Unreadable(str(path), reason)
        if picture.size != (width, height):
            sides = f"{picture.width} x {picture.height}"
            raise Unreadable(str(path), f"{sides}, but its image is {width} x {height}")
        # Pillow spreads grey of 2 and 4 bits over 0..255.
        step = {"L;2": 85, "L;4": 17}.get(str(picture.tile[0][3]), 1)
        values = np.array(picture) // step
        if values.max() > 255:
            raise Unreadable(str(path), f"its value {values.max()} is over 255, so not a class")
        return values.astype(np.uint8)
