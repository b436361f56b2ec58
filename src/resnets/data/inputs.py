"""Images as people have them: files, folders, patterns, bytes, PIL images, arrays and tensors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnets.data.decode import (
    MAX_PIXELS,
    Unreadable,
    decode,
    largest_value,
    largest_value_of_file,
    to_pixels,
)
from resnets.data.paths import is_image_file, visible_files
from resnets.errors import Assumption, DataError, UsageError, quantify
from resnets.files import glob_paths

Input: TypeAlias = str | Path | bytes | bytearray | BinaryIO | Image.Image | NDArray[Any] | Tensor
KINDS = "a path, bytes, a PIL image, a NumPy array or a tensor"


def is_single(inputs: object) -> bool:
    """Whether it is one image; a folder, a pattern or a batch is not. UsageError for neither."""
    if isinstance(inputs, str | Path):
        paths = glob_paths(inputs)
        return [str(inputs)] == paths and not Path(inputs).is_dir()
    if isinstance(inputs, np.ndarray | Tensor):
        return inputs.ndim < 4
    single = isinstance(inputs, bytes | bytearray | Image.Image) or hasattr(inputs, "read")
    many = isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")
    if isinstance(inputs, Mapping) or not (single or many):
        raise UsageError(f"a {type(inputs).__name__} is not an image: give {KINDS}, or a list")
    return single


def _read(item: Any) -> Any:
    """The bytes of an open file or a bytearray; all else as it is."""
    if isinstance(item, io.TextIOBase):
        raise UsageError("a file opened in text mode is not an image: open(path, 'rb')")
    if isinstance(item, bytearray):
        return bytes(item)
    return item.read() if hasattr(item, "read") else item


def expand_inputs(inputs: Input | Iterable[Input]) -> Iterator[tuple[str, Input]]:
    """(name, image) of each image, with folders, patterns and batches (4 dimensions) taken apart.

    The name of a file is its path, that of another image "input K", K counted from 0. A missing
    file is kept, so that it is named among the predictions for the others. An `Assumption` warns of
    files in folders that are no images. Raises DataError for a folder without any.
    """
    content: Any = _read(inputs)
    single = isinstance(content, str | bytes | Path | Image.Image | np.ndarray | Tensor)
    items: Iterable[Any] = [content] if single else content
    skipped = list[Path]()
    for number, item in enumerate(items):
        if isinstance(item, np.ndarray | Tensor) and item.ndim == 4:
            first = 0 if single else number
            yield from ((f"input {first + k}", image) for k, image in enumerate(item))
        elif isinstance(item, str | Path):
            for path in glob_paths(item) or [str(item)]:
                if Path(path).is_dir():
                    files = visible_files(Path(path))
                    images = [file for file in files if is_image_file(file)]
                    if not images:
                        raise DataError(f"{path} holds no image; its files: {len(files):,}")
                    skipped += sorted({*files} - {*images})
                    yield from ((str(file), file) for file in images)
                else:
                    yield path, path
        else:
            yield f"input {number}", _read(item)
    if skipped:
        count = quantify(len(skipped), "files other than images are skipped")
        text = f"{count}, first {skipped[0]}"
        warnings.warn(text, Assumption, stacklevel=2)


def read_image(
    image: Input, channels: int, white: int = 65535, name: str = "the image"
) -> tuple[NDArray[np.uint8], int | None]:
    """The pixels of an image, uint8 (H, W, channels), and the greatest value of 16-bit grey.

    `channels` are 1, 3, or 0: 1 of a picture, array or tensor that is grey, else 3.

    - A path, the bytes of a file, or a PIL image: as `decode`, turned upright by its EXIF.
    - An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the last with alpha: uint8; bool; uint16,
      scaled as 16-bit PNG files are; or floats in 0..1, made round(255 x).
    - A tensor (H, W) or (C, H, W) of the same types.

    Raises DataError that names the image: it cannot be read, or has another shape, type or range.
    """
    try:
        if isinstance(image, str | Path | bytes):
            return decode(image, channels or 3, white), largest_value_of_file(image)
        picture = image if isinstance(image, Image.Image) else _picture(image)
        if not 0 < picture.width * picture.height <= MAX_PIXELS:
            raise DataError(f"{picture.width} x {picture.height} pixels, not 1 to {MAX_PIXELS:,}")
        picture.load()
        greatest = largest_value(picture)
        channels = channels or (1 if picture.mode in ("1", "L") else 3)
        return to_pixels(picture.copy(), channels, white), greatest
    except Unreadable as error:
        raise (
            DataError(f"{name}: {error.reason}") if isinstance(image, bytes) else error
        ) from None
    except (DataError, OSError, ValueError, TypeError) as error:  # numpy's of a sparse tensor
        raise DataError(f"{name}: {error}") from None


def _picture(image: object) -> Image.Image:
    """An array or tensor as a PIL image. Raises DataError that says what it would have to be."""
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()  # NumPy has no bfloat16
        values = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        if values.ndim == 3:
            _check_channels(values.shape[0], values, "tensor", "(H, W) or (C, H, W)")
            values = np.moveaxis(values, 0, 2)
    elif isinstance(image, np.ndarray):
        values = image
    else:
        raise DataError(f"a {type(image).__name__} is not an image: give {KINDS}")
    if values.ndim not in (2, 3):
        raise DataError(f"the shape {values.shape}; an array is (H, W) or (H, W, 3)")
    if values.ndim == 3:
        _check_channels(values.shape[2], values, "array", "(H, W) or (H, W, C)")
        values = values[..., 0] if values.shape[2] == 1 else values
    return Image.fromarray(np.ascontiguousarray(_integers(values)))


def _check_channels(count: int, values: NDArray[Any], kind: str, order: str) -> None:
    if count in (1, 3, 4):
        return
    other = values.shape[-1] if kind == "tensor" else values.shape[0]
    remedy = {"tensor": "x.permute(2, 0, 1)", "array": "x.transpose(1, 2, 0)"}[kind]
    hint = f": {remedy}" if other in (1, 3, 4) else ""
    shape = tuple(values.shape)
    raise DataError(f"the shape {shape}; such a{'n' * (kind == 'array')} {kind} is {order}{hint}")


def _integers(values: NDArray[Any]) -> NDArray[Any]:
    """uint8, or uint16 for grey of 16 bits."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:  # of colours the upper 8 bits, as of files
        return values if values.ndim == 2 else (values >> 8).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{values.dtype} values; give uint8, uint16, or floats in 0..1")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not 0 <= low <= high <= 1:
        remedy = "divide by 255" if low >= 0 and high <= 255 else "leave out any normalisation"
        raise DataError(f"floats from {low:.4g} to {high:.4g}; they must be in 0..1: {remedy}")
    return np.round(values.astype(np.float64) * 255).astype(np.uint8)
