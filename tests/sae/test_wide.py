"""Wide dictionaries: what training and loading hold in memory, and that memory which is not filled first is not read either."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efface.base.files import load_tensors
from efface.sae import SAE, SAEConfig, TrainConfig, train


def test_training_holds_weights_moments_gradients_and_little_else(tmp_path):
    pytest.importorskip("numba")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "EFFACE_KERNELS": "numba", "EFFACE_QUIET": "1"}
    program = Path(__file__).with_name("_wide.py")
    done = subprocess.run([sys.executable, str(program), str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    if (peaks := json.loads(done.stdout)) is None:
        pytest.skip("the system does not say what a block of code held at most")
    assert 3 < peaks["training"] < 4.5  # 1 weights, 2 moments, at most 1 gradients
    assert 1 < peaks["loading"] < 2.8  # 1 weights, 1 the file that they are read from


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "matryoshka"])
def test_nothing_is_read_that_was_not_written(tmp_path, monkeypatch, kernels, architecture):
    pytest.importorskip(kernels)
    monkeypatch.setenv("EFFACE_KERNELS", kernels)
    x = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
    found = []
    for filled in (False, True):
        torch.use_deterministic_algorithms(filled)  # fills what `torch.empty` gives with NaN
        try:
            config = TrainConfig(steps=6, batch=50, dead_window=100, checkpoint_every=3)
            train(SAEConfig(architecture, d_in=12, d_sae=96, k=3), x.split(50), config, out=tmp_path / str(filled))
            before = torch.get_rng_state()
            SAE.load(tmp_path / str(filled))
            assert torch.equal(torch.get_rng_state(), before)
            assert not filled or torch.empty(64).isnan().all()
        finally:
            torch.use_deterministic_algorithms(False)
        found.append(load_tensors(tmp_path / str(filled) / "sae_weights.safetensors"))
    assert all(torch.equal(t, found[1][n]) for n, t in found[0].items())
