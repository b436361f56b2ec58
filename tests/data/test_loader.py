import gc
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnets.config.recipe import Augment, Preprocess
from resnets.data import load, loader, order
from resnets.data.loader import check_batching, train_batches
from resnets.data.sampling import balanced_sampler, uniform_sampler
from resnets.data.splits import Split
from resnets.errors import DataError, UsageError
from tests._helpers import needs_forked_workers, needs_signals

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


def training(split, preprocess, augment=STRONG, *, start=0, stop=9, batch=8, **changes):
    return train_batches(
        split,
        preprocess=preprocess,
        augment=augment,
        batch=batch,
        seed=5,
        start=start,
        stop=stop,
        device="cpu",
        **changes,
    )


def shown(split, preprocess, *, batch=8, **changes):
    return loader.test_batches(split, preprocess=preprocess, batch=batch, device="cpu", **changes)


INPUT = Preprocess(size=16, resize=20)
GREY = Preprocess(size=16, channels=1, mean=(0.3,), std=(0.4,))


def same(ours, theirs):
    return all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        for a, b in zip(ours, theirs, strict=True)
    )


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12), st.integers(0, 12))
def test_position_p_is_image_p_of_the_endless_order(n, batch, start, more):
    stream = list(loader.stream(uniform_sampler(3, n, 1), batch, start, start + more, 0, 1))
    assert len(stream) == more
    found = [pair for rows in stream for pair in zip(*(r.tolist() for r in rows), strict=True)]
    places = range(start * batch, (start + more) * batch)
    assert found == [(order(3, p // n, n)[p % n].item(), p // n) for p in places]


@given(st.integers(1, 30), st.integers(1, 10), st.integers(1, 4), st.integers(1, 5))
def test_the_stream_is_one_for_any_number_of_ranks(n, share, ranks, repeats):
    labels = torch.arange(n) % 5 // 2
    for sample in (uniform_sampler(3, n, repeats), balanced_sampler(3, labels, repeats)):
        parts = [list(loader.stream(sample, share * ranks, 2, 7, r, ranks)) for r in range(ranks)]
        whole = list(loader.stream(sample, share * ranks, 2, 7, 0, 1))
        for step, rows in enumerate(whole):
            for column in (0, 1):
                assert torch.equal(torch.cat([p[step][column] for p in parts]), rows[column])


def test_repeated_images_stand_together_and_look_different(files):
    rows = list(loader.stream(uniform_sampler(3, 7, 3), 7, 0, 2, 0, 1))
    for epoch, (indices, views) in enumerate(rows):
        first, second, third = order(3, epoch, 7)[:3].tolist()
        assert indices.tolist() == [first] * 3 + [second] * 3 + [third]
        assert views.tolist() == [epoch + c * 2**32 for c in (0, 1, 2, 0, 1, 2, 0)]
    (plain,) = training(files, INPUT, Augment(crop="area"), batch=2, stop=1)
    (twice,) = training(files, INPUT, Augment(crop="area", repeated_aug=2), batch=2, stop=1)
    assert twice.indices.tolist() == [plain.indices[0]] * 2
    assert torch.equal(twice.images[0], plain.images[0])
    assert not torch.equal(twice.images[1], twice.images[0])


@pytest.mark.parametrize(
    "policy", ["none", "trivialaugment", "randaugment", "autoaugment", "augmix"]
)
def test_ranks_divide_each_step_and_each_pass(files, policy):
    augment = Augment(crop="area", flip=True, policy=policy, random_erasing=0.5, repeated_aug=3)
    for split, input_ in ((files, INPUT), (load("digits").train, GREY)):
        whole = list(training(split, input_, augment, batch=12, stop=3))
        parts = [
            training(split, input_, augment, batch=12, stop=3, rank=r, ranks=3) for r in range(3)
        ]
        for one, *parted in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([p.images for p in parted]), one.images)
            assert torch.equal(torch.cat([p.labels for p in parted]), one.labels)
            assert torch.equal(torch.cat([p.indices for p in parted]), one.indices)
    for rank in range(3):
        found = torch.cat([b.indices for b in shown(files, INPUT, rank=rank, ranks=3)])
        assert found.tolist() == list(range(rank, 37, 3))


def test_a_rank_may_have_nothing_to_test(files):
    for split, input_ in ((files, INPUT), (load("digits").test, GREY)):
        found = [
            b.images.shape for b in shown(split.take(torch.arange(2)), input_, rank=2, ranks=3)
        ]
        assert found in ([], [(0, input_.channels, 16, 16)])


def test_the_side_of_the_input_follows_the_step(files):
    def side(step):
        return (8, 12, 16)[step]

    for split, input_ in ((files, INPUT), (load("digits").train, GREY)):
        for augment in (STRONG, Augment(crop="pad", pad=4), Augment(crop="scale", scale=(20, 30))):
            if augment.colour != "none" and input_.channels == 1:
                continue
            grown = list(training(split, input_, augment, stop=3, sides=side))
            whole = list(training(split, input_, augment, stop=3))
            assert [b.images.shape[2:] for b in grown] == [(8, 8), (12, 12), (16, 16)]
            assert all(torch.equal(a.indices, b.indices) for a, b in zip(grown, whole, strict=True))
            assert torch.equal(grown[2].images, whole[2].images)
    assert same(
        training(files, INPUT, stop=3, sides=side),
        training(files, INPUT, stop=3, sides=side, workers=1),
    )


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


PLAIN = replace(INPUT, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # what is normalised is the uint8


@pytest.mark.parametrize("memory", [True, False])
def test_corners_are_crops_by_hand_and_whole_images_are_uncut(tmp_path, memory):
    images = torch.randint(0, 256, (5, 3, 26, 20), dtype=torch.uint8)
    paths = tuple(tmp_path / f"{i}.png" for i in range(5))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    split = Split(images if memory else paths, torch.arange(5) * 2)
    corners = list(shown(split, PLAIN, batch=2, crops="corners"))
    assert [b.indices.tolist() for b in corners] == [[0] * 5 + [1] * 5, [2] * 5 + [3] * 5, [4] * 5]
    x = torch.cat([b.images for b in corners]).round()
    for i, image in enumerate(images):
        for k, (top, left) in enumerate(((0, 0), (0, 4), (10, 0), (10, 4), (5, 2))):
            assert torch.equal(x[5 * i + k], image[:, top : top + 16, left : left + 16].float())
    assert all(torch.equal(b.labels, 2 * b.indices) for b in corners)
    assert torch.equal(x[4::5], torch.cat([b.images for b in shown(split, PLAIN)]).round())

    whole = list(shown(split, PLAIN, batch=2, crops="whole"))
    assert [len(b.indices) for b in whole] == ([2, 2, 1] if memory else [1] * 5)
    assert torch.equal(torch.cat([b.images for b in whole]).round(), images.float())
    smaller = next(shown(split, replace(PLAIN, resize=0), crops="whole"))
    assert smaller.images.shape[1:] == (3, 20, 16)
    ranked = [b for r in range(3) for b in shown(split, PLAIN, crops="corners", rank=r, ranks=3)]
    found = torch.cat([b.images for b in ranked]).round()
    assert torch.equal(found, torch.cat([x[5 * i : 5 * i + 5] for i in (0, 3, 1, 4, 2)]))


def test_a_change_is_of_the_uint8_views_and_knows_their_images(files):
    def shade(views, indices):
        assert (views.dtype, views.shape[1:]) == (torch.uint8, (3, 16, 16))
        return torch.full_like(views, 7) * indices.to(torch.uint8).view(-1, 1, 1, 1)

    for split, input_ in ((files, PLAIN), (load("digits").train.take(torch.arange(37)), PLAIN)):
        for crops, views in (("center", 1), ("corners", 5)):
            for b in shown(split, input_, crops=crops, change=shade):
                shades = (7.0 * b.indices).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
                assert torch.equal(b.images.round(), shades)
                assert len(b.images) % views == 0


def test_other_crops_of_files_that_turned_bad(files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    split = Split((bad, *files.images[1:3], bad), torch.arange(4))
    (batch,) = shown(split, INPUT, crops="corners")
    assert batch.indices.tolist() == [1] * 5 + [2] * 5
    assert batch.labels.tolist() == batch.indices.tolist()
    assert len(batch.unreadable) == 2
    whole = list(shown(split, INPUT, crops="whole", workers=1))
    assert [len(b.images) for b in whole] == [0, 1, 1, 0]
    assert [len(b.unreadable) for b in whole] == [1, 0, 0, 1]
    assert [min(b.images.shape[2:]) for b in whole[1:3]] == [20, 20]


def test_a_mean_of_each_pixel_fits_crops_and_such_whole_images_alone(files):
    digits = load("digits").test
    pixels = Preprocess(size=8, channels=1, mean=tuple(i / 64 for i in range(64)), std=(1.0,))
    for crops in ("center", "corners", "whole"):
        batch = next(shown(digits, pixels, batch=2, crops=crops))
        mean = torch.tensor(pixels.mean).view(1, 8, 8)
        assert torch.equal(batch.images[0], digits.images[0] / 255 - mean)
    wide = replace(pixels, channels=3, mean=(0.5,) * 192, std=(1.0,) * 3)
    with pytest.raises(UsageError, match=r"8 x 8 pixels and fits no whole image of \d+ x \d+"):
        list(shown(files, wide, crops="whole"))


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
    with pytest.raises(DataError, match="no image of a batch"):
        next(training(split, INPUT))


@needs_signals
def test_a_worker_that_dies_is_told_with_its_batch(files, monkeypatch):
    monkeypatch.setattr(loader, "_LOOK", 1)
    before = signal.getsignal(signal.SIGCHLD)
    stream = training(files, INPUT, stop=1000, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        DataError,
        match=r"died or hung(.|\n)*(The last that it read is|It was reading) /(.|\n)*--workers 0",
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on fewer cores
@pytest.mark.parametrize("fault", ["died", pytest.param("hung", marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
@needs_forked_workers
def test_the_file_that_ends_a_worker_is_named(files, monkeypatch, fault, workers):
    decode, bad = loader.decode, files.images[23]

    def faulty(path, channels, white):
        if path == bad:
            os.kill(os.getpid(), signal.SIGKILL) if fault == "died" else time.sleep(1000)
        return decode(path, channels, white)

    monkeypatch.setattr(loader, "PATIENCE", 2)
    monkeypatch.setattr(loader, "_LOOK", 1)
    monkeypatch.setattr(loader, "decode", faulty)
    gc.collect()
    before = psutil.Process().num_fds()
    with pytest.raises(DataError) as caught:
        list(training(files, INPUT, batch=4, stop=20, workers=workers))
    assert f"It was reading {bad}." in str(caught.value)
    assert ("DataLoader timed out" in str(caught.value)) == (fault == "hung")
    del caught
    assert_no_children()
    assert not psutil.Process().children()  # no zombies either
    # Answers that nobody took keep their files until the last thread of the loader has ended.
    end = time.monotonic() + 10
    while psutil.Process().num_fds() > before and time.monotonic() < end:
        gc.collect()
        time.sleep(0.1)
    assert psutil.Process().num_fds() <= before


def test_a_reader_that_stops_early_leaves_no_process(files):
    stream = training(files, INPUT, stop=1000, workers=2)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert_no_children()


def test_what_else_cannot_be_is_told(files):
    with pytest.raises(UsageError, match="batch=8 is not divisible by 3 processes"):
        next(training(files, INPUT, ranks=3))
    pixels = Preprocess(size=4, mean=(0.5,) * 48, std=(1.0,) * 3)
    check_batching(pixels, Augment(), 8, 2, 4)
    next(training(files, pixels, Augment(), sides=lambda step: 4))
    with pytest.raises(UsageError, match="is for 4 pixels, not 3: set normalize=data"):
        next(training(files, pixels, Augment(), sides=lambda step: 3))


@pytest.mark.parametrize(
    ("augment", "channels", "message"),
    [
        (Augment(colour="pca"), 1, "augment.colour=pca needs colour images"),
        (Augment(crop="scale", scale=(12, 20)), 3, "begin at 16 or more"),
        (Augment(crop="pad", pad=16, reflect=True), 3, "too large to reflect"),
    ],
)
def test_an_augmentation_that_cannot_be_is_told(files, augment, channels, message):
    mean = (0.5,) * channels
    preprocess = Preprocess(size=16, channels=channels, mean=mean, std=mean)
    with pytest.raises(UsageError, match=message):
        next(training(files, preprocess, augment))
