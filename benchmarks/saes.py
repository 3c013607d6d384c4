"""Trains the SAEs that the erasure and gate figures are measured with: one harvest of the embedded corpus, several passes over it.

    python benchmarks/saes.py --model smollm2 --layers 2 3 4 5 6 7 8 --tokens 300000 --steps 1200 --out SAES

The harvest goes into OUT/activations (float32; removed at the end unless `--keep`), the SAEs into OUT/saes. A run that was cut off goes on:
a finished harvest and finished SAEs are not made again, and training resumes from its newest checkpoint.
"""

import argparse
import shutil
from pathlib import Path

import torch

from efface.llm.models import load_model
from efface.sae.config import SAEConfig, TrainConfig
from efface.sae.sources import ActivationStore, HostSource
from efface.sae.trainer import train_many


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--place", default="mlp_out")
    args.add_argument("--layers", type=int, nargs="+", default=[2, 3, 4, 5, 6, 7, 8])
    args.add_argument("--corpus", default="embedded")
    args.add_argument("--tokens", type=int, default=300_000)
    args.add_argument("--steps", type=int, default=1200)
    args.add_argument("--batch", type=int, default=1024)
    args.add_argument("--width", type=int, default=8, help="features over d_model")
    args.add_argument("--k", type=int, default=32)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--keep", action="store_true")
    args.add_argument("--out", type=Path, required=True)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host = load_model(o.model)
    points = [f"layers.{n}.{o.place}" for n in o.layers]
    acts = o.out / "activations"
    for part, n in (("train", o.tokens), ("held_out", max(o.tokens // 30, 4096))):
        if not (acts / part).is_dir():
            source = HostSource(host, o.corpus, points, batch=2048, seed=0, part=part, buffer=8192)
            ActivationStore.write(acts / part, source, n)
            print(f"{part}: {n} vectors at {len(points)} hook points", flush=True)
    stores = {part: ActivationStore(acts / part, o.batch, 0) for part in ("train", "held_out")}
    config = TrainConfig(steps=o.steps, batch=o.batch, lr=1e-3, warmup=50, seed=0, checkpoint_every=200)
    sae = {p: SAEConfig("topk", d_in=host.d_model, d_sae=o.width * host.d_model, k=o.k) for p in points}
    done = train_many(sae, stores["train"], config, out=o.out / "saes", held_out=stores["held_out"], resume=(o.out / "saes").exists())
    for p, s in done.items():
        print(p, {k: round(v, 3) for k, v in s.card["metrics"].items() if isinstance(v, int | float)}, flush=True)
    if not o.keep:
        shutil.rmtree(acts)


if __name__ == "__main__":
    main()
