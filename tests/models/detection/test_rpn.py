"""Anchors against torchvision's on the same images, and by hand."""

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from resnets.models.detection.rpn import make_anchors


def test_anchors_are_torchvisions_in_value_and_order() -> None:
    maps = [torch.zeros(1, 8, *shape) for shape in ((6, 9), (3, 5), (2, 3))]
    sizes = tuple(tuple(s * 2 ** (k / 3) for k in range(3)) for s in (32, 45, 61))
    ratios = (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, (ratios,) * 3)
    expected = generator(ImageList(torch.zeros(1, 3, 48, 72), [(48, 72)]), maps)[0]
    anchors, counts = make_anchors(maps, (48, 72), sizes, ratios)
    assert torch.equal(anchors, expected)
    assert counts == [9 * 6 * 9, 9 * 3 * 5, 9 * 2 * 3]


def test_anchors_of_one_level_by_hand() -> None:
    """Two columns of 16 pixels; for each the ratios height / width, for each of these the sizes."""
    anchors, counts = make_anchors([torch.zeros(1, 8, 1, 2)], (16, 32), [(4, 8)], (1.0, 4.0))
    first = [[-2, -2, 2, 2], [-4, -4, 4, 4], [-1, -4, 1, 4], [-2, -8, 2, 8]]
    assert anchors.tolist() == [*first, *[[x + 16, y, z + 16, w] for x, y, z, w in first]]
    assert anchors.dtype == torch.float32
    assert counts == [8]
