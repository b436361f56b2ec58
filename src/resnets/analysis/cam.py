"""Which parts of an input a prediction rests on: heat maps, their pictures, a check of them.

Classifiers are in evaluation mode; inputs are normalised, so 0 is the mean of the training data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from resnets.errors import UsageError, nearest
from resnets.models import Classifier, build
from resnets.models.external import ExternalNetwork
from resnets.models.heads import classify
from resnets.models.layers import global_mean
from resnets.models.mlp import Mlp
from resnets.models.transformer import VisionTransformer

Heatmap = Callable[[Classifier, Tensor, Tensor], Tensor]  # (B, C, *S), int64 (B,) -> (B, *S)
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
LIMIT = 0.5  # rank correlation with a random network's maps from which on a map proves nothing


def grad_cam(
    network: Classifier, images: Tensor, targets: Tensor, *, level: str | None = None
) -> Tensor:
    """ReLU of the level's channels, each weighted by its mean gradient of the target's logit.

    Selvaraju et al. 2017 (1610.02391), eq. 1 and 2, upsampled linearly and divided by its maximum;
    0 everywhere where nothing speaks for the class. `level` is the last one if none is named; of a
    custom module it is a submodule. A transformer's are the patches that enter its last block: what
    leaves it has no effect.

    Shapes: (B, C, *S) and int64 (B,) -> (B, *S) in 0..1.

    Raises UsageError for a level that the network does not have, or a network without maps.
    """
    with torch.enable_grad():
        source, logits = _level_and_logits(network, images.detach().clone().requires_grad_(), level)
        (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), source)
    if isinstance(network, VisionTransformer):  # the patches, without the class token
        side = network.arch.size // network.arch.patch
        size = (len(images), -1, side, side)
        source, gradient = (t[:, 1:].mT.reshape(size) for t in (source, gradient))
    heat = torch.einsum("nc...,nc->n...", source.detach(), global_mean(gradient)).relu()
    mode = LINEAR[images.ndim - 2]
    return normalize_heatmap(F.interpolate(heat[:, None], images.shape[2:], mode=mode)[:, 0])


def _level_and_logits(network: Classifier, x: Tensor, level: str | None) -> tuple[Tensor, Tensor]:
    """What the named or the last level gives for x, and the logits computed from it."""
    if isinstance(network, Mlp):
        raise UsageError("a network for tables has no feature maps to draw")
    if isinstance(network, ExternalNetwork):  # a module whose head is not known
        known = [name for name, _ in network.module.named_modules() if name]
        if level and level not in known:
            raise UsageError(f"the network has no module {level!r}: {nearest(level, known)}")
        if not network.level:
            raise UsageError("the network has no map (N, C, H, W) to draw: explain by occlusion")
        maps, logits = network.maps(x, level or network.level)
        if not maps:
            raise UsageError(f"{level} gives no map (N, C, H, W) larger than one pixel")
        return maps[level or network.level], logits
    if level and level not in network.levels:
        raise UsageError(f"the network has no level {level!r}: {nearest(level, network.levels)}")
    if isinstance(network, VisionTransformer):
        tokens: list[Tensor] = []
        with network.blocks[-1].register_forward_pre_hook(lambda _, x: tokens.extend(x)):
            logits = network(x)
        return tokens[0], logits
    maps, last = network.features(x), list(network.levels)[-1]
    return maps[level or last], classify(network, maps[last])


@torch.no_grad()
def occlusion(
    network: Classifier,
    images: Tensor,
    targets: Tensor,
    *,
    window: int = 0,
    stride: int = 0,
    multi_label: bool = False,
) -> Tensor:
    """How far the target's probability falls when a window of the mean hides a region.

    Zeiler and Fergus 2014 (1311.2901), section 4.2; the mean over the windows that hide it. Needs
    no gradient. `window` 0 is a quarter of the shortest side, `stride` 0 half the window;
    `multi_label` says that an image may have multiple classes.

    Shapes: (B, C, *S) and int64 (B,) -> (B, *S) in -1..1; below 0 where hiding helps.
    """
    window = window or max(1, min(images.shape[2:]) // 4)
    stride = stride or max(1, window // 2)
    hidden = torch.ones(1, dtype=torch.uint8)  # (windows, *S)
    for side in images.shape[2:]:
        start = torch.arange(0, max(0, side - window) + stride, stride)[:, None]
        line = (torch.arange(side) >= start) & (torch.arange(side) < start + window)
        hidden = torch.einsum("p...,qs->pq...s", hidden, line.byte()).flatten(0, 1)
    hidden = hidden.to(images)
    views = torch.cat([torch.zeros_like(hidden[:1]), hidden])
    heats = []
    for image, target in zip(images, targets, strict=True):
        occluded = [image * (1 - masks[:, None]) for masks in torch.split(views, 64)]
        logits = torch.cat([network(chunk) for chunk in occluded])
        probability = (logits.sigmoid() if multi_label else logits.softmax(1))[:, target]
        drop = probability[0] - probability[1:]
        heats.append(torch.einsum("p,p...->...", drop, hidden) / hidden.sum(0))
    return torch.stack(heats)


def normalize_heatmap(heat: Tensor) -> Tensor:
    """The evidence for the class, divided by its maximum: (B, *S) -> (B, *S) in 0..1."""
    maximum = heat.flatten(1).amax(1).view(-1, *(1,) * (heat.ndim - 1))
    return heat.clamp_min(0) / torch.where(maximum > 0, maximum, 1)


def overlay(image: Tensor, heat: Tensor, side: int = 224) -> Image.Image:
    """The picture in grey under the heat in colour, as opaque as it is hot; at least `side` wide.

    Shapes: uint8 (C, H, W), (H, W) in 0..1.
    """
    layers = torch.stack([image.float().mean(0).cpu() / 255, heat.float().cpu()])[None]
    factor = max(1, math.ceil(side / min(heat.shape)))
    grey, warm = F.interpolate(layers, scale_factor=factor, mode="bicubic")[0].clamp(0, 1)
    colour = torch.from_numpy(colormaps["inferno"](warm.numpy())[..., :3])
    blend = torch.lerp(grey[..., None].double(), colour, 0.8 * warm[..., None].double().sqrt())
    return Image.fromarray((255 * blend).byte().numpy())


@dataclass(frozen=True, slots=True)
class RandomizationCheck:
    """Rank correlation (Spearman) of heat maps with those of networks with random weights.

    By the module down to which, from the classifier on, weights are random; at the last all are.
    """

    correlations: dict[str, float | None]  # None where no image has heat in both maps

    @property
    def depends(self) -> bool:
        """Whether the maps are shown to depend on what was learned."""
        *_, rho = self.correlations.values()
        return rho is not None and abs(rho) < LIMIT

    @property
    def verdict(self) -> str:
        """One sentence."""
        *_, rho = self.correlations.values()
        if rho is None:
            return "Whether the map depends on what was learned cannot be told: nothing to compare."
        verb = "depends" if self.depends else "does not depend"
        return (
            f"The map {verb} on what was learned: its rank correlation with the map of a random "
            f"network is {rho:.2f}, and independent maps are within ±{LIMIT}."
        )


def check_randomization(
    network: Classifier, images: Tensor, targets: Tensor, *, heat: Heatmap = grad_cam, seed: int = 0
) -> RandomizationCheck:
    """The cascading randomisation check of Adebayo et al. 2018 (1810.03292), section 3.1.

    Shapes: (B, C, *S), int64 (B,). A map without heat, or with nan, is left out.
    """
    from scipy.stats import rankdata  # here, since it takes 1 s to import

    def ranks(network: Classifier) -> Tensor:
        rows = torch.from_numpy(rankdata(heat(network, images, targets).flatten(1).cpu(), axis=1))
        return rows - rows.mean(1, keepdim=True)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(network, ExternalNetwork):  # it may not know how to begin anew: shuffled
            fresh = {
                name: t.flatten()[torch.randperm(t.numel()).to(t.device)].view_as(t)
                for name, t in network.state_dict().items()
            }
        else:
            fresh = build(network.arch).state_dict()
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in fresh.items():
        modules.setdefault(name.removeprefix("features.").split(".")[0], {})[name] = tensor
    trained, randomized = ranks(network), copy.deepcopy(network)
    correlations = dict[str, float | None]()
    for module, tensors in reversed(modules.items()):
        randomized.load_state_dict(tensors, strict=False)
        if any(tensor.ndim > 1 for tensor in tensors.values()):
            random = ranks(randomized)
            rho = F.cosine_similarity(trained, random)
            valid = trained.any(1) & random.any(1) & rho.isfinite()
            correlations[module] = rho[valid].mean().item() if valid.any() else None
    return RandomizationCheck(correlations)
