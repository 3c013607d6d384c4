"""`efface train`: sparse autoencoders on a model's activations."""

from pathlib import Path
from typing import Annotated

import typer

from ..base.config import from_mapping, parse_assignments
from ..base.errors import InputError
from . import options as o


def train(
    model: o.Model,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="Hook point, or several with commas: layers.10.mlp_out,layers.12.mlp_out; in a pipeline text_encoder.layers.8.resid_post",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; must not exist, unless --resume is given.")],
    arch: Annotated[str, typer.Option("--arch", help="relu, topk, batchtopk, jumprelu, matryoshka or gated.")] = "topk",
    d_sae: Annotated[int, typer.Option("--d-sae", help="Number of features; 0: eight times the width of the hook point.")] = 0,
    k: Annotated[int, typer.Option("--k", help="Active features a vector.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", help="Vectors to train on.")] = 1_000_000,
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            help="embedded (texts; for the miniature its prompts), a .txt, .jsonl or .parquet file, a folder, or hub:NAME; pipelines: one prompt a line.",
        ),
    ] = "embedded",
    positions: Annotated[
        str | None,
        typer.Option("--positions", help="Pipelines: own (a prompt's tokens and EOS), padded (padding too, the default) or all (BOS too)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in --out.")] = False,
    settings: o.Settings = [],  # noqa: B006
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Trains one SAE a hook point in one pass of the model; writes folders that sae-lens reads too."""
    from ..sae.config import TrainConfig
    from ..sae.recipes import train_on_host
    from ..t2i.aliases import embedded_prompts, is_pipeline

    points = [p.strip() for p in at.split(",") if p.strip()]
    if not points:
        raise InputError("--at is empty; name a hook point such as layers.10.mlp_out")
    values = {"tokens": tokens, "seed": seed, **parse_assignments(settings)}
    config = from_mapping(TrainConfig, values, where="--set")
    texts: str | list[str] = corpus
    if corpus == "embedded" and is_pipeline(model):
        texts = embedded_prompts(model)
    host = o.load_any_host(model, dtype, device)
    saes = train_on_host(
        host, texts, points, out, architecture=arch, d_sae=d_sae or None, k=k, config=config, resume=resume, positions=positions
    )
    report = {p: s.card["metrics"] for p, s in saes.items()}
    rows = [[p, *(f"{m[key]:.4g}" for key in ("l0", "fvu", "cosine", "dead_share"))] for p, m in report.items()]
    o.emit(
        {"out": str(out), "metrics": report}, o.table(["hook point", "L0", "FVU", "cosine", "dead"], rows) + f"\nsaved in {out}", as_json
    )
