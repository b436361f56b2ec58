"""The table of weights, from what timm and torchvision say of their own checkpoints.

    python benchmarks/weights_table.py       writes src/resnets/config/weights.json

Names, addresses, hashes, licences and preprocessing are those of timm's `pretrained_cfg` and of
torchvision's weight enumerations in the installed versions; so are torchvision's figures. The top-1
of timm's checkpoints stands in `weights_top1.csv` beside this file: from their model cards, and
where those were not at hand from `results/results-imagenet.csv` of timm's repository (commit
0173a13), at the test size of `pretrained_cfg`.

A checkpoint is a row if its tensors, by name and shape, are those of a network of `ARCHS`: each is
built on the meta device and compared. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor
from torchvision.models._meta import _COCO_CATEGORIES, _IMAGENET_CATEGORIES, _VOC_CATEGORIES

from resnets.config.arch import task_for_arch
from resnets.config.families import ARCHS, label
from resnets.errors import ResnetsError
from resnets.models.io.infer_arch import infer_arch
from resnets.models.io.tensor_names import network_tensors

HERE = Path(__file__).parent
TABLE = HERE.parent / "src" / "resnets" / "config" / "weights.json"
TIMM_FAMILIES = (
    *("resnet", "resnext", "seresne", "wide_resnet", "densenet", "ecaresnet", "skresne"),
    *("legacy_seres", "vgg"),
)
HASHED = re.compile(r"-([0-9a-f]{8})\.pth")


def network_of(tensors: dict[str, Tensor], name: str) -> tuple[str, int] | None:
    """The name of our network that has these tensors, and its classes; None if there is none."""
    try:
        arch, _ = infer_arch(network_tensors(tensors, []), name=name)
    except ResnetsError as error:
        print(f"  {name}: {str(error).splitlines()[0][:150]}")
        return None
    known = label(arch)
    if known != name:
        print(f"  {name}: has the tensors of {known}")
        return None
    return known, arch.classes


def timm_rows() -> list[dict[str, Any]]:
    """Rows of timm's checkpoints with a classifier; of ImageNet-12k and 21k it has no names."""
    with (HERE / "weights_top1.csv").open() as file:
        top1 = {row["name"]: float(row["top1"]) for row in csv.DictReader(file)}
    rows, networks, counts = [], dict[str, tuple[str, int] | None](), dict[str, int]()
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name).to_dict()
        architecture = config["architecture"]
        url = config.get("url") or ""
        usable = config["num_classes"] > 0 and config.get("license")
        if not usable or not name.startswith(TIMM_FAMILIES) or architecture not in ARCHS:
            continue
        if not config.get("hf_hub_id") and not HASHED.search(url):
            continue
        if architecture not in networks:
            with torch.device("meta"):
                module = timm.create_model(architecture)
            counts[architecture] = sum(p.numel() for p in module.parameters())
            networks[architecture] = network_of(module.state_dict(), architecture)
        if (network := networks[architecture]) is None:
            continue
        row = {"name": name, "model": network[0], "classes": config["num_classes"]}
        row |= {"labels": "imagenet"} if config["num_classes"] == 1000 else {}
        if hub := config.get("hf_hub_id"):
            row |= {"source": hub, "file": "model.safetensors"}
            row |= {"url": url} if HASHED.search(url) else {}
        else:
            row |= {"source": url, "file": url.rpartition("/")[2], "sha256": HASHED.search(url)[1]}
        row |= {"parameters": counts[architecture]} if config["num_classes"] == 1000 else {}
        row |= {"licence": config["license"]}
        row |= {"top1": top1[name]} if name in top1 else {}
        shape, tested = config["input_size"], config.get("test_input_size")
        row |= {"input_size": shape, "test_input_size": tested or shape}
        row |= {"crop_pct": config["crop_pct"]}
        row["test_crop_pct"] = config.get("test_crop_pct") or config["crop_pct"]
        row |= {key: config[key] for key in ("interpolation", "mean", "std")}
        rows.append(row)
    return rows


def torchvision_rows() -> list[dict[str, Any]]:
    """Rows of torchvision's checkpoints."""
    rows, networks = [], dict[str, tuple[str, int] | None]()
    for model in torchvision.models.list_models():
        if model not in ARCHS:
            continue
        for entry in torchvision.models.get_model_weights(model):
            found = HASHED.search(entry.url)
            if found is None or entry.meta["categories"] is None:  # features alone
                continue
            size = entry.meta["min_size"] if "SWAG_E2E" in entry.name else None
            key = f"{model} {size}"
            if key not in networks:
                options = {"image_size": size[0]} if size else {}
                options |= {"init_weights": False} if model == "googlenet" else {}
                if "categories" in entry.meta and entry.meta["categories"][0] == "__background__":
                    options["num_classes"] = len(entry.meta["categories"])
                    options |= {"weights_backbone": None}
                    if model.startswith(("fcn", "deeplab")):
                        options["aux_loss"] = True
                with torch.device("meta"):
                    module = torchvision.models.get_model(model, weights=None, **options)
                networks[key] = network_of(module.state_dict(), model)
            if (network := networks[key]) is None:
                continue
            rows.append(torchvision_row(model, entry, found[1], network))
    return rows


def torchvision_row(
    model: str, entry: Any, sha256: str, network: tuple[str, int]
) -> dict[str, Any]:
    """One of torchvision's weight enumerations as a row."""
    meta, see = entry.meta, entry.transforms()
    version = re.sub(r"^(IMAGENET1K_|COCO_WITH_VOC_LABELS_|COCO_)", "", entry.name).lower()
    row = {
        "name": f"torchvision/{model}-{version}",
        "aliases": [f"{entry.__class__.__name__}.{entry.name}"],
        "model": network[0],
        "task": task_for_arch(ARCHS[network[0]]),
        "classes": network[1],
        "labels": {1000: "imagenet", 91: "coco", 21: "voc"}[len(meta["categories"])],
        "source": entry.url,
        "file": entry.url.rpartition("/")[2],
        "sha256": sha256,
        "bytes": round(meta["_file_size"] * 2**20),
        "parameters": meta["num_params"],
        # Its package is BSD-3; SWAG's weights are CC-BY-NC 4.0 by the licence that it links.
        "licence": "cc-by-nc-4.0" if "license" in meta else "bsd-3-clause",
    }
    (figures,) = meta["_metrics"].values()
    names = {"acc@1": "top1", "box_map": "box_map", "mask_map": "mask_map", "miou": "miou"}
    row |= {ours: figures[theirs] for theirs, ours in names.items() if theirs in figures}
    if hasattr(see, "crop_size"):
        size, resize = see.crop_size[0], see.resize_size[0]
        row |= {"input_size": [3, size, size], "test_input_size": [3, size, size]}
        row |= {"crop_pct": size / resize, "test_crop_pct": size / resize}
        row |= {"interpolation": see.interpolation.value}
    elif hasattr(see, "resize_size"):
        size = see.resize_size[0]
        row |= {"input_size": [3, size, size], "test_input_size": [3, size, size]}
        row |= {"crop_pct": 1.0, "test_crop_pct": 1.0, "interpolation": see.interpolation.value}
    row |= {"mean": getattr(see, "mean", [0.485, 0.456, 0.406])}
    row |= {"std": getattr(see, "std", [0.229, 0.224, 0.225])}
    if model == "googlenet":  # it converts its inputs to these itself (`transform_input`)
        row |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    return row


def class_names() -> dict[str, list[str]]:
    """The lists of classes, each name once: of COCO's 91 numbers eleven stand for nothing."""
    coco = [f"unused {k}" if name == "N/A" else name for k, name in enumerate(_COCO_CATEGORIES)]
    return {"imagenet": list(_IMAGENET_CATEGORIES), "coco": coco, "voc": list(_VOC_CATEGORIES)}


if __name__ == "__main__":
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__.split("+")[0]}
    rows = [*torchvision_rows(), *timm_rows()]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in sorted(rows, key=lambda row: row["name"]))
    names = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in class_names().items())
    first = f'"from": {json.dumps(versions)}'
    TABLE.write_text(f'{{\n{first},\n"weights": [\n{lines}\n],\n"labels": {{\n{names}\n}}\n}}\n')
    print(f"{len(rows)} rows in {TABLE}")
