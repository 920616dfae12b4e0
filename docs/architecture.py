"""Draws the rooms of the package with what imports what: `python docs/architecture.py`.

The floors are those of the table in docs/architecture.md. The source is parsed, not imported.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
PICTURE = ROOT / "docs/images/architecture.svg"
PACKAGE = "quadscape"
GROUND = "foundations"
OUTSIDE = {"quadscape", "quadscape.controller"}
"""Modules that stand on no floor: the package itself, which loads everything lazily, and a name kept for a queue."""

Graph = Mapping[str, set[str]]


def floors() -> dict[str, int]:
    """The floor of every room, from the table of the page."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {room: int(floor) for floor, room in rows}


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        relative = path.relative_to(ROOT)
        parts = relative.parent.parts if path.name == "__init__.py" else relative.with_suffix("").parts
        found[".".join(parts)] = path
    return found


def imported(path: Path) -> set[tuple[str, str]]:
    """Module and name of all that a module imports, wherever in it; the name is empty for a whole module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def module_graph() -> dict[str, set[str]]:
    """Which modules of the package each imports."""
    modules = sources()
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        targets = {
            f"{module}.{member}" if f"{module}.{member}" in modules else module for module, member in imported(path)
        }
        graph[name] = {target for target in targets if target in modules} - {name}
    return graph


def room_of(module: str) -> str:
    """The room that a module lies in."""
    return module.split(".")[1]


def room_graph() -> dict[str, set[str]]:
    """Which rooms each room imports from; modules of floor 0 are one room."""
    ground = {room for room, floor in floors().items() if floor == 0}

    def name(module: str) -> str:
        return GROUND if room_of(module) in ground else room_of(module)

    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in module_graph().items():
        if module not in OUTSIDE:
            graph[name(module)] |= {name(t) for t in targets if t not in OUTSIDE} - {name(module)}
    return dict(graph)


def cycle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle; empty where there are none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := search(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The arrows that do not follow from others, of a graph without circles."""

    def reachable(node: str) -> set[str]:
        return {node} | {far for target in graph.get(node, ()) for far in reachable(target)}

    return {
        node: {
            target for target in targets if not any(target in reachable(other) for other in targets if other != target)
        }
        for node, targets in graph.items()
    }


def description(graph: Graph) -> str:
    """All arrows in one line, which the picture carries so that a test can tell whether it is of today."""
    return "; ".join(f"{node} > {', '.join(sorted(targets))}" for node, targets in sorted(graph.items()) if targets)


def draw() -> None:
    """Writes the picture."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams |= {"svg.hashsalt": "quadscape", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    levels = {room: floor for room, floor in floors().items() if floor} | {GROUND: 0}
    graph = room_graph()
    arrows = reduced(graph)
    rows: dict[int, list[str]] = defaultdict(list)
    for room, level in levels.items():
        rows[level].append(room)
    place = {}
    for level, rooms in rows.items():
        for index, room in enumerate(rooms):
            # Alternately to both sides, so that arrows over several floors pass beside the boxes between.
            shift = 0.0 if len(rooms) > 1 else 0.55 * (-1) ** level
            place[room] = ((index - (len(rooms) - 1) / 2) * 2.2 + shift, float(level))
    figure, axes = plt.subplots(figsize=(7.0, 6.6), facecolor="white")
    for level in rows:
        axes.axhspan(level - 0.36, level + 0.36, color="#f1f1ee" if level % 2 else "#e6e6e1", linewidth=0)
        axes.text(-3.75, level, f"{level}", va="center", ha="left", color="#666666")
    for room, targets in arrows.items():
        for target in targets:
            (x, y), (x2, y2) = place[room], place[target]
            bend = 0.0 if y - y2 < 1.5 else 0.28 * (1 if x + x2 >= 0 else -1)
            axes.annotate(
                "",
                (x2, y2 + 0.24),
                (x, y - 0.24),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "#4477aa",
                    "linewidth": 0.9,
                    "connectionstyle": f"arc3,rad={bend}",
                    "shrinkA": 0,
                    "shrinkB": 0,
                },
            )
    for room, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "#333333"}
        axes.text(x, y, room, ha="center", va="center", bbox=box, zorder=3)
    axes.set(xlim=(-3.9, 3.9), ylim=(-0.6, max(rows) + 0.6))
    axes.axis("off")
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None, "Description": description(graph)})


if __name__ == "__main__":
    draw()
