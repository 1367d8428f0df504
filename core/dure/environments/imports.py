"""Which modules of others an app imports, read from its source: an environment is tried without running the app."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def imported_by(folder: Path, *components: str) -> tuple[str, ...]:
    """Modules outside the app that `module:attribute` components import on being loaded, with those of the app's own modules they reach.

    Imports inside functions and `try` are left out: an app may do without them.
    """
    found: set[str] = set()
    waiting, seen = [reference.partition(":")[0] for reference in components], set[str]()
    while waiting:
        module = waiting.pop()
        source = _source(folder, module)
        if module in seen or source is None:
            continue
        seen.add(module)
        package = module if source.name == "__init__.py" else module.rpartition(".")[0]
        for name, sure in _imports(source, package):
            if _source(folder, name.split(".")[0]) or (folder / name.split(".")[0]).is_dir():
                waiting += [name, name.rpartition(".")[0]]  # a package's __init__ is loaded, too
            elif sure and name.split(".")[0] not in sys.stdlib_module_names:
                found.add(name)
    return tuple(sorted(found))


def _source(folder: Path, module: str) -> Path | None:
    base = folder.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if module and path.is_file()), None)


def _imports(source: Path, package: str) -> Iterator[tuple[str, bool]]:
    """(absolute name, whether it is a module for certain: the b of `from a import b` may be anything)."""
    try:
        body = ast.parse(source.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, UnicodeDecodeError):
        return
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, True) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            yield name, True
            yield from ((f"{name}.{alias.name}", False) for alias in node.names)
