"""From a recipe, data and a machine to a plan; what contradicts itself is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from resnets.config import arch as archs
from resnets.config import families
from resnets.config.arch import Arch, ExternalArch
from resnets.config.preprocessing import IMAGENET, resized_side, with_options
from resnets.config.recipe import CROP_PCT, Preprocess, Recipe
from resnets.config.types import InputOptions
from resnets.config.weights import WeightsRow, best_or_none
from resnets.data.dataset import Source, Split, normalization
from resnets.device import use_bfloat16
from resnets.errors import Assumption, DataError, UsageError
from resnets.evaluation.load import is_2d, load
from resnets.evaluation.predictor import Model
from resnets.models.cost import has_narrow_input, measure
from resnets.models.modes import has_folded_norm
from resnets.training.distributed import SINGLE_PROCESS, World
from resnets.training.plan import Plan, Task, has_few_photographs
from resnets.training.tasks import TASKS

# Fields of a recipe that ask for what is known of the networks of this package.
KNOWN_NETWORKS_ONLY = (
    "head", "freeze_backbone_epochs", "freeze_stages", "layer_decay", "activation_checkpointing",
    "arch",
)  # fmt: skip


def training_images(source: Source) -> Split:
    """The training split. Raises DataError when there is none."""
    if source.train is None:
        raise DataError(f"{source.name} has no training images; it needs a train/ folder or split")
    return source.train


def resolve(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    workers: int,
    world: World = SINGLE_PROCESS,
    task: Task | None = None,
    external: ExternalArch | None = None,
    pretrained: Model | None = None,
) -> Plan:
    """All that follows from recipe, data and machine; the task is that of the network if left out.

    `external` is a custom network; `pretrained` is what `load_pretrained_model` gives, where
    that was called already. Raises UsageError that names all contradictions.
    """
    pretrained = pretrained or load_pretrained_model(recipe, external)
    if pretrained and recipe.norm != "frozen":
        warn_of_folded_norm(recipe.weights, pretrained)
    network = external or families.get_arch(recipe.model)
    name = archs.task_for_arch(network)
    task = task or TASKS[name]
    if pretrained and not external and archs.task_for_arch(pretrained.metadata.arch) == name:
        network = pretrained.metadata.arch
        recipe = replace(recipe, model=model_name(network) or recipe.model)
    network = archs.with_fields(network, recipe.arch)
    if not is_2d(network):
        raise UsageError(f"{recipe.model} does not take 2-D images; `resnets models` lists others")
    if task.whole_images:
        recipe = replace(recipe, size=recipe.size or network.size)
    preprocess = preprocessing(recipe, source, task, pretrained)
    network = replace(
        network, channels=preprocess.channels, classes=len(source.classes), size=preprocess.size
    )
    if isinstance(network, ExternalArch):
        network = measure(network)
    train = training_images(source)
    side = recipe.progressive_from or recipe.train_size or preprocess.size
    bfloat16 = choose_precision(recipe.precision, replace(network, size=side), device)
    plan = Plan(
        task=task,
        # With the precision in it, the recipe repeats the run on another machine too.
        recipe=replace(recipe, precision="bfloat16" if bfloat16 else "float32"),
        arch=network,
        source=source,
        train=train,
        preprocess=preprocess,
        device=device,
        bfloat16=bfloat16,
        workers=0 if isinstance(train.images, torch.Tensor) else workers,
        world=world,
        pretrained=pretrained,
        teacher=load(recipe.teacher, classes=source.classes) if recipe.teacher else None,
    )
    if problems := [*task.contradictions(plan), *contradictions(plan)]:
        raise UsageError("\n".join(problems))
    return plan


def load_pretrained_model(recipe: Recipe, external: ExternalArch | None = None) -> Model | None:
    """What a recipe starts from; None where that is random weights. Raises as `load`."""
    if not recipe.weights:
        return None
    inputs = input_options(recipe)
    return load(recipe.weights, hints=recipe.arch, network=external, inputs=inputs)


def warn_of_folded_norm(weights: str, pretrained: Model) -> None:
    """Warn of weights that training with statistics of batches would destroy."""
    if has_folded_norm(pretrained.network):
        text = (
            f"the batch normalisation of {weights} is folded into its convolutions; statistics of\n"
            "batches would destroy what it has learnt: --set norm=frozen"
        )
        warnings.warn(text, Assumption, stacklevel=3)


def suggest_weights(source: Source, train: Split, recipe: Recipe, task: Task) -> WeightsRow | None:
    """Published weights of the recipe's network that would help on few photographs."""
    if recipe.weights or task.pretrained_recipe is None or not has_few_photographs(source, train):
        return None
    return best_or_none(recipe.model)


def choose_precision(precision: str, arch: Arch, device: torch.device) -> bool:
    """Whether to train in bfloat16. An `Assumption` warns where `auto` has to be float32.

    Raises UsageError where bfloat16 is asked for and its gradients would be wrong.
    """
    bfloat16 = use_bfloat16(precision, device)
    if not bfloat16 or device.type != "cpu" or not has_narrow_input(arch):
        return bfloat16
    problem = (
        f"inputs of {arch.size} pixels shrink to maps narrower than a stride of the network, whose "
        "gradients PyTorch computes wrongly in bfloat16 on processors"
    )
    if precision == "bfloat16":
        raise UsageError(f"{problem}: --set precision=float32, or a larger size")
    text = f"{problem}, so this is float32; a larger size is faster"
    warnings.warn(text, Assumption, stacklevel=2)
    return False


def contradictions(plan: Plan) -> Iterator[str]:
    """Contradictions of a plan for any task, each with its remedy."""
    recipe, source, pretrained, teacher = plan.recipe, plan.source, plan.pretrained, plan.teacher
    side = recipe.train_size or plan.preprocess.size
    if isinstance(plan.arch, ExternalArch):
        usual = Recipe(model=recipe.model)
        if pretrained and not isinstance(pretrained.metadata.arch, ExternalArch):
            yield f"{recipe.weights} is of resnets, {recipe.model} is custom: leave it out"
        for name in KNOWN_NETWORKS_ONLY:
            if getattr(recipe, name) != getattr(usual, name):
                yield f"{name} needs a network of resnets, {recipe.model} is custom: leave it out"
    chooses = recipe.select != "last" or recipe.early_stop_patience or recipe.schedule == "plateau"
    if chooses and (recipe.monitor == "test" or source.val is None):
        yield (
            "select=best or lowest-loss, early_stop_patience and schedule=plateau go by validation "
            "images, never by the test: --set monitor=val, and --set val_fraction=0.1 where there "
            "are none"
        )
    freezes = recipe.freeze_backbone_epochs or recipe.freeze_stages or recipe.head == "probe"
    if recipe.fsdp and (freezes or recipe.optimizer not in ("sgd", "adamw")):
        yield "fsdp=true is for optimizer sgd or adamw; not with head=probe or what freezes layers"
    if recipe.fsdp and recipe.sam:
        yield "sam moves whole weights, fsdp=true shards them: --set sam=0, or --set fsdp=false"
    if recipe.batch % plan.world.size:
        yield f"batch={recipe.batch} cannot be shared by {plan.world.size} processes evenly"
    if pretrained and (takes := pretrained.metadata.arch.channels) != source.channels:
        has = f"{source.name} has {source.channels}"
        yield f"{recipe.weights} takes images of {takes} channels, {has}"
    if teacher and teacher.metadata.classes != source.classes:
        yield f"the teacher {recipe.teacher} knows other classes than {source.name}"
    if teacher and not same_normalization(teacher.metadata.preprocess, plan.preprocess):
        yield f"the teacher {recipe.teacher} normalises otherwise: --set normalize=..."
    if recipe.sampler == "balanced" and not has_one_class_each(plan.train):
        yield "sampler=balanced is for images with one class each: --set sampler=uniform"
    if recipe.swa and (recipe.ema or recipe.budget):
        yield "swa is another average than ema, and counts steps: --set ema=0, and no budget"
    if recipe.warmup > plan.steps and not recipe.budget:
        steps = f"{plan.steps} steps of the run"
        yield f"warmup={recipe.warmup:g} is longer than the {steps}; 0.1 is a tenth of them"
    if (recipe.mean or recipe.std) and recipe.normalize != "data":
        yield f"normalize={recipe.normalize} is a mean and std too: give one of them"
    if recipe.nesterov and not recipe.momentum:
        yield "nesterov needs a momentum: --set momentum=0.9, or --set nesterov=false"
    if recipe.schedule == "one-cycle" and recipe.optimizer in ("adamw", "lamb"):
        yield f"schedule=one-cycle moves a momentum, and {recipe.optimizer} has none: take cosine"
    if recipe.schedule == "one-cycle" and not recipe.warmup:
        yield "schedule=one-cycle rises before it falls: --set warmup=0.3, or schedule=cosine"
    if recipe.milestones and recipe.schedule != "step":
        yield f"milestones are for --set schedule=step, not for {recipe.schedule}"
    if recipe.progressive_from > side:
        start = f"progressive_from={recipe.progressive_from}"
        yield f"{start} is larger than the input, which grows to {side}"


def has_one_class_each(train: Split) -> bool:
    """Whether the labels are the numbers of classes."""
    return train.labels.ndim == 1 and not train.labels.is_floating_point()


def same_normalization(first: Preprocess, second: Preprocess) -> bool:
    """Whether means and deviations are the same, but for being of another sample."""
    pairs = zip((*first.mean, *first.std), (*second.mean, *second.std), strict=False)
    return len(first.mean) == len(second.mean) and all(abs(a - b) < 0.05 for a, b in pairs)


def model_name(arch: Arch) -> str | None:
    """The model of that architecture, whatever its input and classes."""
    shape: dict[str, Any] = {k: getattr(arch, k) for k in ("channels", "classes", "size")}
    return next((name for name, k in families.ARCHS.items() if replace(k, **shape) == arch), None)


def preprocessing(
    recipe: Recipe, source: Source, task: Task, pretrained: Model | None
) -> Preprocess:
    """How this run turns an image into the network's input, at test time."""
    images = training_images(source).images
    files = not isinstance(images, torch.Tensor)
    known = pretrained.metadata.preprocess if pretrained else None
    size = recipe.size or ((known or IMAGENET).size if files else source.size)
    # ImageNet's protocol: centre 224 of the shorter side 256 (fb.resnet.torch; 224 / 256 = 0.875).
    resize = resized_side(size, recipe.crop_pct) if files and size >= 64 else size
    if known and files and size == known.size and recipe.crop_pct == CROP_PCT:
        resize = known.resize
    if task.whole_images:
        resize = 0
    if resize > 2**13:
        raise UsageError(f"size={size} with crop_pct={recipe.crop_pct} needs over 8,192 pixels")
    mean, std = input_statistics(recipe, source, size)
    chosen = Preprocess(
        size=size, resize=resize, channels=source.channels, mean=mean, std=std, white=source.white
    )
    if known and len(known.mean) == known.channels == source.channels:
        # The weights know the statistics that they were trained with.
        chosen = replace(chosen, mean=known.mean, std=known.std)
    if known:
        chosen = replace(chosen, interpolation=known.interpolation)
    return with_options(chosen, input_options(recipe))


def input_options(recipe: Recipe) -> InputOptions:
    """What a recipe says of inputs by fields of their own."""
    interpolation = None if recipe.interpolation == "auto" else recipe.interpolation
    return InputOptions(
        mean=recipe.mean or None, std=recipe.std or None, interpolation=interpolation
    )


def input_statistics(
    recipe: Recipe, source: Source, size: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, or with normalize=pixel of each value of the input."""
    if recipe.normalize != "pixel":
        return normalization(recipe.normalize, source, source.channels)
    images = training_images(source).images
    if not isinstance(images, torch.Tensor) or images.shape[-1] != size:
        raise UsageError(
            "normalize=pixel needs a data set in memory (digits, cifar10, cifar100) at its own "
            "size; use --set normalize=data"
        )
    mean_image = images.double().mean(0) / 255  # (C, H, W): 1512.03385, section 4.2
    mean = tuple(round(value, 7) for value in mean_image.flatten().tolist())
    return mean, (1.0,) * source.channels
