"""Tensor files: what is written is read back, and a changed byte, name or number is refused."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from resnets.errors import CheckpointError, DiskError
from resnets.tensor_files import check_digest, digest, load_tensors, save_tensors, with_digest

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "none": torch.empty(0)}
METADATA = {"names": ["ä", '"<b>'], "seconds": 1.5, "best": float("inf")}


def load(path, key="things"):
    return load_tensors(path, key, lambda *both: both, "Delete it.")


def test_tensors_and_metadata_are_read_back(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS | {"t": TENSORS["a"].T}, "things", METADATA)
    tensors, metadata = load(path)
    assert metadata == METADATA
    assert torch.equal(tensors.pop("t"), TENSORS["a"].T)
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_what_was_read_does_not_depend_on_the_file(tmp_path):
    """As it would if it were mapped; Windows does not replace a file that is."""
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, "things", METADATA)
    tensors, _ = load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_every_changed_byte_of_a_tensor_is_refused_by_name(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, "things", METADATA)
    data = path.read_bytes()
    for k in range(1, 41):  # 24 bytes of a and 16 of b
        path.write_bytes(data[:-k] + bytes([data[-k] ^ 1]) + data[len(data) - k + 1 :])
        with pytest.raises(CheckpointError, match=r"t\.safetensors.*[ab] is not what was saved"):
            load(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("1.5", "2.5"), "its metadata is not what was saved"),
        (lambda text: text.replace('"a"', '"c"'), "its metadata is not what was saved"),
        (lambda text: text[:-1] + " }", "its metadata is not what was saved"),
        (lambda text: "[" * 100_000, "its metadata is not what was saved"),
        (lambda text: "[]", "its metadata is not what was saved"),
        (lambda text: with_digest({"names": []}), "'tensors' is missing"),
        (lambda text: with_digest({"tensors": {"a": ""}}), "a is not what was saved"),
        (lambda text: with_digest({"tensors": {}}), "a is not what was saved"),
        (lambda text: with_digest({"tensors": 3}), "no attribute"),
    ],
)
def test_changed_metadata_is_refused(change, reason, tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, "things", METADATA)
    text = with_digest({**METADATA, "tensors": {name: digest(t) for name, t in TENSORS.items()}})
    save_file(TENSORS, path, {"things": text})
    assert load(path)[1] == METADATA  # these are the bytes that save_tensors writes
    save_file(TENSORS, path, {"things": change(text)})
    with pytest.raises(CheckpointError, match=f"{reason}.*\\.\nDelete it"):
        load(path)


def test_an_earlier_file_is_read_and_its_changes_are_refused(tmp_path):
    path, text = tmp_path / "t.safetensors", json.dumps(METADATA)
    kinds = {name: [str(t.dtype), list(t.shape)] for name, t in TENSORS.items()}
    assert kinds["a"] == ["torch.float32", [2, 3]]
    digests = {name: [*kind, digest(TENSORS[name])] for name, kind in kinds.items()}
    content = json.dumps(digests, sort_keys=True) + text
    entries = {"things": text, "sha256": hashlib.sha256(content.encode()).hexdigest()}
    save_file(TENSORS, path, entries)
    tensors, metadata = load(path)
    assert metadata == METADATA
    assert torch.equal(tensors["a"], TENSORS["a"])
    for changed in (
        (TENSORS | {"b": TENSORS["b"] + 1}, entries),
        (TENSORS, entries | {"things": text.replace("1.5", "2.5")}),
    ):
        save_file(changed[0], path, changed[1])
        with pytest.raises(CheckpointError, match="not what was saved"):
            load(path)


def test_other_files_and_errors_while_reading(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="it is missing"):
        load(path)
    with pytest.raises(DiskError, match="cannot be read"):
        load(tmp_path)
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="'things' is missing"):
        load(path)
    save_tensors(path, TENSORS, "others", {})
    with pytest.raises(CheckpointError, match="'things' is missing"):
        load(path)


def test_a_digest_is_of_the_entries_as_they_are_written():
    body = {"b": 1, "a": [2.5, None]}
    assert check_digest(with_digest(body)) == body
    by_name = with_digest(body, "seal", sort_keys=True)
    assert check_digest(by_name, "seal", sort_keys=True) == body
    for text, key, sort_keys in (
        (with_digest(body), "seal", False),
        (with_digest(body), "sha256", True),
        (by_name, "seal", False),
    ):
        with pytest.raises(ValueError, match="SHA-256"):
            check_digest(text, key, sort_keys=sort_keys)
