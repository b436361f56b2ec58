"""A Dataset through the public functions: trained, resumed, evaluated."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import resnets
from resnets.data.dataset import digits
from resnets.errors import DataError, UsageError
from resnets.training.run import Run


@pytest.fixture(scope="module")
def parts():
    source = digits()
    train, test = source.train.take(torch.arange(200)), source.test.take(torch.arange(60))
    return {
        "train": TensorDataset(train.images, train.labels),
        "test": TensorDataset(test.images, test.labels),
    }


QUICK = {"model": "resnet8", "recipe": "digits", "overrides": {"steps": 4, "size": 8, "batch": 16}}


def test_a_dataset_is_trained_evaluated_and_resumed(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = resnets.train(parts, **QUICK, device="cpu")
    assert outcome.run == Path("runs/dataset-TensorDataset-resnet8")
    assert outcome.result.images == 60
    assert resnets.evaluate(outcome.run, parts).top1 == outcome.result.top1
    alone = resnets.evaluate(outcome.run, parts["test"])
    assert (alone.split, alone.top1) == ("all", outcome.result.top1)
    assert len(Run(outcome.run).test_accesses()) == 2  # the single one is other data to it

    folder = Run(outcome.run)
    whole = folder.model.read_bytes()
    folder.model.unlink()
    with pytest.raises(UsageError, match="was trained on a torch Dataset"):
        resnets.resume(outcome.run)
    other = dict(parts, train=parts["test"])
    with pytest.raises(DataError, match="has changed since"):
        resnets.resume(outcome.run, data=other, device="cpu")
    resnets.resume(outcome.run, data=parts, device="cpu")
    assert folder.model.read_bytes() == whole


def test_a_single_dataset_has_its_own_test_images(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = resnets.train(parts["train"], **QUICK, device="cpu")
    assert outcome.result.images == 20
    again = resnets.evaluate(outcome.run, parts["train"])
    assert (again.split, again.images, again.top1) == ("test", 20, outcome.result.top1)


def test_a_dataset_is_described_and_checked(parts):
    facts = resnets.data_info(parts)
    assert {name: sum(counts) for name, counts in facts["images"].items()} == {
        "train": 200, "test": 60,
    }  # fmt: skip
    assert resnets.data_check(parts) == []
