"""Eigenbases of one checkpoint on different data, and which of them are compared with which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike
from quadscape.measures.job import Job


@dataclass(frozen=True)
class Side:
    """An eigenbasis and the data that it is of.

    Attributes:
        basis: The eigenbasis.
        subset: Definition of the subset; empty for all data.
        examples: Number of training examples.
        data: The data store; empty where none is needed.
    """

    basis: BasisLike
    subset: Mapping[str, Any]
    examples: int
    data: str | Path = ""

    @classmethod
    def stored(cls, basis: BasisLike, data: Any) -> "Side":
        """That of a data store, which says what it is."""
        from quadscape.store import open_store

        attributes: Mapping[str, Any] = dict(open_store(data).attrs)
        return cls(basis, attributes.get("subset") or {}, int(attributes["counts"]["train"]), data)

    @property
    def seed(self) -> int:
        """Seed of what is drawn."""
        return int(self.subset.get("seed", 0))

    def drawn(self) -> tuple[Any, ...]:
        """What tells which examples these are, whatever their order."""
        kept = self.subset.get("classes")
        parts = (self.subset.get("per_class"), self.subset.get("half"))
        return (None if kept is None else sorted(kept), *parts, self.seed if parts != (None, None) else 0)

    def words(self, *, half: bool = True) -> str:
        """What it is, in words; without `half`, what both halves are."""
        found = [] if self.subset.get("classes") is None else [f"classes {', '.join(map(str, self.subset['classes']))}"]
        if self.subset.get("per_class") is not None:
            found.append(f"{self.subset['per_class']} per class")
        if self.subset.get("half") is not None:
            found.append(f"half {self.subset['half']}" if half else "halves")
        if self.subset.get("shuffled"):
            found.append("another order")
        return ", ".join([*found, f"seed {self.seed}"])


@dataclass(frozen=True)
class Comparison:
    """Two eigenbases of a checkpoint.

    Attributes:
        kind: `order`, `halves` or `subset`.
        first: Whose eigenvectors are looked for.
        second: Where they are looked for.
    """

    kind: str
    first: Side
    second: Side

    def columns(self, number: int, rows: int) -> dict[str, np.ndarray]:
        """What identifies it in a table."""
        found: dict[str, Any] = {
            "comparison": number,
            "kind": self.kind,
            "subset": self.second.words(half=self.kind != "halves"),
            "seed": self.second.seed,
            "examples": min(self.first.examples, self.second.examples),
        }
        return {name: np.repeat(value, rows) for name, value in found.items()}


def comparisons(own: Side, subsets: Sequence[Side]) -> list[Comparison]:
    """What is compared with what: two halves of one drawing with each other, everything else with the own basis.

    Args:
        own: The checkpoint's own.
        subsets: On the subsets that the experiment lists.

    Returns:
        In the order of the subsets; two halves take the place of the one that comes first.
    """
    found: list[Comparison] = []
    taken: set[int] = set()
    for place, side in enumerate(subsets):
        if place in taken:
            continue
        if side.subset.get("half") is not None:
            wanted = {**side.subset, "half": 1 - side.subset["half"]}
            other = next((n for n, one in enumerate(subsets) if n not in taken and one.subset == wanted), None)
            if other is not None:
                taken.add(other)
                pair = (side, subsets[other])
                found.append(Comparison("halves", *(pair if side.subset["half"] == 0 else pair[::-1])))
                continue
        same = bool(side.subset.get("shuffled")) and side.drawn() == own.drawn()
        found.append(Comparison("order" if same else "subset", own, side))
    return found


def comparisons_of(job: Job) -> list[Comparison]:
    """What a job compares that reads a checkpoint's eigenbasis and those of all its subsets."""
    from quadscape.curvature.stored_basis import Eigenbasis  # here, as it loads torch

    own = Side.stored(job.basis, job.path("data"))
    paths = zip(job.inputs["subset_eigenbasis"], job.inputs["subset_data"], strict=True)
    return comparisons(own, [Side.stored(Eigenbasis(basis), data) for basis, data in paths])
