"""Writes notebooks/*.ipynb from the percent scripts beside them: the same cells, numbered, without outputs.

python docs/make_notebooks.py
"""

import json
from pathlib import Path

import jupytext

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts() -> list[Path]:
    """The percent scripts, in their order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def paired(script: Path) -> str:
    """The notebook of a script, as it should stand beside it."""
    notebook = jupytext.read(script, fmt="py:percent")
    cells = [cell_of(i, cell.cell_type, cell.source) for i, cell in enumerate(notebook.cells)]
    values = {"cells": cells, "metadata": {"kernelspec": KERNEL, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def cell_of(number: int, kind: str, source: str) -> dict[str, object]:
    """One cell; its id is its number, so that writing anew changes nothing."""
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number:02}", "metadata": {}, **code, "source": source.splitlines(keepends=True)}


if __name__ == "__main__":
    for path in scripts():
        path.with_suffix(".ipynb").write_text(paired(path), encoding="utf-8")
