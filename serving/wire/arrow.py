"""Arrow IPC streams, in and out: columns under the features' names, https://arrow.apache.org/docs/format/Columnar.html.

| feature | Arrow types |
|---|---|
| categorical string | string (large, view, dictionary-encoded too), integer (its decimal text) |
| categorical int | integer of at most 64 bits |
| numeric | integer, float |
| multi-valued, sequence | list (large too) of such values, or string split at the feature's separator |

Null is missing, as in JSON; so is NaN in a number. Compressed buffers and dictionaries of lists are refused: what they unfold to has no bound.
"""

import struct
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrkit.bundle import Bundle, output_names
from ctrkit.errors import nearest
from ctrkit.feeds import Bag, RowError, lists_to_columns
from ctrkit.schema import MISSING_INT, Feature, Kind
from serving.problems import InvalidBody, TooLarge
from serving.wire.ask import ARROW, UNFOLDED, Answer, Ask, Limits, check_rows, served

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def read_score(bundle: Bundle, body: bytes, limits: Limits) -> Ask:
    """A stream with a column a feature -> probabilities in the rows' order, as JSON unless ``scored`` is asked to write them.

    A feature without a column is missing.

    Raises:
        InvalidBody: no such stream, or columns that do not fit the model's features.
        TooLarge: too many rows, or text that unfolds to too many bytes.
    """
    from serving.wire.rows import scored as scored_as_json

    table = _table(body, limits)
    known = {feature.name: feature for feature in bundle.features}
    for name in table.column_names:
        if name not in known:
            raise InvalidBody((name,), f"column '{name}': unknown feature. {nearest(name, list(known))}")
    if len(set(table.column_names)) < table.num_columns:
        raise InvalidBody((), "two columns have the same name")
    absent = lists_to_columns({bundle.features[0].name: [None] * table.num_rows}, bundle.features)
    columns = {
        name: _column(feature, table[name], limits) if name in table.column_names else absent[name] for name, feature in known.items()
    }
    return Ask(bundle.feed(columns), table.num_rows, partial(scored_as_json, bundle), _misfit)


def scored(bundle: Bundle, probabilities: np.ndarray) -> Answer:
    """One batch with a float32 column ``probability``, or one a task; the schema's metadata says who answers."""
    names = output_names(bundle.tasks)
    columns = probabilities.reshape(-1, len(names)).T
    metadata = {key: str(value) for key, value in served(bundle).items()}
    schema = pa.schema([(name, pa.float32()) for name in names], metadata=metadata)
    batch = pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in columns], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return Answer(sink.getvalue().to_pybytes(), ARROW)


def _call(function: str, values: pa.Array) -> Any:
    return pc.call_function(function, [values])


def _table(body: bytes, limits: Limits) -> pa.Table:
    """The stream's rows, checked in full: nothing in them points outside their buffers."""
    try:
        _check_messages(body, limits)
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, ValueError, EOFError) as error:
        raise InvalidBody((), f"the body is no Arrow IPC stream: {str(error).splitlines()[0][:200]}") from None
    return table


def _check_messages(body: bytes, limits: Limits) -> None:
    """Rows and compression, read off the messages' headers before anything is unfolded."""
    rows = 0
    reader = pa.ipc.MessageReader.open_stream(body)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        kind, length, compressed = _batch_header(message.metadata.to_pybytes())
        if compressed:
            raise InvalidBody((), "the stream's buffers are compressed: write it without compression")
        rows += length if kind == _RECORD_BATCH else 0
        check_rows(rows, "rows", limits)
        if kind == _DICTIONARY_BATCH and length > limits.bytes:
            raise TooLarge(f"a dictionary of {length:,} values: send fewer")


def _batch_header(metadata: bytes) -> tuple[int, int, bool]:
    """(kind, rows, whether compressed) of a message: the few fields of Arrow's ``Message.fbs`` that bound its size."""

    def field(table: int, index: int) -> int | None:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * index >= struct.unpack_from("<H", metadata, vtable)[0]:
            return None
        offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * index)[0]
        return table + offset if offset else None

    def follow(place: int) -> int:
        return place + struct.unpack_from("<I", metadata, place)[0]

    message = follow(0)
    kind_at, header_at = field(message, 1), field(message, 2)
    kind = metadata[kind_at] if kind_at is not None else 0
    if kind not in (_RECORD_BATCH, _DICTIONARY_BATCH) or header_at is None:
        return kind, 0, False
    batch = follow(header_at)
    if kind == _DICTIONARY_BATCH:
        data_at = field(batch, 1)
        if data_at is None:
            return kind, 0, False
        batch = follow(data_at)
    length_at = field(batch, 0)
    length = struct.unpack_from("<q", metadata, length_at)[0] if length_at is not None else 0
    return kind, length, field(batch, 3) is not None


def _check_unfolded(column: pa.Array, limits: Limits) -> None:
    """Views, dictionaries and lists of nulls can be short on the wire and long unfolded: raises TooLarge when they are too long."""
    kind = column.type
    if _is_list(kind):
        if len(column.values) > limits.bytes:
            raise TooLarge(f"the lists hold {len(column.values):,} values: send the rows in several requests")
        return _check_unfolded(column.flatten(), limits)
    if pa.types.is_string_view(kind):
        total = _view_bytes(column)
    elif pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        lengths = _call("binary_length", column.dictionary.cast(pa.large_string())) if _view_fits(column.dictionary, limits) else None
        total = UNFOLDED * limits.bytes + 1 if lengths is None else _call("sum", pc.take(lengths, column.indices)).as_py() or 0
    else:
        return None
    if total > UNFOLDED * limits.bytes:
        raise TooLarge(f"the columns' text unfolds to more than {UNFOLDED * limits.bytes:,} bytes: send the rows in several requests")
    return None


def _view_fits(words: pa.Array, limits: Limits) -> bool:
    return not pa.types.is_string_view(words.type) or _view_bytes(words) <= UNFOLDED * limits.bytes


def _view_bytes(column: pa.Array) -> int:
    """Bytes of a column of views: each view of 16 bytes begins with its text's length."""
    views = column.buffers()[1]
    if views is None or not len(column):
        return 0
    lengths = np.frombuffer(views, np.int32)[4 * column.offset :: 4][: len(column)]
    return int(lengths[column.is_valid().to_numpy(zero_copy_only=False)].sum(dtype=np.int64))


def _column(feature: Feature, chunked: pa.ChunkedArray, limits: Limits) -> np.ndarray | Bag:
    kind = _plain(chunked.type)
    if pa.types.is_dictionary(chunked.type) and _is_list(kind):
        raise _mismatch(feature, chunked.type, "lists as they are, not encoded as a dictionary")
    if feature.multi_valued and not (_is_list(kind) or _is_text(kind) or pa.types.is_null(kind)):
        raise _mismatch(feature, kind, f"a list, or text separated by {feature.separator!r}")
    _check_kind(feature, _plain(kind.value_type) if feature.multi_valued and _is_list(kind) else kind)
    for chunk in chunked.chunks:
        _check_unfolded(chunk, limits)
    combined = chunked.combine_chunks()
    column = combined if isinstance(combined, pa.Array) else pa.array([], chunked.type)  # it stays chunked without any chunk
    if not feature.multi_valued:
        return _values(feature, column)
    if _is_list(column.type):
        lengths = pc.fill_null(_call("list_value_length", column), 0)
        return _values(feature, column.flatten()), lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    try:
        return lists_to_columns({feature.name: column.to_pylist()}, (feature,))[feature.name]
    except RowError as error:
        raise _misfit(error) from None


def _check_kind(feature: Feature, kind: pa.DataType) -> None:
    """Raises InvalidBody when a feature's values cannot be read from the type."""
    if pa.types.is_null(kind):
        return
    whole = pa.types.is_integer(kind)
    if feature.kind is Kind.NUMERIC:
        fits, wanted = whole or pa.types.is_floating(kind), "integers or floats"
    elif feature.dtype == "int":
        fits, wanted = whole or (feature.multi_valued and _is_text(kind)), "integers"
    else:
        fits, wanted = whole or _is_text(kind), "strings"
    if not fits:
        raise _mismatch(feature, kind, wanted)


def _values(feature: Feature, column: pa.Array) -> np.ndarray:
    """Canonical values of a column without lists."""
    if pa.types.is_dictionary(column.type):
        words = column.dictionary
        column = pc.take(words.cast(pa.large_string()) if _is_text(words.type) else words, column.indices)  # no cast unfolds views
    if feature.kind is Kind.NUMERIC:
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if feature.dtype == "int":
        try:
            return pc.fill_null(column.cast(pa.int64()), MISSING_INT).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:
            raise InvalidBody((feature.name,), f"column '{feature.name}': {error}") from None
    return np.array(pc.fill_null(column.cast(pa.large_string()), "").to_pylist(), object)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _misfit(error: RowError) -> InvalidBody:
    place = [part for part in (error.field, error.row) if part is not None]
    return InvalidBody((*place,), str(error))


def _mismatch(feature: Feature, kind: pa.DataType, wanted: str) -> InvalidBody:
    return InvalidBody((feature.name,), f"column '{feature.name}': expected {wanted}, got {kind}")
