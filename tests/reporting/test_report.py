import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from resnets.escape import visible
from resnets.evaluation.scores import Scores
from resnets.reporting import card, report
from resnets.reporting.facts import read_facts
from resnets.training.run import Run
from tests._helpers import needs_posix_files

from ._helpers import folder, source, two

yaml = pytest.importorskip("yaml")
WILD = ('<b>&"', "a|b", "it's: {%x%}", "\u0085\x7f", "🐈 # *_`", "$x_1$", "null", "- 1")


class Page(HTMLParser):
    """Tags with their attributes, what is open at the end, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "br", "path", "rect", "use"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"path", "rect", "use"}:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(run, data=None):
    return Page(report.write(read_facts(run), data).read_text())


def noise(classes, each=4):
    """Scores by chance of `each` images of every class."""
    labels = torch.arange(each * len(classes)) * len(classes) // (each * len(classes))
    logits = torch.randn(len(labels), len(classes), generator=torch.Generator().manual_seed(0))
    return Scores(logits, labels, torch.arange(len(labels)), tuple(classes))


def rows(count):
    return [{"step": k, "epoch": k + 1.0, "train_error": 0.5 / (k + 1)} for k in range(count)]


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    found = page(folder(tmp_path / "a", said=two(), rows=rows(3)), source())
    assert found.open == []
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:image/webp;base64,"))
    assert "url(http" not in found.text
    assert "@import" not in found.text
    assert found.all("script") == []


def test_who_cannot_see_it_can_read_it(tmp_path):
    found = page(folder(tmp_path / "a", said=two(), rows=rows(3)), source())
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert found.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in found.all("img"))
    assert all(drawing["aria-labelledby"] in ids for drawing in found.all("svg"))
    assert all(head["scope"] in {"row", "col"} for head in found.all("th"))
    assert all(a["href"].removeprefix("#") in ids for a in found.all("a"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    alts = [image["alt"] for image in found.all("img")]
    assert "image 3: cat, predicted dog with 90.00\u00a0%" in alts  # the worst answer


def test_figures_are_those_of_the_scores(tmp_path):
    found = page(folder(tmp_path / "a", said=two()), source())
    text = re.sub(r"\s+", " ", found.text)
    assert "62.50 %" in text
    assert re.search(r"cat 3 1 dog 2 2", text)  # the confusion matrix


@pytest.mark.parametrize("count", [2, 30])
def test_a_page_of_big_noise_stays_under_two_megabytes(tmp_path, count):
    classes = [f"class {k}" for k in range(count)]
    data = source(classes=tuple(classes), size=96, count=4 * count)
    run = folder(tmp_path / "a", data, said=noise(classes), rows=rows(300))
    path = report.write(read_facts(run), data)
    assert 10_000 < path.stat().st_size < 2_000_000
    assert ("Rows are the true classes" in path.read_text()) == (count <= 20)


@needs_posix_files
def test_any_name_of_a_class_is_only_text(tmp_path):
    data = source(name="<i>&", classes=WILD, count=32)
    run = folder(tmp_path / "a|<b>", data, said=noise(WILD))
    found = page(run, data)
    assert found.open == []
    assert len(found.all("b")) == len(found.all("figcaption")) - 2  # one a picture, two charts
    assert found.all("i") == []
    for name in map(visible, WILD):
        assert name in found.text
    text = card.write(read_facts(run)).read_text()
    _, header, body = text.split("---\n", 2)
    (entry,) = yaml.safe_load(header)["model-index"]
    assert entry["name"] == "a|<b>"
    assert entry["results"][0]["dataset"]["name"] == "<i>&"
    text = [line for line in body.splitlines() if not line.startswith("    ")]  # but commands
    assert not re.search("[<>]", "".join(text))


@pytest.mark.parametrize("text", [*WILD, "\ud800", "\ufeff", "a\nb", "yes", "'\"\\"])
def test_a_value_of_the_header_is_read_back_as_it_was(text):
    assert yaml.safe_load(f"key: {card.yaml(text)}") == {"key": text}


def test_the_card_has_the_figures(tmp_path):
    text = card.write(read_facts(folder(tmp_path / "a", said=two()))).read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "unknown"
    assert header["pipeline_tag"] == "image-classification"
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": 0.625}
    assert "| Accuracy | 62.50\u00a0% |" in text


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_not_there_is_said(tmp_path, ended):
    run = folder(tmp_path / "a", source(name="gone"), ended=ended)
    found = page(run)
    assert found.open == []
    assert "There are no pictures: " in found.text
    assert "the run has no scores" in found.text
    assert ("resnets resume" in found.text) != ended
    card.write(read_facts(run))


def test_changed_data_gives_no_pictures(tmp_path):
    run = folder(tmp_path / "a", source(name="digits"), said=two())
    assert "no longer the data that the run was trained on" in page(run).text


def test_several_labels_of_an_image(tmp_path):
    several = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    data = source()
    split = replace(data.test, images=data.test.images[:4], labels=several)
    data = replace(data, test=split, train=split)
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [-1.0, -2.0], [2.0, -1.0]])
    said = Scores(logits, several, torch.arange(4), data.classes)
    found = page(folder(tmp_path / "a", data, said=said), data)
    assert "Mean average precision" in found.text
    both = "cat with 73.11\u00a0% and dog with 88.08\u00a0%"
    assert f"dog, predicted {both}" in found.text
    assert "cat, predicted no class" in found.text  # not cat with 27 %
    assert found.text.count("cat, predicted cat with 88.08") == 1


def test_a_run_is_called_by_its_folder_however_its_path_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path / "mine", said=two()).path)
    assert "# mine\n" in card.write(read_facts(Run(Path()))).read_text()
    assert "Run mine" in page(Run(Path()), source()).text


def test_the_licence_of_the_data(tmp_path):
    from resnets.training.runner import find_licence

    assert find_licence(None) == find_licence(tmp_path) == ""
    (tmp_path / "annotations").mkdir()
    coco = {"licenses": [{"id": 1, "name": "CC BY 4.0"}], "images": []}
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(coco))
    (tmp_path / "list.json").write_text("[1]")
    assert find_licence(tmp_path) == "CC BY 4.0"
    (tmp_path / "LICENSE.txt").write_text("\n# MIT License\n\nCopyright\n")
    assert find_licence(tmp_path) == "MIT License"
