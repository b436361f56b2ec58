"""A file from an address: resumed after a broken transfer, checked, whole or not at all.

Proxies are those of the environment (HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, BinaryIO

from filelock import FileLock

from resnets.errors import CheckpointError, DiskError
from resnets.files import cache_folder, sync_folder

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 20  # as long as each brings something
PAUSE = 0.5  # seconds between them
LIMIT = 8 * 2**30  # bytes; as models.io.pretrained reads at the most
CHUNK = 2**18
NETWORK = (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError)
Progress = Callable[[int, int], None]  # of bytes done and in all, or 0


@contextmanager
def no_progress(name: str) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda done, total: None


# How a download is shown; the command line puts its progress bar here.
show_progress: Callable[[str], AbstractContextManager[Progress]] = no_progress


offline = False  # by an option of the command line


class Unreachable(CheckpointError, exit_code=4):
    """A server that does not answer, or breaks off again and again."""


def is_offline() -> bool:
    """Whether --offline, RESNETS_OFFLINE or HF_HUB_OFFLINE forbids the network."""
    values = (os.environ.get(name, "") for name in ("RESNETS_OFFLINE", "HF_HUB_OFFLINE"))
    return offline or any(value.lower() in ("1", "on", "yes", "true") for value in values)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, sha256: str, progress: Progress) -> None:
    """Download `url` to `path`, which must have a SHA-256 that begins with `sha256`.

    The bytes that have come are kept as PATH.part, and the next call goes on from there. Two
    processes that want the same file wait for each other.

    Raises Unreachable; CheckpointError where the server refuses or other bytes come, of which
    nothing is kept; DiskError.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(path)):
            if not path.exists():
                fetch_part(url, part, sha256, progress)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(path)
                sync_folder(path.parent)
    except OSError as error:
        raise DiskError(
            f"{path} could not be written: {error.strerror or error}.\n"
            "Free some space and repeat the command: it goes on from what has come."
        ) from None


def lock_file(path: Path) -> Path:
    """A file of ours that stands for a download to `path`."""
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def fetch_part(url: str, part: Path, sha256: str, progress: Progress) -> None:
    """Complete the file `part` and check it; a transfer that breaks off is taken up again."""
    stuck = 0  # attempts in a row that brought nothing
    for _ in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            append(url, part, progress)
        except Unreachable:
            gained = part.exists() and part.stat().st_size > before
            stuck = 0 if gained else stuck + 1
            if stuck == 2:
                raise
            time.sleep(PAUSE)
            continue
        digest = sha256_of(part)
        if digest.startswith(sha256):
            return
        part.unlink()
        if not before:
            raise CheckpointError(
                f"{url} has the SHA-256 {digest[:16]}..., not {sha256}: not the published file.\n"
                "Nothing of it was kept."
            )
    raise Unreachable(f"{url}: the transfer broke off {ATTEMPTS} times")


def append(url: str, part: Path, progress: Progress) -> None:
    """Ask for the bytes that `part` lacks and append them; from the start where that is refused."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "resnets"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        opener = urllib.request.build_opener(SecureRedirects)  # which reads the proxies of now
        with opener.open(request, timeout=TIMEOUT) as answer:
            start, total = start_and_total(answer, have)
            if answer.status == 206 and start != have:
                part.unlink()
                raise Unreachable(f"{url}: other bytes came than were asked for")
            have = start
            check_space(part, total - have)
            with part.open("r+b" if have else "wb") as file:
                file.seek(have)
                file.truncate()
                copy(answer, file, url, have, total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is no beginning of the file
            error.close()
            part.unlink()
            raise Unreachable(f"{url}: {error}") from None
        explain_status(url, error)
    except (OSError, HTTPException) as error:
        if isinstance(error, OSError) and not isinstance(error, NETWORK):
            raise  # the disk's
        raise Unreachable(f"{url}: {getattr(error, 'reason', error)}") from None


class SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect from https to a connection that others can read and change."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        """The next request. Raises CheckpointError for another protocol."""
        if not newurl.startswith(("https:", f"{req.type}:")):
            raise CheckpointError(f"{req.full_url} redirects to {newurl}, which is not secure")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def start_and_total(answer: HTTPResponse, have: int) -> tuple[int, int]:
    """The position of the answer's first byte, and the length of the file or 0."""
    length = answer.headers.get("Content-Length") or ""
    length_here = int(length) if re.fullmatch("[0-9]{1,18}", length) else 0
    content_range = answer.headers.get("Content-Range") or ""
    span = re.match("bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", content_range)
    if answer.status == 206 and span and int(span[1]) == have:
        return have, int(span[2])
    return 0, length_here


def copy(
    answer: HTTPResponse, file: BinaryIO, url: str, done: int, total: int, progress: Progress
) -> None:  # fmt: skip
    """Write what comes. Raises Unreachable where it ends early."""
    while chunk := answer.read1(CHUNK):  # what has come, so that a broken transfer loses nothing
        file.write(chunk)
        done += len(chunk)
        progress(done, max(total, done) if total else 0)
        if done > LIMIT:
            file.truncate(0)
            raise CheckpointError(f"{url} is longer than {LIMIT >> 30} GiB: nothing is kept")
    if done < total:
        raise Unreachable(f"{url}: the transfer broke off after {done:,} of {total:,} bytes")


def check_space(part: Path, needed: int) -> None:
    """Raise DiskError where the disk has no room for so many bytes."""
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise DiskError(
            f"{part.parent} has {free / 2**20:,.0f} MiB free, {needed / 2**20:,.0f} are needed.\n"
            "Free some space, or choose another folder with TORCH_HOME or RESNETS_DATA."
        )


def explain_status(url: str, error: urllib.error.HTTPError) -> None:
    """Raise what an HTTP error means."""
    error.close()
    if error.code in (408, 429) or error.code >= 500:
        raise Unreachable(f"{url}: {error}") from None
    reasons = {
        401: "the server asks for a login (401)",
        403: "the server refuses access (403): a login, or consent to terms, may be needed",
        404: "there is no such file on the server (404)",
        410: "the file was removed from the server (410)",
    }
    raise CheckpointError(f"{url}: {reasons.get(error.code, str(error))}") from None
