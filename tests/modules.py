"""The modules of the product and what they import, read from their source; and a process that imports each alone."""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["OURS", "ROOT", "imports", "sources"]

ROOT = Path(__file__).parents[1]
OURS = ("revln", "api", "worker", "migrations")
_BOTTOM = ("revln.errors", "revln.settings", "revln.access", "revln.jobs")
_RUN_BY_OTHERS = {"migrations.env"}  # imported by Alembic, within a migration


def sources(*folders: str) -> Iterator[tuple[str, Path]]:
    """(dotted module name, path) of every file of ours."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports; of ``from a import b`` a.b, if that is a module of ours, else a."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(_module(node.module, alias.name) for alias in node.names)
    return found


def _module(package: str, name: str) -> str:
    path = ROOT.joinpath(*package.split("."), name)
    return f"{package}.{name}" if path.with_suffix(".py").exists() or (path / "__init__.py").exists() else package


def main() -> None:
    """Import each module that imports one of ours in a fork of a process that has imported only what is not ours.

    The modules of `_BOTTOM` import none but each other and stay loaded for the others: no cycle leads through them, and
    their schemas are half of the work.
    """
    modules = dict(sources(*OURS))
    leaves = {name for name, path in modules.items() if not any(map(_is_ours, imports(path, top_level_only=True)))}
    exec("\n".join(sorted({line for path in modules.values() for line in _imports_of_others(path)})), {})
    assert not [name for name in sys.modules if _is_ours(name)]
    gc.freeze()
    bottom = [name for name in modules if name.startswith(_BOTTOM)]
    for name in bottom:
        _try(name)
    for name in bottom:
        importlib.import_module(name)
    for name in sorted(modules.keys() - _RUN_BY_OTHERS - leaves - set(bottom)):
        _try(name)


def _imports_of_others(path: Path) -> Iterator[str]:
    """Import statements at a file's top level that name nothing of ours."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            line = ast.unparse(node)
            if not _is_ours(line.split()[1]):
                yield line


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS


def _try(name: str) -> None:
    child = os.fork()
    if child == 0:
        _end_by_importing(name)
    if os.waitpid(child, 0)[1] != 0:
        print(f"{name} cannot be imported first.")


def _end_by_importing(name: str) -> None:
    code = 1
    with contextlib.suppress(BaseException):
        try:
            importlib.import_module(name)
            code = 0
        except BaseException:
            traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    main()
