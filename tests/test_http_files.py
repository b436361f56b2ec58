import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from resnets import http_files
from resnets.errors import CheckpointError, DiskError
from resnets.http_files import Unreachable, download
from tests._helpers import needs_signals
from tests.models.io._helpers import running_site

DATA = np.random.default_rng(0).bytes(200_000)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(http_files, "PAUSE", 0.001)
    with running_site() as running:
        running.files["/net.pth"] = DATA
        yield running


def fetch(site, tmp_path, digits=DIGEST[:8], progress=lambda done, total: None):
    path = tmp_path / "cache" / "net.pth"
    download(f"{site.url}/net.pth", path, digits, progress)
    assert path.read_bytes() == DATA
    assert [x.name for x in path.parent.iterdir()] == ["net.pth"]
    return path


def ranges(site):
    return [span for method, _, span in site.requests if method == "GET"]


def test_a_file_comes_whole_with_its_progress(site, tmp_path):
    told = []
    path = fetch(site, tmp_path, progress=lambda *numbers: told.append(numbers))
    assert told[-1] == (len(DATA), len(DATA))
    site.files.clear()  # what is there is not asked for again
    download(f"{site.url}/net.pth", path, DIGEST, lambda *_: None)


def test_a_broken_transfer_goes_on_from_where_it_broke(site, tmp_path):
    site.faults["/net.pth"] = [("break", 50_000), ("break", 70_000)]
    fetch(site, tmp_path)
    assert ranges(site) == ["", "bytes=50000-", "bytes=120000-"]


def test_a_server_that_breaks_off_for_good_leaves_the_part_for_the_next_time(site, tmp_path):
    site.faults["/net.pth"] = [("break", 50_000), *[("break", 0)] * 2]
    with pytest.raises(Unreachable, match="broke off after 50,000 of 200,000 bytes"):
        fetch(site, tmp_path)
    assert [x.name for x in (tmp_path / "cache").iterdir()] == ["net.pth.part"]
    site.requests.clear()
    fetch(site, tmp_path)
    assert ranges(site) == ["bytes=50000-"]


def test_a_server_without_ranges_sends_it_all_again(site, tmp_path):
    site.faults["/net.pth"] = [("break", 50_000), ("no-range",)]
    fetch(site, tmp_path)
    assert ranges(site) == ["", "bytes=50000-"]


@pytest.mark.parametrize("part", [b"x" * 300, DATA + b"more", b"x" * len(DATA)])
def test_a_part_of_another_file_is_thrown_away(site, tmp_path, part):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "net.pth.part").write_bytes(part)
    fetch(site, tmp_path)
    assert ranges(site)[-1] == ""


def test_wrong_bytes_are_refused_and_not_kept(site, tmp_path):
    site.files["/net.pth"] = DATA[:-1] + b"?"
    with pytest.raises(CheckpointError, match=f"not {DIGEST[:8]}: not the published file"):
        fetch(site, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_slow_server_is_waited_for_and_a_dead_one_is_not(site, tmp_path, monkeypatch):
    site.faults["/net.pth"] = [("slow", 0.01)]
    fetch(site, tmp_path)
    (tmp_path / "cache" / "net.pth").unlink()
    monkeypatch.setattr(http_files, "TIMEOUT", 0.2)
    site.faults["/net.pth"] = [("stall", 0.4, 10)]
    fetch(site, tmp_path)
    assert "bytes=10-" in ranges(site)
    (tmp_path / "cache" / "net.pth").unlink()
    site.faults["/net.pth"] = [("stall", 0.4, 0)] * 2
    with pytest.raises(Unreachable, match="timed out"):
        fetch(site, tmp_path)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "asks for a login"), (403, "refuses access"), (404, "no such file"), (410, "removed")],
)
def test_a_refusal_is_explained_at_once(site, tmp_path, status, message):
    site.faults["/net.pth"] = [("status", status)]
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch(site, tmp_path)
    assert not isinstance(caught.value, Unreachable)
    assert len(site.requests) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_server_in_trouble_is_asked_again(site, tmp_path):
    site.faults["/net.pth"] = [("status", 503)]
    fetch(site, tmp_path)
    (tmp_path / "cache" / "net.pth").unlink()
    site.faults["/net.pth"] = [("status", 503)] * 5
    with pytest.raises(Unreachable, match="503"):
        fetch(site, tmp_path)


def test_a_redirect_is_followed_with_its_range(site, tmp_path):
    site.files["/elsewhere/net"] = site.files.pop("/net.pth")
    site.faults["/net.pth"] = [("redirect", "/elsewhere/net")] * 2
    site.faults["/elsewhere/net"] = [("break", 1000)]
    fetch(site, tmp_path)
    assert ranges(site)[-1] == "bytes=1000-"


def test_a_proxy_of_the_environment_is_used(site, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    path = tmp_path / "net.pth"
    download("http://weights.invalid/net.pth", path, DIGEST, lambda *_: None)
    assert path.read_bytes() == DATA
    assert site.requests[0][1] == "http://weights.invalid/net.pth"


def test_no_network_is_told_after_two_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(http_files, "PAUSE", 0.001)
    with running_site() as gone:
        url = gone.url
    with pytest.raises(Unreachable, match="refused"):
        download(f"{url}/net.pth", tmp_path / "net.pth", DIGEST, lambda *_: None)


def test_a_full_disk_is_told_before_anything_comes(site, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskError, match="0 MiB free"):
        fetch(site, tmp_path)
    assert not (tmp_path / "cache" / "net.pth").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_disk_that_fills_up_leaves_no_file_under_the_name(site, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "net.pth.part").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="could not be written"):
        fetch(site, tmp_path)
    assert not (tmp_path / "cache" / "net.pth").exists()


@needs_signals
def test_a_kill_leaves_a_part_that_the_next_call_completes(site, tmp_path):
    site.faults["/net.pth"] = [("slow", 0.05)]
    path = tmp_path / "cache" / "net.pth"
    code = (
        "import sys; from pathlib import Path; from resnets.http_files import download;"
        "download(sys.argv[1], Path(sys.argv[2]), '', lambda *_: None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, f"{site.url}/net.pth", str(path)])
    part, deadline = path.with_name("net.pth.part"), time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not path.exists()
    assert 0 < part.stat().st_size < len(DATA)
    fetch(site, tmp_path)
    assert ranges(site)[-1].startswith("bytes=")


def test_of_a_file_that_is_too_long_nothing_is_kept(site, tmp_path, monkeypatch):
    monkeypatch.setattr(http_files, "LIMIT", 1000)
    with pytest.raises(CheckpointError, match="longer than"):
        fetch(site, tmp_path)
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob("*.part"))


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1" * 30, "\u0663"])
def test_a_length_that_makes_no_sense_is_none(length):
    answer = SimpleNamespace(
        headers={"Content-Length": length, "Content-Range": f"bytes 5-{length}/{length}"},
        status=206,
    )
    assert http_files.start_and_total(answer, 5) == (0, 0)


@pytest.mark.parametrize("target", ["http://a/b", "ftp://a/b", "file:///etc/hosts"])
def test_no_redirect_leaves_https(target):
    request = urllib.request.Request("https://a/b")
    with pytest.raises(CheckpointError, match="not secure"):
        http_files.SecureRedirects().redirect_request(request, None, 302, "", {}, target)


def test_other_bytes_than_were_asked_for_are_not_taken(site, tmp_path):
    """Where no digest is published, nothing else would notice."""
    span = {"Content-Range": f"bytes 5000-{len(DATA) - 1}/{len(DATA)}"}
    site.faults["/net.pth"] = [("status", 206, span)]
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "net.pth.part").write_bytes(DATA[:1000])
    fetch(site, tmp_path, digits="")
    assert ranges(site) == ["bytes=1000-", ""]
