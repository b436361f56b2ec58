"""Functions as commands: arguments become options, explained by the docstrings."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import CycloptsError, Parameter, Token, UnknownOptionError, UnusedCliTokensError

from resnets.api.plans import plan
from resnets.config.recipe import Augment, Recipe
from resnets.errors import SYNONYMS, UsageError

WRITTEN: dict[str, tuple[Any, str]] = {  # how arguments are written that are not of a simple type
    "overrides": (list[str] | None, "FIELD=VALUE"),
    "search": (list[str], "FIELD=RANGE"),
    "fail_under": (list[str] | None, "METRIC=VALUE"),
    "budget": (str | None, "TIME"),
    "recipe": (str | None, "NAME|FILE"),
    "weights": (str | None, "NAME|FILE|RUN|none"),
    "scales": (str, "X,Y,Z"),
    "mean": (str | None, "R,G,B"),
    "std": (str | None, "R,G,B"),
    "view": (str, "VIEW"),
}
NAMES = {"overrides": "--set"}
SILENT_DEFAULTS = (None, False, "", "1", ())  # defaults that say nothing


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description of a function and of each argument, from its docstring."""
    text, _, arguments = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")
    text = re.split(r"\n\n(?=In Python|Raises)", text)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", arguments, re.MULTILINE)
    whole = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return whole, {name: " ".join(words.split()) for name, words in entries}


def annotate(name: str, hint: Any, default: Any, words: str) -> Any:
    """The annotation of an argument on the command line."""
    kinds, metavar = get_args(hint), None
    if name in WRITTEN:
        hint, metavar = WRITTEN[name]
    elif Path in kinds or Any in kinds:  # Any is what only Python can give
        hint = str | None if type(None) in kinds else str
        metavar = "PATH" if Path in kinds else None
    shown = default is not inspect.Parameter.empty and default not in SILENT_DEFAULTS
    whole = whole_number if int in (hint, *get_args(hint)) else None
    return Annotated[
        hint,
        Parameter(
            name=NAMES.get(name), help=words, metavar=metavar, show_default=shown, converter=whole
        ),
    ]


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """The converter of an option that is an int: cyclopts would round 1.5."""
    if not re.fullmatch(r"[+-]?[0-9]+", tokens[0].value):
        raise ValueError(f"{tokens[0].value!r} is not a whole number")
    return int(tokens[0].value)


def make_command(
    function: Callable[..., Any],
    run: Callable[..., Any],
    *,
    hide: Sequence[str] = (),
    fixed: Mapping[str, Any] = MappingProxyType({}),
    like: Callable[..., Any] | None = None,
    words: Mapping[str, str] = MappingProxyType({}),
) -> Callable[..., Any]:
    """A command that calls `run`; its options are its own arguments and those of `function`.

    `hide` are arguments of `function` that are no options, `fixed` those that are set here. What
    its docstring does not explain is looked up in that of `like`; `words` come first.
    """
    help = dict[str, str]()
    for source in (like or function, function, run):
        help |= read_docstring(source)[1]
    help |= words
    hints = get_type_hints(function) | get_type_hints(run)
    parameters, both = dict[str, inspect.Parameter](), map(inspect.signature, (run, function))
    for key, value in chain(*(signature.parameters.items() for signature in both)):
        if value.kind is value.VAR_KEYWORD or key in {*hide, *fixed, *parameters, "arguments"}:
            continue
        if value.kind is value.POSITIONAL_OR_KEYWORD:
            value = value.replace(kind=value.POSITIONAL_ONLY)
        hint = str if value.kind is value.VAR_POSITIONAL else hints[key]
        annotation = annotate(key, hint, value.default, help.get(key, ""))
        parameters[key] = value.replace(annotation=annotation)
    order = sorted(parameters.values(), key=lambda parameter: parameter.kind)
    signature = inspect.Signature(order)

    def call(*arguments: Any, **options: Any) -> Any:
        if empty := [name for name, value in options.items() if value == ""]:
            raise UsageError(f"--{empty[0]} is empty: is a variable of the shell not set?")
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        return run(*bound.args, **bound.kwargs, **fixed)

    call.__doc__ = words.get("", read_docstring(run)[0] or read_docstring(function)[0])
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {key: value.annotation for key, value in parameters.items()}
    return call


def explain_error(error: CycloptsError) -> str:
    """The message for a wrong command line, with the option that is nearest in meaning or name."""
    if isinstance(error, UnknownOptionError):
        typed = (error.token.keyword or error.token.value or "").partition("=")[0]
        known = [name for x in error.argument_collection if x.parse for name in x.names]
        return f"unknown option {typed}: {suggest_option(typed, known)}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected {explain_word(error.unused_tokens[0])}"
    return str(error)


def explain_word(word: str) -> str:
    """The message for a word that is not expected, and how to write it."""
    field, sign, value = word.partition("=")
    if not sign:
        return f"{word!r}: options begin with --; --help lists them"
    if field == "data":
        return f"{word!r}: write {value}, without data="
    options = inspect.signature(plan).parameters
    return f"{word!r}: write {f'--{field} {value}' if field in options else f'--set {word}'}"


def suggest_option(typed: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown option."""
    field = typed.strip("-").replace("-", "_")
    for usage, synonyms in SYNONYMS.items():
        needs = "--recipe" if usage.startswith("--set") else usage.split()[0].rstrip(",;")
        if field in synonyms.split() and (not usage.startswith("--") or needs in known):
            return f"here it is {usage}"
    settings = {f.name for f in fields(Recipe)} | {f"augment.{f.name}" for f in fields(Augment)}
    if "--recipe" in known and field in settings:
        return f"it is a field of the recipe: --set {field}=VALUE (`resnets train --help-fields`)"
    close = difflib.get_close_matches(typed, [name for name in known if len(name) > 2], cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else "--help lists the options"
