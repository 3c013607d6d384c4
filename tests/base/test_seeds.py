"""Random order must not mean random numbers: inside a test every global generator stands where `_seeded` put it."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parents[1]
MAKERS = ("default_rng", "RandomState", "Generator", "Random", "manual_seed")


@pytest.mark.parametrize("turn", [0, 1])
def test_global_generators_start_the_same(turn: int) -> None:
    torch_expected = torch.rand(2, generator=torch.Generator().manual_seed(0))
    assert random.random() == random.Random(0).random()
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.equal(torch.rand(2), torch_expected)


def shared_generators(source: str) -> list[int]:
    """Lines of calls, outside any function, that make a random generator: tests would share it, in whatever order they run."""
    lines: list[int] = []
    waiting: list[ast.AST] = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in MAKERS:
            lines.append(node.lineno)
        waiting += ast.iter_child_nodes(node)
    return sorted(lines)


def test_no_test_file_shares_a_generator() -> None:
    assert shared_generators("import numpy as np\nrng = np.random.default_rng(0)\nx = f(torch.Generator().manual_seed(1))\n") == [2, 3, 3]
    assert not shared_generators("def f():\n    return np.random.default_rng(0)\n")
    found = {p.name: lines for p in TESTS.rglob("*.py") if (lines := shared_generators(p.read_text(encoding="utf-8")))}
    assert not found
