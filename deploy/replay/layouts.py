"""How the bytes of a log are laid out: parquet, text with a header, or MovieLens' own text without one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

_PARQUET_MAGIC = b"PAR1"
_RATINGS_DAT = re.compile(r"\d+::\d+::[\d.]+::\d+")
_U_DATA = re.compile(r"\d+\t\d+\t\d+\t\d+")
_DELIMITERS = ",\t;|"


class Layout(NamedTuple):
    """The columns that a file has, and how its text is cut; no delimiter means parquet."""

    names: tuple[str, ...]
    delimiter: str | None
    header: bool


_MOVIELENS_10 = Layout(("user_id", "_1", "item_id", "_3", "rating", "_5", "timestamp"), delimiter=":", header=False)
_MOVIELENS_100K = Layout(("user_id", "item_id", "rating", "timestamp"), delimiter="\t", header=False)


def layout_of(path: Path) -> Layout:
    """Recognises a file by its first bytes, never by its name.

    Raises:
        ValueError: no such file, nothing in it, or parquet that is broken.
    """
    first_line = _first_line(path)
    if first_line.startswith(_PARQUET_MAGIC):
        return Layout(_parquet_names(path), delimiter=None, header=False)
    line = first_line.decode("utf-8-sig", errors="replace").strip()
    if _RATINGS_DAT.fullmatch(line):
        return _MOVIELENS_10
    if _U_DATA.fullmatch(line):
        return _MOVIELENS_100K
    delimiter = max(_DELIMITERS, key=line.count)
    return Layout(tuple(name.strip('"') for name in line.split(delimiter)), delimiter=delimiter, header=True)


def _first_line(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the path of a log")
    with path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise ValueError(f"{path} begins with an empty line; give a log with rows")
    return line


def _parquet_names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(pq.read_schema(path).names)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}; mend the file") from error


def read_columns(path: Path, layout: Layout, *, names: Sequence[str], text: Sequence[str]) -> pa.Table:
    """An Arrow table of these columns, those in `text` as strings: an item "007" stays "007".

    Raises:
        ValueError: the file cannot be read as what it looks like.
    """
    try:
        if layout.delimiter is None:
            return _as_text(pq.read_table(path, columns=list(names)), text)
        return _read_text(path, layout, names=names, text=text)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read: {error}; mend the file") from error


def _as_text(table: pa.Table, text: Sequence[str]) -> pa.Table:
    for name in text:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
    return table


def _read_text(path: Path, layout: Layout, *, names: Sequence[str], text: Sequence[str]) -> pa.Table:
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(column_names=None if layout.header else list(layout.names)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=layout.delimiter),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(names), column_types=dict.fromkeys(text, pa.string()), strings_can_be_null=True
        ),
    )
