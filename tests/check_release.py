"""Fails unless a tag can be published: `python tests/check_release.py v0.2.0`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What is not ready for the release of this tag."""
    read = {
        name: (root / name).read_text(encoding="utf-8")
        for name in ("src/resnets/__init__.py", "pyproject.toml", "CHANGELOG.md")
    }
    version = re.search(r'^__version__ = "(.+)"$', read["src/resnets/__init__.py"], re.M)[1]
    dated = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    checks = {
        f"the tag {tag} is not v{version}, the version of the package": tag == f"v{version}",
        f"{version} is no final version": re.fullmatch(r"\d+\.\d+\.\d+", version),
        f"CHANGELOG.md has no dated section for {version}": re.search(
            dated, read["CHANGELOG.md"], re.M
        ),
        "pyproject.toml names OWNER in place of the repository's owner": "OWNER"
        not in read["pyproject.toml"],
    }
    return [problem for problem, passed in checks.items() if not passed]


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
