"""The rules of the house: who may import whom, and that every list is complete."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from api.problems import STATUS, TooBusy, status_of
from revln import errors
from revln.errors import RevlnError
from revln.jobs.kinds import KINDS, all_queues
from revln.settings import ENV_PREFIX, Settings
from tests.modules import OURS, ROOT, imports, sources

HEAVY = {"torch", "torchvision", "transformers", "faiss"}
# Only these compute, so only these may import what is heavy at the top of the file.
COMPUTE = ("revln/models/", "revln/index/", "revln/training/")


def rooms() -> dict[str, set[str]]:
    """The table of docs/architecture.md: rooms by their dotted names, and the rooms that each may import."""
    table = (ROOT / "docs/architecture.md").read_text().partition("| room |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    dotted = [
        [path.removesuffix(".py").strip("/").replace("/", ".") for path in row[0].split("`")[1::2]] for row in rows
    ]
    by_word = {name.rpartition(".")[2]: name for names in dotted for name in names}
    return {
        name: {by_word[word] for word in row[2].split(", ") if row[2] != "nothing of ours"} | set(names)
        for names, row in zip(dotted, rows, strict=True)
        for name in names
    }


def test_each_room_imports_what_the_architecture_page_says_and_all_of_it() -> None:
    may_import = rooms()

    def room_of(module: str) -> str:
        whole = module + "."
        return max((room for room in may_import if whole.startswith(room + ".")), key=len, default=f"no room: {module}")

    used: dict[str, set[str]] = {room: set() for room in may_import}
    for module, path in sources(*OURS):
        if module == "revln":  # the version: everybody's
            continue
        room = room_of(module)
        names = {name for name in imports(path) if name.partition(".")[0] in OURS and name != "revln"}
        used[room] |= {room_of(name) for name in names}
        assert used[room] <= may_import[room] | {room}, f"{module} imports {used[room] - may_import[room]}"
    for room, allowed in may_import.items():
        beside = {one for one in may_import if may_import[one] == allowed}  # the rooms of one row share what they may
        assert allowed - set().union(*(used[one] for one in beside)) <= beside, f"{room} no longer imports all of it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter({module: imports(path) - {module} for module, path in sources(*OURS)}).prepare()


@pytest.mark.timeout(900)
def test_every_module_can_be_imported_first() -> None:
    out = subprocess.run([sys.executable, "-m", "tests.modules"], check=False, capture_output=True, text=True, cwd=ROOT)
    assert (out.returncode, out.stdout) == (0, ""), out.stderr


def test_only_the_rooms_that_compute_import_what_is_heavy_at_the_top() -> None:
    for module, path in sources("revln", "api", "worker", "migrations"):
        if not str(path.relative_to(ROOT)).startswith(COMPUTE):
            heavy = {name for name in imports(path, top_level_only=True) if name.partition(".")[0] in HEAVY}
            assert not heavy, f"{module} imports {heavy}"


def test_only_the_database_room_speaks_sql() -> None:
    for module, path in sources("revln", "api", "worker"):
        if not module.startswith("revln.db"):
            wrong = {name for name in imports(path) if name.startswith("sqlalchemy")}
            assert not wrong or _only_names_connection(path), f"{module} imports {wrong}"


def _only_names_connection(path: Path) -> bool:
    """A handler may name the type of the transaction that it is handed."""
    tree = ast.parse(path.read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy")
        for alias in node.names
    }
    return names == {"Connection"}


@pytest.mark.parametrize("code", ["import api.app", "import revln.cli.main", "import revln.client"])
def test_a_process_that_does_not_compute_never_imports_torch_or_faiss(code: str, tmp_path: Path) -> None:
    if code == "import api.app":
        code += f"; from revln.settings import Settings; api.app.create_app(Settings(data_dir={str(tmp_path)!r}))"
    code += f"; import sys; print(sorted({HEAVY | {'worker'}!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_describing_the_shipped_model_imports_nothing_heavy() -> None:
    code = (
        "from revln.models.registry import ModelCatalog; print(ModelCatalog({}).describe('revln-tiny').dim);"
        f"import sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split("\n")[1] == "[]"


def test_every_kind_has_a_handler_and_every_handler_a_kind() -> None:
    from worker.handlers.registry import HANDLERS

    operations = [one for kind in KINDS.values() for one in kind.operations.values() or [kind]]
    assert len({one.name for one in operations}) == len(operations)
    assert set(HANDLERS) == {one.name for one in operations}


def test_every_kind_has_a_queue_for_each_priority() -> None:
    assert len(all_queues()) == len(set(all_queues())) == 3 * len(KINDS)


def error_classes() -> list[type[RevlnError]]:
    return [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)
            and issubclass(getattr(errors, name), RevlnError)]  # fmt: skip


def test_every_error_has_a_code_of_its_own_a_status_and_a_place_in_the_drawing() -> None:
    classes = error_classes()
    codes = [cls.code for cls in classes]
    assert len(set(codes)) == len(codes)
    for cls in classes:
        assert 400 <= status_of(cls()) < 600
        assert cls.default_message.endswith((".", "'."))
        assert cls.__name__ in (errors.__doc__ or ""), f"{cls.__name__} is missing in the tree of revln/errors.py"
    assert set(STATUS) <= {*classes, TooBusy}


def test_every_setting_has_a_row_in_the_documentation_and_every_row_a_setting() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `" + ENV_PREFIX)}
    assert rows == {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description in text, f"docs/settings.md tells another story of {name}"


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("revln/**/*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    ours = [(page, link) for page, link in links if "://" not in link]
    assert len(ours) > 20
    assert [f"{page.name}: {link}" for page, link in ours if not (page.parent / link).exists()] == []


def test_no_file_of_ours_is_much_longer_than_the_style_allows() -> None:
    for module, path in sources("revln", "api", "worker"):
        lines = path.read_text().count("\n")
        assert lines <= 420, f"{module} has {lines} lines: split it"


def test_every_test_that_a_guarantee_names_exists_and_every_guarantee_names_one() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        defined = {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert name.startswith("test_"), name
        assert name in defined, f"docs/guarantees.md names {path}::{name}, which is not there"
    promises = text.partition("## Promises")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    assert [row for row in rows if "::test_" not in row and "the same (" not in row] == []
