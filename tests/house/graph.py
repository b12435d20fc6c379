"""Who imports whom: lcalens as a graph of files, its rooms, the arrows that go the wrong way, and its circles.

    python -m tests.house.graph [folder that holds lcalens/]

Every import counts, one inside a function or under TYPE_CHECKING too: who names a type depends on it. A name that
comes through a lazy facade (`from lcalens.lca import train`) is an arrow to the module that defines it; the table of a
facade is a promise to users and no arrow. `lcalens/__init__.py` is such a facade and belongs to no room.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "lcalens"

ALLOWED = {
    "core": set(),
    "engine": {"core"},
    "mechanism": {"engine", "core"},
    "lca": {"mechanism", "engine", "core"},
    "llm": {"mechanism", "engine", "core"},
    "selfcheck": {"lca", "llm", "mechanism", "engine", "core"},
    "views": {"lca", "llm", "mechanism", "engine", "core"},
    "commands": {"views", "selfcheck", "lca", "llm", "mechanism", "engine", "core"},
}
"""For each room, the rooms it may import."""

FLAT = {  # the rooms of modules that stood beside the rooms in 0.1
    "trace": "llm", "cli": "commands", "__main__": "commands", "screen": "views", "llm.facts": "llm",
    **{f"mechanism.{name}": "engine" for name in ("decoder", "tracing", "gradients", "direct", "metrics", "hooked")},
}  # fmt: skip


class Arrow(NamedTuple):
    """One module imports another."""

    source: str
    target: str


def room(module: str) -> str:
    """The room of a module; modules of 0.1 belong to the room they were moved to."""
    name = module.removeprefix(f"{PACKAGE}.")
    first = name.partition(".")[0]
    return FLAT.get(name, first if first in ALLOWED else "core")


def modules(folder: Path) -> dict[str, Path]:
    """Every module of the package, by name, without the facade at its top."""
    paths = {}
    for path in sorted((folder / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        paths[name] = path
    return paths


def facade(tree: ast.Module) -> dict[str, str] | None:
    """The lazy names of a package, with the modules that define them; None where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == "_HOMES" for name in node.targets
        ):
            return ast.literal_eval(node.value)
    return None


def imported(tree: ast.Module, package: str) -> Iterator[tuple[str, str | None]]:
    """Each import: the module, and the name taken from it, if one is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            yield from ((base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == PACKAGE:
            yield PACKAGE, node.attr


def arrows(folder: Path) -> set[Arrow]:
    """Every import of one module of the package by another."""
    paths = modules(folder)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    facades = {name: homes for name, tree in trees.items() if (homes := facade(tree)) is not None}
    found = set()
    for name, tree in trees.items():
        if name == PACKAGE:
            continue
        package = name if paths[name].name == "__init__.py" else name.rpartition(".")[0]
        for base, attribute in imported(tree, package):
            target = base
            if f"{base}.{attribute}" in paths:
                target = f"{base}.{attribute}"
            elif attribute in facades.get(base, ()):
                target = facades[base][attribute]
            promise = name in facades and target in facades[name].values()
            if target in paths and target not in (name, PACKAGE) and not promise:
                found.add(Arrow(name, target))
    return found


def back_edges(found: Iterable[Arrow]) -> list[Arrow]:
    """The arrows that go against the order of the rooms."""
    return sorted(
        arrow
        for arrow in found
        if room(arrow.source) != room(arrow.target) and room(arrow.target) not in ALLOWED[room(arrow.source)]
    )


def circles(found: Iterable[Arrow]) -> list[list[str]]:
    """Sets of modules that import each other, directly or around (Tarjan's strongly connected components)."""
    after: dict[str, list[str]] = {}
    for source, target in sorted(found):
        after.setdefault(source, []).append(target)
        after.setdefault(target, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in after[module]:
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                components.append(sorted(component))

    for module in after:
        if module not in index:
            visit(module)
    return sorted(components)


def main(folder: Path) -> None:
    """Print the graph as numbers, and what is wrong with it."""
    found = arrows(folder)
    names = [name for name in modules(folder) if name != PACKAGE]
    between = Counter((room(a.source), room(a.target)) for a in found if room(a.source) != room(a.target))
    back, around = back_edges(found), circles(found)
    print(
        f"{len(names)} modules in {len(set(map(room, names)))} rooms, {len(found)} arrows, "
        f"{sum(between.values())} of them between rooms ({len(between)} pairs of rooms), {len(back)} back edges, "
        f"{len(around)} circles (of {', '.join(str(len(circle)) for circle in around) or 'no'} files)"
    )
    for (source, target), count in sorted(between.items()):
        print(f"  {source:>9} -> {target:9} {count:3}")
    for arrow in back:
        print(f"back edge: {arrow.source} -> {arrow.target}")
    for circle in around:
        print(f"circle: {', '.join(circle)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
