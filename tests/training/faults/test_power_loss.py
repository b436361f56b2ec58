"""Power loss: what the disk may hold at any moment, as POSIX allows it, and what is read from it.

The disk keeps what was synced. Of what was not, it may hold any part: data of a file as nothing,
a half, or zeros; the names of a folder in any subset of its changes, each change as a whole.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

from resnets.tensor_files import digest
from resnets.training import checkpoint
from resnets.training.run import Run
from resnets.training.state import TrainProgress
from tests.training.faults.disk import Call, watched

SAVES = 4
IMAGES = 800  # random ones, besides two of every prefix


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"network.w": torch.randn(3, 2, generator=generator), "totals": torch.zeros(3)}


def recorded(folder: Path) -> list[Call]:
    """The calls of a new run and some saves; "saved" stands where a save has returned."""
    calls: list[Call] = []
    with watched(folder, calls.append):
        run = Run(folder / "run")
        run.create()
        run.write_json("recipe.json", {"model": "resnet8"})
        run.truncate("metrics.jsonl", 0)  # as every start does
        for step in range(1, SAVES + 1):
            run.append("metrics.jsonl", {"step": step})
            run.write_json("best.json", {"step": step})
            checkpoint.write(run.path / "checkpoints", tensors(step), TrainProgress(step=step))
            calls.append(Call("saved", str(step)))
    return calls


@dataclass
class Node:
    """A file or folder; `synced` counts what of `changes` the disk surely has."""

    folder: bool
    changes: list = field(default_factory=list)  # bytes, or {name: Node or None}
    synced: int = 0


def disk(calls: list[Call]) -> Node:
    """What was done to the folder, every file and folder with its history."""
    root = Node(True)

    def names(node: Node) -> dict[str, Node]:
        merged: dict[str, Node | None] = {}
        for change in node.changes:
            merged |= change
        return {name: child for name, child in merged.items() if child}

    def find(path: str) -> Node | None:
        node: Node | None = root
        for part in Path(path).parts:
            node = node and names(node).get(part)
        return node

    for call in calls:
        path = Path(call.path)
        parent, node = find(str(path.parent)), find(call.path)
        if call.kind in ("create", "mkdir") and parent and not node:
            parent.changes.append({path.name: Node(call.kind == "mkdir")})
        elif call.kind == "write":
            node.changes.append(call.data)
        elif call.kind == "fsync":
            node.synced = len(node.changes)
        elif call.kind == "rename":
            assert Path(call.to).parent == path.parent
            parent.changes.append({path.name: None, Path(call.to).name: node})
        elif call.kind in ("unlink", "rmdir") and node:
            parent.changes.append({path.name: None})
    return root


def write_image(node: Node, path: Path, rng: random.Random, chance: float) -> None:
    """One of the states in which the disk may be; what is not synced is there by `chance`."""
    kept, loose = node.changes[: node.synced], node.changes[node.synced :]
    if not node.folder:
        for data in loose:
            kept.append(data if rng.random() < chance else rng.choice(
                [b"", data[: len(data) // 2], bytes(len(data))]
            ))  # fmt: skip
        path.write_bytes(b"".join(kept))
        return
    merged: dict[str, Node | None] = {}
    for change in [*kept, *(c for c in loose if rng.random() < chance)]:
        merged |= change
    path.mkdir()
    for name, child in merged.items():
        if child:
            write_image(child, path / name, rng, chance)


def test_every_image_gives_the_newest_checkpoint_or_the_one_before(tmp_path):
    (tmp_path / "real").mkdir()
    calls = recorded(tmp_path / "real")
    rng = random.Random(0)
    cases = [(n, chance) for n in range(len(calls) + 1) for chance in (0.0, 1.0)]
    cases += [(rng.randint(0, len(calls)), rng.random()) for _ in range(IMAGES)]
    for number, (length, chance) in enumerate(cases):
        image = tmp_path / f"image-{number}"
        write_image(disk(calls[:length]), image, rng, chance)
        saved = max((int(c.path) for c in calls[:length] if c.kind == "saved"), default=0)
        found = checkpoint.read_newest(image / "run" / "checkpoints")
        step = found.progress.step if found else 0
        assert saved <= step <= saved + 1, (length, chance)
        if found:
            whole = {name: digest(value) for name, value in tensors(step).items()}
            assert {name: digest(value) for name, value in found.tensors.items()} == whole
            assert found.problems == ()
            run = Run(image / "run")
            logged = [row["step"] for row in run.rows("metrics.jsonl")]
            assert logged[:step] == [*range(1, step + 1)]
            assert run.read_json("best.json")["step"] in (step, step + 1)
