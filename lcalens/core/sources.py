"""The code that a value depends on, as one digest: every definition that a function reaches, and nothing else.

Finished cells are kept under keys that hold this digest, so that a change of the code that made them makes new ones.
Reached are, from the function's own definition on, all functions, classes and constants that it names, in its own
package and in lcalens, through imports at any depth and names that are loaded lazily; a class is reached whole; a data
file is reached where its name is. Comments, docstrings and layout do not count, and neither does what draws or prints.
"""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import lcalens

_SHOWS = ("lcalens.views", "lcalens.commands", "lcalens.cli")
_FILES = (".c", ".json", ".toml", ".txt", ".csv")


class Place(NamedTuple):
    """A top-level definition; with an empty name, a whole module."""

    module: str
    name: str


@dataclass(frozen=True)
class Module:
    """A file's definitions, as syntax without docstrings.

    Attributes:
        definitions: The statements that bind each name.
        imports: For each name the module that it comes from, and its name there; None is the module itself.
        loose: Statements that bind nothing, such as a call that registers something.
        lazy: For each name of a facade the module that defines it.
    """

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)
    lazy: dict[str, str] = field(default_factory=dict)


def sources(*roots: Callable[..., Any] | type) -> str:
    """A digest of all code of lcalens, and of a root's own package, that the roots reach.

    Args:
        roots: Functions or classes of a file.

    Example:
        ```
        from lcalens.lca.training.trainer import Trainer

        key = content_key([sources(Trainer), seed])
        ```
    """
    return _sources(roots)


@lru_cache(maxsize=256)
def _sources(roots: tuple[Any, ...]) -> str:
    folders, places = {"lcalens": Path(lcalens.__file__).parent}, []
    for root in roots:
        plain = inspect.unwrap(root)
        file = Path(str(sys.modules[plain.__module__].__file__)).resolve()
        top, module = _package_of(file)
        folders.setdefault(module.partition(".")[0], top)
        places.append(Place(module, plain.__qualname__.partition(".")[0]))
    return Tree(folders).digest(places)


def _package_of(file: Path) -> tuple[Path, str]:
    """The folder of a file's outermost package, and its module's name; a file of no package stands for itself."""
    parts, folder = [] if file.stem == "__init__" else [file.stem], file.parent
    while (folder / "__init__.py").exists():
        parts.insert(0, folder.name)
        folder = folder.parent
    return (folder / parts[0] if len(parts) > 1 or file.stem == "__init__" else file), ".".join(parts)


class Tree:
    """Packages as files on disk.

    Args:
        folders: Where each package is; or a single file, for a module of no package.
    """

    def __init__(self, folders: dict[str, Path]):
        self._folders = folders
        self._module = cache(self._read)
        self._files = cache(self._data_files)

    def digest(self, places: Iterable[Place]) -> str:
        """One digest of all that the places reach.

        Args:
            places: Where to begin.
        """
        definitions, digest = self.reached(places), hashlib.sha256()
        for place in sorted(definitions):
            digest.update(f"{place.module} {place.name}\n".encode())
            for node in definitions[place]:
                digest.update(_written(node) if isinstance(node, ast.stmt) else node.read_bytes())
        return digest.hexdigest()[:32]

    def reached(self, places: Iterable[Place]) -> dict[Place, list[ast.stmt | Path]]:
        """The definitions, and the data files they name, reached from some of them.

        Args:
            places: Where to begin; a name that a file does not define stands for the whole file.
        """
        definitions: dict[Place, list[ast.stmt | Path]] = {}
        todo = [place for begin in places for place in self._begin(begin)]
        while todo:
            place = todo.pop()
            module = self._module(place.module)
            if place in definitions or module is None:
                continue
            if not place.name:  # what the module does when it is imported
                definitions[place] = list(module.loose)
            else:
                definitions[place] = list(module.definitions[place.name])
                todo.append(Place(place.module, ""))
            for node in [node for node in definitions[place] if isinstance(node, ast.stmt)]:
                definitions[place] += self._named_files(place.module, node)
                for chain in _chains(node):
                    todo += self._resolve(place.module, chain)
        return definitions

    def _begin(self, place: Place) -> list[Place]:
        module = self._module(place.module)
        if module is None or place.name in module.definitions:
            return [place]
        return self._whole(place.module)

    def _whole(self, name: str) -> list[Place]:
        module = self._module(name)
        return [] if module is None else [Place(name, inner) for inner in (*module.definitions, "")]

    def _resolve(self, name: str, chain: tuple[str, ...]) -> list[Place]:
        """What a name with its attributes refers to, as far as it is a definition of these packages."""
        module, first = self._module(name), chain[0]
        if module is None:
            return []
        if first in module.definitions:
            return [Place(name, first)]
        return [
            place
            for target, inner in module.imports.get(first, ())
            for place in self._member(target, (*([inner] if inner else []), *chain[1:]))
        ]

    def _member(self, name: str, chain: tuple[str, ...]) -> list[Place]:
        """What a chain of attributes of a module refers to."""
        module = self._module(name)
        if module is None:
            return []
        if not chain:
            return self._whole(name)
        first = chain[0]
        if first in module.definitions:
            return [Place(name, first)]
        if first in module.lazy:
            return self._member(module.lazy[first], chain)
        if first in module.imports:
            return self._resolve(name, chain)
        return self._member(f"{name}.{first}", chain[1:])

    def _path(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        if top not in self._folders or name.startswith(_SHOWS):
            return None
        folder = self._folders[top]
        if folder.suffix == ".py":
            return folder if not rest else None
        plain = folder.joinpath(*rest)
        for path in (plain.with_suffix(".py") if rest else plain / "__init__.py", plain / "__init__.py"):
            if path.is_file():
                return path
        return None

    def _read(self, name: str) -> Module | None:
        path = self._path(name)
        if path is None:
            return None
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        return _parsed(path.read_bytes(), package, path.stem == "__init__")

    def _data_files(self, top: str) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        folder = self._folders[top]
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix in _FILES:
                files.setdefault(path.name, []).append(path)
        return files

    def _named_files(self, module: str, node: ast.AST) -> list[Path]:
        texts = [
            item.value for item in ast.walk(node) if isinstance(item, ast.Constant) and isinstance(item.value, str)
        ]
        known = self._files(module.partition(".")[0])
        return [path for text in texts if text.endswith(_FILES) for path in known.get(text.rpartition("/")[2], ())]


@lru_cache(maxsize=1024)
def _parsed(source: bytes, package: str, facade: bool) -> Module:
    tree, module = _Plain().visit(ast.parse(source)), Module()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_never_run(statement):
            continue
        bound = set(_bound(statement))
        for name in bound:
            module.definitions.setdefault(name, []).append(statement)
        if not bound:
            module.loose.append(statement)
    for node in ast.walk(tree):
        for name, target in _imports(node, package):
            module.imports.setdefault(name, []).append(target)
    if facade:
        module.lazy.update(_lazy(tree))
    return module


@lru_cache(maxsize=1 << 14)
def _written(statement: ast.stmt) -> bytes:
    """The statement without its layout."""
    return ast.dump(statement).encode()


class _Plain(ast.NodeTransformer):
    """Takes docstrings, and other strings that stand alone, away."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Leave out a string."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)


@lru_cache(maxsize=1 << 14)
def _is_never_run(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":`, when the module is imported."""
    if not isinstance(statement, ast.If):
        return False
    return any(
        isinstance(node, ast.Name) and node.id in ("TYPE_CHECKING", "__name__") for node in ast.walk(statement.test)
    )


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """The names that an import binds, with the module and the name there that each stands for."""
    if isinstance(node, ast.Import):
        for item in node.names:
            yield (
                item.asname or item.name.partition(".")[0],
                (item.name if item.asname else item.name.partition(".")[0], None),
            )
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        for item in node.names:
            yield item.asname or item.name, (module, None if item.name == "*" else item.name)


def _lazy(tree: ast.Module) -> dict[str, str]:
    """A facade's names with the modules that define them, from its tables of strings."""
    homes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    homes[str(key.value)] = value.value
    return homes


@lru_cache(maxsize=1 << 14)
def _chains(node: ast.AST) -> set[tuple[str, ...]]:
    """Every name in it, with the attributes that are asked of it: `bayes.accuracy` is (bayes, accuracy)."""
    chains: set[tuple[str, ...]] = set()
    inner: set[int] = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and id(item) not in inner:
            chain, base = [item.attr], item.value
            while isinstance(base, ast.Attribute):
                inner.add(id(base))
                chain.insert(0, base.attr)
                base = base.value
            if isinstance(base, ast.Name):
                inner.add(id(base))
                chains.add((base.id, *chain))
        elif isinstance(item, ast.Name) and id(item) not in inner:
            chains.add((item.id,))
        for annotation in (getattr(item, "annotation", None), getattr(item, "returns", None)):
            for text in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
                if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.isidentifier():
                    chains.add((text.value,))
    return chains
