"""Very wide dictionaries, as ItD's (768 -> 524,288, k 64): training steps, encoding, and what an edit and the paper's gate cost.

    python benchmarks/wide_dictionary.py --d-sae 524288 --steps 4 --out benchmarks/results/wide_dictionary_19.json

Random vectors: only time and memory are measured. A top-k SAE is trained by `efface.sae.train` (sparse gradients; no dense activations of the
batch), saved, loaded and measured on one batch. A threshold SAE of the same size shows the edit: |F| = 500 encoder rows against all of them,
at the 77 positions of one prompt; the paper's gate needs the whole encode whatever the SAE. Where the load average exceeds the processors,
seconds say little; the processor's own (`cpu_seconds`, of all threads) and the least of the rounds say more.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from _timing import interleaved, machine, quartiles

from efface.base.memory import peak_memory
from efface.deactivate.layer import DeactivationPart
from efface.sae import SAE, SAEConfig, TrainConfig, train

D, POSITIONS = 768, 77


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--d-sae", type=int, default=2**17)
    args.add_argument("--k", type=int, default=64)
    args.add_argument("--features", type=int, default=500)
    args.add_argument("--batch", type=int, default=1024)
    args.add_argument("--steps", type=int, default=6)
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--out", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    found: dict[str, object] = {"d": D, "d_sae": o.d_sae, "k": o.k, "batch": o.batch, "dense_batch_gib": 4 * o.batch * o.d_sae / 2**30}
    found["parameters_gib"] = 2 * 4 * D * o.d_sae / 2**30
    g = torch.Generator().manual_seed(0)
    vectors = [torch.randn(o.batch, D, generator=g) for _ in range(o.steps)]
    with tempfile.TemporaryDirectory() as folder, peak_memory() as peak:
        start, begun = time.perf_counter(), time.process_time()
        config = TrainConfig(steps=o.steps, batch=o.batch, checkpoint_every=10**6)
        trained = train(SAEConfig("topk", d_in=D, d_sae=o.d_sae, k=o.k), vectors, config, out=Path(folder) / "sae", held_out=vectors[:1])
        seconds, processor = time.perf_counter() - start, time.process_time() - begun
        del trained
    found["training"] = {"steps": o.steps, "seconds_with_saving": seconds, "cpu_seconds": processor, "peak_gib": peak.bytes / 2**30}
    sae = SAE(SAEConfig("jumprelu", d_in=D, d_sae=o.d_sae), {"hook_point": "text_encoder.layers.8.resid_post"})
    with torch.no_grad():
        sae.threshold.fill_(3.2)
    x = torch.randn(1, POSITIONS, D, generator=g)
    few = DeactivationPart(sae, tuple(range(o.features)), -8.0, "scale", spare_first=True, fingerprint="random")
    with torch.no_grad(), peak_memory() as peak:
        runs = {
            "edit: the rows of F": lambda: few.deactivate(x),
            "gate of the paper: the whole encode": lambda: few.reconstruction(x),
            "floor: the encoder's product alone": lambda: x[0] @ sae.W_enc,
        }
        rounds = interleaved(runs, o.rounds)
    cut = {n: quartiles(s) for n, s in rounds.items()}
    found["a prompt"] = {n: {"seconds": s[1], "quartiles": [s[0], s[2]], "least": min(rounds[n])} for n, s in cut.items()}
    found["a prompt: peak_gib"] = peak.bytes / 2**30
    found["mflop a token"] = {"encoder rows of F": 2 * o.features * D / 1e6, "the whole encode": 2 * o.d_sae * D / 1e6}
    found["load_average"], found["machine"] = os.getloadavg()[1], machine()
    text = json.dumps(found, indent=1)
    print(text)
    if o.out:
        o.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
