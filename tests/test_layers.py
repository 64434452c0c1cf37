"""What import-linter cannot see: modules of the package that are imported by a text."""

from __future__ import annotations

import ast
from pathlib import Path

import lmms_eval_emi

PACKAGE = Path(lmms_eval_emi.__file__).parent
# The tables of public names, commands and kinds of file, and the registries that read a folder.
TABLES = {
    "__init__.py",
    "cli/commands.py",
    "cli/report.py",
    "util/imports.py",
    "util/endpoint.py",
    "shifts/operators/__init__.py",
}


def imports_by_text(path: Path) -> list[int]:
    """Lines that import a module which a text or a variable names, but those of lmms-eval and of the standard library."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            *("import_module", "importlib.import_module", "__import__"),
        ):
            named = node.args[0].value if isinstance(node.args[0], ast.Constant) else "lmms_eval_emi"
            if str(named).split(".")[0] == "lmms_eval_emi":
                found.append(node.lineno)
    return found


def test_only_the_tables_import_by_text() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "tasks" not in path.relative_to(PACKAGE).parts and imports_by_text(path)
    }
    assert found <= TABLES, found - TABLES


def test_every_public_name_is_where_the_table_of_public_names_says() -> None:
    assert all(getattr(lmms_eval_emi, name) is not None for name in lmms_eval_emi.__all__)
