"""A torch Dataset as training data: what is read, kept, refused, and how it is known again."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from resnets.data import torch_dataset
from resnets.data.dataset import load
from resnets.errors import DataError, UsageError

DRAWS = np.random.default_rng(0)
IMAGES = DRAWS.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8)
LABELS = [k % 4 for k in range(40)]


class Pairs(Dataset):
    def __init__(self, images, labels, classes=None):
        self.images, self.labels = images, labels
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def test_forms_of_the_same_pairs_are_the_same_data():
    tensor = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    forms = [
        Pairs(IMAGES, LABELS),
        Pairs([Image.fromarray(x) for x in IMAGES], torch.tensor(LABELS)),
        Pairs(IMAGES / 255, np.array(LABELS)),
        TensorDataset(tensor, torch.tensor(LABELS)),
        TensorDataset(tensor / 255, torch.tensor(LABELS)),
        list(zip(IMAGES, LABELS, strict=True)),
        Subset(Pairs(IMAGES, LABELS), range(40)),
    ]
    sources = [load(form) for form in forms]
    assert len({source.digest for source in sources}) == 1
    source = sources[0]
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 32, "val": 4, "test": 4,
    }  # fmt: skip
    assert source.automatic
    assert (source.classes, source.channels, source.size) == (("0", "1", "2", "3"), 3, 6)
    assert load(Pairs(IMAGES, LABELS[::-1])).digest != source.digest
    assert load(Pairs(IMAGES, LABELS, list("abcd"))).digest != source.digest
    whole = torch.cat([split.images for split in source.splits.values()])
    assert sorted(map(bytes, whole.numpy())) == sorted(map(bytes, tensor.numpy()))


def test_a_dictionary_says_the_splits():
    parts = {
        "train": Pairs(IMAGES[:30], LABELS[:30], list("abcd")),
        "test": Pairs(IMAGES[30:], LABELS[30:]),
    }
    source = load(parts)
    assert source.val is None
    assert not source.automatic
    assert source.classes == tuple("abcd")
    assert source.test.labels.tolist() == LABELS[30:]
    assert torch.equal(source.train.images[3], torch.from_numpy(IMAGES[3]).permute(2, 0, 1))
    values = IMAGES[:30].reshape(-1, 3) / 255
    assert source.mean == pytest.approx(values.mean(0))
    assert source.std == pytest.approx(values.std(0))


def test_grey_and_several_labels():
    labels = torch.zeros(40, 3)
    labels[torch.arange(40), torch.arange(40) % 3] = 1
    source = load(Pairs(IMAGES[..., 0], labels))
    assert source.channels == 1
    assert source.train.labels.shape == (32, 3)
    mixed = load(Pairs([IMAGES[0, ..., 0], *IMAGES[1:]], LABELS))
    assert mixed.channels == 3


def test_images_of_several_sizes_become_files_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path))
    images = [x[: 4 + k % 3] for k, x in enumerate(IMAGES)]
    pairs = Pairs(images, LABELS)
    source = load(pairs)
    (folder,) = (tmp_path / "datasets").iterdir()
    assert source.root == folder
    assert len(list(folder.glob("*.png"))) == 40
    assert "40 images of dataset-Pairs were written into" in source.notes[0]
    first = source.train.images[0]
    assert np.array_equal(np.array(Image.open(first)), images[int(first.stem)])
    written = first.stat().st_mtime_ns
    again = load(pairs)
    assert again.digest == source.digest
    assert first.stat().st_mtime_ns == written
    values = [
        (np.stack([x.mean((0, 1)), (x**2).mean((0, 1))]))
        for x in (images[int(f.stem)] / 255 for f in source.train.images)
    ]
    assert len(values) == 32
    monkeypatch.setattr(torch_dataset, "MEMORY", 100)
    assert load(Pairs(IMAGES, LABELS)).root.parent == folder.parent


class Jittered(Pairs):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return (image[:, ::-1] if DRAWS.random() < 0.5 else image), label


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(IMAGES, LABELS, strict=True)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (Jittered(IMAGES, LABELS), DataError, "changes each time it is read.\nLeave random"),
        (DataLoader(Pairs(IMAGES, LABELS)), UsageError, "is a DataLoader: give its Dataset"),
        (Endless(), UsageError, r"of an IterableDataset, list\(dataset\)"),
        ({"training": Pairs(IMAGES, LABELS)}, UsageError, "'training': its Datasets are called"),
        ({}, UsageError, "an empty dictionary"),
        ({"train": "digits"}, UsageError, r"data\['train'\] is a str"),
        ([{"image": IMAGES[0], "label": 1}], DataError, r"item 0 .* is a dict, not \(image, label"),
        (Pairs(IMAGES, [-1] * 40), DataError, "item 0 of the Dataset: its label is -1"),
        (Pairs(IMAGES, ["cat"] * 40), DataError, "its label is 'cat'"),
        (Pairs(IMAGES - 0.5, LABELS), DataError, "item 0 of the Dataset: floats from"),
        (Pairs(IMAGES.astype(np.uint16), LABELS), DataError, "item 0 .* its image is 16-bit"),
        (Pairs(IMAGES, [0] * 40), DataError, "one class; a classifier needs two"),
        (
            Pairs(IMAGES, LABELS, ["a", "b"]),
            DataError,
            "classes names 2 classes, the labels go",
        ),
        (Pairs(IMAGES[:0], []), DataError, "empty"),
        (
            Pairs(IMAGES, [*LABELS[:39], 10**9]),
            DataError,
            "item 39 .* its label is 1000000000; give",
        ),
        (
            {"train": Pairs(IMAGES, LABELS), "val": Pairs(IMAGES[:2], [0, 255])},
            DataError,
            "item 1 of the val Dataset: its label is 255, of 42 images: number the classes",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(data, error, words):
    with pytest.raises(error, match=f"(?s){words}"):
        load(data)


def test_boxes_and_masks_are_read_from_files():
    with pytest.raises(DataError, match="boxes and masks come from files"):
        load(Pairs(IMAGES, LABELS), task="detect")


def test_classes_without_images_are_noted_to_train():
    labels = [10 * (k % 3) for k in range(40)]
    note = "18 of 21 classes have no images, as '1'"
    assert note in load(Pairs(IMAGES, labels)).notes
    assert load(Pairs(IMAGES, labels), training=False).notes == ()
    assert load(Pairs(IMAGES, LABELS)).notes == ()
    assert load(Pairs(IMAGES[:4], [0, 1, 2, 90]), training=False).classes[-1] == "90"
    named = Pairs(np.repeat(IMAGES[:2], 10, 0), [0] * 10 + [98] * 10, [f"c{k}" for k in range(99)])
    assert "97 of 99 classes have no images, as 'c1'" in load(named).notes
