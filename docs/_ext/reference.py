"""Reference pages from the code itself: commands, functions, records, errors, recipes, networks.

Each function gives Markdown. `docs/conf.py` puts it where a page says `<!-- drawn: NAME -->`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import resnets
from resnets import errors
from resnets.config.tasks import TASK_TEXTS

USUAL = {  # arguments and fields that mean the same everywhere
    "data": "A path or a known name; in Python also a torch Dataset.",
    "model": "A run folder, a model file or a foreign weights file; in Python also a loaded model.",
    "run": "A run folder.",
    "runs": "Run folders.",
    "plan": "What `plan` gives.",
    "images": "Number of images.",
    "classes": "Names of the classes.",
    "split": "Which images: test, val, train or all.",
    "unreadable": "Files that could not be read, and why.",
    "problem": "Why the image could not be read.",
    "file": "The path of the image.",
    "device": "Where it computes.",
}
EXPLAINED_BY_PLAN = ("train", "tune", "resume", "lr_range_test")  # arguments without words here
SIGNALS = {130: "Ctrl-C (SIGINT)", 143: "SIGTERM"}


def table(head: Sequence[str], rows: typing.Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without columns that are empty; a line end in a cell becomes a blank."""
    kept = list(rows)
    filled = [k for k in range(len(head)) if not kept or any(row[k] for row in kept)]
    lines = [list(head), ["---"] * len(head), *kept]
    cells = [[" ".join(line[k].split()).replace("|", "\\|") for k in filled] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def commands() -> str:
    """Every command with its arguments and options, as the command line documents itself."""
    from resnets.cli.main import app

    text = app.generate_docs(output_format="markdown", recursive=True)
    text = re.sub(r" -m [\w.]+", "", text)  # how this program was started
    text = re.sub(r", --(?:no|empty)-[\w-]+(?=`)", "", text)  # which `add` switches off
    top, *sections = re.split(r"^(?=##+ resnets )", text, flags=re.MULTILINE)
    sections.sort(key=lambda section: section.startswith("## resnets --"))  # options come last
    shared = "\n".join(re.findall(r"^\* `--(?:verbose|quiet|json).*$", top, re.MULTILINE))
    parts = ["Every command has these options:", shared]
    for section in sections:
        heading, body = section.split("\n", 1)
        for line in shared.splitlines():
            body = body.replace(f"{line}\n", "")
        body = body.replace("resnets train train ", "resnets train ")
        body = re.sub(r"\*\*Parameters\*\*:\n\n(?=\s*\Z)", "", body).replace("console", "text")
        body = body.replace("\n\n**Parameters**:\n\n**", "\n\n**")
        body = re.sub(r"\]\(#resnets-[\w-]+\)", "]", body)
        level, name = heading.split(" ", 1)
        parts.append(f"{level} {name}\n{body}".rstrip())
    return "\n\n".join(parts).replace("[`", "`").replace("`]", "`")


def functions() -> str:
    """Every public function: signature, description, arguments, result, errors."""
    return "\n\n".join(function(name) for name in resnets.__all__)


def function(name: str) -> str:
    """One public function."""
    called = inspect.unwrap(getattr(resnets, name))
    text, arguments = split_docstring(called)
    usual = resnets.plan if name in EXPLAINED_BY_PLAN else resnets.evaluate
    arguments = USUAL | split_docstring(inspect.unwrap(usual))[1] | arguments
    signature = inspect.signature(called)
    rows = []
    for key, parameter in signature.parameters.items():
        default = "" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        if callable(parameter.default) and parameter.default is not parameter.empty:
            default = "does nothing"
        star = "*" * (parameter.kind is parameter.VAR_POSITIONAL)
        hint = spelled(parameter.annotation, called.__module__)
        rows.append((f"`{star}{key}`", f"`{hint}`", default, arguments.get(key, "")))
    parts = [f"## resnets.{name}", f"`{called.__module__}.{name}`", text]
    if rows:
        parts.append(table(("argument", "type", "default", "meaning"), rows))
    given = dict.fromkeys(classes_of(signature.return_annotation, called.__module__))
    links = ", ".join(f"[{kind.__name__}](records.md#{kind.__name__.lower()})" for kind in given)
    parts.append(f"Gives `{signature.return_annotation}`" + f": {links}" * bool(links))
    return "\n\n".join(parts)


def spelled(annotation: str, module: str) -> str:
    """An annotation with the values of its Literals, also of those that have a name."""

    def values(match: re.Match[str]) -> str:
        named = lookup(match[0], importlib.import_module(module))
        literal = typing.get_origin(named) is typing.Literal
        return " | ".join(map(repr, typing.get_args(named))) if literal else match[0]

    text = re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace(", ", " | "), annotation)
    return re.sub(r"\b[A-Z]\w+", values, text)


def split_docstring(documented: Any) -> tuple[str, dict[str, str]]:
    """The description, and the words for each argument."""
    text, _, arguments = inspect.cleandoc(documented.__doc__ or "").partition("\nArgs:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", arguments, re.MULTILINE)
    return text.strip(), {name: " ".join(words.split()) for name, words in entries}


def records() -> str:
    """What the public functions give: the records, their fields and methods."""
    near, far = public_records()
    parts = ["## What the functions give", *(record(kind) for kind in near)]
    parts += ["## Records inside the records", *(record(kind) for kind in far)]
    return "\n\n".join(parts)


def public_records() -> tuple[list[type], list[type]]:
    """The classes that public functions give, and those in the fields of the former."""
    near: dict[type, None] = {}
    for name in resnets.__all__:
        called = inspect.unwrap(getattr(resnets, name))
        near |= dict.fromkeys(classes_of(called.__annotations__.get("return"), called.__module__))
    for kind in list(near):  # what its methods give, by annotation or by docstring
        for method in filter(None, map(method_of, vars(kind).values())):
            named = [
                method.__annotations__.get("return"),
                *re.findall(r"`\w+`", method.__doc__ or ""),
            ]
            near |= dict.fromkeys(classes_of(named, kind.__module__))
    far: dict[type, None] = {}
    waiting = list(near)
    while waiting:
        kind = waiting.pop(0)
        for annotation in vars(kind).get("__annotations__", {}).values():
            for inner in classes_of(annotation, kind.__module__):
                if inner not in near and inner not in far and not issubclass(inner, Exception):
                    far[inner] = None
                    waiting.append(inner)
    return list(near), list(far)


def classes_of(annotation: Any, module: str) -> Iterator[type]:
    """The classes of this package that an annotation names."""
    for word in re.findall(r"[A-Za-z_]\w*", str(annotation)):
        named = lookup(word, importlib.import_module(module))
        for kind in (named, *typing.get_args(named)):
            if inspect.isclass(kind) and kind.__module__.startswith("resnets"):
                yield kind


@cache
def imports(module: ModuleType) -> dict[str, tuple[str, str]]:
    """What a module imports from this package, also for its annotations alone."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnets")
        for alias in node.names
    }


def lookup(name: str, module: ModuleType) -> Any:
    """What a name in an annotation of a module stands for; None for a name of elsewhere."""
    if name in imports(module):
        home, there = imports(module)[name]
        return getattr(importlib.import_module(home), there, None)
    return getattr(module, name, None)


def record(kind: type) -> str:
    """A class: its description, its fields with their comments, its methods."""
    own = kind.__doc__ or ""
    text = "" if own.startswith(f"{kind.__name__}(") else split_docstring(kind)[0]
    module = kind.__module__
    parts = [f"### {kind.__name__}", f"`{module}.{kind.__name__}`", text]
    if is_dataclass(kind):
        comments = USUAL | figure_meanings() | field_comments(kind)
        rows = []
        for one in fields(kind):
            default = "" if one.default is MISSING else f"`{one.default!r}`"
            words = one.metadata.get("meaning", comments.get(one.name, ""))
            hint = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", "")
            rows.append((f"`{one.name}`", f"`{hint}`", default, words))
        if rows:
            parts.append(table(("field", "type", "default", "meaning"), rows))
    for name, value in vars(kind).items():
        if not name.startswith("_") and (method := method_of(value)):
            signature = "" if isinstance(value, property) else short_signature(method)
            parts.append(f"`.{name}{signature}`\n: {indented(split_docstring(method)[0])}")
    return "\n\n".join(part for part in parts if part)


def figure_meanings() -> dict[str, str]:
    """What each figure of a result means, as the reports say it."""
    texts = TASK_TEXTS.values()
    return {key: meaning for text in texts for key, (_, meaning) in text.figures.items()}


def method_of(value: Any) -> Callable[..., Any] | None:
    """The documented function behind an attribute of a class."""
    plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return plain if inspect.isfunction(plain) and plain.__doc__ else None


def short_signature(method: Callable[..., Any]) -> str:
    """The arguments and the result of a method, without self."""
    signature = inspect.signature(method)
    kept = [p for name, p in signature.parameters.items() if name not in ("self", "cls")]
    return str(signature.replace(parameters=kept)).replace("'", "")


def indented(text: str) -> str:
    """The body of an entry of a definition list."""
    return text.replace("\n", "\n  ")


def field_comments(kind: type) -> dict[str, str]:
    """The comment beside each field, or in the lines above it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        code, _, words = line.partition("# ")
        field = re.match(r"    (\w+): ", code)
        if not code.strip() and words:
            above.append(words)
        elif field:
            comments[field[1]] = words or " ".join(above)
            above = []
        else:
            above = []
    return {key: words for key, words in comments.items() if words}


def error_classes() -> list[type[errors.ResnetsError]]:
    """Every class of error, those of one exit code together."""
    found = [errors.ResnetsError]
    for kind in found:
        found += [inner for inner in kind.__subclasses__() if inner.__module__ == errors.__name__]
    return sorted(found, key=lambda kind: (kind.exit_code, kind.__name__))


def exit_codes() -> dict[int, str]:
    """Each exit code with what ends a command so."""
    codes = {0: "all is done"}
    for kind in error_classes():
        if kind is not errors.Interrupted and kind.__base__ is errors.ResnetsError:
            codes.setdefault(kind.exit_code, inspect.cleandoc(kind.__doc__ or ""))
    codes[1] = "a figure is under `--fail-under`"
    signals = {
        code: f"stopped by {name}; what was saved is resumed" for code, name in SIGNALS.items()
    }
    return codes | signals


def exits() -> str:
    """The exit codes with the errors behind them."""
    kinds = error_classes()
    rows = []
    for code, meaning in sorted(exit_codes().items()):
        names = [f"`{k.__name__}`" for k in kinds if k.exit_code == code]
        names = ["`Interrupted`"] if code in SIGNALS else [n for n in names if n != "`Interrupted`"]
        rows.append((str(code), meaning, ", ".join(names)))
    return table(("exit code", "meaning", "errors in Python"), rows)


def error_hierarchy() -> str:
    """Each class of error: what it is a kind of, and its docstring."""
    rows = []
    for kind in error_classes():
        code = "128 + signal" if kind is errors.Interrupted else str(kind.exit_code)
        words = split_docstring(kind)[0]
        rows.append((f"`{kind.__name__}`", f"`{kind.__base__.__name__}`", code, words))
    rows.append(("`Assumption`", "`UserWarning`", "", errors.Assumption.__doc__ or ""))
    return table(("class", "kind of", "exit code", "meaning"), rows)


def messages() -> list[tuple[int, str, str]]:
    """Exit code, class and text of each error that the code raises; … stands for what varies."""
    codes = {kind.__name__: kind.exit_code for kind in error_classes()}
    found = set()
    for path in Path(resnets.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                name = node.func.id
                text = template(node.args[0]).strip(" \n…:;.")
                if name in codes and len(text) > 12:
                    found.add((codes[name], name, template(node.args[0])))
    return sorted(found)


def texts() -> list[str]:
    """Every text in the code, with … for each value in it."""
    return [
        " ".join(template(node).split())
        for path in Path(resnets.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr)
    ]


def template(node: ast.expr) -> str:
    """The text of an expression, with … for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "…"


def all_messages() -> str:
    """Every message of the code, by exit code."""
    parts = []
    every = messages()
    for code in sorted({code for code, _, _ in every}):
        rows = [(f"`{kind}`", f"`` {text} ``") for here, kind, text in every if here == code]
        parts += [f"### Exit code {code}", table(("class", "message"), rows)]
    return "\n\n".join(parts)


def recipes() -> str:
    """The published recipes: the first paragraph of each one's docstring."""
    from resnets.config import recipes as module

    rows = [
        (f"`{name}`", split_docstring(recipe)[0].split("\n\n")[0])
        for name, recipe in module.RECIPES.items()
    ]
    return table(("recipe", "source and expected figure"), rows)


def recipe_fields() -> str:
    """The fields of a recipe and of its augmentation."""
    from resnets.config.recipe import Augment, Recipe

    parts = []
    for kind, prefix in ((Recipe, ""), (Augment, "augment.")):
        rows = []
        for one in fields(kind):
            default = "" if one.default is MISSING else f"`{one.default!r}`"
            if one.name != "augment":
                words = one.metadata.get("meaning", "")
                rows.append((f"`{prefix}{one.name}`", default, words))
        parts.append(table(("field", "default", "meaning"), rows))
    return "\n\n".join(parts)


def networks() -> str:
    """Every classifier of the table of families."""
    from resnets.api.info import list_models

    rows = list_models("*")
    cells = [
        [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()]
        for row in rows
    ]
    return table([key.replace("_", " ") for key in rows[0]], cells)


DRAWN: dict[str, Callable[[], str]] = {
    "commands": commands,
    "functions": functions,
    "records": records,
    "exits": exits,
    "errors": error_hierarchy,
    "messages": all_messages,
    "recipes": recipes,
    "recipe-fields": recipe_fields,
    "networks": networks,
}
