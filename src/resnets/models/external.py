"""A network that this package cannot build: a person's own module, used as its classifiers are."""

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
    """A module of a person's own: (N, channels, size, size) -> logits (N, classes).

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
        self.check_answer()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, classes)."""
        logits: Tensor = self.module(x.clone())  # which it may change in place
        return logits

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The last map, by the name of the submodule that gives it; nothing where there is none."""
        return self.maps(x, self.level)[0] if self.level else {}

    def maps(self, x: Tensor, level: str = "") -> tuple[dict[str, Tensor], Tensor]:
        """The maps (N, C, H, W) of submodules in the order of computation, and the logits.

        Only that of `level` where one is named.
        """
        found = dict[str, Tensor]()

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
                    found.pop(name, None)
                    found[name] = output

            return hook

        names = [(n, m) for n, m in self.module.named_modules() if n and level in ("", n)]
        hooks = [module.register_forward_hook(keep(name)) for name, module in names]
        try:
            logits: Tensor = self.module(x.clone())
        finally:
            for handle in hooks:
                handle.remove()
        return found, logits

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

    def check_answer(self, training: bool = False) -> Tensor:
        """The logits of two images of zeros; finds the last map. UsageError for no logits."""
        arch, before = self.arch, self.module.training
        shape = (2, arch.channels, arch.size, arch.size)
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        what = "x".join(map(str, shape[1:])) + " in training mode" * training
        try:
            with torch.set_grad_enabled(training):
                maps, logits = self.train(training).maps(torch.zeros(shape, device=device))
        except Exception as error:  # whatever a person's code does
            raise failure(f"{arch.builder} fails on an input of {what}", error) from error
        finally:
            self.train(before)
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(given, tuple) or len(given) != 2 or given[0] != 2:
            raise UsageError(f"{arch.builder}: 2 images of {what} give {given}, not (2, classes)")
        if given[1] != arch.classes:
            raise UsageError(
                f"{arch.builder} has {given[1]} outputs, the data has {arch.classes} classes: "
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
    with working_folder():
        try:
            function = pkgutil.resolve_name(model)
        except Exception as error:  # whatever a person's code does
            raise failure(f"{model} cannot be imported", error) from error
    if not callable(function):
        raise UsageError(f"{model} is not a function, but {type(function).__name__}")
    return ExternalArch(
        builder=model, digest=source_digest(function), make=lambda: _call(model, function)
    )


def _call(model: str, function: Callable[[], Any]) -> nn.Module:
    with working_folder():
        try:
            network = function()
        except Exception as error:  # whatever a person's code does
            raise failure(f"{model} did not return a network", error) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} returns {type(network).__name__}, not a torch.nn.Module")
    return network


def failure(what: str, error: Exception) -> UsageError:
    """The error of a person's code, and the last line that is not of a library."""
    libraries = ("<", *(str(Path(m.__file__ or "").parent) for m in (inspect, torch, errors)))
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if not f.filename.startswith(libraries)]
    at = f"\n{mine[-1].filename}, line {mine[-1].lineno}" if mine else ""
    line = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return UsageError(f"{what}: {line}{at}")


@contextmanager
def working_folder() -> Iterator[None]:
    """Modules of the working folder can be imported."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def module_digest(module: nn.Module) -> str:
    """SHA-256 of a module's text, less addresses in memory, and of the code that is not torch's."""
    classes = {type(m) for m in module.modules() if not type(m).__module__.startswith("torch.")}
    sources = sorted({source_digest(kind) for kind in classes})
    return _hash("".join(sources) + re.sub(r" at 0x[0-9a-fA-F]+", "", str(module)))


def source_digest(thing: Any) -> str:
    """SHA-256 of the file that something is defined in; "" where there is none."""
    try:
        return _hash(Path(inspect.getsourcefile(thing) or "").read_text(encoding="utf-8"))
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
