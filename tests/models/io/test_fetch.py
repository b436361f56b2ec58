"""Weights by name, from a local server that stands for the hub and for torchvision's."""

import hashlib
import json
import sys
import warnings

import pytest
import torch
from safetensors.torch import save

import resnets
from resnets.config import weights
from resnets.errors import Assumption, CheckpointError, MissingPackage, UsageError
from resnets.evaluation.load import load
from resnets.http_files import Unreachable
from resnets.models import build
from resnets.models.io import fetch
from resnets.models.io.fetch import locate_weights
from tests.models.io._helpers import COMMIT, running_site

pytest.importorskip("huggingface_hub")
ARCH = weights.ARCHS["resnet20"]


@pytest.fixture(scope="module")
def tensors():
    torch.manual_seed(0)
    return build(ARCH).state_dict()


@pytest.fixture
def site(weights_site, tensors):
    """The server with a small network, published in both ways."""
    site = weights_site
    site.data = save(tensors)
    site.file = f"net-{hashlib.sha256(site.data).hexdigest()[:8]}.safetensors"
    site.files[f"/torchvision/{site.file}"] = site.data
    site.hub_file("lab/net", "model.safetensors", site.data)
    see = {"input_size": [3, 32, 32], "crop_pct": 0.8, "mean": [0.4] * 3, "std": [0.2] * 3}
    plain = {"model": "resnet20", "licence": "mit", "classes": 10}
    site.publish(
        {"name": "lab/net", "source": "lab/net", **plain, **see},
        {"name": "vision", "source": f"{fetch.TORCHVISION}{site.file}", "file": site.file, **plain},
        {"name": "closed", "source": "lab/net", "licence": "cc-by-nc-4.0"},
        {"name": "other", "source": "lab/net", **plain, "model": "resnet32"},
    )
    return site


def gets(site):
    return [path for method, path, _ in site.requests if method == "GET"]


def quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Assumption)
        return locate_weights(name)


def test_torchvisions_file_comes_to_torchs_cache_from_a_mirror(site, tmp_path):
    path, row = locate_weights("vision")
    assert path == tmp_path / "cache-TORCH_HOME" / "hub" / "checkpoints" / site.file
    assert (path.read_bytes(), row.name) == (site.data, "vision")
    assert locate_weights("vision")[0] == path
    assert gets(site) == [f"/torchvision/{site.file}"]


def test_the_hubs_file_comes_to_its_cache_and_is_pinned(site, tmp_path):
    told = []
    row = weights.find("lab/net")
    with pytest.warns(Assumption, match="no digest is published; from now on"):
        path = fetch.fetch(row, progress=lambda *numbers: told.append(numbers))
    assert path.is_relative_to(
        tmp_path / "cache-HF_HOME" / "hub" / "models--lab--net" / "snapshots" / COMMIT
    )
    assert told[-1] == (len(site.data), len(site.data))
    pinned = json.loads(
        (tmp_path / "cache-RESNETS_DATA" / "weights" / "pins" / "lab--net.json").read_text()
    )
    digest = hashlib.sha256(site.data).hexdigest()
    assert pinned == {".safetensors": digest, "revision": COMMIT}
    asked = len(site.requests)
    assert locate_weights("lab/net")[0] == path  # nothing is said again, nothing asked
    assert len(site.requests) == asked


def test_a_hub_file_that_changed_since_is_refused(site):
    path, _ = quietly("lab/net")
    blob = path.resolve()
    blob.write_bytes(site.data[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"its publisher's.*\n?.*weights get lab/net"):
        locate_weights("lab/net")


def test_a_file_that_others_put_there_is_used(site, tmp_path):
    snapshot = tmp_path / "cache-HF_HOME" / "hub" / "models--lab--net" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(site.data)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert quietly("lab/net")[0] == snapshot / "model.safetensors"
    checkpoints = tmp_path / "cache-TORCH_HOME" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / site.file).write_bytes(site.data)
    assert locate_weights("vision")[0] == checkpoints / site.file
    assert site.requests == []


def test_a_damaged_file_in_a_cache_is_refused_and_stays(site, tmp_path):
    checkpoints = tmp_path / "cache-TORCH_HOME" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / site.file).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="Remove it and get it again"):
        locate_weights("vision")
    assert (checkpoints / site.file).exists()


@pytest.mark.parametrize("variable", ["RESNETS_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("name", ["vision", "lab/net"])
def test_offline_takes_the_cache_and_else_says_what_to_do(
    site, tmp_path, monkeypatch, variable, name
):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(Unreachable) as caught:
        locate_weights(name)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"`resnets weights get {name}`" in lines[1]
    assert site.requests == []
    # The file that was copied to the place that the message names.
    weights.weights_folder().mkdir(parents=True)
    with open(lines[2], "wb") as file:
        file.write(site.data)
    path, row = quietly(name)
    assert str(path) == lines[2]
    assert row.name == name


def test_a_file_that_was_copied_by_hand_is_checked(site, tmp_path, monkeypatch):
    weights.weights_folder().mkdir(parents=True)
    (tmp_path / "cache-RESNETS_DATA" / "weights" / "vision.safetensors").write_bytes(
        b"something else"
    )
    with pytest.raises(CheckpointError, match="its publisher's"):
        locate_weights("vision")


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "access has to be granted"),
        (403, {"X-Error-Code": "GatedRepo"}, "access has to be granted"),
        (401, {"X-Error-Code": "RepoNotFound"}, "has no model.safetensors"),
        (404, {"X-Error-Code": "EntryNotFound"}, "has no model.safetensors"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no model.safetensors"),
    ],
)
def test_what_the_hub_refuses_is_explained(site, status, headers, message):
    site.faults["/lab/net/resolve/main/model.safetensors"] = [("status", status, headers)] * 3
    with pytest.raises(CheckpointError, match=message) as caught:
        locate_weights("lab/net")
    assert not isinstance(caught.value, Unreachable)


def test_the_hubs_transfer_that_breaks_off_goes_on(site, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    site.faults["/lab/net/resolve/main/model.safetensors"] = [("break", 60_000)]
    path, _ = quietly("lab/net")
    assert path.read_bytes() == site.data


def test_a_hub_that_is_not_there_gives_the_command_for_another_machine(site, monkeypatch):
    with running_site() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    with pytest.raises(Unreachable, match="not in a cache of this machine") as caught:
        locate_weights("lab/net")
    assert "lab--net.safetensors" in str(caught.value).splitlines()[2]


def test_without_huggingface_hub_the_install_line_or_the_publishers_file(
    site, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackage, match=r"pip install 'resnets\[hub\]'"):
        locate_weights("lab/net")
    url = f"{site.url}/torchvision/{site.file}"
    site.publish({"name": "lab/net", "source": "lab/net", "licence": "mit", "url": url})
    path, row = locate_weights("lab/net")
    assert path.name == site.file
    assert row.name == "lab/net"


def test_a_licence_that_is_not_free_has_to_be_accepted(site):
    with pytest.raises(CheckpointError, match=r"cc-by-nc-4.0.*\n.*--accept-licence"):
        locate_weights("closed")
    assert site.requests == []
    with pytest.warns(Assumption, match="no digest"):
        path = fetch.fetch(weights.find("closed"), accept_licence=True)
    with pytest.warns(Assumption, match="which does not allow every use"):  # again at each use
        assert locate_weights("closed")[0] == path


def test_a_named_network_has_its_preprocessing_and_classes(site):
    quietly("lab/net")
    model = load("lab/net")
    see = model.metadata.preprocess
    assert model.metadata.arch == ARCH
    assert (see.size, see.resize, see.mean, see.std) == (32, 40, (0.4,) * 3, (0.2,) * 3)
    assert load(fetch.cached_path(weights.find("lab/net"))).metadata == model.metadata


def test_a_file_of_another_network_says_which_tensors_differ(site):
    quietly("other")
    with pytest.raises(CheckpointError, match=r"not those of the given network: no layer1\.3"):
        load("other")


def test_a_published_file_is_known_by_its_digest(site, tmp_path):
    here = tmp_path / site.file
    here.write_bytes(site.data)
    assert locate_weights(here)[1].name == "vision"
    here.write_bytes(site.data + b" ")
    assert locate_weights(here)[1] is None


def test_create_starts_from_weights(site, tensors):
    quietly("lab/net")
    network = resnets.create("resnet20", weights="lab/net")
    assert all(torch.equal(network.state_dict()[name], x) for name, x in tensors.items())
    smaller = resnets.create("resnet20", weights="lab/net", classes=3)
    assert smaller.fc.out_features == 3
    assert torch.equal(smaller.conv1.weight, tensors["conv1.weight"])
    with pytest.raises(CheckpointError, match=r"another network: .*layer1.3.*and \d+ more"):
        resnets.create("resnet32", weights="lab/net")
    with pytest.raises(UsageError, match="no published weights of resnet44"):
        resnets.create("resnet44", weights="imagenet")
