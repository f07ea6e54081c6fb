"""The notebook of the guide, cell by cell."""

from __future__ import annotations

import ast
import json
from typing import Any

from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "docs/python.ipynb"


def _run(source: str, names: dict[str, Any]) -> Any:
    """Runs a cell and gives the value of its last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if isinstance(last, ast.Expr) else None


def test_every_cell_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [_run(cell, names) for cell in code]
    assert len(code) > 10 and all(value is not None for value in shown)
    for value in shown:
        html = getattr(value, "_repr_html_", None)
        assert "<table" in html() if html else repr(value)
    assert names["run"].summary["finished"] and len(names["losses"]) == 5
    assert names["features"].shape == (3, names["model"].dim)
    assert capfd.readouterr() == ("", "")
