import mmap
from pathlib import Path

import pytest

from efface.base import memory
from efface.base.memory import peak_memory


def test_a_block_s_own_peak_is_measured() -> None:
    with peak_memory() as large, mmap.mmap(-1, 120_000_000) as held:  # not from the heap, which may have as much to spare already
        held.write(b"x" * len(held))
    with peak_memory() as small:
        pass
    assert large.bytes > 120_000_000
    if small.own:  # the mark was set back: what the first block held counts no more
        assert small.bytes < large.bytes - 60_000_000


def test_where_it_cannot_start_anew_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "RESET", tmp_path / "missing" / "clear_refs")
    with peak_memory() as found:
        pass
    assert not found.own
    assert found.bytes > 1_000_000
