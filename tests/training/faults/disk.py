"""Every call that reaches the disk below a folder, seen from outside of the product."""

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """One call; `path` and `to` are relative to the folder."""

    kind: str  # read, create, open (a folder), write, fsync, rename, mkdir, unlink, rmdir
    path: str
    to: str = ""  # the new name of a rename
    data: bytes = b""  # of a write
    write: Callable[[bytes], object] = len  # writes past `before`, as a torn write does


@contextmanager
def watched(folder: Path, before: Callable[[Call], None]) -> Iterator[None]:
    """Tell `before` of each call below `folder` ahead of it; what it raises the call raises."""
    root = os.path.realpath(folder)
    real = {n: getattr(os, n) for n in ("open", "fsync", "rename", "replace", "mkdir", "unlink")}
    real |= {"rmdir": os.rmdir}
    real_open = io.open

    def inside(path: object, dir_fd: int | None = None) -> str | None:
        if isinstance(path, int):
            text = os.readlink(f"/proc/self/fd/{path}")
        else:
            base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            text = os.path.join(base, os.fsdecode(path))
        text = os.path.relpath(text, root)
        return None if text.startswith("..") else text

    def tell(kind: str, place: str | None, **more: object) -> None:
        if place is not None:
            before(Call(kind, place, **more))

    def opened(file, mode="r", *rest, **named):
        place = None if isinstance(file, int) else inside(file)
        changes = any(letter in mode for letter in "wxa+")
        tell("create" if changes else "read", place)
        result = real_open(file, mode, *rest, **named)
        if place is not None and changes:
            write = result.write

            def told(data):
                raw = data.encode() if isinstance(data, str) else bytes(data)
                tell("write", place, data=raw, write=torn)
                return write(data)

            def torn(data: bytes) -> None:
                write(data.decode() if isinstance(result, io.TextIOBase) else data)
                result.flush()

            result.write = told
        return result

    def moved(name):
        def call(old, new, **named):
            if (place := inside(old)) is not None:
                tell("rename", place, to=inside(new))
            return real[name](old, new, **named)

        return call

    def plain(name):
        def call(path, *rest, dir_fd=None, **named):
            tell(name, inside(path, dir_fd))
            if dir_fd is not None:
                named["dir_fd"] = dir_fd
            return real[name](path, *rest, **named)

        return call

    patched = {n: plain(n) for n in ("open", "fsync", "mkdir", "unlink", "rmdir")}
    patched |= {n: moved(n) for n in ("rename", "replace")}
    try:
        for name, function in patched.items():
            setattr(os, name, function)
        io.open = builtins.open = opened
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        io.open = builtins.open = real_open
