"""Image files and objects for tests."""

import zlib

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from resnets.data.detection.targets import DetectionTargets
from resnets.data.splits import Split


def targets_of(rows: Tensor, masks: Tensor | None = None) -> DetectionTargets:
    """Rows (..., M, 6) of x1, y1, x2, y2, class and kind as targets."""
    boxes, classes, kind = rows.float().split([4, 1, 1], -1)
    return DetectionTargets(boxes, classes[..., 0].long(), kind[..., 0].byte(), masks)


def rows_of(targets: DetectionTargets) -> Tensor:
    """The same rows again, without masks: float32 (..., M, 6)."""
    return torch.cat([targets.boxes, targets.classes[..., None], targets.kind[..., None]], -1)


def split_of_rows(images, rows: Tensor, masks=(), sizes=None) -> Split:
    """A split with the objects of rows (N, M, 6)."""
    objects = targets_of(rows)
    count = int(objects.classes.max()) + 1 if objects.classes.numel() else 0
    return Split(images, objects.multi_hot(count), masks, sizes, objects)


def picture(path, shade=100, size=(12, 10)):
    """A picture in one colour; no two files have the same bytes, but files of one size do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = f"{zlib.crc32(str(path).encode()):08x}"
    info = PngInfo()
    info.add_text("Comment", comment)
    colour = (shade, 2 * shade % 256, 30)
    Image.new("RGB", size, colour).save(path, pnginfo=info, comment=comment)
    return path


def classes(root, counts):
    """A folder with `counts[name]` pictures in each class folder, no two alike."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(root / name / f"{i:03}.png", shade=i % 250)
    return root
