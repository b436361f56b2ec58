"""A trained network with what it needs to be used: class names and preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from resnets.config.arch import Arch, MlpArch, SegmenterArch
from resnets.config.arch import task as task_of
from resnets.config.recipe import Preprocess
from resnets.config.types import Task, View, command_group
from resnets.data.dataset import Split
from resnets.data.decode import decode, largest_value_of_file, warn_clipped
from resnets.data.loader import ImageOp, test_batches
from resnets.data.transforms import center_crop, crop_resize, normalize, statistics
from resnets.errors import CheckpointError, DataError, NotFinite, UsageError
from resnets.evaluation import classification
from resnets.evaluation.classification import predict_batch
from resnets.evaluation.scores import Scores, ensemble
from resnets.evaluation.tta import forward, passes
from resnets.files import find_model_file
from resnets.models import CLASSIFIERS, Classifier, Network
from resnets.models.io.model_file import ModelMetadata, open_model

LARGEST = 4 * 2**30  # bytes that an image, or a batch, may take
IMAGENET = Preprocess(size=224, resize=256)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or the `problem` of an unreadable one."""

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, its card, and where it computes."""

    network: Network
    card: ModelMetadata
    device: torch.device
    bfloat16: bool = False
    path: Path = Path("the network")  # of messages

    def together(self, batch: int, size: int = 0) -> int:
        """How many of `batch` images fit into LARGEST bytes at once."""
        return max(
            1,
            min(batch, LARGEST // bytes_per_image(self.network, size or self.card.preprocess.size)),
        )

    @property
    def classifier(self) -> Classifier:
        """The network, where it is for classification."""
        assert isinstance(self.network, CLASSIFIERS)
        return self.network

    @property
    def several(self) -> bool:
        """Whether it was trained on images with several labels, or none."""
        return self.card.provenance.get("labels") == "several"

    def scores(
        self,
        split: Split,
        *,
        view: View = "center",
        size: int = 0,
        batch: int = 250,
        workers: int = 0,
        change: ImageOp | None = None,
    ) -> Scores:
        """What the network says of each image of a labelled split whose classes are this model's.

        `view` and `size` are those of `views.passes`, `change` that of `test_batches`. Raises
        UsageError for a view that the network cannot have.
        """
        see, parts = self.card.preprocess, list[Scores]()
        network = forward(self.classifier, view, see, size)
        batch = self.together(batch, size)
        for each in passes(view, see, size):
            batches = test_batches(
                split,
                preprocess=each.preprocess,
                batch=max(1, batch // each.load),
                device=self.device,
                workers=workers,
                crops=each.crops,
                change=change,
            )
            said = classification.scores(
                network,
                batches,
                self.card.classes,
                mirrored=each.mirrored,
                temperature=self.card.temperature or 1.0,
                bfloat16=self.bfloat16,
            )
            if not torch.isfinite(said.logits).all():
                raise NotFinite(self.path)
            parts.append(said)
        return ensemble(parts)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Model:
        """The same network behind another mean and deviation."""
        preprocess = replace(self.card.preprocess, mean=mean, std=std)
        return replace(self, card=replace(self.card, preprocess=preprocess))

    def predict(
        self, inputs: Iterable[str | Path | bytes], *, top: int = 5, batch: int = 32
    ) -> Iterator[Prediction]:
        """The `top` classes of each image file (or its bytes), in order; bad files are named.

        At the end an `Assumption` warns of images that were clipped at the model's white.
        """
        see, rest = self.card.preprocess, iter(inputs)
        batch = self.together(batch)
        greatest = dict[str | Path, int | None]()
        while chunk := list(islice(rest, batch)):
            answers = [Prediction("-" if isinstance(x, bytes) else str(x)) for x in chunk]
            good: dict[int, torch.Tensor] = {}
            for k, item in enumerate(chunk):
                try:
                    greatest[answers[k].file] = largest_value_of_file(item)
                    good[k] = preprocess_image(
                        torch.from_numpy(decode(item, see.channels, see.white)), see
                    )
                except DataError as error:
                    answers[k] = replace(answers[k], problem=str(error))
            if good:
                images = torch.stack(list(good.values())).to(self.device)
                images = normalize(images, *statistics(see, self.device))
                logits = predict_batch(self.classifier, images, bfloat16=self.bfloat16)
                logits = logits / (self.card.temperature or 1.0)
                if not torch.isfinite(logits).all():
                    raise NotFinite(self.path)
                shares = logits.sigmoid() if self.several else logits.softmax(1)
                best = shares.topk(min(top, shares.shape[1]), dim=1)
                for k, values, indices in zip(good, *(x.tolist() for x in best), strict=True):
                    names = tuple(self.card.classes[i] for i in indices)
                    answers[k] = replace(answers[k], classes=names, probabilities=tuple(values))
            yield from answers
        warn_clipped(greatest, see.white)


def preprocess_image(image: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """The test-time view of one decoded image: uint8 (H, W, C) -> uint8 (C, size, size)."""
    where = center_crop(image.shape[0], image.shape[1], preprocess)
    return crop_resize(image.permute(2, 0, 1)[None], where, preprocess.size)[0]


def bytes_per_image(network: Network, size: int) -> int:
    """About how many bytes a forward pass of one image takes: thrice the largest map of floats."""
    arch = network.arch
    levels = getattr(getattr(network, "backbone", network), "levels", {})
    sides = [*levels.values(), (arch.classes if isinstance(arch, SegmenterArch) else 3, 1)]
    return int(12 * max(channels * (size / stride) ** 2 for channels, stride in sides))


def is_2d(arch: Arch) -> bool:
    """Whether its networks take 2-D images."""
    return not isinstance(arch, MlpArch) and getattr(arch, "dims", 2) == 2


def load(
    path: str | Path,
    *,
    device: torch.device | None = None,
    bfloat16: bool = False,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """A model from a run folder, one of our model files, or a foreign weights file.

    A foreign file does not say its classes and preprocessing: `classes` does, else they are
    numbered; the preprocessing is ImageNet's (`Model.normalized` changes mean and deviation). What
    its tensors leave open of the network, `fields` settle.

    Raises UsageError where there is no such file, the run is not finished, the network is not for
    the `task`, or one of the `fields` is not open; CheckpointError where the file is refused or not
    recognised, or its network takes no 2-D images.
    """
    path = find_model_file(path)
    network, card = open_model(path, fields)
    if not is_2d(network.arch):
        raise CheckpointError(
            f"{path} takes no 2-D images: resnets.models.io.model_file.open_model gives its network"
        )
    if (own := task_of(network.arch)) != (task or own):
        raise UsageError(
            f"{path} is not to {task}, but to {own}: `resnets {command_group(own)}evaluate`"
        )
    if card is None:
        arch = network.arch
        names = tuple(classes or map(str, range(arch.classes)))
        known = own == "classify" and arch.size >= 64
        blank = IMAGENET if known else Preprocess(size=arch.size)
        if arch.channels not in (1, 3):
            raise CheckpointError(f"{path} takes {arch.channels} channels; images have 1 or 3")
        if arch.channels == 1:
            blank = replace(blank, channels=1, mean=(0.449,), std=(0.226,))  # of the three
        card = ModelMetadata(arch=arch, classes=names, preprocess=blank)
    if len(card.classes) != card.arch.classes:
        raise CheckpointError(
            f"{path} has {card.arch.classes} outputs, the data has {len(card.classes)} classes"
        )
    device = device or torch.device("cpu")
    size = card.preprocess.size
    if (memory := bytes_per_image(network, size)) > LARGEST:
        raise CheckpointError(
            f"{path}: at preprocess.size {size} an image would take {memory / 2**30:.0f} GiB, the "
            f"limit is {LARGEST >> 30}. Get another file."
        )
    return Model(network.to(device).eval(), card, device, bfloat16, path)


def match_classes(split: Split, classes: tuple[str, ...], model: Model) -> Split:
    """The split with its labels renumbered by class name to the model's.

    Raises CheckpointError that names the data's classes that the model does not know.
    """
    known = {name: k for k, name in enumerate(model.card.classes)}
    if unknown := [name for name in classes if name not in known]:
        plain = {" ".join(name.casefold().split()): name for name in known}
        near = ((name, plain.get(" ".join(name.casefold().split()))) for name in unknown)
        alike = ", ".join(f"{name!r} is {other!r} to it" for name, other in near if other)
        raise CheckpointError(
            f"the model does not know {len(unknown)} classes of the data: "
            f"{', '.join(unknown[:5])}\nIt knows: {', '.join(model.card.classes[:8])}"
            + (f"\nRename what differs in case or space only: {alike[:200]}" if alike else "")
        )
    table = torch.tensor([known[name] for name in classes], device=split.labels.device)
    if split.labels.ndim == 1:
        return replace(split, labels=table[split.labels])
    if split.objects is None and split.masks and not torch.equal(table, torch.arange(len(table))):
        raise CheckpointError(
            f"the classes of the masks, {', '.join(classes[:8])}, stand in another order than the "
            f"model's, {', '.join(model.card.classes[:8])}: renumber the masks"
        )
    labels = split.labels.new_zeros(len(split), len(known))
    labels[:, table] = split.labels
    objects = split.objects
    if objects is not None:
        objects = replace(objects, classes=table[objects.classes])
    return replace(split, labels=labels, objects=objects)
