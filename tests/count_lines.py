"""Fails where src has more lines of Python than `tool.resnets.source-lines` of pyproject.toml."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

limit = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["resnets"]["source-lines"]
lines = sum(len(path.read_bytes().splitlines()) for path in (ROOT / "src").rglob("*.py"))
print(f"src has {lines:,} lines of Python; {limit:,} are allowed")
sys.exit(lines > limit)
