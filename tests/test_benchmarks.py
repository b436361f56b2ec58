"""The benchmarks use names that exist; running them takes minutes."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_the_names_that_a_benchmark_uses_exist(path):
    tree, modules = ast.parse(path.read_text("utf-8")), dict[str, ModuleType]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "resnets":
                    modules["resnets"] = importlib.import_module("resnets")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnets"):
            source = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(source, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                if isinstance(value := getattr(source, alias.name), ModuleType):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), f"{module}: {node.attr}"
