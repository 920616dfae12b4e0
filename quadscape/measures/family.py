"""A family of runs as measures see it: a grid of labels, and the run that stands at each point."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Member:
    """One run of a family.

    Attributes:
        run: Its name, `<family>/<8 digits>` or that of an equal run elsewhere.
        labels: Its label on each axis.
        limits: Runs of its network whose range tests gave its learning rate; none where it was given.
    """

    run: str
    labels: Mapping[str, str]
    limits: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON values; without limits as before there were any."""
        found: dict[str, Any] = {"run": self.run, "labels": dict(self.labels)}
        return found | ({"limits": list(self.limits)} if self.limits else {})


@dataclass(frozen=True)
class Family:
    """A family of runs: every combination of the levels of its axes.

    Attributes:
        name: Its name.
        axes: Labels of the levels of each axis, in the order of the experiment file; axes of one level are left out.
        repeats: Names of the axes that only change the seed: their levels repeat a cell.
        members: Its runs, the last axis fastest; two combinations may be the same run.
        start: Run and iteration of the checkpoint at which all members start, for measures that read it.
    """

    name: str
    axes: Mapping[str, tuple[str, ...]]
    repeats: tuple[str, ...]
    members: tuple[Member, ...]
    start: tuple[str, int] | None = None

    def cell(self, member: Member) -> str:
        """Labels of a member on all axes but repeats, joined by ` · `; the family's name where there are none."""
        return " · ".join(member.labels[axis] for axis in self.axes if axis not in self.repeats) or self.name

    @property
    def cells(self) -> dict[str, tuple[Member, ...]]:
        """Members of every cell, in order."""
        found: dict[str, tuple[Member, ...]] = {}
        for member in self.members:
            found[self.cell(member)] = (*found.get(self.cell(member), ()), member)
        return found

    def document(self) -> dict[str, Any]:
        """As JSON values; without a start as before there were any."""
        found: dict[str, Any] = {
            "name": self.name,
            "axes": {axis: list(labels) for axis, labels in self.axes.items()},
            "repeats": list(self.repeats),
            "members": [member.document() for member in self.members],
        }
        return found | ({} if self.start is None else {"start": list(self.start)})

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "Family":
        """The family that `document` describes."""
        return cls(
            document["name"],
            {axis: tuple(labels) for axis, labels in document["axes"].items()},
            tuple(document["repeats"]),
            tuple(
                Member(member["run"], dict(member["labels"]), tuple(member.get("limits", ())))
                for member in document["members"]
            ),
            tuple(document["start"]) if "start" in document else None,
        )
