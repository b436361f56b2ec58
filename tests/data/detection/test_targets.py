import pickle

import torch

from resnets.data.detection.targets import MASK_SIZE, DetectionTargets, Kind

CROWD, CAT, DOG = [0.0, 0, 9, 9], [1.0, 2, 3, 4], [5.0, 6, 7, 8]


def some(masks: bool = False) -> DetectionTargets:
    """A crowd of class 2 and a cat; a dog and padding; padding alone."""
    return DetectionTargets(
        torch.tensor([[CROWD, CAT], [DOG, [0.0] * 4], [[0.0] * 4] * 2]),
        torch.tensor([[2, 0], [1, 0], [0, 0]]),
        torch.tensor([[2, 1], [1, 0], [0, 0]], dtype=torch.uint8),
        torch.rand(3, 2, MASK_SIZE, MASK_SIZE) if masks else None,
    )


def same(one: DetectionTargets, other: DetectionTargets) -> bool:
    names = ("boxes", "classes", "kind", "masks")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_kinds_are_what_files_say() -> None:
    assert [int(kind) for kind in (Kind.PADDING, Kind.OBJECT, Kind.IGNORED)] == [0, 1, 2]
    targets = some()
    assert targets.is_object.tolist() == [[False, True], [True, False], [False, False]]
    assert targets.is_ignored.tolist() == [[True, False], [False, False], [False, False]]
    assert (targets.is_object | targets.is_ignored).logical_not().equal(targets.is_padding)


def test_images_and_rows_are_taken() -> None:
    targets = some(masks=True)
    assert len(targets) == 3
    assert targets[0].boxes.tolist() == [CROWD, CAT]
    assert len(targets[1:]) == len(targets[torch.tensor([2, 0])]) == 2
    assert targets[torch.tensor([True, False, True])].classes.tolist() == [[2, 0], [0, 0]]
    objects = targets[targets.is_object]
    assert objects.boxes.tolist() == [CAT, DOG]
    assert objects.classes.tolist() == [0, 1]
    assert objects.masks is not None
    assert objects.masks.shape == (2, MASK_SIZE, MASK_SIZE)


def test_images_are_split_as_tensors_are() -> None:
    for masks in (False, True):
        targets = some(masks)
        for count in (1, 2, 3, 5):
            parts = targets.tensor_split(count)
            wanted = torch.arange(3).tensor_split(count)
            assert [len(part) for part in parts] == [len(part) for part in wanted]
            assert same(DetectionTargets.cat(parts), targets)


def test_images_of_fewer_objects_are_padded() -> None:
    targets = some(masks=True)
    joined = DetectionTargets.cat([targets.pad(5), targets])
    assert joined.kind.shape == (6, 5)
    assert same(joined[3:], targets.pad(5))
    assert joined.is_padding[:, 2:].all()
    assert same(targets.pad(1), targets)
    assert targets[0].pad(3).kind.tolist() == [2, 1, 0]
    assert same(DetectionTargets.stack([targets[k] for k in range(3)]), targets)
    assert DetectionTargets.empty(4, 0).pad(1).is_padding.all()
    assert DetectionTargets.cat([targets, DetectionTargets.empty(1, 2)]).masks is None


def test_classes_are_those_of_objects_alone() -> None:
    targets = some()
    assert targets.count_classes(4).tolist() == [1, 1, 0, 0]
    present = targets.multi_hot(3)
    assert present.tolist() == [[True, False, False], [False, True, False], [False] * 3]
    ignored = targets.ignore(targets.classes == 1)
    assert ignored.kind.tolist() == [[2, 1], [2, 0], [0, 0]]
    assert targets.kind.tolist() == [[2, 1], [1, 0], [0, 0]]


def test_targets_go_through_a_pickle_and_to_a_device() -> None:
    for masks in (False, True):
        targets = some(masks)
        assert same(pickle.loads(pickle.dumps(targets)), targets)
        assert targets.to("meta").boxes.device.type == "meta"


def test_storage_is_little_more_than_boxes_and_classes() -> None:
    targets = DetectionTargets.empty(1, 1)
    columns = (targets.boxes, targets.classes, targets.kind)
    assert sum(x.numel() * x.element_size() for x in columns) == 25  # 274 MB for COCO's training
