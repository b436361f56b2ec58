"""Detections of a split: masks as torchvision pastes them, and their file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnets.errors import CheckpointError
from resnets.evaluation.detections import NO_DETECTIONS, load, paste_mask, save

from ._helpers import drawn_detections

pytest.importorskip("faster_coco_eval", reason="detection figures need resnets[detect]")


def test_masks_are_pasted_as_torchvision_pastes_them():
    from pycocotools import mask as coding
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    generator = torch.Generator().manual_seed(0)
    height, width, count = 90, 130, 60
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 10, height - 10])
    side = torch.rand(count, 2, generator=generator) * 70
    boxes = torch.cat([corner, corner + side], 1)
    boxes[:4] = torch.tensor(
        [[0, 0, 130, 90], [5, 5, 5, 5], [129.5, 89.5, 130, 90], [0, 0, 0.2, 90]]
    )
    boxes = boxes.minimum(torch.tensor([width, height, width, height]))
    masks = torch.rand(count, 1, 6, 6, generator=generator)
    masks = F.interpolate(masks, (28, 28), mode="bicubic").clamp(0, 1)
    masks[4], masks[5], masks[0] = 0, 1, 1
    expected = paste_masks_in_image(masks, boxes, (height, width))[:, 0] > 0.5
    for mask, box, pixels in zip(masks[:, 0], boxes, expected, strict=True):
        h, w, counts = paste_mask(mask, box, height, width)
        assert (h, w) == (height, width)
        assert isinstance(counts, bytes)
        assert (coding.decode({"size": [h, w], "counts": counts}) == pixels.numpy()).all()
        canonical = coding.encode(np.asfortranarray(pixels.numpy().astype(np.uint8)))
        assert counts == canonical["counts"]


@pytest.mark.parametrize("masks", [False, True])
def test_detections_are_kept(tmp_path, masks):
    _, found = drawn_detections(8, images=9, masks=masks)
    found = replace(found, unreadable=((Path("x.jpg"), "empty"),), seconds=2.5)
    save(tmp_path / "d.safetensors", found)
    again = load(tmp_path / "d.safetensors")
    for name in ("images", "classes", "scores", "boxes", "indices"):
        assert torch.equal(getattr(again, name), getattr(found, name)), name
    assert again.masks == found.masks
    assert (again.unreadable, again.seconds) == (found.unreadable, 2.5)
    save(tmp_path / "e.safetensors", NO_DETECTIONS)
    assert load(tmp_path / "e.safetensors").masks is None


def test_another_file_is_refused(tmp_path):
    (tmp_path / "d.safetensors").write_bytes(b"no detections at all")
    with pytest.raises(CheckpointError, match="no detections"):
        load(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="no detections"):
        load(tmp_path / "none.safetensors")
