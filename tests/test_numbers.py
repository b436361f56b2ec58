"""Numbers that the documents name are those of the code."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from resnets import errors
from resnets.config.families import ARCHS
from resnets.config.recipe import Recipe
from resnets.data import assemble, decode
from resnets.data.detection import voc
from resnets.models.io import model_file, pretrained
from resnets.papers.budgets import Budget

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TORCH = next(name for name in PROJECT["dependencies"] if name.startswith("torch>="))
WORDS = {"four": 4}
MILLION = 1_000_000
RECIPE = Recipe(model="resnet20")


def newest(page: str, sentence: str) -> str:
    """The number of a sentence, where it stands first: a changelog begins with what is newest."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    return re.search(sentence.replace("N", r"([\w,.]+?)"), text)[1].replace(",", "")


@pytest.mark.parametrize(
    ("page", "sentence", "value"),
    [
        ("CHANGELOG.md", "N named networks", len(ARCHS)),
        ("CHANGELOG.md", "at N budgets", len(get_args(Budget))),
        ("CHANGELOG.md", "WebP above N million pixels", decode.MAX_WEBP / MILLION),
        ("README.md", r"Python N or later", PROJECT["requires-python"].removeprefix(">=")),
        ("README.md", r"an ordinary torch module, one of N ", len(ARCHS)),
        ("docs/classify.md", "decodes up to N\\)", assemble.CHECKED),
        (
            "docs/classify.md",
            "more than N % of the files are unreadable",
            RECIPE.max_unreadable * 100,
        ),
        ("SECURITY.md", "with PyTorch N or newer", TORCH.removeprefix("torch>=")),
        ("SECURITY.md", "files above N GiB", pretrained.FILE_LIMIT / 2**30),
        ("SECURITY.md", "header is limited to N MiB", pretrained.HEADER_LIMIT / 2**20),
        ("SECURITY.md", "at most N units", model_file.UNITS),
        ("SECURITY.md", "XML of more than N MiB", voc.MAX_XML_BYTES / 2**20),
        ("SECURITY.md", "an image of N million pixels", decode.MAX_PIXELS / MILLION),
        ("SECURITY.md", r"the maximum \(N million as WebP", decode.MAX_WEBP / MILLION),
    ],
)
def test_a_number_of_the_documents_is_that_of_the_code(page, sentence, value):
    number = newest(page, sentence)
    assert number == value or float(WORDS.get(number, number)) == value


def test_the_readme_lists_every_exit_code():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    listed = text.split("Exit codes: ")[1].split(", 130 and 143 on signals")[0]
    codes = [int(code) for code in re.findall(r"(?:^|, )(\d+) [a-z]", listed)]
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    used = {each.exit_code for each in classes if issubclass(each, errors.ResnetsError)}
    assert codes == [0, *sorted(used)]
    assert used == set(range(1, 9))
