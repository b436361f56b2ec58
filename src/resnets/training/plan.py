"""What a run will do, decided before it starts."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from resnets import models
from resnets.config import families
from resnets.config.arch import Arch, ExternalArch
from resnets.config.recipe import Augment, Preprocess, Recipe, to_dict
from resnets.config.tasks import TaskText
from resnets.config.types import EvaluateOptions
from resnets.config.weights import WeightsRow
from resnets.data.dataset import Source, Split
from resnets.data.detection.targets import DetectionTargets
from resnets.data.loader import Batch, train_batches
from resnets.data.rng import draw_for_step
from resnets.errors import UsageError, quantify
from resnets.evaluation.evaluate import LogAccess
from resnets.evaluation.load import AnyModel
from resnets.evaluation.loader import LoaderOptions, never
from resnets.evaluation.predictor import Model
from resnets.models import Network
from resnets.models.accelerate import accelerate, describe_kernels
from resnets.models.cost import cost
from resnets.models.io.model_file import ModelMetadata
from resnets.models.sync_batch_norm import convert_sync_batch_norm
from resnets.training import optim
from resnets.training.distributed import SINGLE_PROCESS, World
from resnets.training.state import State, TrainProgress, load_pretrained

PHOTOGRAPH = 64  # pixels of the shorter side from which on an image is like those of ImageNet
FEW_IMAGES = 20_000  # below which a network from random weights falls behind
WRITE_SECONDS = 3.5  # seconds for the files of a result, its pictures and its report, on two cores
# Network, images and `Batch.targets` of a micro-batch -> mean loss, wrong images: () each.
LossFunction = Callable[[nn.Module, Tensor, Any], tuple[Tensor, Tensor]]
Stopped = Callable[[], bool]  # whether a signal asks to break off


class TaskMetrics(Protocol):
    """The figures of a result, as every task has them."""

    @property
    def error(self) -> float:
        """From 0 to 1 where it is a share; the best state is the one with the least."""

    @property
    def images(self) -> int:
        """How many images were counted."""

    @property
    def split(self) -> str:
        """Which split they are of."""

    def headline(self) -> str:
        """The figures in one line."""

    def summary(self) -> dict[str, Any]:
        """The content of result.json: `error`, `images`, `split` and all further figures."""


def has_few_photographs(source: Source, train: Split) -> bool:
    """Whether the images are so few, and such, that weights of ImageNet help."""
    are_files = not isinstance(train.images, Tensor)
    return are_files and source.size >= PHOTOGRAPH and len(train) < FEW_IMAGES


def example_images(plan: Plan, count: int, side: int) -> tuple[Tensor, ...]:
    """Images alone, all zeros: (count, C, side, side)."""
    zeros = torch.zeros(count, plan.preprocess.channels, side, side, device=plan.device)
    return (zeros.contiguous(memory_format=torch.channels_last),)


def cannot_evaluate(models: Sequence[AnyModel], data: Any, *options: object) -> NoReturn:
    """Data of this task is not read from files. Raises UsageError."""
    raise UsageError(f"no reader for {data} for the task of {models[0]}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What differs between tasks: labels, recipe, loss, figures. docs/extending.md writes one."""

    text: TaskText  # what it and its figures are called
    # A recipe for a data set, its training images and a device, where nobody named one.
    default_recipe: Callable[[Source, Split, torch.device], Recipe]
    # Likewise, where training starts from these weights; None: as without.
    pretrained_recipe: Callable[[Source, Split, Model, torch.device], Recipe | None] | None = None
    # What training lowers; made once a run.
    make_loss: Callable[[Plan], LossFunction]
    # Figures of a split that all ranks evaluate together, "error" among them; they do not matter
    # once a signal has stopped it.
    validate: Callable[[Plan, Network, Split, Stopped], dict[str, float]]
    # The figures of a result on a split of that name; details may be kept in the run's folder.
    test: Callable[[Path, Plan, Model, Split, str], TaskMetrics]
    # What `api.evaluate` calls: models on data, and what logs an access to the test split.
    evaluate: Callable[[Sequence[AnyModel], Any, EvaluateOptions, LogAccess], Any] = cannot_evaluate
    # Arguments of the network in training: so many images of that side, all zeros, and targets.
    example_inputs: Callable[[Plan, int, int], tuple[Tensor | DetectionTargets, ...]] = (
        example_images
    )
    # The temperature of a result (1706.04599), from the validation images.
    fit_temperature: Callable[[Plan, Model], float | None] = lambda plan, model: None
    # What cannot be meant with this task, each with its remedy.
    contradictions: Callable[[Plan], Iterator[str]] = lambda plan: iter(())
    # Whether the labels are multi-label: an image has several classes, or none.
    is_multi_label: Callable[[Tensor], bool] = lambda labels: False
    whole_images: bool = False  # scaled to the network's size at test time, not cropped
    details: str = ""  # the file of details that `test` leaves
    require: Callable[[], object] = lambda: None  # raises where an optional package is missing

    @property
    def name(self) -> str:
        """How commands and files call it."""
        return self.text.name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved run: nothing in it is left to be chosen."""

    task: Task
    recipe: Recipe
    arch: Arch
    source: Source  # the data with its splits
    train: Split  # what is trained on
    preprocess: Preprocess  # what a model file says of its inputs
    device: torch.device
    bfloat16: bool  # whether forward passes are in bfloat16
    workers: int  # processes that decode images
    world: World = SINGLE_PROCESS  # this process among the ranks
    pretrained: Model | None = None  # what training starts from
    teacher: Model | None = None  # of distillation
    data: Any = None  # as it was given: a path, a name or Datasets
    resumes: Path | None = None  # the run folder that it goes on with
    suggested: WeightsRow | None = None  # published weights that it could start from
    memory_note: str = ""  # why forward passes are smaller than asked
    began: float = field(default_factory=time.monotonic)

    @property
    def external(self) -> ExternalArch | None:
        """The custom network, if it is one."""
        return self.arch if isinstance(self.arch, ExternalArch) else None

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run; a budget replaces them once a step is measured."""
        return self.recipe.total_steps(len(self.train))

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.task.is_multi_label(self.train.labels)

    @property
    def local_batch(self) -> int:
        """Images of a step on this rank."""
        return self.recipe.batch // self.world.size

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass."""
        return min(self.recipe.micro_batch or self.local_batch, self.local_batch)

    @property
    def frozen_steps(self) -> int:
        """Steps at the start in which the classifier alone learns."""
        return round(self.recipe.freeze_backbone_epochs * len(self.train) / self.recipe.batch)

    @property
    def monitor_split(self) -> Split | None:
        """The images of the error curve."""
        return self.source.test if self.recipe.monitor == "test" else self.source.val

    @property
    def result_split(self) -> Split | None:
        """The images of the result: the test split where there is one."""
        return self.source.test or self.source.val

    @property
    def metadata(self) -> ModelMetadata:
        """What the model file will say of itself."""
        return ModelMetadata(
            arch=self.arch,
            classes=self.source.classes,
            preprocess=self.preprocess,
            provenance={
                "data": self.source.name,
                "digest": self.source.digest,
                "recipe": json.dumps(to_dict(self.recipe)),
                "resnets": version("resnets"),
                "torch": torch.__version__,
                "labels": "several" if self.multi_label else "one",
                "task": self.task.name,
            },
        )

    def batches(self, progress: TrainProgress) -> Iterator[Batch]:
        """This rank's training batches from a step on; under a budget they never end."""
        return train_batches(
            self.train,
            preprocess=self.preprocess,
            augment=self.recipe.augment,
            batch=self.recipe.batch,
            seed=self.recipe.seed,
            start=progress.step,
            stop=sys.maxsize if self.recipe.budget else progress.steps,
            device=self.device,
            workers=self.workers,
            rank=self.world.rank,
            ranks=self.world.size,
            sides=lambda step: self.side(step, progress.steps),
            sampler=self.recipe.sampler,
        )

    def loader_options(
        self, world: World = SINGLE_PROCESS, stopped: Stopped = never
    ) -> LoaderOptions:
        """How a rank reads its part of a split to test on, until a signal asks to break off."""
        return LoaderOptions(
            preprocess=self.preprocess,
            device=self.device,
            batch=self.micro_batch,
            workers=self.workers,
            rank=world.rank,
            ranks=world.size,
            stopped=stopped,
        )

    def side(self, step: int, steps: int) -> int:
        """Side of the input in a training step: it grows over the first 3/4, in whole strides.

        With crop "resize" it is drawn anew at each step.
        """
        size, augment = self.recipe.train_size or self.preprocess.size, self.recipe.augment
        if augment.crop == "resize":
            low, high = augment.scale
            return low + int(draw_for_step(self.recipe.seed, step) * (high - low + 1))
        start, stride = self.recipe.progressive_from or size, 32 if size >= 128 else 4
        grown = start + (size - start) * min(1.0, step / (0.75 * steps))
        return min(size, max(start, round(grown / stride) * stride))

    def tail_seconds(self, per_eval_image: float, per_test_image: float) -> float:
        """Seconds that a run needs after its last step.

        Images are evaluated on all ranks together, and tested on one rank in float32.
        """
        monitored = len(self.monitor_split or ())
        result = len(self.source.val or ()) + len(self.source.test or ())
        # All ranks end the training with an evaluation; the first tests the result, in float32.
        per_test_image = max(per_test_image, per_eval_image * self.world.size)
        return WRITE_SECONDS + per_eval_image * monitored + per_test_image * result

    def start(self) -> State:
        """The state before the first step: initial weights are a function of the recipe's seed.

        A classifier that `weights` do not fit stays new.
        """
        recipe, arch, device = self.recipe, self.arch, self.device
        torch.manual_seed(recipe.seed)
        network = models.build(arch, activation_checkpointing=recipe.activation_checkpointing)
        if recipe.norm == "sync":
            network = convert_sync_batch_norm(network)
        # Initialised in float32 NCHW on the CPU, so every device starts from the same weights.
        network = network.to(device)
        if getattr(arch, "dims", 2) == 2 and not recipe.fsdp:  # FSDP2 takes plain layouts only
            network = network.to(memory_format=torch.channels_last)
        average = copy.deepcopy(network).requires_grad_(False)
        accelerate(network)
        for copied in (network, average):
            if recipe.fsdp:
                self.world.shard(copied)
            if self.pretrained is not None:
                load_pretrained(copied, self.pretrained.network.state_dict())
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        progress = TrainProgress(steps=self.steps, micro_batch=self.micro_batch)
        return State(network, average, optim.build(network, recipe), totals, progress)

    @property
    def method(self) -> str:
        """Where training starts and what its result is, in words."""
        recipe = self.recipe
        figures = {"best": "error", "lowest-loss": "loss"}
        result = ""
        if recipe.select in figures:
            result = f"; the state of the lowest validation {figures[recipe.select]} is the result"
        if recipe.weights:
            probe = "a linear probe on their features, then " if recipe.head == "probe" else ""
            return f"pretrained weights: {probe}fine-tuning{result}"
        if has_few_photographs(self.source, self.train):
            named = self.suggested.name if self.suggested else "NAME|FILE"
            return (
                f"random weights{result}. With {len(self.train):,} images, weights that others "
                f"trained usually do much better: --weights {named} (`resnets weights ls`)"
            )
        return f"random weights{result}"

    @property
    def sampling(self) -> str:
        """What drawing the classes equally often does to the rarest and the most frequent one."""
        counts = torch.bincount(self.train.labels.cpu(), minlength=len(self.source.classes))
        present = counts.nonzero()[:, 0]
        rare, frequent = (present[pick(counts[present])] for pick in (torch.argmin, torch.argmax))
        share = len(self.train) / len(present)
        of_each = [
            f"an image of {self.source.classes[label]} ({counts[label]:,}) "
            f"{share / int(counts[label]):.3g} times"
            for label in (rare, frequent)
        ]
        return f"each class equally often: in an epoch {', '.join(of_each)} on average"

    def summary(self) -> dict[str, str]:
        """The plan in words, a line each; the measured time comes last."""
        source, recipe, size = self.source, self.recipe, self.preprocess.size
        splits = {"train": self.train, "validation": source.val, "test": source.test}
        counts = ", ".join(f"{len(s):,} {name}" for name, s in splits.items() if s is not None)
        network_cost = cost(self.arch)
        names = ", ".join(source.classes[:6]) + (", ..." if len(source.classes) > 6 else "")
        epochs = self.steps * recipe.batch / len(self.train)
        length = f"{quantify(self.steps, 'steps')} of {recipe.batch}, {epochs:.1f} epochs"
        if recipe.budget:
            length = f"as many steps of {recipe.batch} as fit into {recipe.budget / 60:.3g} minutes"
        if (passes := math.ceil(self.local_batch / self.micro_batch)) > 1:
            images = quantify(self.micro_batch, "images")
            length += f"; {passes} forward passes of {images} make one step{self.memory_note}"
        sampling = {"sampling": self.sampling} if recipe.sampler == "balanced" else {}
        return {
            "data": f"{source.name}, digest {source.digest[:12]}",
            "classes": f"{len(source.classes)}: {names}",
            "images": f"{counts}; {len(source.unreadable)} unreadable",
            **sampling,
            "input": f"{self.preprocess.channels} x {size} x {size}, {describe(recipe.augment)}, "
            f"less the mean of each {'pixel' if recipe.normalize == 'pixel' else 'channel'}",
            "network": f"{families.label(self.arch)}, {self.arch.depth} layers"
            + (f", from {recipe.weights}" if recipe.weights else ""),
            "size": f"{network_cost.parameters:,} parameters, "
            f"{network_cost.macs / 1e6:,.1f} M multiply-adds",
            "method": self.method,
            "length": length,
            "optimiser": f"{recipe.optimizer}, rate {recipe.peak:g} {recipe.schedule}, "
            f"weight decay {recipe.weight_decay:g}",
            "machine": f"{self.device}, {recipe.precision}, "
            f"{quantify(self.world.size, 'processes')}, "
            f"{quantify(torch.get_num_threads(), 'threads')}, {quantify(self.workers, 'workers')}, "
            f"{describe_kernels(self.arch, self.device, self.bfloat16)}",
        }


def describe(augment: Augment) -> str:
    """An augmentation in a few words."""
    words = [] if augment.crop == "none" else [f"{augment.crop} crop"]
    words += ["flip"] * augment.flip + ([] if augment.colour == "none" else [augment.colour])
    words += [f"cutout {augment.cutout}"] * bool(augment.cutout)
    return " + ".join(words) or "no augmentation"
