"""Killed, or the disk full, at the n-th write for every n: nothing half-written is ever loaded, and a run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("_faults.py")
KILLED, FULL = 77, 3


def attempts(job: str, folder: Path) -> dict[str, list[dict]]:
    """What happened for n = 1, 2, … until the job got through: killed there, and with a disk that is full from there on."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1", "EFFACE_KERNELS": "torch"}
    done = subprocess.run([sys.executable, str(FAULTS), job, str(folder)], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    bad = next((t for t in told if t["status"] == 4 or t["after"].startswith("FAILED")), None)
    assert bad is None, f"{bad}\n{done.stderr[-3000:]}"
    return {kind: [t for t in told if t["kind"] == kind] for kind in ("kill", "full", "short")}


@pytest.mark.parametrize("job", [*(pytest.param(j, marks=pytest.mark.slow) for j in ("train", "train_many")), "fit_loop"])
def test_a_run_goes_on_to_the_same_end(job: str, tmp_path: Path) -> None:
    told = attempts(job, tmp_path)
    kill, full = told["kill"], told["full"]
    assert len(kill) > 30  # the steps that were counted
    assert [t["status"] for t in kill] == [KILLED] * (len(kill) - 1) + [0]
    assert any("step-" in name for t in kill for name in t["left"])
    assert {t["status"] for t in full[:-1]} == {FULL}
    assert [t["status"] for t in told["short"]] == [FULL if job != "fit_loop" else 0]
    assert not [n for t in full for n in t["left"] if Path(n).name.startswith(".")]  # what could not be finished was taken away


@pytest.mark.parametrize("job", ["save an edit", *(pytest.param(j, marks=pytest.mark.slow) for j in ("apply", "undo")), "store"])
def test_a_folder_is_whole_or_not_there(job: str, tmp_path: Path) -> None:
    told = attempts(job, tmp_path)
    kill, full = told["kill"], told["full"]
    assert [t["status"] for t in kill] == [KILLED] * (len(kill) - 1) + [0]
    assert not any(t["after"] == "whole" for t in kill[:-1])
    assert any(t["left"] for t in kill[:-1])  # the control: the kills did come in the middle
    assert {t["status"] for t in full[:-1]} == {FULL}
    assert not any(t["left"] for t in full[:-1])
    assert [(t["status"], t["left"]) for t in told["short"]] == [(FULL, [])] or job == "store"  # its shards are short
    assert kill[-1]["after"] == full[-1]["after"] == "whole"
