"""Typed tables: what every analysis returns and every figure reads.

A `TableSchema` declares columns with unit and description; a column that is an estimate declares an interval
and then has two companions, `<name>_low` and `<name>_high`. A `Table` is checked against its schema when it
is made and when it is read, and is stored as one Parquet file with units and descriptions in its schema.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quadscape.digests import digest
from quadscape.errors import StoreError

_HEAD = "quadscape"
_DTYPES = {"float": np.dtype("float64"), "int": np.dtype("int64"), "bool": np.dtype("bool"), "str": np.dtype("U")}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Identifier.
        unit: Unit, "1" for pure numbers.
        description: What the number is, for a reader of the store.
        kind: Type of the values.
        interval: For an estimate, how its interval was made (for example "95 % bootstrap over examples"); the
            columns `<name>_low` and `<name>_high` then exist. Empty for exact values.
    """

    name: str
    unit: str
    description: str
    kind: Literal["float", "int", "bool", "str"] = "float"
    interval: str = ""


@dataclass(frozen=True)
class TableSchema:
    """Name, meaning and columns of a kind of table.

    Attributes:
        name: Identifier; the name of the table's file.
        description: One sentence on what a row is.
        columns: The columns as declared, without the interval companions.
    """

    name: str
    description: str
    columns: tuple[Column, ...]

    def all_columns(self) -> dict[str, Column]:
        """Every column by name, interval companions included."""
        found: dict[str, Column] = {}
        for column in self.columns:
            found[column.name] = column
            if column.interval:
                for side, word in (("low", "Lower"), ("high", "Upper")):
                    text = f"{word} end of the interval of {column.name}: {column.interval}."
                    found[f"{column.name}_{side}"] = Column(f"{column.name}_{side}", column.unit, text)
        return found


@dataclass(frozen=True)
class Table:
    """Values under a schema.

    Attributes:
        schema: The columns and their meaning.
        columns: One 1-D array per column, all of one length.
        attributes: Scalars that hold for the whole table: run, iteration, thresholds, chance levels (JSON values).
    """

    schema: TableSchema
    columns: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = self.schema.all_columns()
        if set(self.columns) != set(expected):
            missing, extra = sorted(set(expected) - set(self.columns)), sorted(set(self.columns) - set(expected))
            raise ValueError(f"table '{self.schema.name}': missing columns {missing}, unknown columns {extra}")
        checked: dict[str, np.ndarray] = {}
        for name, column in expected.items():
            values = np.asarray(self.columns[name])
            if column.kind == "int" and values.dtype.kind == "f":
                raise ValueError(f"table '{self.schema.name}': column '{name}' holds floats, not integers")
            checked[name] = values.astype(_DTYPES[column.kind])
        lengths = {name: values.shape for name, values in checked.items()}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise ValueError(f"table '{self.schema.name}': columns differ in length or are not 1-D: {lengths}")
        object.__setattr__(self, "columns", checked)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, mask: np.ndarray) -> "Table":
        """The rows that a boolean mask (or an index array) selects."""
        return Table(self.schema, {name: values[mask] for name, values in self.columns.items()}, self.attributes)

    def digest(self) -> str:
        """SHA-256 of values and attributes."""
        return digest(self.columns, self.attributes)

    def write(self, path: str | Path, origin: str = "") -> None:
        """Writes the table as one Parquet file, which is there whole or not at all.

        Args:
            path: The file; what was there is replaced.
            origin: Digest of everything that the table follows from; see `quadscape.measures.job`.
        """
        import pyarrow as pa  # here, as schemas are read where no table is
        import pyarrow.parquet as pq

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields, arrays, texts = [], [], []
        for name, column in self.schema.all_columns().items():
            kind = pa.string() if column.kind == "str" else pa.from_numpy_dtype(self.columns[name].dtype)
            meta = {"unit": column.unit, "description": column.description}
            fields.append(pa.field(name, kind, nullable=False, metadata=meta))
            values = self.columns[name]
            arrays.append(pa.array(values.tolist() if column.kind == "str" else values, kind))
            texts += [name] if column.kind == "str" else []
        head = {
            "table": self.schema.name,
            "description": self.schema.description,
            "attributes": dict(self.attributes),
            "digest": self.digest(),
            "origin": origin,
        }
        # Under the second key pandas finds `DataFrame.attrs`.
        meta = {_HEAD: json.dumps(head), "PANDAS_ATTRS": json.dumps(dict(self.attributes))}
        content = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=meta))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            leftover.unlink(missing_ok=True)
        pq.write_table(content, temporary, compression="zstd", use_dictionary=texts, write_page_checksum=True)
        temporary.replace(path)


def _damaged(path: Path, reason: object) -> str:
    return f"{path} is damaged ({reason}); remove that file and run the workflow again."


def table_head(path: str | Path) -> dict[str, Any]:
    """What a table's file says of itself, without its columns.

    Args:
        path: A Parquet file.

    Returns:
        table, description, attributes, digest and origin.

    Raises:
        StoreError: It is missing, or no table of this project.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise StoreError(f"There is no table at {path}; run the workflow again.")
    try:
        found = json.loads(pq.read_schema(path).metadata[_HEAD.encode()])
    except Exception as error:
        raise StoreError(_damaged(path, error)) from error
    if not (isinstance(found, dict) and isinstance(found.get("attributes"), dict)):
        raise StoreError(_damaged(path, "its head says nothing"))
    return found


def read_table(path: str | Path, schema: TableSchema) -> Table:
    """Reads a table and checks it.

    Args:
        path: A Parquet file.
        schema: What it must be.

    Returns:
        The table.

    Raises:
        StoreError: It is missing, damaged or of another kind.
    """
    import pyarrow.parquet as pq

    path, head = Path(path), table_head(path)
    if head.get("table") != schema.name:
        raise StoreError(f"{path} holds the table '{head.get('table')}', where '{schema.name}' was expected.")
    try:
        content = pq.read_table(path, page_checksum_verification=True)
        arrays = {
            name: np.array(column.to_pylist(), dtype=str) if str(column.type) == "string" else column.to_numpy()
            for name, column in zip(content.column_names, content.columns, strict=True)
        }
    except Exception as error:
        raise StoreError(_damaged(path, error)) from error
    try:
        table = Table(schema, arrays, head["attributes"])
    except ValueError as error:
        raise StoreError(f"{path} was written under another schema ({error}); remove it and run again.") from error
    if table.digest() != head.get("digest"):
        raise StoreError(_damaged(path, "its content differs from its digest"))
    return table
