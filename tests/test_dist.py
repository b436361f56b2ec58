"""The wheel and the sdist: their content, and that the wheel works without the checkout."""

import email
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnets

ROOT = Path(__file__).parents[1]
NOT_PYTHON = {
    *("config/counts.json", "config/weights.json", "ops/cpu_fused.cpp", "py.typed"),
    *("reporting/card.md", "reporting/report.html"),
}
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def call(*command, cwd):
    """The output of a command that does not find the checkout."""
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    ended = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist of the checkout, and the wheel from this sdist."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    assert path.name == f"resnets-{resnets.__version__}-py3-none-any.whl"
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The programs of an environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    variables = {"base": str(folder), "platbase": str(folder)}
    programs = Path(sysconfig.get_path("scripts", "venv", variables))
    python = programs / Path(sys.executable).name
    options = ("--no-deps", "--no-index", "--quiet")
    call(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    packages = Path(sysconfig.get_path("purelib", "venv", variables))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    package = ROOT / "src" / "resnets"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {name for name in files if not name.endswith(".py")} == NOT_PYTHON
    names = {f"resnets/{name}" for name in files}
    names |= {f"resnets-{resnets.__version__}.dist-info/{name}" for name in METADATA}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == names
        for name in NOT_PYTHON:
            assert archive.read(f"resnets/{name}") == (package / name).read_bytes()


def test_the_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"resnets-{resnets.__version__}.dist-info/METADATA").decode()
    message = email.message_from_string(text)
    assert message["Version"] == resnets.__version__
    assert message["License-Expression"] == "Apache-2.0"
    assert message["License-File"] == "LICENSE"
    assert message["Requires-Python"] == ">=3.11"
    assert message.get_payload().startswith("# resnets\n")


def test_the_wheel_of_the_checkout_is_that_of_the_sdist(dist, wheel, tmp_path):
    options = ("--no-isolation", "--wheel", "--outdir", tmp_path)
    call(sys.executable, "-m", "build", *options, ROOT, cwd=tmp_path)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    top = f"resnets-{resnets.__version__}"
    assert {name.split("/")[0] for name in names} == {top}
    for name in ("PKG-INFO", "CITATION.cff", "src/resnets/py.typed", "tests/conftest.py"):
        assert f"{top}/{name}" in names
    assert not [name for name in names if name.endswith((".pyc", ".png", ".jpg", ".gz"))]


def test_importing_the_installed_package_does_not_load_torch(installed, tmp_path):
    code = "import resnets, sys; print('torch' in sys.modules, resnets.__file__)"
    loaded, path = call(installed / "python", "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert loaded == "False"
    assert Path(path).is_relative_to(installed.parent)


def test_the_installed_program(installed, tmp_path):
    program = installed / "resnets"
    assert call(program, "--version", cwd=tmp_path).strip() == resnets.__version__
    call(program, "train", "digits", "--epochs", "1", "--run", "run", cwd=tmp_path)
    record = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert record["resnets"] == resnets.__version__
    assert record["commit"] == "none"
    assert (tmp_path / "run" / "report.html").exists()
    result = json.loads(call(program, "evaluate", "run", "digits", "--json", cwd=tmp_path))
    assert result["images"] == 898
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "grey.png")
    assert "grey.png" in call(program, "predict", "run", "grey.png", cwd=tmp_path)
