"""Two gloo processes agree with one on the same global batch: selection, dead counts, AuxK, clipping.

Scale and threshold are global.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from efface.base.files import load_tensors
from efface.sae import SAEConfig, TrainConfig, train

D, BATCH, STEPS = 12, 64, 16
SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from efface.sae import SAEConfig, TrainConfig, distributed, train
distributed.begin()
rank, world = distributed.rank(), distributed.world()
assert world == 2
for job in json.loads(sys.argv[1]):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 12, generator=g).exp()
    half = job["train"]["batch"] // 2
    mine = [p[rank * half : (rank + 1) * half] for p in x.split(2 * half)]
    train(SAEConfig(**job["sae"]), mine, TrainConfig(**job["train"]), out=job["out"])
"""


def job(architecture, out, **options):
    sae = {"architecture": architecture, "d_in": D, "d_sae": 40, "k": 4, "dtype": "float64"}
    if architecture == "jumprelu":
        sae |= {"threshold_init": 0.05, "bandwidth": 0.1, "sparsity_loss": "quadratic", "target_l0": 5.0}
    run = {
        "steps": STEPS,
        "batch": BATCH,
        "lr": 1e-3,
        "warmup": 5,
        "dead_window": 128,
        "auxk_coef": 0.5,
        "log_every": 8,
        "clip": 0.05,
    }
    return {"sae": sae, "train": {**run, "normalize_vectors": 256, **options}, "out": str(out)}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_two(jobs):
    port = str(free_port())
    started = []
    for rank in range(2):
        env = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        env |= {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "EFFACE_QUIET": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        command = [sys.executable, "-c", SCRIPT, json.dumps(jobs)]
        started.append(subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]


def test_two_processes_agree_with_one(tmp_path):
    torch.set_num_threads(1)
    kinds = ["relu", "topk", "batchtopk", "jumprelu", "matryoshka", "gated"]
    run_two([job(kind, tmp_path / "two" / kind) for kind in kinds])
    x = torch.randn(4096, D, generator=torch.Generator().manual_seed(0)).exp()
    for kind in kinds:
        one, two = tmp_path / "one" / kind, tmp_path / "two" / kind
        told = job(kind, one)
        train(SAEConfig(**told["sae"]), list(x.split(BATCH)), TrainConfig(**told["train"]), out=one)
        a, b = (load_tensors(p / "sae_weights.safetensors") for p in (one, two))
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name, k=kind: f"{k} {n}: {m}")
        lines = [[json.loads(s) for s in (p / "train.jsonl").read_text().splitlines()] for p in (one, two)]
        for left, right in zip(*lines, strict=True):
            assert left == pytest.approx(right, rel=1e-4, abs=1e-5), kind
    # The control: one process that sees only the first half of every batch ends elsewhere.
    told = job("batchtopk", tmp_path / "half")
    train(
        SAEConfig(**told["sae"]),
        [p[: BATCH // 2] for p in x.split(BATCH)],
        TrainConfig(**told["train"]),
        out=tmp_path / "half",
    )
    half = load_tensors(tmp_path / "half" / "sae_weights.safetensors")
    assert not torch.allclose(half["W_dec"], load_tensors(tmp_path / "one" / "batchtopk" / "sae_weights.safetensors")["W_dec"], atol=1e-3)


@pytest.mark.slow
def test_two_processes_agree_with_one_while_auxk_revives_dead_latents(tmp_path):
    """Many more latents than can fire: most are dead from the second step on, and AuxK is what moves them."""
    kinds = ["topk", "batchtopk", "matryoshka"]

    def told(kind, out, auxk_coef=0.5):
        made = job(kind, out, auxk_coef=auxk_coef, log_every=2, lr=1e-2)
        made["sae"] |= {"d_sae": 160, "k": 2}
        return made

    run_two([told(kind, tmp_path / "two" / kind) for kind in kinds])
    x = torch.randn(4096, D, generator=torch.Generator().manual_seed(0)).exp()

    def one(kind, out, **options):
        made = told(kind, out, **options)
        train(SAEConfig(**made["sae"]), list(x.split(BATCH)), TrainConfig(**made["train"]), out=out)
        return load_tensors(out / "sae_weights.safetensors"), [json.loads(s) for s in (out / "train.jsonl").read_text().splitlines()]

    for kind in kinds:
        weights, lines = one(kind, tmp_path / "one" / kind)
        dead = [line["sparsity/dead_features"] for line in lines]
        assert min(dead[1:]) > 20
        assert len(set(dead)) > 2  # some come back
        assert all(line["losses/auxiliary_reconstruction_loss"] > 0 for line in lines[2:])
        both = load_tensors(tmp_path / "two" / kind / "sae_weights.safetensors")
        for name in weights:
            torch.testing.assert_close(weights[name], both[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name, k=kind: f"{k} {n}: {m}")
        again = [json.loads(s) for s in (tmp_path / "two" / kind / "train.jsonl").read_text().splitlines()]
        assert [line["sparsity/dead_features"] for line in again] == dead
        for left, right in zip(lines, again, strict=True):
            assert left == pytest.approx(right, rel=1e-4, abs=1e-5), kind
    without, _ = one("topk", tmp_path / "without", auxk_coef=0.0)  # the control: AuxK is what was compared
    assert not torch.allclose(without["W_enc"], load_tensors(tmp_path / "one" / "topk" / "sae_weights.safetensors")["W_enc"], atol=1e-3)
