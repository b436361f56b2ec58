"""CSV files as spreadsheets and scripts write them."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from resnets.data.issues import Issues
from resnets.errors import DataError, quantify

MAX_TEXT_BYTES = 2**28
MAX_ROW = 100_000  # characters
SUFFIXES = (".csv", ".tsv")
# Other names that the columns have, the likelier first.
PATH = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img"),
    *("image_path", "img_path", "image_file", "image_name", "img_name", "imagepath", "fname"),
)
LABEL = ("label", "class", "class_name", "classname", "target", "category", "labels")
SPLIT = ("split", "set", "subset")
_MISSING = ("nan", "<na>", "n/a", "null")  # what programs write where there is no value


def header(path: Path) -> list[str]:
    """The names in the first line of a CSV file, lower case. Raises DataError for what is none."""
    return [_column_name(cell) for cell in next(_lines_of_cells(path))[1]]


def read_table(
    path: Path, columns: Mapping[str, Sequence[str]], required: Sequence[str], issues: Issues
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, separated by comma, semicolon or tab, in UTF-8 or 16.

    `columns` are the names that a column may have, in any case; a row is the number of its line,
    and the values of those that there are, without the space around them. Without a header, which
    shows by the first value being a file, columns stand in the order of `columns`. A row may end
    early. A quoted value ends in its line: so a quote that is not closed cannot take the rows below
    into a name.

    Raises DataError with its line for columns of `required` that are missing, for a row that is
    longer than the header, or an open quote.
    """
    lines = _lines_of_cells(path)
    line, first = next(lines)
    position = _match_columns(path, line, first, columns, issues)
    rows: Iterator[tuple[int, list[str]]] = lines
    if not position and len(required) <= len(first) <= len(columns) and _is_file(path, first[0]):
        position = {column: k for k, column in zip(range(len(first)), columns, strict=False)}
        issues.note(f"has no header: its columns are read as {', '.join(position)}", path)
        rows = chain([(line, first)], lines)
    elif missing := [column for column in required if column not in position]:
        names = ", ".join(map(repr, first[:8])) + (", ..." if len(first) > 8 else "")
        others = ", ".join(columns[missing[0]][1:4])
        raise DataError(
            f"{path}, line {line}: no column {' and no column '.join(missing)}; it has {names}.\n"
            f"The first line has to name the columns: {','.join(required)}"
            + (f" ({missing[0]} may be {others})." if others else ".")
        )
    elif unused := [name for k, name in enumerate(first) if k not in position.values() and name]:
        names = ", ".join(map(repr, unused[:8]))
        issues.note(f"{quantify(len(unused), 'columns are not used')}: {names}", path)
    table = []
    for line, cells in rows:
        if any(cells[len(first) :]):
            raise DataError(
                f"{path}, line {line}: {len(cells)} values under {len(first)} columns; a value "
                'that contains the separator needs quotes: "a, b"'
            )
        cells += [""] * (len(first) - len(cells))
        row = {column: cells[k] for column, k in position.items()}
        if row.get("label", "").casefold() in _MISSING:
            remedy = "if the label is missing, remove these rows"
            text = "labels are read as a class, each like a missing value"
            issues.count(text, f"{row['label']!r} in line {line} of {path}; {remedy}")
        table.append((line, row))
    if not table:
        raise DataError(f"{path} has no rows")
    return table


def _match_columns(
    path: Path, line: int, first: list[str], columns: Mapping[str, Sequence[str]], issues: Issues
) -> dict[str, int]:
    """The positions of the columns that a header names. Raises DataError for one named twice."""
    names = [_column_name(cell) for cell in first]
    position: dict[str, int] = {}
    for column, known in columns.items():
        if spelling := next((name for name in known if name in names), None):
            position[column] = names.index(spelling)
            if names.count(spelling) > 1:
                raise DataError(f"{path}, line {line}: two columns are called {spelling!r}")
    if renamed := [f"{first[k]!r} as {c}" for c, k in position.items() if names[k] != c]:
        issues.note(f"columns are read by other names: {', '.join(renamed)}", path)
    return position


def _is_file(table: Path, name: str) -> bool:
    try:
        return (table.parent / name).is_file() or (table.parent / name.replace("\\", "/")).is_file()
    except (OSError, ValueError):
        return False


def _column_name(cell: str) -> str:
    return cell.strip(" #").casefold().replace(" ", "_")


def _lines_of_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The values of each line that has any, with its number. Raises DataError."""
    lines = read_lines(path)
    delimiter = ""
    for start, line in enumerate(lines):  # noqa: B007
        if line.casefold().startswith("sep=") and len(line) == 5:  # Excel's
            delimiter = line[4]
        elif line.strip() and not line.startswith("# "):  # a remark; but "#" may name a column
            break
    else:
        raise DataError(f"{path} has no rows")
    # Of the separators the one that the first line has most often.
    delimiter = delimiter or max(",;\t", key=lambda sign: lines[start].count(sign))
    for number, line in enumerate(lines[start:], start + 1):
        if line.strip(f" {delimiter}"):
            yield number, _split_line(line, delimiter, f"{path}, line {number}")


def _split_line(line: str, delimiter: str, where: str) -> list[str]:
    if len(line) > MAX_ROW:
        raise DataError(f"{where}: {len(line):,} characters, the limit is {MAX_ROW:,}")
    if "\0" in line:
        raise DataError(f"{where}: contains NUL; save the table as UTF-8 text")
    try:
        (cells,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{where}: a quote is not closed, or not doubled in a quoted value "
            f'({error}).\nWrite "a ""b"" c", in one line; or a value without quotes around it.'
        ) from None
    return [cell.strip() for cell in cells]


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, or in UTF-16 with its mark. Raises DataError for another."""
    text = read_text(path)
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path) -> str:
    """A text as `read_lines` reads it, whole. Raises DataError for over MAX_TEXT_BYTES too."""
    try:
        if (size := path.stat().st_size) > MAX_TEXT_BYTES:
            raise DataError(f"{path} has {size:,} bytes, the limit is {MAX_TEXT_BYTES:,}: split it")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({error.reason}). Save it as UTF-8."
        ) from None
