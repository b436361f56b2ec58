"""Two-stage detectors: torchvision's outputs and losses, and losses that are always finite."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.detection import (
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d

from resnets.config.arch import DetectorArch
from resnets.config.families import ARCHS, TINY
from resnets.data.detection.targets import DetectionTargets, Kind
from resnets.errors import UsageError
from resnets.models import build
from resnets.models.detection import faster_rcnn
from resnets.models.detection.faster_rcnn import crop_masks

K = 5
SIZES = [(128, 160), (100, 150)]  # of the images inside the input, height and width


class Given(nn.Module):
    """Stands for torchvision's transform: the images are one padded tensor already."""

    def __init__(self, images: Tensor, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.images = ImageList(images, sizes)

    def forward(self, images: object, targets: object = None) -> tuple[ImageList, object]:
        return self.images, targets

    def postprocess(self, result: object, *_: object) -> object:
        return result


@torch.no_grad()
def randomised(network: nn.Module, images: Tensor) -> nn.Module:
    """Statistics that are not 0 and 1, and heads that say different things of different regions."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=random)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.2, generator=random)
        elif name.endswith("bbox_pred.weight"):
            tensor.normal_(0, 0.02, generator=random)
        elif name.endswith("cls_score.weight"):
            tensor.normal_(0, 0.2, generator=random)
    deviation = network.eval().backbone(images)["0"].std()
    for weight in network.backbone.fpn.layer_blocks.parameters():
        weight.div_(deviation)  # else each softmax is 0 and 1
    return network


def resnet18(make: type[FasterRCNN]) -> Callable[..., FasterRCNN]:
    def made(num_classes: int, **options: None) -> FasterRCNN:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d
        )
        return make(backbone, num_classes)

    return made


def resnet18_v2(num_classes: int, **options: None) -> FasterRCNN:
    """torchvision's `maskrcnn_resnet50_fpn_v2` on ResNet-18."""
    trunk = torchvision_resnet18(norm_layer=nn.BatchNorm2d)
    backbone = _resnet_fpn_extractor(trunk, 5, norm_layer=nn.BatchNorm2d)
    norm = nn.BatchNorm2d
    return MaskRCNN(
        backbone,
        num_classes,
        rpn_head=RPNHead(256, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=norm),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=norm),
    )


NETWORKS = {
    "fasterrcnn_resnet18_fpn": resnet18(FasterRCNN),
    "maskrcnn_resnet18_fpn": resnet18(MaskRCNN),
    "maskrcnn_resnet18_fpn_v2": resnet18_v2,
    "fasterrcnn_resnet50_fpn_v2": partial(fasterrcnn_resnet50_fpn_v2, weights_backbone=None),
    "maskrcnn_resnet50_fpn_v2": partial(maskrcnn_resnet50_fpn_v2, weights_backbone=None),
    "fasterrcnn_resnet50_fpn": partial(fasterrcnn_resnet50_fpn, weights_backbone=None),
    "maskrcnn_resnet50_fpn": partial(maskrcnn_resnet50_fpn, weights_backbone=None),
}
FAST = ["fasterrcnn_resnet18_fpn", "maskrcnn_resnet18_fpn", "maskrcnn_resnet18_fpn_v2"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in FAST]


def twins(name: str, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[nn.Module, FasterRCNN]:
    """torchvision's network on these images, and ours with its tensors."""
    torch.manual_seed(0)
    theirs = randomised(NETWORKS[name](weights=None, num_classes=K + 1), images)
    theirs.transform = Given(images, sizes)
    many = {"training": 200, "testing": 200}
    theirs.rpn._pre_nms_top_n, theirs.rpn._post_nms_top_n = many, many
    ours = build(replace(ARCHS[name], classes=K, proposals=(200, 200))).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return theirs, ours


def beside(own: Tensor, other: Tensor, scores: Tensor) -> Tensor:
    """For each row of `other` its own one of `own`, all as near as can be; scores are descending.

    Another processor may swap rows whose scores are equal but for rounding, and no others.
    """
    number = torch.arange(len(other))
    far = torch.cdist(other, own, p=torch.inf) + 1e-6 * (number[:, None] - number).abs()
    rows = torch.from_numpy(linear_sum_assignment(far)[1])
    torch.testing.assert_close(scores[rows], scores[: len(rows)], rtol=1e-4, atol=1e-4)
    return rows


def test_rows_of_different_scores_may_not_swap() -> None:
    boxes, scores = torch.eye(4)[:3], torch.tensor([0.9, 0.6, 0.6 - 1e-7])
    assert beside(boxes, boxes[[0, 2, 1]], scores).tolist() == [0, 2, 1]
    with pytest.raises(AssertionError):
        beside(boxes, boxes[[1, 0, 2]], scores)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
@torch.no_grad()
def test_same_as_torchvision(name: str) -> None:
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    theirs, ours = twins(name, images, SIZES)
    theirs.roi_heads.detections_per_img = ours.detections_per_img = 8 if ours.arch.masks else 100
    sizes = torch.tensor(SIZES)
    maps = ours.features(images)
    rois, scores = ours.propose(maps, (128, 160), sizes)
    expected, _ = theirs.rpn(theirs.transform.images, theirs.backbone(images))
    for own, score, other in zip(rois, scores, expected, strict=True):
        assert len(other) > 50
        assert (score[len(other) :] == -torch.inf).all()
        like = own[beside(own[: len(other)], other, score)]
        torch.testing.assert_close(like, other, rtol=1e-4, atol=1e-4)

    found = ours(images, sizes=sizes)
    assert found.boxes.shape == (2, ours.detections_per_img, 4)
    for i, other in enumerate(theirs(list(images))):
        many = len(other["boxes"])
        assert many > 7
        assert (found.classes[i, many:] == -1).all()
        assert (found.scores[i, many:] == 0).all()
        # A box of one class is as far from one of another as an image is wide.
        own, like = (
            torch.cat([boxes, 1000.0 * classes[:, None]], 1)
            for boxes, classes in (
                (found.boxes[i, :many], found.classes[i, :many] + 1),
                (other["boxes"], other["labels"]),
            )
        )
        rows = beside(own, like, found.scores[i])
        torch.testing.assert_close(own[rows], like, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.scores[i, rows], other["scores"], rtol=1e-4, atol=1e-4)
        if "masks" in other:
            masks = found.masks[i, rows]
            torch.testing.assert_close(masks, other["masks"][:, 0], rtol=1e-4, atol=1e-4)


def objects(boxes: list[list[float]], kind: Kind = Kind.OBJECT, cells: int = 0) -> DetectionTargets:
    """Objects (M,) of classes 0, 1, ...; masks are full."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kinds = torch.full((len(boxes),), kind, dtype=torch.uint8)
    masks = torch.ones(len(boxes), cells, cells) if cells else None
    return DetectionTargets(corners, torch.arange(len(boxes)) % K, kinds, masks)


BOXES = [[10.0, 20.0, 70.0, 90.0], [40.0, 5.0, 150.0, 60.0], [90.0, 70.0, 120.0, 100.0]]


def test_losses_are_torchvisions() -> None:
    """Of one image, with all anchors and regions in the sample."""
    images = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(1))
    theirs, ours = twins("maskrcnn_resnet18_fpn", images, [(128, 160)])
    own = objects(BOXES, cells=56)
    masks = torch.zeros(3, 128, 160, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, torch.tensor(BOXES).int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    everything = 100_000
    for part in (theirs.rpn, theirs.roi_heads):
        part.fg_bg_sampler.batch_size_per_image = everything
    target = {"boxes": own.boxes, "labels": own.classes + 1, "masks": masks}
    expected = theirs.train()(list(images), [target])

    ours.rpn.sampled, ours.arch = everything, replace(ours.arch, sampled=1000)
    losses = dict(zip([*ours.loss_names, "wrong"], ours(images, own[None]), strict=True))
    torch.testing.assert_close(losses["objectness"], expected["loss_objectness"])
    torch.testing.assert_close(losses["proposals"], expected["loss_rpn_box_reg"])
    torch.testing.assert_close(losses["classes"], expected["loss_classifier"])
    torch.testing.assert_close(losses["boxes"], expected["loss_box_reg"])
    # torchvision averages masks of whole pixels over a cell; here it is the value in its middle.
    torch.testing.assert_close(losses["masks"], expected["loss_mask"], rtol=2e-2, atol=0)


TRUNK = replace(TINY, blocks=(1, 1, 1, 1), widths=(16, 16, 32, 32))


def small(name: str, **changes: object) -> faster_rcnn.FasterRCNN:
    torch.manual_seed(0)
    arch = replace(ARCHS[name], classes=K, proposals=(60, 20), sampled=40)
    arch = replace(arch, backbone=TRUNK, width=16, hidden=32)
    return build(replace(arch, **changes))


TINIES = {
    "fpn": partial(small, "fasterrcnn_tiny_fpn"),
    "masks": partial(small, "maskrcnn_tiny_fpn"),
    "context": partial(small, "fasterrcnn_tiny_fpn", context=True),
    "c4": partial(small, "fasterrcnn_tiny_c4"),
    "c4 align context": partial(small, "fasterrcnn_tiny_c4", pool="align", context=True),
    "c4 masks": partial(small, "fasterrcnn_tiny_c4", masks=True),
    "c4 layer2": partial(small, "fasterrcnn_tiny_c4", levels=("layer2",)),
    "batch": partial(small, "fasterrcnn_tiny_c4", backbone=replace(TRUNK, norm="batch")),
    "preact": partial(small, "fasterrcnn_tiny_c4", backbone=replace(TRUNK, order="pre")),
    "preact fpn": partial(small, "fasterrcnn_tiny_fpn", backbone=replace(TRUNK, order="pre")),
    "two levels": partial(
        small,
        "fasterrcnn_tiny_fpn",
        levels=("layer1", "layer3"),
        anchors=((16,), (32,), (64,)),
    ),
}
TARGETS = {
    "none": [objects([], cells=56), objects([], cells=56)],
    "one empty": [objects(BOXES, cells=56), objects([], cells=56)],
    "ignored": [objects(BOXES, kind=Kind.IGNORED, cells=56)] * 2,
    "degenerate": [
        objects([[5.0, 5, 5, 5], [9.0, 0, 9, 30]], cells=56),
        objects([[0.0] * 4], cells=56),
    ],
    "crowded": [
        objects(
            [[x, y, x + 9, y + 7] for y in torch.arange(0.0, 60, 3) for x in torch.arange(0.0, n)],
            cells=56,
        )
        for n in (25, 24)
    ],
}


def batch(per_image: list[DetectionTargets]) -> DetectionTargets:
    return DetectionTargets.stack(per_image)


@pytest.mark.parametrize(
    ("name", "bfloat16"),
    [*((name, False) for name in TINIES), ("masks", True), ("c4 align context", True)],
)
def test_losses_are_finite(name: str, bfloat16: bool) -> None:
    network = TINIES[name]().train()
    images = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    for case in ["none", "one empty"] if bfloat16 else TARGETS:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = network(images, batch(TARGETS[case]))
        assert losses.shape == (len(network.loss_names) + 1,)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all(), case
        assert 0 <= losses[-1] <= 1
        losses[:-1].sum().backward()
        for parameter, p in network.named_parameters():
            assert p.grad is not None, (case, parameter)
            assert p.grad.isfinite().all(), (case, parameter)


@pytest.mark.parametrize("name", ["masks", "c4 align context", "batch"])
def test_losses_of_halves(name: str) -> None:
    """The mean over images: nothing is left to chance if the sample has everything."""
    network = TINIES[name]().eval()
    network.rpn.sampled, network.arch = 100_000, replace(network.arch, sampled=200)
    images = torch.randn(4, 3, 64, 96)
    per_image = [objects(BOXES, cells=56), objects(BOXES[:1], cells=56), objects([], cells=56)]
    targets = batch([*per_image, objects(BOXES[1:], cells=56)])
    with torch.no_grad():
        halves = [network(images[i : i + 2], targets[i : i + 2]) for i in (0, 2)]
        torch.testing.assert_close(network(images, targets), sum(halves) / 2)


@pytest.mark.parametrize("name", TINIES)
@torch.no_grad()
def test_detections(name: str) -> None:
    network = TINIES[name]().eval()
    network.score_thresh = 0.0
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 60]])
    found = network(images, sizes=sizes)
    there = found.classes >= 0
    assert there.any(1).all()
    assert torch.equal(there, found.scores > 0)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert (found.boxes <= sizes.flip(1).repeat(1, 2)[:, None]).all()
    assert (found.boxes[~there] == 0).all()
    if network.arch.masks:
        assert found.masks.shape == (2, 100, 28, 28)
        assert (found.masks[~there] == 0).all()
    # the stages that test-time procedures put together, and no regions at all
    maps = network.features(images)
    rois, _ = network.propose(maps, (64, 96), sizes)
    again = network.postprocess(*network.classify_rois(maps, rois, sizes), sizes)
    torch.testing.assert_close(again.boxes, found.boxes)
    nothing = network.classify_rois(maps, rois[:, :0], sizes)
    assert nothing[0].shape == (2, 0, K + 1)
    assert nothing[1].shape == (2, 0, K, 4)


@torch.no_grad()
def test_context_is_the_whole_image() -> None:
    """A region's features, then those of the box of its image."""
    network = TINIES["context"]().eval()
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 60]])
    maps = network.features(images)
    rois = torch.tensor([[[8.0, 8, 40, 50]], [[0.0, 0, 60, 50]]])
    own, whole = network.box_features(maps, rois, sizes).chunk(2, 2)
    torch.testing.assert_close(own[1], whole[1])
    assert not torch.allclose(own[0], whole[0])
    box = torch.tensor([[[0.0, 0, 96, 64]]])
    first = {name: m[:1] for name, m in maps.items()}
    torch.testing.assert_close(network.box_features(first, box)[..., :32], whole[:1])


def test_mask_in_a_region() -> None:
    """A mask whose left half is full, inside the box 10..66: at the box, shifted, and beside it."""
    mask = torch.zeros(1, 1, 56, 56)
    mask[..., :28] = 1
    box = torch.tensor([[[10.0, 10, 66, 66]]])
    rois = torch.tensor([[[10.0, 10, 66, 66], [-18.0, 10, 38, 66], [66.0, 66, 80, 80]]])
    goals = crop_masks(mask.expand(1, 3, -1, -1), box.expand(1, 3, 4), rois, 28)
    expected = torch.zeros(1, 3, 28, 28)
    expected[0, 0, :, :14] = 1
    expected[0, 1, :, 14:] = 1
    torch.testing.assert_close(goals, expected)


def test_anchors_do_not_fit() -> None:
    arch = DetectorArch(backbone=TINY)
    with pytest.raises(UsageError, match=r"5 levels .*pool"):
        build(replace(arch, anchors=((32,), (64,))))
    with pytest.raises(UsageError, match="the same number of sizes"):
        build(replace(arch, anchors=((32,), (64,), (128,), (256,), (512, 600))))
    with pytest.raises(UsageError, match="layer1, layer2, layer3, layer4"):
        build(replace(arch, levels=("layer9",)))
    with pytest.raises(UsageError, match="a stage after it"):
        build(replace(arch, architecture="c4", levels=("layer4",), anchors=((32,),)))


def test_masks_are_missing() -> None:
    with pytest.raises(UsageError, match="masks"):
        TINIES["masks"]()(torch.randn(1, 3, 64, 96), objects(BOXES)[None])


@pytest.mark.slow
def test_overfits_two_images() -> None:
    """Three coloured rectangles each: all found, with the right class."""
    torch.manual_seed(0)
    arch = replace(ARCHS["fasterrcnn_tiny_fpn"], classes=3, proposals=(200, 100), sampled=64)
    network = build(arch)
    images = torch.zeros(2, 3, 128, 160).contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor(
        [
            [[10, 20, 60, 100], [80, 10, 150, 50], [90, 70, 130, 120]],
            [[5, 5, 45, 60], [60, 30, 100, 120], [110, 60, 155, 110]],
        ]
    )
    for image, own in zip(images, boxes.tolist(), strict=True):
        for colour, (x1, y1, x2, y2) in enumerate(own):
            image[colour, y1:y2, x1:x2] = 2
    classes = torch.arange(3).expand(2, 3)
    targets = DetectionTargets(boxes.float(), classes, torch.ones_like(classes))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        network(images, targets)[:-1].sum().backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(images)
    for i in range(2):
        for kind in range(3):
            best = found.boxes[i][found.classes[i] == kind][0]
            low, high = best[:2].maximum(boxes[i, kind, :2]), best[2:].minimum(boxes[i, kind, 2:])
            both = (high - low).clamp(min=0).prod()
            sides = [b[2:] - b[:2] for b in (best, boxes[i, kind].float())]
            assert both / (sides[0].prod() + sides[1].prod() - both) > 0.7
