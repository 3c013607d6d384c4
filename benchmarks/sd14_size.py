"""Wall time and peak memory of the image path at Stable Diffusion 1.4's sizes, with random weights.

    python benchmarks/sd14_size.py [--out results/sd14_size.json] [--threads 2]

Builds the pipeline (CLIP text tower of 12 layers, width 768; U-Net of 860 M parameters; autoencoder), trains a small
SAE on the text encoder's residual stream, puts a deactivation layer on the host and runs one denoising step with
classifier-free guidance. Random weights say nothing of quality: only time and memory are measured.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from efface.deactivate.edit import Edit
from efface.deactivate.layer import DeactivationPart
from efface.sae import TrainConfig
from efface.sae.recipes import train_on_host
from efface.t2i import ImageHost
from efface.t2i.diffusers import diffusers_class

POINT = "text_encoder.layers.8.resid_post"
WORDS = ("dog", "cat", "apple", "bus", "house", "tree", "river", "king", "bread", "train", "moon", "chair")
STYLES = ("a photo of", "a drawing of", "an oil painting of", "a sketch of", "a portrait of")


def tokenizer(folder: Path) -> Any:
    """CLIP's vocabulary size and prompt length, without its merges: letters stand for themselves."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(x + "</w>" for x in "abcdefghijklmnopqrstuvwxyz")]
    fill = [f"<fill{i}>" for i in range(49_408 - len(letters) - 2)]
    pieces = [*letters, *fill, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def pipeline(folder: Path) -> Any:
    """Stable Diffusion 1.4 with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tok = tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, bos_token_id=49_406, eos_token_id=49_407, pad_token_id=49_407,
    )  # fmt: skip
    unet = diffusers_class("UNet2DConditionModel")(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"), up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    )  # fmt: skip
    vae = diffusers_class("AutoencoderKL")(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    made = diffusers_class("StableDiffusionPipeline")(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tok, unet=unet, scheduler=diffusers_class("DDIMScheduler")(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def stage(name: str, report: dict[str, dict[str, float]]) -> Iterator[None]:
    """Notes wall time and the peak of the process's memory so far."""
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report[name] = {"seconds": round(time.perf_counter() - start, 2), "peak_gib": round(peak, 2)}
    print(f"{name:28}{report[name]['seconds']:9.2f} s   peak {peak:6.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vectors", type=int, default=8192)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    report: dict[str, dict[str, float]] = {}
    prompts = [f"{s} a {a} and a {b}" for s in STYLES for a in WORDS for b in WORDS if a != b]
    with tempfile.TemporaryDirectory() as work:
        with stage("build the pipeline", report):
            host = ImageHost(pipeline(Path(work)), "sd14-sizes")
        millions = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in host.model.items()}
        print(", ".join(f"{n} {v:.1f} M" for n, v in millions.items()))
        with stage(f"SAE on {args.vectors} vectors", report):
            config = TrainConfig(tokens=args.vectors, batch=512)
            sae = train_on_host(host, prompts, [POINT], Path(work) / "sae", d_sae=3072, k=32, config=config)[POINT]
        with stage("bind the edit (digests)", report):
            edit = Edit([DeactivationPart(sae, tuple(range(64)), -8.0, "scale")], "layer", {}, []).bound(host)
        for name, drawn in (("one step, base", False), ("one step, edited", True)):
            with stage(name, report):
                if drawn:
                    with edit.applied(host):
                        host.generate(prompts[:1], steps=1)
                else:
                    host.generate(prompts[:1], steps=1)
    if args.out:
        args.out.write_text(json.dumps({"threads": args.threads, "parameters_m": millions, "stages": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
