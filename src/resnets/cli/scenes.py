"""The commands of scenes: `resnets detect`, `resnets localize` and `resnets segment`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Unpack

from cyclopts import App, Parameter

from resnets.cli import screen, show
from resnets.options import Improved, Part, Seen, check_floors, floors

GROUPS = {
    "detect": "Find objects: boxes, and masks where the data has them.",
    "localize": "Find the one object of an image, given its class or not.",
    "segment": "Give each pixel its class.",
}
Bound = Annotated[Any, Parameter(parse=False)]  # by the name of the group


def register(app: App, train: Callable[..., None]) -> None:
    """Give the command line a group for each task of scenes; all have the same commands."""
    for task, text in GROUPS.items():
        group = App(name=task, help=text)
        for name, command in {"train": train, "evaluate": evaluate, "predict": predict}.items():
            group.command(partial(command, task=task), name=name)
        app.command(group)


def evaluate(
    *places: str,
    task: Bound = "detect",
    compare: bool = False,
    classifier: Path | None = None,
    fail_under: list[str] | None = None,
    **how: Unpack[Seen],
) -> None:
    """Test MODEL... on one split of DATA: several detectors are an ensemble.

    Args:
        places: Run folders, model files, or foreign .pth or .safetensors files; and last the data.
        compare: The second of two detectors against the first.
        classifier: A model that says the five classes that a localiser looks for.
        fail_under: FIGURE=VALUE, as map50=0.9: exit with code 1 where it is less; may be repeated.
    """
    from resnets import scenes

    wanted = floors(task, fail_under or [])
    result = scenes.evaluate(task, *places, compare=compare, classifier=classifier, **how)
    show.scene(result)
    check_floors(wanted, result)


def predict(
    model: Path,
    /,
    *inputs: str,
    task: Bound = "detect",
    out: Path = Path("predictions"),
    score: Part = 0.5,
    **how: Unpack[Improved],
) -> None:
    """Draw what is found on images, and write it as COCO JSON or as masks.

    Args:
        inputs: Image files, folders or globs.
        out: A new folder for the pictures and the file.
        score: From which score on an object is drawn; all are written.
    """
    from resnets import scenes

    found = scenes.predict(task, model, inputs, out, score=score, **how)
    screen.note(f"the pictures are in {out}")
    show.seen(found)
