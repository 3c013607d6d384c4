"""Which layer of the miniature's text encoder an SAE belongs at, by evidence on `validation`; and how faithful each is.

    python benchmarks/text_saes.py --model icons --layers 1 2 3 4 --out FOLDER [--tokens 2000000] [--concepts dog bus] [--judge]

Trains one SAE a layer (one pass of the encoder for all) unless FOLDER has it, then for each: FVU by token class, drift of what the denoiser
reads, drift of pictures (with --judge), and the text side of ItD (preset efface) over some objects and styles: features a concept, share of
validation prompts, of neighbours' and of general ones at which the gate fires. JSON goes to FOLDER/layers.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from efface.base.errors import EffaceError
from efface.deactivate.concept import Concept
from efface.sae import SAE, TrainConfig
from efface.sae.recipes import train_on_host
from efface.t2i.evaluation.judging import load_judges
from efface.t2i.evaluation.reconstruction import embedding_drift, fvu_by_class, image_drift
from efface.t2i.icons.prompts import training_prompts
from efface.t2i.methods.itd.config import ItdConfig
from efface.t2i.methods.itd.fit import choose, gate_of, layer_of, part_of
from efface.t2i.models import load_pipeline


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="icons")
    args.add_argument("--layers", type=int, nargs="+", required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--tokens", type=int, default=2_000_000)
    args.add_argument("--d-sae", type=int, default=2048)
    args.add_argument("--k", type=int, default=16)
    args.add_argument("--arch", default="batchtopk")
    args.add_argument("--concepts", nargs="*", default=["dog", "wolf", "apple", "bus", "style-noto", "style-contrast"], help="of icons/")
    args.add_argument("--normalize", default="whiten", help="of TrainConfig")
    args.add_argument("--rule", nargs="+", default=["contrast"])
    args.add_argument("--gate", default="energy")
    args.add_argument("--n-contrast", type=int, nargs="+", default=[8])
    args.add_argument("--judge", action="store_true")
    args.add_argument("--threads", type=int, default=2)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host = load_pipeline(o.model)
    points = [f"text_encoder.layers.{n}.resid_post" for n in o.layers]
    if missing := [p for p in points if not (o.out / p / "cfg.json").is_file()]:
        start = time.perf_counter()
        config = TrainConfig(tokens=o.tokens, batch=2048, lr=1e-3, warmup=50, normalize=o.normalize)
        target = o.out if len(missing) > 1 else o.out / missing[0]
        train_on_host(host, training_prompts(), missing, target, architecture=o.arch, d_sae=o.d_sae, k=o.k, config=config)
        print(f"trained {len(missing)} SAEs in {time.perf_counter() - start:.0f} s", flush=True)
    concepts = [Concept.load(f"icons/{n}") for n in o.concepts]
    prompts = sorted({p for c in concepts for p in c.target["validation"]})[:: max(1, len(concepts))][:400]
    rows = []
    for point in points:
        sae = SAE.load(o.out / point)
        row = {"at": point, "fvu": fvu_by_class(host, sae, prompts), "embedding_drift": embedding_drift(host, sae, prompts[:100])}
        if o.judge:
            row["image_drift"] = image_drift(host, sae, prompts[:32], load_judges("icons/object")[0])
        for rule in o.rule:
            for n in o.n_contrast if rule == "contrast" else [0]:
                config = ItdConfig(preset="efface", rule=rule, n_contrast=n or 8, gate=o.gate)
                row[f"{o.gate} gates, {rule} {n}"] = gates(host, sae, concepts, config)
        rows.append(row)
        print(json.dumps(row), flush=True)
    (o.out / "layers.json").write_text(json.dumps(rows, indent=1) + "\n")


def gates(host, sae: SAE, concepts: list[Concept], config: ItdConfig) -> dict[str, float | int | list]:
    """Means over concepts of the gate's rates, and the concepts for which no feature is left."""
    found, lost, worst = [], [], []
    for concept in concepts:
        try:
            chosen = choose(host, sae, [concept], (), config)
            gate = gate_of(host, layer_of(part_of(sae, chosen, config)), chosen, config)
        except EffaceError as e:
            lost.append([concept.name, str(e)[:90]])
            continue
        c = gate.require_threshold()
        found.append([c.target.mean, c.neighbours.mean, c.pool.mean, len(chosen[0].found.features)])
        worst.append((c.target.mean - c.neighbours.mean, concept.name, round(c.target.mean, 3), round(c.neighbours.mean, 3)))
    means = torch.tensor(found).double().mean(0).tolist() if found else []
    return dict(zip(("fires on targets", "neighbours", "general", "features"), means, strict=False)) | {
        "lost": lost,
        "worst": sorted(worst)[:5],
    }


if __name__ == "__main__":
    main()
