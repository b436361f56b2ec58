"""CSV files as spreadsheets and scripts write them."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from resnets.errors import DataError

LARGEST = 2**28  # bytes of a text
LONGEST_LINE = 100_000  # characters of a row
SUFFIXES = (".csv", ".tsv")
# Other names that the columns have, the likelier first.
PATH = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img"),
    *("image_path", "img_path", "image_file", "image_name", "img_name", "imagepath", "fname"),
)
LABEL = ("label", "class", "class_name", "classname", "target", "category", "labels")
SPLIT = ("split", "set", "subset")


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, each with its line, by the names of the columns that were asked for.

    `notes` say what was assumed about it and which columns are not used.
    """

    path: Path
    columns: tuple[str, ...]  # of those asked for, which there are
    rows: tuple[tuple[int, dict[str, str]], ...]  # without the space around a value
    notes: tuple[str, ...] = ()


def header(path: Path) -> list[str]:
    """The names in the first line of a CSV file, lower case. Raises DataError for what is none."""
    return [_plain(name) for name in next(_cells(path))[1]]


def read_table(path: Path, columns: Mapping[str, Sequence[str]], required: Sequence[str]) -> Table:
    """A CSV file with a header, separated by comma, semicolon or tab, in UTF-8 or UTF-16.

    `columns` are the names that a column may have, in any case. Without a header, which shows by
    the first value being a file, columns stand in the order of `columns`. A row may end early. A
    quoted value ends in its line: so a quote that is not closed cannot take the rows below into a
    name.

    Raises DataError with its line for columns of `required` that are missing, for a row that is
    longer than the header, or an open quote.
    """
    lines = _cells(path)
    line, first = next(lines)
    notes: list[str] = []
    names = [_plain(name) for name in first]
    where: dict[str, int] = {}
    for column, known in columns.items():
        if spelled := next((name for name in known if name in names), None):
            where[column] = names.index(spelled)
            if names.count(spelled) > 1:
                raise DataError(f"{path}, line {line}: two columns are called {spelled!r}")
    if renamed := [f"{first[k]!r} as {c}" for c, k in where.items() if names[k] != c]:
        notes.append(f"{path}: columns are taken by other names: {', '.join(renamed)}")
    rows: Iterator[tuple[int, list[str]]] = lines
    if not where and len(required) <= len(first) <= len(columns) and _is_file(path, first[0]):
        where = {column: k for k, column in zip(range(len(first)), columns, strict=False)}
        notes.append(f"{path} has no header: its columns are taken as {', '.join(where)}")
        rows = chain([(line, first)], lines)
    elif missing := [column for column in required if column not in where]:
        has = ", ".join(map(repr, first[:8])) + (", ..." if len(first) > 8 else "")
        other = columns[missing[0]][1:4]
        raise DataError(
            f"{path}, line {line}: no column {' and no column '.join(missing)}; it has {has}.\n"
            f"The first line has to name the columns: {','.join(required)}"
            + (f" ({missing[0]} may be {', '.join(other)})." if other else ".")
        )
    elif unused := [name for k, name in enumerate(first) if k not in where.values() and name]:
        has = ", ".join(map(repr, unused[:8]))
        notes.append(f"{path}: {len(unused)} columns are not used: {has}")
    taken = []
    for line, values in rows:
        if len(values) > len(first) and any(values[len(first) :]):
            raise DataError(
                f"{path}, line {line}: {len(values)} values under {len(first)} columns; a value "
                'that holds the separator needs quotes: "a, b"'
            )
        values += [""] * (len(first) - len(values))
        taken.append((line, {column: values[k] for column, k in where.items()}))
    return Table(path, tuple(where), tuple(taken), tuple(notes))


def resolve(table: Table, name: str) -> Path:
    """The file that a row names, from the table's folder; Windows' backslashes are separators."""
    path = table.path.parent / name
    return table.path.parent / name.replace("\\", "/") if _windows(path, name) else path


def backslashes(table: Table) -> tuple[str, ...]:
    """A note of the paths that `resolve` reads with other separators."""
    names = [row["path"] for _, row in table.rows if "\\" in row["path"]]
    names = [name for name in names if _windows(table.path.parent / name, name)]
    if not names:
        return ()
    return (f"{table.path}: {len(names):,} paths with backslashes, first {names[0]}; read as /",)


def _windows(path: Path, name: str) -> bool:
    return "\\" in name and not path.exists()


def _is_file(table: Path, name: str) -> bool:
    try:
        return (table.parent / name).is_file() or (table.parent / name.replace("\\", "/")).is_file()
    except (OSError, ValueError):
        return False


def _plain(name: str) -> str:
    return name.strip(" #").casefold().replace(" ", "_")


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The values of each line that has any, with its number. Raises DataError."""
    lines = read_lines(path)
    delimiter = ""
    for start, line in enumerate(lines):  # noqa: B007
        if line.casefold().startswith("sep=") and len(line) == 5:  # Excel's
            delimiter = line[4]
        elif line.strip() and not line.startswith("# "):  # a remark; but "#" may name a column
            break
    else:
        raise DataError(f"{path} holds no rows")
    # Of the separators the one that the first line has most often.
    delimiter = delimiter or max(",;\t", key=lambda sign: lines[start].count(sign))
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip(f" {delimiter}"):
            continue
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: {len(line):,} characters, the limit is {LONGEST_LINE:,}"
            )
        if "\0" in line:
            raise DataError(f"{path}, line {number}: holds NUL; save the table as UTF-8 text")
        try:
            (values,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
        except (csv.Error, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: a quote is not closed, or not doubled in a quoted value "
                f'({error}).\nWrite "a ""b"" c", in one line; or a value without quotes around it.'
            ) from None
        yield number, [value.strip() for value in values]


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, or in UTF-16 with its mark. Raises DataError for another."""
    text = read_text(path)
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path) -> str:
    """A text as `read_lines` reads it, whole. Raises DataError for more than LARGEST bytes too."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise DataError(f"{path} has {size:,} bytes, the limit is {LARGEST:,}: split it")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: no UTF-8 ({error.reason}). Save it as UTF-8."
        ) from None
