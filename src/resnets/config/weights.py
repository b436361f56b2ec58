"""Published weights by name: `weights.json` as data, written by benchmarks/weights_table.py.

A name is timm's (resnet50.a1_in1k, also as timm/... or hf_hub:timm/...), torchvision's
(torchvision/resnet50-v2, ResNet50_Weights.IMAGENET1K_V2), or that of a network (resnet50), which is
the best free checkpoint for it. The environment's RESNETS_WEIGHTS_TABLE names a JSON file of the
same form with more rows. No torch here.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pydantic

from resnets.config.arch import DenseTaskArch, field_problem
from resnets.config.families import ARCHS, label
from resnets.config.recipe import FINITE
from resnets.config.types import TaskName
from resnets.errors import UsageError, nearest
from resnets.files import cache_folder, find_model_file

TABLE = Path(__file__).with_name("weights.json")
BEST = ("imagenet", "default", "pretrained", "true", "best")  # what people call the usual weights
FREE = {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "mit"}
PREFIXES = re.compile(r"^(hf[_-]hub:|https://huggingface\.co/)?(timm/)?")
SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
Rgb = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRow:
    """A published checkpoint.

    `model` is the network's name in `ARCHS`, "" where its tensors alone say it. `source` is a
    repository of the Hugging Face hub or an https address, `url` the publisher's own file of the
    same weights. `sha256` is the digest of `file` or its first digits; "" is fixed at the first
    download. The preprocessing has the names and meaning of timm's `pretrained_cfg`.
    """

    __pydantic_config__ = FINITE

    name: str
    source: str
    licence: str
    model: str = ""
    aliases: tuple[str, ...] = ()
    task: TaskName = "classify"
    classes: int = 1000
    labels: Literal["imagenet", "coco", "voc", ""] = ""  # the list of class names
    file: str = "model.safetensors"
    url: str = ""
    revision: str = ""  # of the repository: a commit or a branch
    sha256: str = ""
    bytes: int = 0  # about; 0 is unknown
    parameters: int = 0
    top1: float | None = None  # in %, published, at the test size
    box_map: float | None = None
    mask_map: float | None = None
    miou: float | None = None
    input_size: tuple[int, int, int] | None = None
    test_input_size: tuple[int, int, int] | None = None
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Rgb = (0.485, 0.456, 0.406)
    std: Rgb = (0.229, 0.224, 0.225)

    @property
    def is_free(self) -> bool:
        """Whether the licence allows every use."""
        return self.licence in FREE

    @property
    def on_hub(self) -> bool:
        """Whether `source` is a repository of the Hugging Face hub."""
        return "://" not in self.source

    @property
    def score(self) -> float | None:
        """The published figure of its task, in %: top-1 accuracy, box AP or mean IoU."""
        return next((x for x in (self.top1, self.box_map, self.miou) if x is not None), None)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing, as timm's config.json has it; {} where the row has no input size."""
        names = ("input_size", "test_input_size", "crop_pct", "test_crop_pct", "interpolation")
        if self.input_size is None:
            return {}
        return {name: getattr(self, name) for name in (*names, "mean", "std")}


def rows() -> dict[str, WeightsRow]:
    """All rows by name; those of RESNETS_WEIGHTS_TABLE come first and replace others.

    Raises UsageError for a table that cannot be read.
    """
    extra = os.environ.get("RESNETS_WEIGHTS_TABLE")
    added = read_table(extra, os.stat(extra).st_mtime_ns) if extra and os.path.exists(extra) else {}
    if extra and not os.path.exists(extra):
        raise UsageError(f"RESNETS_WEIGHTS_TABLE: no such file: {extra}")
    return added | {k: v for k, v in read_table(str(TABLE), 0).items() if k not in added}


@cache
def read_table(path: str, _changed: int) -> dict[str, WeightsRow]:
    """The rows of a table by name. Raises UsageError that names the row and the field."""
    try:
        entries = list(json.loads(Path(path).read_text(encoding="utf-8"))["weights"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f'{path}: not a table of weights, {{"weights": [...]}} ({error})'
        ) from None
    known = {field.name for field in fields(WeightsRow)}
    adapter, table = pydantic.TypeAdapter(WeightsRow), dict[str, WeightsRow]()
    for entry in entries:
        name = entry.get("name", "?") if isinstance(entry, dict) else "?"
        if isinstance(entry, dict) and (unknown := entry.keys() - known):
            field = min(unknown)
            raise UsageError(f"{path}: {name}: unknown {field!r}: {nearest(field, known)}")
        try:
            row = adapter.validate_python(entry)
        except pydantic.ValidationError as error:
            raise UsageError(f"{path}: {name}: {field_problem(error)[0]}") from None
        table[row.name] = row
    return table


def class_names(row: WeightsRow) -> tuple[str, ...] | None:
    """The names of a row's classes; None where they are not known.

    Of COCO's 91 numbers with 0 for the background, a network without that has 90.
    """
    if not row.labels:
        return None
    names = tuple(json.loads(TABLE.read_text(encoding="utf-8"))["labels"][row.labels])
    names = names[len(names) - row.classes :]
    return names if len(names) == row.classes else None


def find(text: str, model: str = "") -> WeightsRow:
    """The row of that name; `model` is the network that the weights are for, if it is chosen.

    Raises UsageError with the nearest names, and where a network has no weights.
    """
    table = rows()
    name = PREFIXES.sub("", text.strip())
    if name in table:
        return table[name]
    lowered = name.lower()
    if lowered in BEST or lowered == "coco":
        if not model:
            raise UsageError(
                f"{text} does not name weights alone: name the network too, --model resnet50,\n"
                "or give its name, --weights resnet50. `resnets weights ls` lists all."
            )
        return best(model, own=lowered == "coco")
    if name in ARCHS:
        return best(name, own=True)
    version = re.fullmatch(r"(?:imagenet1k|coco|coco_with_voc_labels)_(\w+)", lowered)
    longer = {f"{model}.{lowered}", f"torchvision/{model}-{version[1] if version else lowered}"}
    for row in sorted(table.values(), key=lambda row: row.on_hub):  # a publisher before timm's copy
        address = Path(row.url or row.source)
        names = {row.name, *row.aliases, address.name, address.stem}
        if not row.on_hub:  # whose files all have the same name
            names |= {row.file, row.file.rpartition("-")[0]}
        if row.name in longer or lowered in {known.lower() for known in names - {""}}:
            return row
    if lowered.startswith("torchvision/"):
        ours = [row for row in table.values() if row.name.startswith(f"{lowered}-")]
        if ours:
            return max(ours, key=lambda row: (row.is_free, row.score or 0))
    usual = sorted({row.model for row in table.values() if row.model})
    raise UsageError(
        f"no such file or run folder: {text}, and no weights of that name: "
        f"{nearest(name, [*usual, *table, *imported()])}\n`resnets weights ls` lists all names."
    )


def best(model: str, *, own: bool = False) -> WeightsRow:
    """The free checkpoint of a network with the highest published figure.

    Of a network for detection, segmentation or localisation that is its backbone's, unless it is
    for the network's `own` task. Raises UsageError where there is none.
    """
    arch = ARCHS.get(model)
    if isinstance(arch, DenseTaskArch) and not own:
        model = label(replace(arch.backbone, output_stride=32))  # dilation moves no weights
    candidates = [row for row in rows().values() if row.model == model]
    free = [row for row in candidates if row.is_free and row.labels]
    if free:
        return max(free, key=lambda row: row.score or 0)
    if candidates:
        names = ", ".join(row.name for row in candidates[:3])
        raise UsageError(f"no weights of {model} are free for every use: name one ({names})")
    hint = (
        "--weights imagenet starts from its backbone's" if isinstance(arch, DenseTaskArch) else ""
    )
    known = sorted({row.model for row in rows().values() if row.model})
    raise UsageError(
        f"there are no published weights of {model}: {hint or nearest(model, known)}\n"
        "`resnets models --pretrained` lists the networks that have some."
    )


def best_or_none(model: str) -> WeightsRow | None:
    """The best free checkpoint for exactly this network, if there is one."""
    try:
        return best(model, own=True)
    except UsageError:
        return None


def weights_folder() -> Path:
    """The folder of imported weights, and of files of the table that were copied there by hand."""
    return cache_folder() / "weights"


def imported() -> dict[str, Path]:
    """The weights that were imported, by name."""
    known = {file_stem(name) for name in rows()}
    files = sorted(weights_folder().glob("*.safetensors"))
    return {path.stem: path for path in files if path.stem not in known}


def file_stem(name: str) -> str:
    """A row's name as that of a file."""
    return name.replace("/", "--")


def check_weights(text: str | Path, model: str = "", option: str = "") -> None:
    """Raise UsageError for what is neither a file, a finished run nor the name of weights."""
    if os.path.exists(text):
        find_model_file(text, option)
    else:
        find_name(text, model, option)


def find_name(text: str | Path, model: str = "", option: str = "") -> WeightsRow | None:
    """The row that is meant by a text that is no path here; None for the name of imported weights.

    Raises UsageError as `find`, and for what can only be a path.
    """
    if str(text) in imported():
        return None
    try:
        return find(str(text), model)
    except UsageError:
        if is_path(text):
            find_model_file(text, option)
        raise


def full_name(text: str | Path, model: str = "") -> str:
    """A path as it is, published weights as the name of their row; "" for none.

    Raises UsageError as `check_weights`.
    """
    if str(text).lower() in ("", "none"):
        return ""
    if os.path.exists(text):
        find_model_file(text)
        return str(text)
    row = find_name(text, model)
    return row.name if row else str(text)


def names_weights(text: str) -> bool:
    """Whether a text names a checkpoint, and not only a network that may have some."""
    if text in ARCHS:
        return False
    try:
        find_name(text)
    except UsageError:
        return False
    return True


def is_path(text: str | Path) -> bool:
    """Whether a text that names nothing is meant as a path."""
    if isinstance(text, Path) or text.endswith(SUFFIXES):
        return True
    return not text.startswith(("timm/", "torchvision/", "hf")) and Path(text).name != text
