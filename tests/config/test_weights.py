import json
from dataclasses import replace

import pytest
from torch import nn

from resnets.config import weights
from resnets.config.arch import task_for_arch
from resnets.config.families import ARCHS
from resnets.errors import UsageError
from resnets.files import find_model_file
from resnets.models.io.infer_arch import meta_model


def test_the_table_has_what_is_needed_of_each_checkpoint():
    rows = weights.rows()
    assert len(rows) >= 200
    assert sum(row.score is not None for row in rows.values()) >= 190
    for name, row in rows.items():
        assert row.licence, name
        assert row.score or row.on_hub, name  # timm's newest have no figure in its table
        assert row.task == task_for_arch(ARCHS[row.model]), name
        if row.labels or row.classes == 1000:
            assert len(set(weights.class_names(row))) == row.classes, name
        if row.on_hub:
            assert row.source == f"timm/{name}", name
            assert not row.sha256, name  # the hub's digests cannot be read here
        else:
            assert row.source.startswith("https://")
            assert len(row.sha256) == 8
            assert f"-{row.sha256}" in row.source
        if row.task == "classify":
            assert row.pretrained_cfg["test_input_size"][0] == 3, name
            assert 0 < row.crop_pct <= 1, name


@pytest.mark.slow
def test_each_network_has_the_published_number_of_parameters():
    rows = [row for row in weights.rows().values() if row.classes <= 1000]
    published = {(row.model, row.classes, row.parameters) for row in rows}
    for model, classes, parameters in sorted(published):
        network = meta_model(replace(ARCHS[model], classes=classes))
        count = sum(p.numel() for p in network.parameters())
        frozen = task_for_arch(ARCHS[model]) == "detect" and not model.endswith("_v2")
        if frozen:  # torchvision does not count its normalisations
            norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
            count -= sum(p.numel() for norm in norms for p in norm.parameters())
        if (model, parameters) == ("vit_b_16", 86_859_496):  # at 384 pixels
            count += (24**2 - 14**2) * 768
        assert count == parameters, model


@pytest.mark.parametrize(
    ("text", "model", "name"),
    [
        ("resnet50.a1_in1k", "", "resnet50.a1_in1k"),
        ("timm/resnet50.a1_in1k", "", "resnet50.a1_in1k"),
        ("hf_hub:timm/resnet50.a1_in1k", "", "resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "", "resnet50.a1_in1k"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "", "resnet50.a1_in1k"),
        ("torchvision/resnet50-v2", "", "torchvision/resnet50-v2"),
        ("torchvision/resnet50", "", "torchvision/resnet50-v2"),
        ("ResNet50_Weights.IMAGENET1K_V1", "", "torchvision/resnet50-v1"),
        ("IMAGENET1K_V2", "resnet50", "torchvision/resnet50-v2"),
        ("COCO_V1", "fasterrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn-v1"),
        ("resnet50-11ad3fa6", "", "torchvision/resnet50-v2"),
        ("resnet50-11ad3fa6.pth", "", "torchvision/resnet50-v2"),
        ("a1_in1k", "resnet18", "resnet18.a1_in1k"),
        ("resnet50", "", "resnet50.a1_in1k"),
        ("imagenet", "resnet50", "resnet50.a1_in1k"),
        ("ImageNet", "resnet18", "resnet18.a1_in1k"),
        ("DEFAULT", "resnet34", "resnet34.ra4_e3600_r224_in1k"),
        ("imagenet", "fasterrcnn_resnet50_fpn", "resnet50.a1_in1k"),
        ("imagenet", "fcn_resnet101", "resnet101.a1h_in1k"),
        ("fasterrcnn_resnet50_fpn", "", "torchvision/fasterrcnn_resnet50_fpn-v1"),
        ("coco", "maskrcnn_resnet50_fpn", "torchvision/maskrcnn_resnet50_fpn-v1"),
    ],
)
def test_names_as_people_know_them(text, model, name):
    assert weights.find(text, model).name == name


def test_imagenet_is_the_free_row_with_the_highest_published_figure():
    usable = [row for row in weights.rows().values() if row.is_free and row.labels]
    for model in {row.model for row in usable}:
        figures = [row.score or 0 for row in usable if row.model == model]
        assert (weights.best(model, own=True).score or 0) == max(figures), model
    # What is not free for every use is higher, and is never the usual one.
    free, other = (
        weights.find("resnext101_32x8d"),
        weights.find("resnext101_32x8d.fb_swsl_ig1b_ft_in1k"),
    )
    assert free.score < other.score
    assert not other.is_free
    with pytest.raises(UsageError, match="no weights of resnext101_32x16d are free"):
        weights.best("resnext101_32x16d")


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        ("resnet50.a1_in1", "", "did you mean resnet50.a1_in1k"),
        (
            "resnet5",
            "",
            "no such file or run folder: resnet5, and no weights of that name: did you",
        ),
        ("imagenet", "", "name the network too, --model resnet50"),
        ("imagenet", "resnet20", "no published weights of resnet20"),
        ("fasterrcnn_resnet101_fpn", "", "--weights imagenet starts from its backbone's"),
    ],
)
def test_an_unknown_name_gets_the_nearest(text, model, message):
    with pytest.raises(UsageError, match=r"weights ls|--pretrained") as caught:
        weights.find(text, model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["x.pth", "model.safetensors", "some/model.safetensors", "./resnet50", "runs/photos"]
)
def test_what_can_only_be_a_path_is_answered_as_one(text):
    with pytest.raises(UsageError, match="no such file or run folder"):
        weights.check_weights(text)


def table(tmp_path, monkeypatch, *rows):
    file = tmp_path / "company.json"
    file.write_text(json.dumps({"weights": rows}))
    monkeypatch.setenv("RESNETS_WEIGHTS_TABLE", str(file))


def test_a_table_of_ones_own_adds_rows_and_replaces_them(tmp_path, monkeypatch):
    mine = {"name": "moths", "source": "https://intranet/moths-01234567.pth", "licence": "ours"}
    theirs = {"name": "resnet50.a1_in1k", "source": "us/resnet50", "licence": "apache-2.0"}
    table(
        tmp_path,
        monkeypatch,
        mine,
        theirs | {"model": "resnet50", "labels": "imagenet", "top1": 99.0},
    )
    assert weights.find("moths").source == mine["source"]
    assert not weights.find("moths").is_free  # a licence that is not known to be
    assert weights.find("resnet50").source == "us/resnet50"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x", "source": "a/b"}, "x: licence"),
        ({"name": "x", "source": "a/b", "licence": "mit", "crop": 1}, "unknown 'crop'"),
        ({"name": "x", "source": "a/b", "licence": "mit", "top1": "high"}, "x: top1"),
        ("x", "?"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, monkeypatch, row, message):
    table(tmp_path, monkeypatch, row)
    with pytest.raises(UsageError) as caught:
        weights.rows()
    assert message in str(caught.value)
    assert "company.json" in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weights": 5}', '{"weights": null}'])
def test_what_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(UsageError, match="not a table of weights"):
        weights.read_table(str(tmp_path / "table.json"), 0)


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_no_weights(text: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        weights.find(text)
    with pytest.raises(UsageError, match="no such file"):
        find_model_file(text)
