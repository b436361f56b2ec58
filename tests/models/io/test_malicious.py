"""Files made to do harm: each is refused at once, and nothing in it is run."""

import io
import json
import os
import pickle
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from resnets.errors import CheckpointError
from resnets.models.io import pickle_scan, pretrained
from resnets.models.io.model_file import load, open_model
from resnets.models.io.pretrained import read
from tests._helpers import needs_posix_files

CANARY = "canary"
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "exec")
seen: list[str] | None = None


def audit(event: str, _: object) -> None:
    # "exec" is also what an import does, so only a name that begins with "os.exec" is like it.
    if seen is not None and event != "exec" and event.startswith(WATCHED):
        seen.append(event)


sys.addaudithook(audit)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuse(path: Path, message: str = "") -> None:
    """Refused by every way in, within a second of work, in three lines, with no side effect."""
    global seen
    for opening in (read, open_model, load):
        start, seen = time.process_time(), []
        try:
            with pytest.raises(CheckpointError) as error:
                opening(path)
        finally:
            events, seen = seen, None
        assert time.process_time() - start < 1
        assert str(error.value).count("\n") < 3
        assert str(error.value).count(str(path)) == 1
        assert opening is load or message in str(error.value)
        assert not events
        assert not Path(CANARY).exists()


# --- Pickles --------------------------------------------------------------------------------------


class Call:
    """Unpickled, it is function(*arguments)."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


def instructions(name: str, argument: str) -> bytes:
    """A pickle that calls a function by name, whether or not it can be imported here."""
    module, function = name.rsplit(".", 1)
    text = argument.encode()
    return (
        b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X" + struct.pack("<I", len(text))
    ) + (text + b"\x85R.")


TOUCH = f"touch {CANARY}"
CODE = f"open({CANARY!r}, 'w')"
TEXT = b"X" + struct.pack("<I", len(TOUCH)) + TOUCH.encode()
TERABYTE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
CALLS = {
    **{
        name: instructions(name, TOUCH)
        for name in (
            *("os.system", "posix.system", "nt.system", "os.popen", "commands.getoutput"),
            *("subprocess.Popen", "subprocess.check_output", "pty.spawn", "shutil.rmtree"),
            *("torch.utils.collect_env.run", "multiprocessing.util.spawnv_passfds"),
            *("torch.hub.load", "torch.ops.load_library", "ctypes.CDLL", "webbrowser.open"),
            *("torch.serialization.load", "torch.load", "pickle.loads", "joblib.load"),
            *("asyncio.create_subprocess_shell", "code.InteractiveInterpreter.runcode"),
            *("urllib.request.urlopen", "socket.create_connection", "requests.get"),
        )
    },
    **{
        name: instructions(name, CODE)
        for name in (
            *("builtins.exec", "builtins.eval", "__builtin__.eval", "builtins.compile"),
            *("runpy.run_path", "runpy._run_code", "timeit.timeit", "cProfile.run", "pdb.run"),
            *("torch.jit._script.script", "numpy.f2py.crackfortran.myeval", "builtins.getattr"),
            *("importlib.import_module", "builtins.__import__", "operator.attrgetter"),
            *("torch.fx.graph_module._forward_from_src", "torch._inductor.codecache.PyCodeCache"),
        )
    },
    # What torch's own list lets through, and allocates whatever it is told.
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n" + TERABYTE + b"\x85R.",
    "FloatTensor": b"\x80\x02ctorch\nFloatTensor\n" + TERABYTE + b"\x85R.",
    # The name of the function is put together on the stack, from the memo, or written otherwise.
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TEXT + b"\x85R.",
    "STACK_GLOBAL memo": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x940h\x01h\x00\x93"
    + TEXT
    + b"\x85R.",
    "INST": b"\x80\x02(" + TEXT + b"ios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\n" + TEXT + b"o.",
    "EXT1": b"\x80\x02\x82\x01)R.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
    "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\0\0\0__setstate__cos\nsystem\nsb.",
    "after a harmless one": b"\x80\x02}0cos\nsystem\n" + TEXT + b"\x85R.",
    "nested": pickle.dumps({"state_dict": {"a": Call(os.system, TOUCH)}}, 2),
    "in a key": pickle.dumps({Call(os.system, TOUCH): 1}, 2),
}


def zipped(data: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    files = {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **more}
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(data: bytes, rest: bytes = b"") -> bytes:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}
    return (
        magic + pickle.dumps(1001, 2) + pickle.dumps(system, 2) + data + pickle.dumps([], 2) + rest
    )


@pytest.mark.parametrize("container", [bytes, zipped, legacy], ids=["bare", "zip", "legacy"])
@pytest.mark.parametrize("name", CALLS)
def test_calls_in_pickles(name: str, container: Callable[[bytes], bytes]) -> None:
    path = Path("weights.pth")
    path.write_bytes(container(CALLS[name]))
    refuse(path, "holds code or objects")
    named = Path("weights.safetensors")
    path.rename(named)
    refuse(named, "not a safetensors file")


def test_a_damaged_model_of_a_run_is_written_again_by_resume() -> None:
    Path("run").mkdir()
    Path("run/model.safetensors").write_bytes(b"cut")
    refuse(Path("run/model.safetensors"), "Download it again")
    Path("run/recipe.json").write_text("{}")
    refuse(Path("run/model.safetensors"), "Remove it; `resnets resume run` writes it.")


def test_the_calls_would_work() -> None:
    # The canary is one: the plain unpickler does run it.
    pickle.loads(CALLS["os.system"])
    assert Path(CANARY).exists()


def test_torch_alone_is_the_second_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "scan_pickle", lambda *_: set())
    for name in ("os.system", "builtins.eval", "STACK_GLOBAL", "torch.utils.collect_env.run"):
        Path("w.pth").write_bytes(zipped(CALLS[name]))
        with pytest.raises(CheckpointError, match="broken"):
            read("w.pth")
    assert not Path(CANARY).exists()


def test_there_is_no_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_(*_: object, **options: object) -> object:
        calls.append(options)
        raise pickle.UnpicklingError("no")

    monkeypatch.setattr(torch, "load", load_)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    Path("w.pth").write_bytes(zipped(pickle.dumps({}, 2)))
    with pytest.raises(CheckpointError):
        read("w.pth")
    assert [call["weights_only"] for call in calls] == [True]


def test_the_environment_cannot_switch_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(pickle_scan, "scan_pickle", lambda *_: set())
    Path("w.pth").write_bytes(zipped(CALLS["os.system"]))
    refuse(Path("w.pth"))


# --- Checkpoints that are not what they say -------------------------------------------------------


def of_torch(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02).")
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def pickled_numpy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Call(os.system, TOUCH)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def old_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = CALLS["os.system"]
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def corrupt_first_entry() -> bytes:
    """Scanners that stop at the first broken entry never see the second."""
    data = bytearray(zipped(CALLS["os.system"], **{"data/0": b"1234"}))
    data[14:18] = b"\0\0\0\0"  # its CRC
    return bytes(data)


def patched(*changes: tuple[bytes, bytes]) -> bytes:
    """A checkpoint of a tensor of four numbers, with other instructions."""
    source = zipfile.ZipFile(io.BytesIO(of_torch({"a": torch.ones(4)})))
    files = {name: source.read(name) for name in source.namelist()}
    data = files.pop("archive/data.pkl")
    for old, new in changes:
        assert data.count(old) == 1, data
        data = data.replace(old, new)
    more = {name.removeprefix("archive/"): content for name, content in files.items()}
    return zipped(data, **more)


def twice() -> bytes:
    buffer = io.BytesIO(of_torch({"a": torch.ones(1)}))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", CALLS["os.system"])
    return buffer.getvalue()


def cyclic() -> dict[str, object]:
    value: dict[str, object] = {}
    for key in pretrained.STATES:
        value[key] = value
    return value


def items_replaced() -> bytes:
    """{"a": None} as an OrderedDict whose attribute `items` is torch.Size."""
    return (
        b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00aNu}X\x05\x00\x00\x00items"
        b"ctorch\nSize\nsb."
    )


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "a page": (lambda: b"<!DOCTYPE html><html>sign in</html>", "not a checkpoint: it starts with"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "not a checkpoint"),
    "zeros": (lambda: bytes(4096), "not a checkpoint"),
    "half a magic number": (lambda: b"\x80", "broken or cut short"),
    "a module": (lambda: of_torch(nn.Linear(1, 1)), "torch.nn.modules.linear.Linear"),
    "numpy numbers": (lambda: of_torch({"best": np.float64(1)}), "no tensors in it"),
    "distributed metadata": (
        lambda: instructions("torch.distributed.checkpoint.metadata.Metadata", TOUCH),
        "torch.distributed.checkpoint.metadata.Metadata",
    ),
    "a bare pickle of numbers": (lambda: pickle.dumps({"a": 1}, 2), "broken or cut short"),
    "a list": (lambda: of_torch([torch.ones(1)]), "no tensors in it"),
    "no tensors": (lambda: of_torch({"epoch": 3}), "no tensors in it"),
    "a tensor alone": (lambda: of_torch(torch.ones(1)), "no tensors in it"),
    "itself": (lambda: of_torch(cyclic()), "no tensors in it"),
    "items replaced": (lambda: zipped(items_replaced()), "no tensors in it"),
    "torchscript": (torchscript, "TorchScript"),
    "npz": (numpy_archive, "no checkpoint"),
    "npy with a pickle": (pickled_numpy, "not a checkpoint"),
    "legacy tar": (old_tar, "not a checkpoint"),
    "corrupt first entry": (corrupt_first_entry, ""),
    "pickle twice": (twice, "no checkpoint"),
    "zip bomb": (
        lambda: zipped(bytes(10**8), zipfile.ZIP_DEFLATED, **{"data/0": bytes(10**7)}),
        "a compressed zip file",
    ),
    "a storage and a shape that lie": (
        lambda: patched((b"K\x04tq", b"J\0\0\0\x40tq"), (b"K\x04\x85q", b"J\0\0\0\x40\x85q")),
        "",
    ),
    "a shape beyond its storage": (lambda: patched((b"K\x04\x85q", b"J\0\0\0\x40\x85q")), ""),
    "a negative shape": (lambda: patched((b"K\x04\x85q", b"J\0\0\0\xff\x85q")), ""),
    "an offset beyond its storage": (lambda: patched((b"QK\x00K\x04", b"QJ\0\0\0\x40K\x04")), ""),
    "terabytes of one number": (
        lambda: of_torch({"a": torch.ones(1).expand(2**20, 2**20)}),
        "larger than the file",
    ),
    "sparse": (lambda: of_torch({"a": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
    "meta": (lambda: of_torch({"a": torch.ones(2**20, 2**20, device="meta")}), "_rebuild_meta"),
    "quantised": (
        lambda: of_torch({"a": torch.zeros(3, dtype=torch.uint8)}),
        "a is a torch.uint8 tensor",
    ),
    "NaN": (
        lambda: of_torch({"a": torch.ones(2), "conv1.weight": torch.tensor([1, float("nan")])}),
        "conv1.weight has values that are not finite",
    ),
    "infinite": (lambda: of_torch({"a": torch.tensor([-torch.inf])}), "a has values"),
    "two of a name": (
        lambda: of_torch({"module.a": torch.ones(1), "a": torch.zeros(1)}),
        "two tensors for a",
    ),
    "SETITEM on a list": (lambda: zipped(b"\x80\x02](K\x00K\x01u."), "broken"),
    "SETITEM on a tensor": (lambda: patched((b"s.", b"K\x00K\x01ss.")), "broken"),
    "SETITEMS on a tensor": (lambda: patched((b"s.", b"(K\x00K\x01us.")), "broken"),
    "an endless string": (lambda: zipped(b"\x80\x02X\xff\xff\xff\xff"), "broken"),
    "an endless number": (lambda: zipped(b"\x80\x02I" + b"9" * 10**5 + b"\n."), "broken"),
    "only instructions": (lambda: zipped(b"\x80\x02" + b"N0" * 1000), "broken"),
    "strange names": (lambda: of_torch({"\x1b[2J\n" * 99: torch.tensor([torch.inf])}), "?[2J"),
}


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_that_are_none(name: str) -> None:
    make, message = FILES[name]
    path = Path("weights.pth.tar")
    path.write_bytes(make())
    refuse(path, message)


def test_a_tuple_in_a_tuple_in_a_tuple() -> None:
    # As a key it is hashed, level by level on the interpreter's own stack.
    Path("w.pth").write_bytes(zipped(b"\x80\x02}N" + b"\x85" * 10**6 + b"Ns."))
    refuse(Path("w.pth"), "too much besides tensors")


def test_more_instructions_than_a_checkpoint_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "INSTRUCTION_LIMIT", 1000)
    Path("w.pth").write_bytes(zipped(b"\x80\x02" + b"N0" * 1000 + b"}."))
    refuse(Path("w.pth"), "too much besides tensors")


@pytest.mark.parametrize("new", [True, False])
def test_truncated_pickles(new: bool) -> None:
    torch.save({"a": torch.ones(100), "b": torch.ones(3, 3)}, "full.pth",
               _use_new_zipfile_serialization=new)  # fmt: skip
    data = Path("full.pth").read_bytes()
    for length in range(1, len(data), max(1, len(data) // 60)):
        Path("cut.pth").write_bytes(data[:length])
        refuse(Path("cut.pth"))


@needs_posix_files
def test_paths_that_are_no_files() -> None:
    Path("folder.pth").mkdir()
    refuse(Path("folder.pth"), "not a regular file")
    refuse(Path("missing.pth"), "No such file")
    os.mkfifo("pipe.pth")
    refuse(Path("pipe.pth"), "not a regular file")  # opening it would wait for ever
    Path("loop.pth").symlink_to("loop.pth")
    refuse(Path("loop.pth"), "symbolic links")
    refuse(Path("/dev/zero"), "not a regular file")
    refuse(Path("nul\0.pth"), "cannot be read")
    Path("weights.txt").write_text("1 2 3")
    refuse(Path("weights.txt"), "not a weights file")


def test_too_large_a_file() -> None:
    with open("large.pth", "wb") as file:
        file.write(b"PK\x03\x04 and more")
        file.truncate(pretrained.FILE_LIMIT + 1)  # sparse: no disk is used
    refuse(Path("large.pth"), "larger than 8 GiB")


# --- safetensors ----------------------------------------------------------------------------------


def header(value: object, data: bytes = b"") -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(start: int, end: int, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> object:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


WRONG = {
    "empty header": (8).to_bytes(8, "little"),
    "a length beyond the file": (2**27).to_bytes(8, "little") + b"{}",
    "an absurd length": b"\xff" * 8 + b"{}",
    "no JSON": header(b"{nothing"),
    "an array": header([1]),
    "no tensors": header({}),
    "deep JSON": header(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "overlap": header({"a": tensor(0, 8, (2,)), "b": tensor(4, 8)}, bytes(8)),
    "hole": header({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "the same bytes twice": header({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "data after the end": header({"a": tensor(0, 4)}, bytes(8)),
    "data cut": header({"a": tensor(0, 8, (2,))}, bytes(4)),
    "backwards": header({"a": tensor(4, 0)}, bytes(4)),
    "negative": header({"a": tensor(-4, 0)}, bytes(4)),
    "overflowing shape": header({"a": tensor(0, 4, (2**32, 2**32, 2**32))}, bytes(4)),
    "overflow to what fits": header({"a": tensor(0, 4, (2**62 + 1, 4))}, bytes(4)),
    "negative shape": header({"a": tensor(0, 4, (-1,))}, bytes(4)),
    "a shape too large": header({"a": tensor(0, 4, (2,))}, bytes(4)),
    "nothing, but large": header({"a": tensor(0, 0, (0, 2**62, 2**62))}),
    "duplicate key": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "unknown type": header({"a": tensor(0, 4, dtype="F33")}, bytes(4)),
    "wrong type": header({"a": tensor(0, 4, dtype="F64")}, bytes(4)),
    "bool": header({"a": tensor(0, 1, dtype="BOOL")}, b"\x07"),
    "an 8-bit float": header({"a": tensor(0, 1, dtype="F8_E4M3")}, b"\x07"),
    "metadata that is no text": header({"__metadata__": {"a": 1}, "a": tensor(0, 4)}, bytes(4)),
    "metadata of metadata": header({"__metadata__": {"a": {"b": "c"}}}),
    "NaN": header({"a": tensor(0, 4)}, struct.pack("<f", float("nan"))),
    "two names after prefixes": header(
        {"module.a": tensor(0, 4), "_orig_mod.a": tensor(4, 8)}, bytes(8)
    ),
    "our key": header({"__metadata__": {"resnets": "{}"}, "a": tensor(0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("name", WRONG)
def test_safetensors_that_are_wrong(name: str) -> None:
    path = Path("weights.safetensors")
    path.write_bytes(WRONG[name])
    if name == "our key":  # without tensors of a network `read` may have it
        with pytest.raises(CheckpointError):
            open_model(path)
    else:
        refuse(path)


def test_a_header_of_more_than_100_megabytes() -> None:
    path = Path("weights.safetensors")
    with path.open("wb") as file:
        file.write((120 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(130 * 2**20)
    refuse(path, "a header of 125829120 bytes")


def test_truncated_safetensors() -> None:
    data = safetensors.torch.save({"a": torch.ones(100), "b": torch.ones(3, 3)})
    for length in range(1, len(data), 7):
        Path("cut.safetensors").write_bytes(data[:length])
        refuse(Path("cut.safetensors"))


def test_files_under_other_names_are_read_by_content() -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, "w.pth")
    assert list(read("w.pth")) == ["a"]
    torch.save({"a": torch.ones(1)}, "w2.pth")
    Path("w2.pth").rename("w.safetensors")
    refuse(Path("w.safetensors"), "not a safetensors file")


# --- What torch's own list would run --------------------------------------------------------------


def endless() -> bytes:
    """The instructions for a tensor of 2^40 numbers, all the first one of its storage."""
    data = zipfile.ZipFile(io.BytesIO(of_torch(torch.ones(1).expand(2**20, 2**20))))
    return data.read(next(n for n in data.namelist() if n.endswith("data.pkl")))[2:-1]


CODEC = b"\x80\x02c_codecs\nencode\nq\xf0X\x01\0\0\0aq\xf1X\x06\0\0\0latin1q\xf2\x86Rq\xf3"
HEX = b"X\x03\0\0\0hex"
ENDLESS: dict[str, Callable[[], bytes]] = {
    "counted": lambda: b"\x80\x02ccollections\nCounter\n" + endless() + b"\x85R.",
    "counted by number": lambda: (
        b"\x80\x02ccollections\nCounter\nq\xf0}\x85Rh\xf0" + endless() + b"\x85R."
    ),
    "a set": lambda: b"\x80\x02c__builtin__\nset\n" + endless() + b"\x85R.",
    "a text doubled": lambda: CODEC + b"h\xf0h\xf3" + HEX + b"\x86R.",
    "a text doubled by number": lambda: CODEC + HEX + b"q\xf4h\xf0h\xf3h\xf4\x86R.",
    "a tuple of arguments": lambda: b"\x80\x02ccollections\nCounter\n(" + endless() + b"tR.",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_harmless_calls_with_other_arguments(name: str) -> None:
    Path("w.pth").write_bytes(zipped(ENDLESS[name](), **{"data/0": bytes(4)}))
    refuse(Path("w.pth"), "holds code or objects")


def test_blanks_run_nothing() -> None:
    """An array that asks for eight terabytes: a blank stands for it."""
    array = Call(np._core.multiarray._reconstruct, np.ndarray, (2**40,), b"d")
    Path("w.pth").write_bytes(of_torch({"a": array, "b": Path("x"), "c": {"d": np.float64(1)}}))
    refuse(Path("w.pth"), "no tensors in it")
