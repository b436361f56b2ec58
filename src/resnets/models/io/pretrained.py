"""Weight files of others: read without running anything in them, recognised by their tensors.

A pickle is a program. Its instructions are listed first, and only those that rebuild plain tensors
pass, or name what training scripts keep beside them; then `torch.load(weights_only=True)` reads it,
whose own list of harmless calls is longer and includes some that allocate whatever a file of 40
bytes asks for. What is no tensor is replaced by a blank. There is no second attempt.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import stat
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnets.config.arch import LAYERS, Arch, ResNetArch, VitArch
from resnets.errors import CheckpointError, ResnetsError
from resnets.models.io.infer_arch import COUNTER, candidates, clip, differences, meta_model, seen
from resnets.models.transformer import NAMES, renamed

FILE_LIMIT = 8 * 2**30  # bytes; the largest network of the family has 0.4 GB
HEADER_LIMIT = 16 * 2**20  # bytes of a safetensors header
# Of a pickle; ResNet-1202 and its momentum have 416,000 and 44,000. A tuple in a tuple in ...
# ends the interpreter above 130,000 levels, as the key of a dict.
INSTRUCTION_LIMIT, TUPLE_LIMIT = 1_200_000, 80_000

PICKLES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
# Where a training script keeps the weights; the averaged ones are what it evaluates.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema")
STATES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"),
    *("params", "module"),
)
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")  # data parallel, compiled, Lightning
FIRST = re.compile(  # one tensor of each kind of network, behind the names of what wraps it
    r"((?:.*\.)?)(?:layer1\.0\.conv1\.weight|features\.conv0\.weight|class_token"
    r"|encoder\.pos_embedding|units\.0\.linear1\.weight)"
)
# Copies that follow another network: of MoCo, BYOL, DINO, mean teachers.
FOLLOWERS = re.compile(r"(^|[._])(encoder_k|key|momentum|target|teacher|ema|shadow)([._]|$)")
BESIDE = re.compile(  # what a LightningModule keeps beside its layers: losses and metrics
    r"(\w*_)?(criterion|loss(es)?(_fn|_func)?|metrics?|acc(uracy)?|auroc|auc|f1(_score)?|precision"
    r"|recall|confusion_matrix|confmat)(_\w*|\d*)\."
)
ANTIALIASED = re.compile(r"(?i)(resne(t|xt)|densenet)(aa|blur)")  # timm's
HEAD = re.compile(
    r"(?:.*\.)?(?:head|fc|classifier|linear|logits|last_linear|cls_head)(?:\.fc|\.\d+)?"
    r"\.(weight|bias)"
)
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}

PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.nn\.parameter Parameter|torch (\w+Storage|Size|device)"
    r"|torch (float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool|complex(64|128))"
    # The command line that torchvision's and timm's training scripts keep: attributes only.
    r"|argparse Namespace"
)
# What training scripts keep besides: none of it is made, a blank stands in its place.
PLACEHOLDERS_FOR = re.compile(
    r"collections (defaultdict|deque)|(pathlib|pathlib\._local) (Pure)?(Posix|Windows)?Path"
    r"|numpy (dtype|ndarray|bool_?|[uif](nt|loat)\d+)|numpy\.dtypes \w+DType"
    r"|numpy\.(core|_core)\.(multiarray (scalar|_reconstruct)|numeric _frombuffer)"
    r"|numpy\.random\._pickle \w+|datetime (datetime|date|timedelta|timezone)|types SimpleNamespace"
    r"|(__builtin__|builtins) (list|dict|tuple|frozenset|int|float|str|bool|long|unicode|object)"
    r"|typing (Any|Union|Optional)|torch\.torch_version TorchVersion"
    r"|(omegaconf|mmengine|mmcv|lightning_fabric|lightning|pytorch_lightning)(\.\w+)+ "
    r"(\w*(Config|Node|Metadata)|HistoryBuffer|AttributeDict)"
)
# Of torch's own list, with the one kind of argument that a checkpoint gives them. Others could make
# them count an endless tensor or double a text again and again.
ARGUMENTS = {
    "collections Counter": (1, "EMPTY_DICT"),
    "__builtin__ set": (1, "EMPTY_LIST"),
    "builtins set": (1, "EMPTY_LIST"),
    "_codecs encode": (2, "latin1"),
}
OTHERS: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"^linear\.": "fc.",
    r"^(layer\d+\.\d+)\.shortcut\.": r"\1.downsample.",
    # torchvision's DenseNet files of 2017: norm.1 for norm1.
    r"(denselayer\d+\.(?:norm|conv))\.([12])\.": r"\1\2.",
    # Its detectors' files of 2019: convolutions that are not in blocks.
    r"(\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$": r"\1.0.\2",
    r"^rpn\.head\.conv\.(weight|bias)$": r"rpn.head.conv.0.0.\1",
    r"\.mask_fcn([1-4])\.": lambda found: f".{int(found[1]) - 1}.0.",
    r"(_head\.conv)\.([0246])\.(weight|bias)$": (
        lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}"
    ),
}
CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # torch.save: none


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a weights file: the network's tensors, and what a person should know of them."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]  # of a safetensors file
    notes: tuple[str, ...] = ()
    model: str = ""  # the network's name, where the file has it


class PlaceholderObject:
    """Stands for an object that is no tensor: it takes any arguments and state, and has neither."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class PlaceholderDict:
    """Makes an empty plain dict, which may be filled: what a state dict may be in."""

    def __new__(cls, *_: object) -> dict[str, Any]:  # type: ignore[misc]
        return {}


class PlaceholderList(list[Any]):
    """An empty list, which may be filled."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...


PLACEHOLDERS = {
    "defaultdict": PlaceholderDict,
    "AttributeDict": PlaceholderDict,
    "deque": PlaceholderList,
}


def read(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a weights file, on the CPU. Nothing that the file contains is run.

    Of a training script's checkpoint the averaged weights are taken, else the plain ones; prefixes
    that wrappers add to names are taken off; what is no tensor of the network is left.

    Raises CheckpointError: the file is missing, broken, too large, not a weights file, holds code,
    or has a tensor with values that are not finite.
    """
    return read_contents(Path(path)).tensors


def read_contents(path: Path, ours: str = "resnets") -> Contents:
    """What `read` gives and what is known beside it; a file with the metadata `ours` as it is.

    Raises as `read` does.
    """
    size, start = _look(path)
    length = int.from_bytes(start[:8], "little")
    metadata: dict[str, str] = {}
    notes, model = list[str](), ""
    if start[8:] == b"{" and length <= size - 8:  # the length of a header that fits; it is JSON
        state, metadata = _safetensors(path, length)
        model = next((metadata[key] for key in NAMES_OF_MODELS if key in metadata), "")
    elif path.suffix == ".safetensors":
        raise refuse(path, "not a safetensors file, or cut short", "Download it again.")
    elif path.suffix in PICKLES:
        value = _unpickle(path, start)
        state, model = _state(path, value, notes), _model(value)
    else:
        raise refuse(path, "not a weights file", f"Known: .safetensors {' '.join(PICKLES)}.")
    if not state:
        raise refuse(path, "no tensors in it", "Save `model.state_dict()`.")
    if ours not in metadata:
        state = _network(path, state, notes)
    return Contents(_checked(path, state, size), metadata, tuple(notes), model or _beside(path))


def refuse(path: Path, what: str, todo: str) -> CheckpointError:
    """What is wrong with which file, and what to do."""
    return CheckpointError(f"{path}: {what}.\n{todo}")


def _look(path: Path) -> tuple[int, bytes]:
    """The size of a file and its first bytes."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise refuse(path, "not a regular file", "Give the path of a weights file.")
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise refuse(path, f"cannot be read: {reason}", "Check the path.") from None
    if not start:
        raise refuse(path, "empty", "Download or save it again.")
    if info.st_size > FILE_LIMIT:
        raise refuse(path, f"larger than {FILE_LIMIT >> 30} GiB", "Keep only the weights in it.")
    return info.st_size, start


def _safetensors(path: Path, length: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    # The library checks that tensors neither overlap nor leave holes, and takes the last of two
    # entries of one name: two readers could see two files.
    if length > HEADER_LIMIT:
        raise refuse(path, f"a header of {length} bytes", "Save the weights without metadata.")
    try:
        with path.open("rb") as header:
            header.seek(8)
            json.loads(header.read(length), object_pairs_hook=_once)
        # Not mapped: the tensors stay what they are when the file changes.
        with safe_open(path, framework="pt", backend="pread") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return tensors, file.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError, AttributeError, OSError) as error:
        raise refuse(path, f"broken or cut short ({clip(error)})", "Download it again.") from None


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(entries)
    if len(values) < len(entries):
        raise ValueError("one name twice in its header")
    return values


def _unpickle(path: Path, start: bytes) -> object:
    blank: set[str] = set()
    try:
        if zipped := start.startswith(b"PK\x03\x04"):
            _inspect_zip(path, blank)
        elif start.startswith(b"\x80"):
            with path.open("rb") as file:
                for _ in range(5):  # magic number, version, system, the object, storage keys
                    _inspect(path, file, blank)
        else:
            raise refuse(path, f"not a checkpoint: it starts with {start!r}", "Download it again.")
        pairs = [(module, name) for module, name in (call.split(" ") for call in blank)]
        # Python 2's names, as torch reads them.
        names = [NAME_MAPPING.get((m, n), (IMPORT_MAPPING.get(m, m), n)) for m, n in pairs]
        blanks = [
            (PLACEHOLDERS.get(name, PlaceholderObject), f"{module}.{name}")
            for module, name in names
        ]
        with torch.serialization.safe_globals([argparse.Namespace, *blanks]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # what a hostile file raises is its choice
        reason = f"{type(error).__name__}: {clip(error)}"
        raise refuse(path, f"broken or cut short ({reason})", "Download it again.") from None


def _inspect_zip(path: Path, blank: set[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            todo = "Save `module.state_dict()` of it where it comes from."
            raise refuse(path, "a TorchScript archive: code, not only weights", todo)
        pickled = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickled) != 1 or len(set(names)) != len(names):
            raise refuse(path, "a zip file that is no checkpoint", "Save `model.state_dict()`.")
        # torch.save does not compress, so a compressed entry is there to grow.
        if any(entry.compress_type or entry.file_size != entry.compress_size for entry in entries):
            raise refuse(path, "a compressed zip file", "Save it with `torch.save`.")
        with archive.open(pickled[0]) as file:
            _inspect(path, file, blank)


def _inspect(path: Path, file: IO[bytes], blank: set[str]) -> None:
    """Read one pickle's instructions without following them; gathers the names to be `blank`."""
    tuples, memo = 0, dict[int, str]()
    last = ["", "", ""]  # what was put on the stack: names of calls, texts, else instructions
    for count, (instruction, value, _) in enumerate(pickletools.genops(file)):
        name, call = instruction.name, str(value)
        if name == "GLOBAL" and PLACEHOLDERS_FOR.fullmatch(call):
            blank.add(call)
        elif name == "GLOBAL" and not PLAIN.fullmatch(call) and call not in ARGUMENTS:
            raise _code(path, call.replace(" ", "."))
        elif name in CALLS:
            raise _code(path, f"instruction {name}")
        if name.endswith("PUT"):
            memo[int(call)] = last[-1]
        else:
            text = memo.get(int(call), name) if name.endswith("GET") else call
            last = [*last[1:], name if value is None else text]
            for back in (1, 2):
                distance, wanted = ARGUMENTS.get(last[-1 - back], (0, ""))
                if distance == back and last[-1] != wanted:
                    raise _code(path, f"{last[-1 - back].replace(' ', '.')} of {last[-1]}")
        tuples += name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
        if count > INSTRUCTION_LIMIT or tuples > TUPLE_LIMIT:
            raise refuse(path, "too much besides tensors", "Save only `model.state_dict()`.")


def _code(path: Path, call: str) -> CheckpointError:
    what = f"holds code or objects ({clip(call)}), not only tensors; nothing of it was run"
    todo = "Ask its author for a .safetensors file, or for `torch.save(model.state_dict())`."
    return refuse(path, what, todo)


NAMES_OF_MODELS = ("architecture", "arch", "model_name", "model", "backbone", "encoder_name")


def _model(value: object) -> str:
    """The network's name, where a training script kept it or its arguments."""
    if not isinstance(value, dict):
        return ""
    # dict.get and not value.get: a pickle may give an OrderedDict an attribute of that name.
    kept = [value, *(dict.get(value, key) for key in ("args", "hyper_parameters", "config"))]
    tables = [vars(x) if isinstance(x, argparse.Namespace) else x for x in kept]
    names = (dict.get(x, key) for x in tables if isinstance(x, dict) for key in NAMES_OF_MODELS)
    return next((name for name in names if isinstance(name, str) and len(name) < 100), "")


def _beside(path: Path) -> str:
    """The network's name in timm's config.json beside the file, or in torchvision's file names."""
    config = path.with_name("config.json")
    hashed = re.fullmatch(r"(.+)-[0-9a-f]{8}", path.stem)
    try:
        if not config.is_file() or config.stat().st_size > 2**20:
            return hashed[1] if hashed else ""
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    name = data.get("architecture") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


def _states(
    value: object, seen: set[int], at: tuple[str, ...] = ()
) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """The named tensors in a checkpoint, by the keys that lead to them; each dict once."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict) or len(at) > 3 or id(value) in seen:
        return {}
    seen.add(id(value))
    entries = [(key, x) for key, x in dict.items(value) if isinstance(key, str)]
    own = {key: x for key, x in entries if isinstance(x, Tensor) and key != "n_averaged"}
    states = {at: own} if own else {}
    for key, x in entries:
        states |= _states(x, seen, (*at, key))
    return states


def _state(path: Path, value: object, notes: list[str]) -> dict[str, Tensor]:
    """The weights among all that a training script keeps: averaged before plain ones."""
    states = _states(value, set())
    if not states:
        return {}
    networks = {at for at, state in states.items() if any(map(FIRST.fullmatch, state))}

    def rank(at: tuple[str, ...]) -> tuple[bool, int, int]:
        keys = [(AVERAGED + STATES).index(key) for key in at if key in AVERAGED + STATES]
        return at not in networks, min(keys, default=99 if at else 98), -len(states[at])

    first, *others = sorted(states, key=rank)
    if rank(first)[:2] == (True, 99):
        return {}
    others = [at for at in others if at in networks]
    if rank(first)[1] == 99 and others:
        names = ", ".join(clip(".".join(at), 40) for at in sorted((first, *others))[:4])
        raise refuse(path, f"several networks in it: {names}", "Save the state dict of one.")
    state, name = states[first], clip(".".join(first), 40)
    averaged = [key for key in AVERAGED if isinstance(value, dict) and dict.get(value, key)]
    plain = next((at for at in others if not set(at) & set(AVERAGED)), None)
    if set(first) & set(AVERAGED) and plain is not None:
        there, bare = clip(".".join(plain), 40) or "the rest", PREFIXES.sub
        notes.append(f"the averaged weights `{name}` were taken, not `{there}` beside them")
        has = {bare("", key) for key in state}
        if lacks := {k: x for k, x in states[plain].items() if bare("", k) not in has}:
            state = {bare("", key): x for key, x in state.items()}
            state |= {bare("", key): x for key, x in lacks.items()}
            notes.append(f"`{name}` lacks {_example(lacks)}: taken from `{there}`")
    elif averaged and not set(first) & set(AVERAGED):
        notes.append(f"`{name}` was taken: `{averaged[0]}` beside it holds no named weights")
    return state


def _network(path: Path, state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The tensors of the network under its own names; what wraps it and stands beside it is left.

    Raises CheckpointError for several networks, or a second classifier behind the network's.
    """
    bases = dict.fromkeys(m[1] for m in map(FIRST.fullmatch, state) if m)
    for base in tuple(bases):  # the prefix of a detector or segmenter ends before its backbone
        outer = base.removesuffix("backbone.body.") if base.endswith("backbone.body.") else base
        if base.endswith("backbone."):
            outer = base.removesuffix("backbone.")
            scene = (f"{outer}classifier.4.", f"{outer}classifier.0.", f"{outer}fpn.inner_blocks")
            outer = outer if any(name.startswith(scene) for name in state) else base
        bases[outer] = bases.pop(base)
    leaders = [base for base in bases if not FOLLOWERS.search(base)]
    if not bases:
        return _renamed(path, state, lambda name: PREFIXES.sub("", name))
    if len(leaders) != 1:
        names = ", ".join(clip(base or "the names without prefix", 40) for base in [*bases][:4])
        raise refuse(path, f"several networks in it: {names}", "Save the state dict of one.")
    (base,) = leaders
    if len(bases) > 1:
        notes.append(f"of {len(bases)} networks `{clip(base, 40)}` was taken")
    body = {n.removeprefix(base): t for n, t in state.items() if n.startswith(base)}
    beside = {n: t for n, t in state.items() if not n.startswith(base)}
    beside |= {n: body.pop(n) for n in [*body] if BESIDE.match(n)}
    head = "classifier" if "features.conv0.weight" in body else "fc"
    classifies = "layer1.0.conv1.weight" in body or head == "classifier"
    named = [n for n in [*beside, *body] if classifies and not FOLLOWERS.search(n)]
    heads = {n: m[1] for n in named if (m := HEAD.fullmatch(n))}
    own = {f"{head}.{kind}" for kind in ("weight", "bias")} & body.keys()
    matrices = [n for n, kind in heads.items() if kind == "weight"]
    if own and len(matrices) > 1 and "linear.weight" not in body:
        raise refuse(
            path,
            f"{clip(matrices[0], 60)} beside {head}.weight",
            "Save one network with one classifier.",
        )
    if not own and len(matrices) == 1 and "linear.weight" not in body:
        for name, kind in heads.items():
            body[f"{head}.{kind}"] = (beside if name in beside else body).pop(name)
        notes.append(f"`{clip(matrices[0].removesuffix('.weight'), 60)}` is taken for `{head}`")
    if beside:
        notes.append(f"{_example(beside)} left out: not of the network")
    return body


def _renamed(
    path: Path, state: Mapping[str, Tensor], rename: Callable[[str], str]
) -> dict[str, Tensor]:
    names = {name: rename(name) for name in state}
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise refuse(path, f"two tensors for {clip(twice, 80)}", "Keep one of them.")
    return {names[name]: tensor for name, tensor in state.items()}


def _example(names: Mapping[str, object]) -> str:
    first, several = clip(next(iter(names)), 60), len(names) > 1
    return f"{len(names):,} tensor{'s' * several} ({first}{', ...' * several})"


def _checked(path: Path, state: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    total = 0
    for name, tensor in state.items():
        shown, counter = clip(name, 80), name.endswith(COUNTER) and tensor.ndim == 0
        strange = tensor.dtype not in DTYPES and not counter
        if tensor.layout != torch.strided or tensor.is_meta or strange:
            raise refuse(path, f"{shown} is a {tensor.dtype} tensor", "Save it as float32.")
        total += tensor.numel() * tensor.element_size()
        if total > size:  # a stride of 0 makes terabytes of one number
            raise refuse(path, f"{shown} is larger than the file", "Save contiguous tensors.")
        # A copy: a mapped file that is overwritten or cut later would change or end the process.
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        if not torch.isfinite(tensors[name]).all():
            raise refuse(path, f"{shown} has values that are not finite", "Train or get it again.")
    return tensors


def infer_arch(
    tensors: Mapping[str, Tensor], arch: Arch | None = None, name: str = ""
) -> tuple[Arch, dict[str, Tensor]]:
    """The network that has these tensors, and the tensors under our names, in float32.

    Known are our own names, torchvision's (its ResNets, DenseNets and ViTs; detectors on a pyramid
    and segmenters on a ResNet, and their names of 2019), timm's ResNets, and the CIFAR ResNets of
    akamaster/pytorch_resnet_cifar10 (`linear`, and option A with zeros half before and half after:
    channels are moved so that our zeros, all after, compute the same).

    Names and shapes do not show everything (`recognition.assumed`). Where several networks of
    `FAMILY` have them, the one called `name` is given, else the first: the stride of a bottleneck
    on its 3x3 convolution ("v1.5"), option A and not a plain network where nothing projects, ReLU
    after the addition, ViT heads 64 wide, an output stride of 8 below FCN and DeepLabv3. With
    `arch` the tensors are taken for that network.

    Raises CheckpointError: no network has them, with what was seen; or `arch`, with differences;
    or `name` is that of a network which these tensors do not show and which is not known here.
    """
    if ANTIALIASED.search(name):
        raise CheckpointError(
            f"{clip(name, 60)} has blur or average pools without tensors: not known here.\n"
            "Take another network, or name the true one in a config.json beside the file: "
            '{"architecture": "NAME"}'
        )
    named = _named(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    for candidate in [arch] if arch else candidates(shapes, name):
        try:
            wanted = meta_model(candidate).state_dict()
        except (ResnetsError, ValueError, ArithmeticError, RuntimeError):
            if arch:
                raise
            continue
        problems = differences(wanted, named)
        if arch and problems:
            raise CheckpointError(f"the tensors are not those of the given network: {problems}")
        if not problems:
            zero = torch.zeros(())  # of the counters that a file may lack
            ours = {name: named.get(name, zero).to(like.dtype) for name, like in wanted.items()}
            if "linear.weight" in tensors and isinstance(candidate, ResNetArch):
                ours = _zeros_after(ours, candidate)
            return candidate, ours
    raise CheckpointError(
        f"not a network that is known here: {seen(shapes)}.\n"
        "Give its description (`arch`), or rename its tensors as torchvision does."
    )


def to_torchvision(tensors: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Our tensors under torchvision's names: a ViT has others, the rest of the family the same."""
    return renamed(tensors, NAMES) if isinstance(arch, VitArch) else dict(tensors)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if "encoder.pos_embedding" in tensors:
        try:
            return renamed(tensors, {theirs: ours for ours, theirs in NAMES.items()})
        except KeyError as error:
            raise CheckpointError(f"a ViT with a tensor that is not known: {error}") from None
    changed = {}
    for key, tensor in tensors.items():
        name = key
        for theirs, ours in OTHERS.items():
            name = re.sub(theirs, ours, name)
        changed[name] = tensor
    return changed if len(changed) == len(tensors) else dict(tensors)


def _zeros_after(tensors: dict[str, Tensor], arch: ResNetArch) -> dict[str, Tensor]:
    """Move channels from "zeros half before, half after" to ours, where all zeros come after.

    `order[i]` is the channel of the other network that is our channel i. The new channels of a
    stage are written by its last convolutions and normalisations, and read by the next first ones.
    """
    if arch.shortcut != "A":
        return tensors
    last, moved = LAYERS[arch.unit], dict(tensors)
    order = list(range(arch.stem_width))
    for stage, (count, width) in enumerate(zip(arch.blocks, arch.widths, strict=True), 1):
        before, kept = order, len(order)
        half = (width - kept) // 2
        order = [i + half for i in before] + [*range(half), *range(half + kept, width)]
        for unit in range(count):
            prefix = f"layer{stage}.{unit}."
            reads = f"{prefix}conv1.weight"
            moved[reads] = moved[reads][:, before if unit == 0 else order]
            for name in tensors:
                if name.startswith((f"{prefix}conv{last}.", f"{prefix}bn{last}.")):
                    moved[name] = moved[name][order] if moved[name].ndim else moved[name]
    moved["fc.weight"] = moved["fc.weight"][:, order]
    return moved
