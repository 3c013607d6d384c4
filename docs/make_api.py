"""Writes docs/api.md: every public name with its signature and the first line of its docstring, read without importing anything.

python docs/make_api.py
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "src/efface", "sae", "sae/sources", "sae/sparse", "sae/evidence", "deactivate", "deactivate/training", "deactivate/evaluation", "deactivate/inspect",
    "probes", "t2i", "t2i/evaluation", "llm", "llm/evaluation", "llm/tuning", "llm/attacks", "llm/synthetic", "llm/methods/pisces", "llm/methods/elm",
    "llm/methods/rmu", "llm/methods/crisp", "llm/methods/npo", "llm/methods/graddiff",
)  # fmt: skip
HEAD = """# Public names

Written by `python docs/make_api.py` from the docstrings, which say more: arguments, shapes, errors, sources (`help(name)`).
"""


def exported(package: Path) -> list[str]:
    """The names in `__all__`."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "__all__" and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            return ast.literal_eval(node.value)
    raise SystemExit(f"{package}: no __all__")


@cache
def parsed(package: Path) -> list[list[ast.stmt]]:
    """The statements of every module of a package, but for the methods'; of a module its own."""
    if package.is_file():
        return [ast.parse(package.read_text(encoding="utf-8")).body]
    files = [p for p in sorted(package.rglob("*.py")) if p.relative_to(package).parts[0] not in ("methods", "tests")]
    return [ast.parse(p.read_text(encoding="utf-8")).body for p in files]


def definitions(package: Path, name: str) -> Iterator[tuple[str, str]]:
    """(signature, first line of the docstring) of what is called `name` in the package, at the top of a module."""
    for body in parsed(package):
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                args = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef) else ""
                yield f"{name}{args}", (ast.get_docstring(node) or "").split("\n")[0]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
                said = after.value if isinstance(after, ast.Expr) else None
                text = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
                yield name, text.split("\n")[0]


def home(package: Path, name: str) -> Path | None:
    """The module that a package's `__init__` says that it takes `name` from."""
    for node in ast.walk(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module and name in [a.name for a in node.names]:
            place = package.joinpath(*[".."] * (node.level - 1), *node.module.split("."))
            return home(place, name) if place.is_dir() else place.with_suffix(".py")
    return None


def defined(package: Path, name: str, elsewhere: Iterable[Path]) -> tuple[str, str] | None:
    """(signature, first line) of a name of a package: of the module that it is taken from, else of the first that defines it."""
    module = home(package, name)
    places = (*([module] if module else ()), *elsewhere)
    return next((d for place in places for d in definitions(place, name) if d[1]), None)


def page() -> str:
    """The page as it should be."""
    parts = [HEAD]
    for folder in PACKAGES:
        package = ROOT / folder
        module = "efface" if folder == "src/efface" else f"efface.{folder.replace('/', '.')}"
        lines = []
        for name in sorted(n for n in exported(package) if not n.startswith("__")):
            beside = [package.parent] if package.parent != ROOT else []
            searched = (package, *beside, ROOT / "deactivate", ROOT / "llm")
            found = defined(package, name, searched)
            if found is None:
                raise SystemExit(f"{module}.{name} has no docstring, or is not defined where it is exported from")
            lines.append(f"* `{found[0]}`: {found[1]}")
        parts.append(f"## {module}\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
