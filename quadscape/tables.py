"""Typed tables: what every analysis returns and every figure reads.

A `TableSchema` declares columns with unit and description; a column that is an estimate declares an interval
and then has two companions, `<name>_low` and `<name>_high`. A `Table` is checked against its schema when it
is made and when it is read, and is stored as a small Zarr store, one 1-D array per column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quadscape.errors import StoreError
from quadscape.store import ArraySpec, read_store, write_store

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

    def write(self, path: str | Path) -> None:
        """Writes the table as a Zarr store.

        Args:
            path: Directory of the store, or the `zarr.json` in it; what was there is replaced.
        """
        arrays = []
        for name, column in self.schema.all_columns().items():
            values = self.columns[name]
            meta = {"unit": column.unit, "description": column.description}
            dtype = "str" if column.kind == "str" else values.dtype.name
            arrays.append((ArraySpec(name, values.shape, dtype, ("row",), values.shape, attributes=meta), values))
        head = {"table": self.schema.name, "description": self.schema.description}
        write_store(path, arrays, {**head, "table_attributes": dict(self.attributes)})


def read_table(path: str | Path, schema: TableSchema) -> Table:
    """Reads a table and checks it.

    Args:
        path: Directory of the store, or the `zarr.json` in it.
        schema: What it must be.

    Returns:
        The table.

    Raises:
        StoreError: It is missing, damaged or of another kind.
    """
    arrays, attributes = read_store(path)
    if attributes.get("table") != schema.name:
        raise StoreError(f"{path} holds the table '{attributes.get('table')}', where '{schema.name}' was expected.")
    try:
        return Table(schema, arrays, attributes["table_attributes"])
    except ValueError as error:
        raise StoreError(f"{path} was written under another schema ({error}); remove it and run again.") from error
