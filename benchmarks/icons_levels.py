"""How well a miniature's denoiser knows the picture at each noise level, and what sampling makes of it.

    python benchmarks/icons_levels.py --model PIPELINE [--steps 1 2 4 10 20] [--guidance 1 1.5] [--out results/icons_levels.json]

The 160 prompts «OBJECT in STYLE» each name one drawing, whose latent is the truth. First table: root mean squared error of the predicted
clean latent, all latents having variance 1, at training steps from no signal to hardly any noise, for true noisy latents. Second table: the
same error of latents that were drawn, by number of sampling steps and guidance, and the share of pictures that both judges know.
An error that grows with the number of steps is made at the levels between: the denoiser takes its own errors for signal.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _timing import machine
from torch import Tensor

from efface.t2i.diffusers import diffusers_class
from efface.t2i.evaluation.judging import class_index, load_judges, verdicts
from efface.t2i.icons.cells import Cell, object_cells
from efface.t2i.icons.data import load
from efface.t2i.icons.table import packaged_table
from efface.t2i.icons.vae import encoded

LEVELS = (999, 850, 700, 550, 400, 300, 200, 100, 50, 20)


@torch.no_grad()
def by_level(pipe: Any, truth: Tensor, prompts: list[str]) -> list[dict[str, float]]:
    """Errors of the clean latent as predicted from true noisy ones."""
    ids = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    states, noise = pipe.text_encoder(ids)[0], torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for t in LEVELS:
        at = torch.full((len(truth),), t)
        x, signal = pipe.scheduler.add_noise(truth, noise, at), pipe.scheduler.alphas_cumprod[t]
        v = torch.cat([pipe.unet(*some).sample for some in zip(x.split(32), at.split(32), states.split(32), strict=True)])
        clean = signal.sqrt() * x - (1 - signal).sqrt() * v
        rows.append({"step": t, "signal": signal.item(), "error": (clean - truth).pow(2).mean().sqrt().item()})
    return rows


@torch.no_grad()
def drawn(pipe: Any, truth: Tensor, cells: list[Cell], steps: int, guidance: float) -> dict[str, float]:
    """Errors of drawn latents, and what the judges say of the pictures."""
    made = []
    for i in range(0, len(cells), 32):
        prompts = [c.prompts[0] for c in cells[i : i + 32]]
        noise = [torch.Generator().manual_seed(1000 + i + k) for k in range(len(prompts))]
        made.append(pipe(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=noise, output_type="latent").images)
    latents = torch.cat(made)
    images = torch.cat([pipe.vae.decode(z).sample for z in latents.split(32)])
    pictures = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    found: dict[str, float] = {"steps": steps, "guidance": guidance, "error": (latents - truth).pow(2).mean().sqrt().item()}
    found["scale"], right = latents.std().item(), torch.ones(len(cells), dtype=torch.bool)
    for head in ("object", "style"):
        for judge in load_judges(f"icons/{head}"):
            wanted = torch.tensor([class_index(judge, c.name if head == "object" else str(c.style)) for c in cells])
            seen = verdicts(judge, judge.scores(pictures)) == wanted
            found[judge.name], right = seen.float().mean().item(), right & seen
    return {**found, "all": right.float().mean().item()}


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 10, 20])
    args.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5])
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--out", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    pipe = diffusers_class("StableDiffusionPipeline").from_pretrained(o.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    table, data = packaged_table(), load()
    cells = object_cells(table)
    drawings = [data.drawings[data.styles.index(str(c.style)), data.keys.index(table.objects[c.name].icons[0])] for c in cells]
    truth = encoded(pipe.vae, torch.stack(drawings))
    levels = by_level(pipe, truth, [c.prompts[0] for c in cells])
    print(json.dumps(levels), flush=True)
    rows = []
    for guidance in o.guidance:
        for steps in o.steps:
            rows.append(drawn(pipe, truth, cells, steps, guidance))
            print(json.dumps(rows[-1]), flush=True)
    if o.out:
        found = {"model": str(o.model.name), "levels": levels, "drawn": rows, "machine": machine()}
        o.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
