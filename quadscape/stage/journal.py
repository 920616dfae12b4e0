"""The journal of a stage: which units are done, and the size and checksum of every file that they wrote."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from quadscape.digests import canonical, canonical_digest
from quadscape.durable import create, sync, sync_open, write_whole
from quadscape.stage.files import Files, file_checksum
from quadscape.stage.lock import Lock


@dataclass
class Journal:
    """What is done.

    That is: files (size and SHA-256) of every finished unit, the plans that took the place of the first one, with the
    unit from which on they did, the results once they were computed, and the arrays that were removed then, since they
    were needed only on the way.
    """

    path: Path
    key: str
    units: dict[int, Files]
    replanned: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] | None = None
    discarded: list[str] = field(default_factory=list)
    descriptor: int = -1

    @classmethod
    def load(cls, path: Path, key: str) -> "Journal":
        """Reads a journal; lines that are torn, damaged or of another plan do not count.

        Args:
            path: The journal's file.
            key: Hash of fingerprint and plan that the lines must carry.

        Returns:
            The journal.
        """
        journal = cls(path, key, {})
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return journal
        for line in lines:
            checksum, _, text = line.partition(b" ")
            if checksum != sha256(text).hexdigest()[:16].encode():
                continue
            entry = json.loads(text)
            if entry["key"] != key:
                continue
            if "results" in entry:
                journal.results = entry["results"]
            elif "discarded" in entry:
                journal.discarded = entry["discarded"]
            elif "replanned" in entry:
                journal.replanned.append(entry["replanned"])
            else:
                journal.units[entry["unit"]] = entry["files"]
        return journal

    def _line(self, entry: dict[str, Any]) -> bytes:
        text = canonical({"key": self.key, **entry})
        return f"{sha256(text.encode()).hexdigest()[:16]} {text}\n".encode()

    def _append(self, entry: dict[str, Any]) -> None:
        write_whole(self.descriptor, self._line(entry))
        sync_open(self.descriptor, self.path)

    def add_unit(self, unit: int, files: Files) -> None:
        """Records a finished unit."""
        self._append({"unit": unit, "files": files})
        self.units[unit] = files

    def add_plan(self, unit: int, plan: dict[str, Any]) -> None:
        """Records that another plan is in use from a unit on."""
        self._append({"replanned": {"unit": unit, "plan": plan}})
        self.replanned.append({"unit": unit, "plan": plan})

    def add_results(self, results: dict[str, Any]) -> None:
        """Records the results."""
        self._append({"results": results})
        self.results = results

    def add_discarded(self, arrays: list[str]) -> None:
        """Records that the files of these arrays no longer count."""
        self._append({"discarded": arrays})
        self.discarded = arrays

    def rewrite(self, lock: Lock) -> None:
        """Writes the journal anew with what counts, into a file that a former owner does not have open."""
        entries: list[dict[str, Any]] = [{"unit": u, "files": self.units[u]} for u in sorted(self.units)]
        entries += [{"replanned": entry} for entry in self.replanned]
        if self.results is not None:
            entries.append({"results": self.results})
        if self.discarded:
            entries.append({"discarded": self.discarded})
        prepared = lock.workspace / "journal"
        self.close()
        self.descriptor = create(prepared, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
        write_whole(self.descriptor, b"".join(map(self._line, entries)))
        sync_open(self.descriptor, prepared)
        lock.publish(prepared, self.path)
        sync(self.path.parent)

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def digest(self) -> str:
        """SHA-256 over name, size and SHA-256 of every file."""
        files = {name: check for unit in self.units.values() for name, check in unit.items()}
        return canonical_digest(sorted([name, *check] for name, check in files.items()))

    def is_discarded(self, name: str) -> bool:
        """Whether a file belongs to an array that was removed."""
        return any(name.startswith(f"{array}/") for array in self.discarded)

    def damaged(self, store: Path, *, read: bool, within: str = "") -> dict[int, str]:
        """Units whose files are not as journalled.

        Args:
            store: The store's directory.
            read: Whether to read the files, or to look at their sizes only.
            within: What the names of the files to look at begin with.

        Returns:
            One name of a damaged or missing file for each such unit.
        """
        found: dict[int, str] = {}
        for unit, files in self.units.items():
            for name, check in files.items():
                if not name.startswith(within) or self.is_discarded(name):
                    continue
                try:
                    path = store / name
                    same = file_checksum(path) == check if read else path.stat().st_size == check[0]
                except OSError:
                    same = False
                if not same:
                    found[unit] = name
                    break
        return found


def journal_key(attributes: Mapping[str, Any]) -> str:
    """Key of the journal of a stage with a fingerprint and a plan."""
    return canonical_digest({"fingerprint": attributes["fingerprint"], "plan": attributes["plan"]})[:16]
