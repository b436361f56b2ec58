"""A network that this package cannot build: a custom module, used as its classifiers are."""

from __future__ import annotations

import copy
import hashlib
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnets import errors
from resnets.config.arch import ExternalArch
from resnets.errors import MissingCode, UsageError


class ExternalNetwork(nn.Module):
    """A custom module: (N, channels, size, size) -> logits (N, classes).

    The names of its tensors are those of the module itself. What offers levels to Grad-CAM and
    embeddings is the last map (N, C, H, W) of more than one place, found in a forward pass of
    zeros; parameters that the module has frozen stay so.

    Raises UsageError where it does not take such an input, or gives something else.
    """

    def __init__(self, arch: ExternalArch, module: nn.Module) -> None:
        super().__init__()
        self.arch, self.module = arch, module
        named = dict(module.named_parameters())
        if len(named) < len(list(module.named_parameters(remove_duplicate=False))):
            raise UsageError(f"{arch.builder} uses a parameter twice: a file holds each once")
        self.frozen = {f"module.{name}" for name, p in named.items() if not p.requires_grad}
        self.level, self.levels = "", dict[str, tuple[int, int]]()
        self.check_output()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, classes)."""
        return self.module(x.clone())  # which it may change in place

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The last map, by the name of the submodule that gives it; nothing where there is none."""
        return self.maps(x, self.level)[0] if self.level else {}

    def maps(self, x: Tensor, level: str = "") -> tuple[dict[str, Tensor], Tensor]:
        """The maps (N, C, H, W) of submodules in the order of computation, and the logits.

        Only that of `level` where one is named.
        """
        maps = dict[str, Tensor]()

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                    maps.pop(name, None)
                    maps[name] = output

            return hook

        names = [(n, m) for n, m in self.module.named_modules() if n and level in ("", n)]
        hooks = [module.register_forward_hook(keep(name)) for name, module in names]
        try:
            logits: Tensor = self.module(x.clone())
        finally:
            for handle in hooks:
                handle.remove()
        return maps, logits

    def state_dict(  # type: ignore[override]
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """That of the module, under its own names."""
        return self.module.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As that of the module."""
        return self.module.load_state_dict(state_dict, strict, assign)

    def check_output(self, training: bool = False) -> Tensor:
        """The logits of two images of zeros; finds the last map. UsageError for no logits."""
        arch, before = self.arch, self.module.training
        shape = (2, arch.channels, arch.size, arch.size)
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        images = "x".join(map(str, shape[1:])) + " in training mode" * training
        try:
            with (
                torch.set_grad_enabled(training),
                running(f"{arch.builder} fails on an input of {images}"),
            ):
                maps, logits = self.train(training).maps(torch.zeros(shape, device=device))
        finally:
            self.train(before)
        output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(output, tuple) or len(output) != 2 or output[0] != 2:
            raise UsageError(
                f"{arch.builder}: 2 images of {images} give {output}, not (2, classes)"
            )
        if output[1] != arch.classes:
            raise UsageError(
                f"{arch.builder} has {output[1]} outputs, the data has {arch.classes} classes: "
                f"build it with {arch.classes}"
            )
        if maps:
            self.level = next(reversed(maps))
            channels, height = maps[self.level].shape[1:3]
            self.levels = {self.level: (channels, max(1, round(arch.size / height)))}
        return logits


def describe(model: str | nn.Module | ExternalArch | object) -> ExternalArch:
    """What is known of a module, or of what a function my_module:function of this folder builds.

    Channels, classes and size are set when the data is known. A function is called whenever the
    network is built; of a module a copy is made, so training starts from the weights that it has.

    Raises UsageError that says why no module comes of it.
    """
    if isinstance(model, ExternalArch):
        return model
    if isinstance(model, nn.Module):
        whole = copy.deepcopy(model)  # what is done to the caller's later does not matter
        return ExternalArch(
            builder=type(model).__name__,
            digest=module_digest(model),
            make=lambda: copy.deepcopy(whole),
        )
    if not isinstance(model, str):
        kind = type(model).__name__
        raise UsageError(f"a network is a name, my_module:build or a torch.nn.Module, not a {kind}")
    with running(f"{model} cannot be imported"):
        function = pkgutil.resolve_name(model)
    if not callable(function):
        raise UsageError(f"{model} is not a function, but {type(function).__name__}")
    return ExternalArch(
        builder=model, digest=source_digest(function), make=lambda: _call(model, function)
    )


def _call(model: str, function: Callable[[], Any]) -> nn.Module:
    with running(f"{model} did not return a network"):
        network = function()
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} returns {type(network).__name__}, not a torch.nn.Module")
    return network


@contextmanager
def running(failure: str) -> Iterator[None]:
    """While custom code runs, modules of the working folder can be imported.

    Raises UsageError for whatever that code raises: `failure`, the error, and the last line of the
    code that is not a library's.
    """
    sys.path.insert(0, "")
    try:
        yield
    except Exception as error:
        libraries = ("<", *(str(Path(m.__file__ or "").parent) for m in (inspect, torch, errors)))
        frames = traceback.extract_tb(error.__traceback__)
        last = [f for f in frames if not f.filename.startswith(libraries)][-1:]
        at = "".join(f"\n{frame.filename}, line {frame.lineno}" for frame in last)
        line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UsageError(f"{failure}: {line}{at}") from error
    finally:
        sys.path.remove("")


def module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's text, less addresses in memory, and of the code that is not torch's."""
    classes = {type(m) for m in module.modules() if not type(m).__module__.startswith("torch.")}
    sources = sorted({source_digest(kind) for kind in classes})
    return _hash("".join(sources) + re.sub(r" at 0x[0-9a-fA-F]+", "", str(module)))


def source_digest(code: Any) -> str:
    """SHA-256 of the file that a function or class is defined in; "" where there is none."""
    try:
        return _hash(Path(inspect.getsourcefile(code) or "").read_text(encoding="utf-8"))
    except (TypeError, OSError, ValueError):
        return ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build(arch: ExternalArch) -> ExternalNetwork:
    """The network, on the CPU. Raises UsageError where the module is not at hand."""
    if arch.make is None:
        raise MissingCode("the network is", arch.builder, "--network")
    with torch.device("cpu"):  # also where all else is built without memory
        return ExternalNetwork(arch, arch.make())
