"""What a release needs besides the code: versions to install, and a citation."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.check_release import problems

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


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASED = re.findall(r":: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


def jobs(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def steps(path):
    return [step for job in jobs(path).values() for step in job["steps"]]


def test_fast_tests_are_run_on_every_system_and_python_that_is_named():
    matrix = jobs(ROOT / ".github" / "workflows" / "ci.yml")["test"]["strategy"]["matrix"]
    assert matrix["python"] == RELEASED == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={RELEASED[0]}"
    systems = {"ubuntu": "POSIX :: Linux", "macos": "MacOS", "windows": "Microsoft :: Windows"}
    named = {each.partition(" :: ")[2] for each in PROJECT["classifiers"] if "System" in each}
    assert {systems[name.removesuffix("-latest")] for name in matrix["os"]} == named


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_exists(path):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for step in steps(path):
        run = step.get("run", "")
        assert set(re.findall(r"^\s*make ([\w-]+)", run, re.M)) <= set(targets)
        assert all((ROOT / file).is_file() for file in re.findall(r"python (\S+\.py)", run))
        options = step.get("with", {})
        assert options.get("python-version", "3.11") in [*RELEASED, "${{ matrix.python }}"]
        assert (ROOT / options.get("cache-dependency-path", "Makefile")).is_file()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_known_actions(path):
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "concurrency" in yaml.safe_load(text)
    assert "pull_request_target" not in text
    for name, job in jobs(path).items():
        rights = job.get("permissions", {})
        assert rights == {"publish": {"id-token": "write"}, "page": {"contents": "write"}}.get(
            name, {}
        )
        assert job["timeout-minutes"] <= 90
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"(actions|pypa)/[\w-]+@(release/)?v\d+", step["uses"])
            assert "checkout" not in step["uses"] or step["with"]["persist-credentials"] is False


def test_windows_needs_no_make():
    job = jobs(ROOT / ".github" / "workflows" / "ci.yml")["test"]
    assert not [step for step in job["steps"] if "make" in step.get("run", "")]


def test_a_tag_is_published_only_if_everything_is_ready(tmp_path):
    (tmp_path / "src" / "resnets").mkdir(parents=True)
    code = tmp_path / "src" / "resnets" / "__init__.py"
    code.write_text('__version__ = "1.2.3"\n')
    (tmp_path / "pyproject.toml").write_text('Issues = "https://github.com/somebody/resnets"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.3] - 2026-01-02\n")
    assert problems("v1.2.3", tmp_path) == []
    assert "the tag v1.2.4 is not v1.2.3" in problems("v1.2.4", tmp_path)[0]
    code.write_text('__version__ = "1.2.4.dev0"\n')
    (tmp_path / "pyproject.toml").write_text('Issues = "https://github.com/OWNER/resnets"\n')
    assert len(problems("v1.2.4.dev0", tmp_path)) == 3
