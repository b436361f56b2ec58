"""The parameters and multiply-adds of every network, counted: what `resnets models` lists.

    python benchmarks/network_counts.py       writes src/resnets/config/counts.json

Counting all networks takes some 13 s of a core, so the counts are kept; a test repeats them.
"""

from __future__ import annotations

import json
from pathlib import Path

from resnets.config import families
from resnets.config.families import ARCHS
from resnets.models.cost import cost


def main() -> None:
    lines = []
    for name in sorted(ARCHS):
        count = cost(ARCHS[name])
        lines.append(f"  {json.dumps(name)}: [{count.parameters}, {count.macs}]")
    table = Path(families.__file__).with_name("counts.json")
    table.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{len(lines)} networks in {table.name}")


if __name__ == "__main__":
    main()
