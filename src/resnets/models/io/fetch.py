"""Weights by name: the file in a cache of this machine, else from the hub or an address.

Files are where other programs keep them too: the cache of huggingface_hub ($HF_HUB_CACHE,
$HF_HOME/hub) and that of torch.hub ($TORCH_HOME/hub/checkpoints). `weights` in our own cache has
what was imported, what was copied there by hand, and in `pins` the digests of files whose publisher
states none: the first download fixes them.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from resnets import http_files
from resnets.config.weights import (
    WeightsRow,
    file_stem,
    find_name,
    imported,
    rows,
    weights_folder,
)
from resnets.errors import Assumption, CheckpointError, DiskError, MissingPackage
from resnets.files import find_model_file, write_whole
from resnets.http_files import Progress, Unreachable, is_offline, sha256_of

TORCHVISION = "https://download.pytorch.org/models/"  # RESNETS_TORCHVISION_MIRROR replaces it
HUB = "https://huggingface.co"  # HF_ENDPOINT replaces it
HASHED = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # the published digits of a SHA-256 in a file name


def locate_weights(text: str | Path, model_name: str = "") -> tuple[Path, WeightsRow | None]:
    """The file of NAME, FILE or RUN, and its row in the table, if it is of it.

    A path that exists comes before a name; `model_name` is the network that the weights are for,
    which "imagenet" needs. A file that is not here is downloaded.

    Raises UsageError for what is nothing of these; CheckpointError where a file is not the
    published one, cannot be downloaded, or may not without consent to its licence; DiskError;
    MissingPackage.
    """
    if os.path.exists(text):
        path = find_model_file(text)
        return path, row_of_file(path)
    row = find_name(text, model_name)
    if row is None:
        return imported()[str(text)], None
    return fetch(row), row


def row_of_file(path: Path) -> WeightsRow | None:
    """The row whose published file this is, by its name and its digest."""
    table = rows().values()
    hashed = HASHED.search(path.name)
    if hashed and path.is_file():
        named = [row for row in table if Path(row.url or row.source).name == path.name]
        if named and sha256_of(path).startswith(hashed[1]):
            return min(named, key=lambda row: row.on_hub)
    repository = next((x for x in path.parts if x.startswith("models--")), "")
    source = repository.removeprefix("models--").replace("--", "/")
    return next((row for row in table if row.source == source and row.file == path.name), None)


def fetch(
    row: WeightsRow, *, accept_licence: bool = False, progress: Progress | None = None
) -> Path:
    """The checked file of a row: from a cache, else downloaded; errors as `locate_weights`."""
    path = cached_path(row)
    if path is None:
        check_allowed(row, accept_licence)
        try:
            if progress is not None:
                path = download(row, progress)
            else:
                with http_files.show_progress(row.name) as shown:
                    path = download(row, shown)
        except Unreachable as error:
            raise Unreachable(describe_absence(row, str(error).splitlines()[0])) from None
    verify(row, path)
    if not row.is_free:
        text = f"{row.name} has the licence {row.licence}, which does not allow every use"
        warnings.warn(text, Assumption, stacklevel=2)
    return path


def check_allowed(row: WeightsRow, accept_licence: bool) -> None:
    """Raise CheckpointError where a download is forbidden or needs consent to the licence."""
    if is_offline():
        raise Unreachable(describe_absence(row, "this is offline"))
    if not row.is_free and not accept_licence:
        raise CheckpointError(
            f"{row.name} has the licence {row.licence}, which does not allow every use.\n"
            f"If yours is allowed: `resnets weights get {row.name} --accept-licence`"
        )


def describe_absence(row: WeightsRow, reason: str) -> str:
    """What to do where a file is not here and cannot be downloaded."""
    return (
        f"{row.name} is not in a cache of this machine, and cannot be downloaded: {reason}.\n"
        f"Where there is a network: `resnets weights get {row.name}` prints the "
        f"path of its file. Copy that to\n{copied_path(row)}"
    )


def copied_path(row: WeightsRow) -> Path:
    """Where a person may copy the file of a row."""
    return weights_folder() / f"{file_stem(row.name)}{Path(row.file).suffix}"


def cached_path(row: WeightsRow) -> Path | None:
    """The file of a row in one of the caches."""
    return next((path for path in places(row) if path.is_file()), None)


def places(row: WeightsRow) -> Iterator[Path]:
    """Where the file of a row may lie."""
    yield copied_path(row)
    original = Path(row.url if row.on_hub else row.source).name
    if original:
        yield weights_folder() / f"{file_stem(row.name)}{Path(original).suffix}"
    if row.on_hub:
        repository = hub_cache() / f"models--{row.source.replace('/', '--')}"
        for revision in (row.revision, read_pin(row).get("revision", ""), "main"):
            reference = repository / "refs" / (revision or "main")
            commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
            yield repository / "snapshots" / (commit or "main") / row.file
    if original:
        yield torch_cache() / original


def hub_cache() -> Path:
    """The cache of huggingface_hub."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    home = os.environ.get("HF_HOME")
    return Path(home) / "hub" if home else user_cache() / "huggingface" / "hub"


def torch_cache() -> Path:
    """The cache of torch.hub."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home) if home else user_cache() / "torch") / "hub" / "checkpoints"


def user_cache() -> Path:
    """The person's folder of caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def download(row: WeightsRow, progress: Progress) -> Path:
    """Download the file of a row; the publisher's own file where huggingface_hub is missing."""
    if not row.on_hub:
        return from_address(row.source, row.sha256, progress)
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        if row.url:
            return from_address(row.url, "", progress)
        raise MissingPackage(
            f"{row.name} is on the Hugging Face hub: pip install 'resnets[hub]'"
        ) from None
    return from_hub(row, progress)


def from_address(url: str, sha256: str, progress: Progress) -> Path:
    """Download to the cache of torch.hub. The digits in the file's name are checked too."""
    mirror = os.environ.get("RESNETS_TORCHVISION_MIRROR")
    if mirror and url.startswith(TORCHVISION):
        url = f"{mirror.rstrip('/')}/{url.removeprefix(TORCHVISION)}"
    hashed = HASHED.search(url)
    path = torch_cache() / Path(url).name
    http_files.download(url, path, sha256 or (hashed[1] if hashed else ""), progress)
    return path


def from_hub(row: WeightsRow, progress: Progress) -> Path:
    """Download with huggingface_hub into its cache."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    class Bar:
        """What huggingface_hub takes for a progress bar."""

        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, **__: Any) -> None:
            self.done, self.total = initial, total or 0

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            progress(self.done, self.total)

    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    where = f"{endpoint}/{row.source}"
    revision = row.revision or None
    try:
        # Answers at once where there is no network, which the download tries for half a minute.
        url = hf_hub_url(row.source, row.file, revision=revision, endpoint=endpoint)
        get_hf_file_metadata(url, endpoint=endpoint)
        path = hf_hub_download(
            row.source, row.file, revision=revision, cache_dir=hub_cache(),
            endpoint=endpoint, tqdm_class=Bar,
            library_name="resnets",
        )  # fmt: skip
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{where}: access has to be granted on that page; then `hf auth login` here"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"{where}: {first_line(error.__cause__ or error)}") from None
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    ) as error:
        raise CheckpointError(f"{where} has no {row.file}: {first_line(error)}") from None
    except OSError as error:
        if error.errno is None:  # a transfer that broke off
            raise Unreachable(f"{where}: {first_line(error)}") from None
        raise DiskError(f"{hub_cache()} could not be written: {error.strerror}.") from None
    except Exception as error:  # what the library's client raises changes with its versions
        raise Unreachable(f"{where}: {first_line(error)}") from None
    return Path(path)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = [line.strip(" .") for line in str(error).splitlines()]
    return next(filter(None, lines), type(error).__name__)


def verify(row: WeightsRow, path: Path) -> None:
    """Check the digest of a row's file: the table's, that in its name, or that of the first use.

    Raises CheckpointError where it is another.
    """
    digest, pinned = sha256_of(path), read_pin(row)
    published = published_digits(row, path)
    blob = path.resolve().name  # the hub's cache calls a large file by its SHA-256
    stated = published or (blob if re.fullmatch("[0-9a-f]{64}", blob) else "")
    expected = stated or pinned.get(path.suffix, "")
    if not digest.startswith(expected):
        origin = "its publisher's" if stated else "that of its first use here"
        raise CheckpointError(
            f"{path}: the SHA-256 is {digest[:16]}..., not {expected[:16]}, {origin}.\n"
            f"Remove it and get it again: `resnets weights get {row.name}`"
        )
    if not published and path.suffix not in pinned:
        pin(row, path, digest)


def published_digits(row: WeightsRow, path: Path) -> str:
    """The published SHA-256 of that file of a row, or its first digits; "" if there are none."""
    if row.sha256 and path.suffix == Path(row.file).suffix:
        return row.sha256
    original = row.url if row.on_hub else row.source
    hashed = HASHED.search(original)
    return hashed[1] if hashed and path.suffix == Path(original).suffix else ""


def pin(row: WeightsRow, path: Path, digest: str) -> None:
    """Store the digest of a file whose publisher states none, and say so."""
    commit = path.parent.name if path.parent.parent.name == "snapshots" else ""
    facts = read_pin(row) | {path.suffix: digest} | ({"revision": commit} if commit else {})
    file = pin_file(row)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(facts, indent=1).encode())
    except (OSError, DiskError):  # a cache that cannot be written: checked the next time
        return
    text = f"{row.name}: no digest is published; from now on it has to be {digest[:16]}... ({file})"
    warnings.warn(text, Assumption, stacklevel=2)


def read_pin(row: WeightsRow) -> dict[str, str]:
    """The digests of a row's files by suffix, and the commit; {} before the first use."""
    try:
        facts = json.loads(pin_file(row).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}


def pin_file(row: WeightsRow) -> Path:
    """Where the digests of a row are stored."""
    return weights_folder() / "pins" / f"{file_stem(row.name)}.json"
