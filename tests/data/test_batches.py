import gc
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnets.data import batches, load, order
from resnets.data.batches import train_batches
from resnets.data.splits import Split
from resnets.errors import DataError, UsageError
from resnets.recipe import Augment, Preprocess

STRONG = Augment(crop="area", flip=True, colour="jitter", cutout=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """37 photographs-to-be of different shapes."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = []
    for i in range(37):
        paths.append(folder / f"{i}.png")
        shape = (*rng.integers(20, 60, 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return Split(tuple(paths), torch.arange(37) % 3)


def training(split, preprocess, augment=STRONG, *, start=0, stop=9, workers=0, batch=8, seed=5):
    return train_batches(
        split,
        preprocess=preprocess,
        augment=augment,
        batch=batch,
        seed=seed,
        start=start,
        stop=stop,
        device="cpu",
        workers=workers,
    )


def shown(split, preprocess, *, batch=8, workers=0):
    return batches.test_batches(
        split, preprocess=preprocess, batch=batch, device="cpu", workers=workers
    )


INPUT = Preprocess(size=16, resize=20)


def same(ours, theirs):
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(ours, theirs, strict=True)
    )


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12), st.integers(0, 12))
def test_position_p_is_image_p_of_the_endless_order(n, batch, start, more):
    stream = list(batches.stream(3, n, batch, start, start + more))
    assert len(stream) == more
    found = [pair for rows in stream for pair in zip(*(r.tolist() for r in rows), strict=True)]
    places = range(start * batch, (start + more) * batch)
    assert found == [(order(3, p // n, n)[p % n].item(), p // n) for p in places]


def test_every_epoch_has_every_image_once(files):
    seen = torch.cat([b.indices for b in training(files, INPUT, stop=37, batch=4)])
    for epoch in seen.view(4, 37):
        assert torch.equal(epoch.sort().values, torch.arange(37))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(files, workers):
    here = list(training(files, INPUT))
    assert same(here, list(training(files, INPUT, workers=workers)))
    assert same(shown(files, INPUT), list(shown(files, INPUT, workers=workers)))


@pytest.mark.parametrize("start", [1, 5, 8])
def test_a_run_goes_on_where_it_stopped(files, start):
    digits = load("digits").train
    small = Preprocess(size=8, channels=1, mean=(0.3,), std=(0.4,))
    pad = Augment(crop="pad", pad=2, flip=True, cutout=3)
    assert same(list(training(files, INPUT))[start:], training(files, INPUT, start=start))
    whole = list(training(digits, small, pad, batch=200))
    assert same(whole[start:], training(digits, small, pad, batch=200, start=start))


def test_an_image_looks_the_same_in_any_batch_and_another_in_any_epoch(files):
    one = {}
    for b in training(files, INPUT, batch=37, stop=2):
        one |= {(len(one) // 37, i): x for i, x in zip(b.indices.tolist(), b.images, strict=True)}
    for p, b in enumerate(training(files, INPUT, batch=1, stop=74)):
        assert torch.equal(one[p // 37, b.indices.item()], b.images[0])
    assert all(not torch.equal(one[0, i], one[1, i]) for i in range(37))


def test_testing_shows_every_image_once_in_order(files):
    found = list(shown(files, INPUT, batch=10))
    assert [len(b.labels) for b in found] == [10, 10, 10, 7]
    assert torch.cat([b.indices for b in found]).tolist() == list(range(37))
    assert torch.equal(torch.cat([b.labels for b in found]), files.labels)


@pytest.mark.parametrize("augment", [Augment(), Augment(crop="area"), STRONG])
def test_files_and_memory_are_one_path(tmp_path, augment):
    images = torch.randint(0, 256, (12, 3, 24, 24), dtype=torch.uint8)
    paths = tuple(tmp_path / f"{i}.png" for i in range(12))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    memory, disk = (Split(x, torch.arange(12)) for x in (images, paths))
    for a, b in zip(
        [*training(memory, INPUT, augment), *shown(memory, INPUT)],
        [*training(disk, INPUT, augment), *shown(disk, INPUT)],
        strict=True,
    ):
        assert torch.equal(a.indices, b.indices)
        assert torch.equal(a.images, b.images)


def test_batches_are_normalised_by_what_is_measured():
    source = load("digits")
    preprocess = Preprocess(size=8, channels=1, mean=source.mean, std=source.std)
    x = torch.cat([b.images for b in shown(source.train, preprocess, batch=100)])
    assert x.dtype == torch.float32
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_file_that_turns_bad_is_reported_and_its_row_dropped(files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    broken = Split((*files.images[:5], bad, *files.images[6:]), files.labels)
    for workers in (0, 2):
        for whole, rest in zip(
            [*training(files, INPUT), *shown(files, INPUT)],
            [*training(broken, INPUT, workers=workers), *shown(broken, INPUT, workers=workers)],
            strict=True,
        ):
            good = whole.indices != 5
            assert torch.equal(rest.indices, whole.indices[good])
            assert torch.equal(rest.images, whole.images[good])
            assert torch.equal(rest.labels, whole.labels[good])
            assert [path for path, _ in rest.unreadable] == [bad] * int((~good).sum())


def test_nothing_left_of_a_batch_ends_training_and_not_testing(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    split = Split((tmp_path / "x.png",) * 2, torch.tensor([0, 1]))
    (batch,) = shown(split, INPUT)
    assert batch.images.shape == (0, 3, 16, 16)
    assert len(batch.unreadable) == 2
    with pytest.raises(DataError, match="not one image of a batch"):
        next(training(split, INPUT))


def test_a_worker_that_dies_is_told_with_its_batch(files, monkeypatch):
    monkeypatch.setattr(batches, "_LOOK", 1)
    before = signal.getsignal(signal.SIGCHLD)
    stream = training(files, INPUT, stop=1000, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        DataError, match=r"died or hung(.|\n)*It had a batch from(.|\n)*--workers 0"
    ):
        for _ in stream:
            pass
    assert_no_children()
    assert signal.getsignal(signal.SIGCHLD) == before


def assert_no_children():
    # The loader ends its workers when the error, whose traceback holds it, is forgotten.
    end = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < end:
        gc.collect()
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_a_worker_that_hangs_is_told(files, monkeypatch):
    monkeypatch.setattr(batches, "PATIENCE", 2)
    monkeypatch.setattr(batches, "_LOOK", 1)
    monkeypatch.setattr(batches, "decode", lambda path, channels: time.sleep(1000))
    with pytest.raises(DataError, match="died or hung: DataLoader timed out"):
        next(training(files, INPUT, workers=1))
    assert_no_children()


def test_a_reader_that_stops_early_leaves_no_process(files):
    stream = training(files, INPUT, stop=1000, workers=2)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert_no_children()


@pytest.mark.parametrize(
    ("augment", "channels", "message"),
    [
        (Augment(colour="pca"), 1, "augment.colour=pca is for colour images"),
        (Augment(crop="scale", scale=(12, 20)), 3, "begin at 16 or more"),
        (Augment(crop="pad", pad=16, reflect=True), 3, "too much to reflect"),
    ],
)
def test_an_augmentation_that_cannot_be_is_told(files, augment, channels, message):
    mean = (0.5,) * channels
    preprocess = Preprocess(size=16, channels=channels, mean=mean, std=mean)
    with pytest.raises(UsageError, match=message):
        next(training(files, preprocess, augment))
