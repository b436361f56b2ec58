"""The errors that a user can meet, each with its exit code.

The message says what is wrong, which file or key, and what to do, in three lines at most. The
command line prints it without a traceback and exits with the code; in Python it is an exception.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class ResnetsError(Exception):
    """An error that the user can fix; `exit_code` is the command line's."""

    exit_code = 1

    def __init_subclass__(cls, exit_code: int = 1) -> None:
        cls.exit_code = exit_code


class UsageError(ResnetsError, exit_code=2):
    """A wrong name, option or value."""


class DataError(ResnetsError, exit_code=3):
    """Data that is missing, empty, broken or not what was stated."""


Problem = tuple[str, str]  # where, and what


def quantify(number: int, noun: str) -> str:
    """A count in words; of one "images have no mask" it is "1 image has no mask"."""
    if number == 1:
        verbs = {"are": "is", "have": "has"}
        noun = re.sub(r"\b(are|have)\b", lambda verb: verbs[verb[0]], noun, count=1)
        if not noun.startswith("of "):
            noun = re.sub(r"(?<=[sx])es\b|(?<!s)s\b", "", noun, count=1)
    return f"{number:,} {noun}"


def format_count(number: float, digits: int = 3) -> str:
    """A count as people read it: 1.8 G, 0.27 M, 19.4 M."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if number >= size:
            return f"{number / size:.{digits}g} {unit}"
    return f"{number / 1e6:.{digits}g} M" if number >= 1e5 else f"{number:,.6g}"


class DataErrors(DataError, exit_code=3):
    """Data that training refuses; `refused` and `noted` are all its problems."""

    def __init__(self, data: str | Path, refused: list[Problem], noted: list[Problem]) -> None:
        first = "; ".join(f"{path}: {reason}" for path, reason in refused[:3])
        first += "; …" * (len(refused) > 3)
        problems = quantify(len(refused), "problems")
        super().__init__(
            f"{data} has {problems} that training refuses. First: {first}\n"
            f"Correct them, or remove those lines or files; `resnets data check {data}` lists all."
        )
        self.refused, self.noted = refused, noted
        self.unreadable: tuple[tuple[Path, str], ...] = ()  # of `files`
        self.files = 0


class CheckpointError(ResnetsError, exit_code=4):
    """A checkpoint or weights file that is refused."""


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """A CheckpointError that is raised inside begins with the path."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        if path.with_name("recipe.json").exists():  # a run's own, which nobody else has
            text = f"{text.splitlines()[0]}\nRemove it; `resnets resume {path.parent}` writes it."
        raise CheckpointError(f"{path}: {text}") from None


class MissingCode(UsageError, exit_code=2):
    """A custom network has to be given again: my_module:build by `option`, a module in Python."""

    def __init__(self, subject: str, builder: str, option: str) -> None:
        again = f"{option} {builder} or " * (":" in builder) + f"{option.strip('-')}=... in Python"
        text = f"{subject} {builder}, custom code, which no file runs:\ngive it again, {again}"
        super().__init__(text)


class NotFinite(CheckpointError, exit_code=4):
    """A network's outputs are NaN or infinite: its weights are damaged, or training diverged."""

    def __init__(self, path: str | Path = "") -> None:
        self.path = path  # of the model; empty where it is not known yet
        super().__init__(
            f"{path or 'the network'}: its outputs are NaN or infinite, so its weights are damaged "
            "or diverged.\n"
            "Train it again with a lower rate, or get the file again."
        )


class MemoryExhausted(ResnetsError, exit_code=5):
    """Out of memory, on the device or the host."""


class DiskError(ResnetsError, exit_code=6):
    """A file could not be written, or could not be read this time."""


class Diverged(ResnetsError, exit_code=7):
    """Training produced a value that is not finite."""


class MissingPackage(ResnetsError, exit_code=8):
    """An optional package is not installed; the message has the install line."""


class Interrupted(ResnetsError):
    """A signal stopped training after a step; everything is saved, and `again` resumes it."""

    def __init__(self, again: str, signal: int) -> None:
        super().__init__(f"stopped; everything is saved. Resume with {again}")
        self.exit_code = 128 + signal


class Assumption(UserWarning):
    """Something assumed about files that do not state it, or left out of them."""


# How to write here, on the command line, what torchvision, timm and Ultralytics call otherwise.
SYNONYMS = {
    "--lr X": "learning_rate lr0 base_lr init_lr",
    "--batch N": "batch_size b bs imgs_per_batch",
    "--size N": "img_size imgsz image_size input_size crop_size train_crop_size",
    "--model NAME": "arch a network backbone net",
    "--run DIR": "output output_dir out_dir project name save_dir logdir",
    "--weights NAME|FILE|RUN": "checkpoint initial_checkpoint load ckpt init",
    "--weights imagenet, or another name of `resnets weights ls`": "pretrained",
    "--epochs N": "num_epochs n_epochs",
    "--workers N": "num_workers j nw",
    "--device cuda, or --devices N to train": "gpus gpu ngpus nproc_per_node world_size",
    "--budget 30m": "time max_time time_limit",
    "--set optimizer=adamw": "opt optim",
    "--set weight_decay=1e-4": "wd decay l2",
    "--set schedule=cosine": "sched lr_scheduler",
    "--set warmup=0.05": "warmup_epochs lr_warmup_epochs",
    "--set label_smoothing=0.1": "smoothing",
    "--set augment.policy=trivialaugment": "aa auto_augment",
    "--set augment.mixup=0.2": "mixup",
    "--set augment.cutmix=1": "cutmix",
    "--set ema=0.999": "model_ema",
    "--set val_fraction=0.1": "val_split validation_split hold_out validation_fraction",
    "--set early_stop_patience=N": "patience early_stopping",
    "--set precision=bfloat16 (auto takes it where fast)": "amp fp16 bf16 half",
    "--recipe FILE": "config cfg c",
    "--score X": "conf threshold confidence conf_thres",
    "--top K": "topk top_k",
    "--view flip, ten-crop or multi-scale": "tta",
    "DATA without an option, after the command": "dataset data_path data_dir train_dir",
    "another folder: nothing is overwritten": "force overwrite exist_ok",
    "nothing to set: the fast path is taken by itself": "compile channels_last",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase for an error message: the known names nearest to `name`."""
    names, plain = list(known), name.strip("-").replace("-", "_").lower()
    for usage, synonyms in SYNONYMS.items():
        here = [word for word in re.findall(r"[\w.]+", usage) if word in names]
        if plain in synonyms.split() and here:
            return f"did you mean {here[0]}?"
    if inner := [here for here in names if here.endswith(f".{plain}")]:
        return f"did you mean {inner[0]}?"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(sorted(names))}" if len(names) <= 12 else "see the list of names"
