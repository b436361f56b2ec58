"""A run folder by hand: eight images of two classes and a network that has learned nothing."""

from dataclasses import asdict, replace

import torch

from resnets.config import arch as archs
from resnets.config import families
from resnets.config import recipe as recipes
from resnets.config.recipe import Preprocess, Recipe
from resnets.data import splits
from resnets.evaluation import scores
from resnets.evaluation.classification import classification_metrics
from resnets.evaluation.scores import Scores
from resnets.models import build
from resnets.models.io.model_file import ModelMetadata, save
from resnets.training.run import Run

CLASSES = ("cat", "dog")
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
# Of four cats three are found, one with 0.9; of four dogs two.
RIGHT = torch.tensor([0.9, 0.8, 0.8, 0.1, 0.9, 0.6, 0.4, 0.3])


def two(classes=CLASSES):
    """Scores of the images: the probability of the label is RIGHT."""
    p = torch.where(LABELS[:, None] == torch.arange(2), RIGHT[:, None], 1 - RIGHT[:, None])
    return Scores(p.log(), LABELS, torch.arange(8), classes)


def source(name="made", classes=CLASSES, size=8, count=8):
    """Noise, count images of `classes` in each split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) * len(classes) // count
    split = splits.Split(images, labels)
    return splits.in_memory(name, classes, split, split)


def folder(path, data=None, said=None, rows=(), recipe=None, ended=True):
    """The folder of a run on `data`; with scores of the test images where there are some."""
    data, run = data or source(), Run(path)
    run.create()
    size = data.size
    see = Preprocess(size=size, mean=data.mean, std=data.std)
    arch = replace(families.get_arch("resnet8"), classes=len(data.classes), size=size)
    recipe = recipe or Recipe(model="resnet8", data=data.name)
    run.write_json(
        "source.json",
        {
            "data": data.name,
            "digest": data.digest,
            "classes": data.classes,
            "arch": archs.to_dict(arch),
            "preprocess": asdict(see),
        },
    )
    run.write_json("environment.json", {"resnets": "1", "torch": "2"})
    run.write_json("recipe.json", recipes.to_dict(recipe))
    for row in rows:
        run.append("metrics.jsonl", row)
    if ended:
        torch.manual_seed(0)
        save(run.model, build(arch), ModelMetadata(arch=arch, classes=data.classes, preprocess=see))
        if said:
            scores.save(run.path / "scores.safetensors", said)
        result = classification_metrics(said) if said else None
        figures = {"images": 0}
        if result:
            figures = {"split": "test", "images": result.images, "error": result.error}
            figures |= {"top1": result.top1, "top1_interval_95": result.interval}
        run.write_json("result.json", figures)
    return run
