"""Fixtures that every test shares: seeds, no downloads, one thread."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("EFFACE_QUIET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Random order stays; that pytest-randomly seeds each test anew, by the run's number, would undo `_seeded`."""
    config.option.randomly_reset_seed = False


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random numbers."""
    import torch

    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EFFACE_CACHE", str(folder))
    return folder
