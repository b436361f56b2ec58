"""What a release needs besides the code: versions to install, and a citation."""

import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normalized(requirement: str) -> str:
    """The name of a package, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_constraints_name_every_dependency_and_no_place():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r"([a-z0-9-]+)==[\w.]+( ; .+)?", line) for line in lines]
    assert [line for line, match in zip(lines, pinned, strict=True) if not match] == []
    extras = PROJECT["optional-dependencies"].values()
    needed = {normalized(name) for names in [PROJECT["dependencies"], *extras] for name in names}
    missing = needed - {match[1] for match in pinned} - {"resnets"}
    assert not missing, "make constraints"
    assert not re.search(r"://|^-|/(home|work|tmp|opt|root)/", text, re.MULTILINE)


def test_the_citation_has_the_software_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    papers = {each["doi"]: each["identifiers"][0]["value"] for each in citation["references"]}
    assert papers == {
        "10.1109/CVPR.2016.90": "arXiv:1512.03385",
        "10.1007/978-3-319-46493-0_38": "arXiv:1603.05027",
    }
