"""Names of tensors as other programs write them, and our names for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from resnets.config.arch import LAYERS, Arch, ResNetArch, VitArch
from resnets.errors import CheckpointError
from resnets.escape import shorten
from resnets.models.transformer import NAMES, rename_parts

PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")  # data parallel, compiled, Lightning
# One tensor of each kind of network, behind the prefix of what wraps it.
FIRST_TENSOR = re.compile(
    r"((?:.*\.)?)(?:layer1\.0\.conv1\.(?:conv\.|paths\.0\.conv\.)?weight|features\.conv0\.weight"
    r"|features\.0\.weight|inception3a\.branch1\.conv\.weight|stages\.0\.blocks\.0\.conv1\.weight|class_token|encoder\.pos_embedding|units\.0\.linear1\.weight)"
)
# Copies that follow another network: of MoCo, BYOL, DINO, mean teachers.
MOMENTUM_COPIES = re.compile(r"(^|[._])(encoder_k|key|momentum|target|teacher|ema|shadow)([._]|$)")
LOSSES_AND_METRICS = re.compile(  # what a LightningModule keeps beside its layers
    r"(\w*_)?(criterion|loss(es)?(_fn|_func)?|metrics?|acc(uracy)?|auroc|auc|f1(_score)?|precision"
    r"|recall|confusion_matrix|confmat)(_\w*|\d*)\."
)
AUXILIARY = re.compile(r"aux[12]\.")  # GoogLeNet's classifiers for training alone
HEAD = re.compile(
    r"(?:.*\.)?(?:head|fc|classifier|linear|logits|last_linear|cls_head)(?:\.fc|\.\d+)?"
    r"\.(weight|bias)"
)
# Names of other programs, as patterns, and ours.
FOREIGN_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^(?:last_)?linear\.": "fc.",
    # timm's networks by the authors of SENet, and its selective kernels.
    r"^layer0\.": "",
    r"\.se_module\.": ".se.",
    r"^(layer\d+\.\d+\.)conv(\d)\.conv\.": r"\1conv\2.",
    r"^(layer\d+\.\d+\.)conv(\d)\.bn\.": r"\1bn\2.",
    r"^(layer\d+\.\d+)\.shortcut\.": r"\1.downsample.",
    # torchvision's DenseNet files of 2017: norm.1 for norm1.
    r"(denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2.",
    # Its detectors' files of 2019: convolutions that are not in blocks.
    r"(\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$": r"\1.0.\2",
    r"^rpn\.head\.conv\.(weight|bias)$": r"rpn.head.conv.0.0.\1",
    r"\.mask_fcn([1-4])\.": lambda match: f".{int(match[1]) - 1}.0.",
    r"(_head\.conv)\.([0246])\.(weight|bias)$": (
        lambda match: f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}"
    ),
}
# timm's resnetv2, whose normalisations stand before the convolutions.
RESNETV2_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^stem\.conv\.": "conv1.",
    r"^stem\.(conv|norm)([123])\.": (
        lambda match: f"conv1.{3 * int(match[2]) - 3 + (match[1] == 'norm')}."
    ),
    r"^stages\.(\d{1,2})\.blocks\.(\d+)\.": lambda match: f"layer{int(match[1]) + 1}.{match[2]}.",
    r"^(layer\d+\.\d+\.)norm([123])\.": (
        lambda match: f"{match[1]}bn{int(match[2]) - 1}.".replace("bn0", "pre.bn")
    ),
    r"^(layer\d+\.\d+\.downsample)\.conv\.": r"\1.0.",
    r"^norm\.": "final.bn.",
    r"^head\.fc\.": "fc.",
}


# timm's VGG, whose linear layers are convolutions.
VGG_NAMES: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^pre_logits\.fc1\.": "classifier.0.",
    r"^pre_logits\.fc2\.": "classifier.3.",
    r"^head\.fc\.": "classifier.6.",
}


def network_tensors(state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The tensors of the one network in `state`, without the prefix of what wraps it.

    What stands beside it is left out, and a classifier under another name becomes `fc` or
    `classifier`; both are noted. Raises CheckpointError for several networks, or for a second
    classifier beside the network's own.
    """
    prefixes = network_prefixes(state)
    if not prefixes:
        return strip_prefixes(state)
    leaders = [prefix for prefix in prefixes if not MOMENTUM_COPIES.search(prefix)]
    if len(leaders) != 1:
        names = ", ".join(shorten(x or "the names without prefix", 40) for x in prefixes[:4])
        raise CheckpointError(f"several networks in it: {names}.\nSave the state dict of one.")
    (prefix,) = leaders
    if len(prefixes) > 1:
        notes.append(f"of {len(prefixes)} networks `{shorten(prefix, 40)}` was taken")
    body = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    beside = {n: t for n, t in state.items() if not n.startswith(prefix)}
    for name in list(body):
        auxiliary = AUXILIARY.match(name) and "inception3a.branch1.conv.weight" in body
        if auxiliary or LOSSES_AND_METRICS.match(name):
            beside[name] = body.pop(name)
    adopt_head(body, beside, notes)
    if beside:
        notes.append(f"{describe_tensors(beside)} left out: not of the network")
    return body


def network_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The prefix of each network in a state dict; a detector's ends before its backbone."""
    prefixes = dict[str, None]()
    for match in map(FIRST_TENSOR.fullmatch, state):
        if match is None:
            continue
        prefix = match[1]
        if prefix.endswith("backbone.body."):
            prefix = prefix.removesuffix("backbone.body.")
        elif prefix.endswith("backbone."):
            outer = prefix.removesuffix("backbone.")
            heads = (f"{outer}classifier.4.", f"{outer}classifier.0.", f"{outer}fpn.inner_blocks")
            if any(name.startswith(heads) for name in state):
                prefix = outer
        prefixes[prefix] = None
    return list(prefixes)


def adopt_head(body: dict[str, Tensor], beside: dict[str, Tensor], notes: list[str]) -> None:
    """Move a classifier that has another name, inside or beside the network, to the network's.

    Raises CheckpointError where there is one more than the network's own.
    """
    head = "classifier" if "features.conv0.weight" in body else "fc"
    residual = any(name.startswith("layer1.0.conv1.") for name in body)
    if "linear.weight" in body or not (residual or head == "classifier"):
        return
    matches = [HEAD.fullmatch(name) for name in [*beside, *body]]
    heads = {m[0]: m[1] for m in matches if m and not MOMENTUM_COPIES.search(m[0])}
    weights = [name for name, kind in heads.items() if kind == "weight"]
    if {f"{head}.weight", f"{head}.bias"} & body.keys():
        if len(weights) > 1:
            second = f"{shorten(weights[0], 60)} beside {head}.weight"
            raise CheckpointError(f"{second}.\nSave one network with one classifier.")
    elif len(weights) == 1:
        for name, kind in heads.items():
            body[f"{head}.{kind}"] = (beside if name in beside else body).pop(name)
        notes.append(f"`{shorten(weights[0].removesuffix('.weight'), 60)}` is taken for `{head}`")


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without `PREFIXES`. Raises CheckpointError where two get the same name."""
    stripped = dict[str, Tensor]()
    for name, tensor in state.items():
        new = PREFIXES.sub("", name)
        if new in stripped:
            raise CheckpointError(f"two tensors for {shorten(new, 80)}.\nKeep one of them.")
        stripped[new] = tensor
    return stripped


def describe_tensors(names: Mapping[str, object]) -> str:
    """How many tensors there are, with the first as an example."""
    first, plural = shorten(next(iter(names)), 60), len(names) > 1
    return f"{len(names):,} tensor{'s' * plural} ({first}{', ...' * plural})"


def from_foreign(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names. Raises CheckpointError for a ViT with an unknown one."""
    if "encoder.pos_embedding" in tensors:
        try:
            return rename_parts(tensors, {theirs: ours for ours, theirs in NAMES.items()})
        except KeyError as error:
            raise CheckpointError(f"a ViT with an unknown tensor: {error}") from None
    changed, names, linear = {}, FOREIGN_NAMES, {"fc.weight"}
    if "stages.0.blocks.0.conv1.weight" in tensors:
        names = RESNETV2_NAMES
    elif "pre_logits.fc1.weight" in tensors:
        names, linear = VGG_NAMES, {f"classifier.{layer}.weight" for layer in (0, 3, 6)}
    # Of timm's resnetv2 with a deep stem, which has a mean before each projection.
    averaged = "stem.conv3.weight" in tensors
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        if averaged:
            name = name.replace(".downsample.0.", ".downsample.1.")
        # Linear layers may be convolutions.
        changed[name] = tensor.flatten(1) if name in linear else tensor
    return changed if len(changed) == len(tensors) else dict(tensors)


def to_torchvision(tensors: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Our tensors under torchvision's names: a ViT has others, the rest of the family the same."""
    return rename_parts(tensors, NAMES) if isinstance(arch, VitArch) else dict(tensors)


def move_zeros_last(tensors: dict[str, Tensor], arch: ResNetArch) -> dict[str, Tensor]:
    """Move channels from "zeros half before, half after" to ours, where all zeros come last.

    `order[i]` is the channel of the other network that is our channel i. The new channels of a
    stage are written by its last convolutions and normalisations, and read by the next first ones.
    """
    if arch.shortcut != "A":
        return tensors
    last, moved = LAYERS[arch.unit], dict(tensors)
    order = list(range(arch.stem_width))
    for stage, (count, width) in enumerate(zip(arch.blocks, arch.widths, strict=True), 1):
        before, kept = order, len(order)
        half = (width - kept) // 2
        order = [i + half for i in before] + [*range(half), *range(half + kept, width)]
        for unit in range(count):
            prefix = f"layer{stage}.{unit}."
            reads = f"{prefix}conv1.weight"
            moved[reads] = moved[reads][:, before if unit == 0 else order]
            for name in tensors:
                if name.startswith((f"{prefix}conv{last}.", f"{prefix}bn{last}.")):
                    moved[name] = moved[name][order] if moved[name].ndim else moved[name]
    moved["fc.weight"] = moved["fc.weight"][:, order]
    return moved
