"""CSV, TSV and Parquet: one record a row, only the columns that a document can come from."""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from pipeline.readers.encodings import utf8
from pipeline.readers.streams import Fault, Numbered, Piece, chunks, excerpt, lines, local_path, open_binary
from pipeline.sources.kinds import compression_of

_BATCH = 512


def read_csv(piece: Piece) -> Iterator[Numbered]:
    """Rows as dicts by the header line; the separator is a comma, tab or semicolon, whichever the header has most
    of."""
    csv.field_size_limit(piece["max_record"])
    faults: list[tuple[int, Fault]] = []
    given: list[int] = []
    numbered = _decoded(lines(utf8(piece), piece["max_record"]), given, faults)
    head = next(numbered, None)
    if head is None:
        yield from faults
        return
    separator = max(",\t;", key=head.count)
    try:
        header = next(csv.reader([head], delimiter=separator))
    except csv.Error as error:
        yield given[0], Fault("broken_csv", f"the header: {error}", excerpt(head.encode()))
        return
    yield from faults
    faults.clear()
    given.clear()
    rows = csv.reader(numbered, delimiter=separator)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            row = Fault("broken_csv", str(error))
        yield from faults
        number = given[0] if given else 1
        faults.clear()
        given.clear()
        if isinstance(row, Fault):
            yield number, row
        elif len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        elif row:
            yield (
                number,
                Fault(
                    "wrong_columns",
                    f"{len(row)} values under {len(header)} headings",
                    excerpt(separator.join(row).encode()),
                ),
            )
    yield from faults


def _decoded(
    numbered: Iterator[tuple[int, bytes | Fault]], given: list[int], faults: list[tuple[int, Fault]]
) -> Iterator[str]:
    """Lines as text with their ends, their numbers in ``given``; those that are no text go to ``faults``."""
    for number, line in numbered:
        if isinstance(line, Fault):
            faults.append((number, line))
            continue
        try:
            text = line.decode() + "\n"
        except UnicodeDecodeError as error:
            faults.append((number, Fault("invalid_utf8", f"byte {error.start}: {error.reason}", excerpt(line))))
            continue
        given.append(number)
        yield text


def read_parquet(piece: Piece) -> Iterator[Numbered]:
    """Rows as dicts. A row group that cannot be read is one Fault for each of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(_seekable(piece["location"], stack)))
            names = file.schema_arrow.names
            wanted = piece.get("columns") if set(piece.get("unless", ())).isdisjoint(names) else None
            columns = [name for name in names if not wanted or name in wanted]
            nested = any(pa.types.is_nested(file.schema_arrow.field(name).type) for name in columns)
        except (pa.ArrowException, OSError) as error:
            yield 1, Fault("broken_parquet", str(error).splitlines()[0])
            return
        number = piece.get("first_line", 1)
        groups = piece["groups"] if "groups" in piece else range(file.metadata.num_row_groups)
        for group in groups:
            end = number + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns, use_threads=False):
                    for row in _rows(batch):
                        yield number, _without_padding(row) if nested and isinstance(row, dict) else row
                        number += 1
            except (pa.ArrowException, OSError) as error:
                for lost in range(number, end):
                    yield lost, Fault("broken_parquet", str(error).splitlines()[0])
            number = end


def _without_padding(value: Any) -> Any:
    """A value without the nulls inside its structs: Arrow gives every struct of a column all fields, null where the
    record had none, and they are not to be told from nulls that were written."""
    if isinstance(value, dict):
        return {name: _without_padding(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_padding(inner) for inner in value]
    return value


def _rows(batch: Any) -> Iterator[Any]:
    if batch.num_columns == 0:
        yield from ({} for _ in range(batch.num_rows))
        return
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):  # find the rows that are at fault
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield Fault("invalid_utf8", str(error))


def _seekable(location: str, stack: contextlib.ExitStack) -> Any:
    """A file that Parquet can seek in: objects of a store and compressed files are copied to a temporary one first."""
    if not location.startswith("s3://") and not compression_of(location):
        return local_path(location)
    copy = stack.enter_context(tempfile.TemporaryFile(prefix="ingest-"))  # noqa: SIM115 - the stack closes it
    if compression_of(location):
        for data in chunks({"location": location}):
            copy.write(data)
    else:
        shutil.copyfileobj(stack.enter_context(open_binary(location)), copy)
    copy.seek(0)
    return copy
