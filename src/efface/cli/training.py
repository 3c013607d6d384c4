"""`efface train`: sparse autoencoders on a model's activations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..base.config import from_mapping, parse_assignments
from ..base.errors import InputError, UnknownName
from . import completion as complete
from . import options as o

if TYPE_CHECKING:
    from ..sae import SAE
    from ..t2i.host import ImageHost


def train(
    model: o.Model,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            help="Hook point, or several with commas: layers.10.mlp_out,layers.12.mlp_out; in a pipeline text_encoder.layers.8.resid_post "
            "or unet.up_blocks.1.attentions.1.out",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes; must not exist, unless --resume is given.")],
    arch: Annotated[
        str, typer.Option("--arch", help="relu, topk, batchtopk, jumprelu, matryoshka or gated.", autocompletion=complete.architectures)
    ] = "topk",
    d_sae: Annotated[int, typer.Option("--d-sae", help="Number of features; 0: eight times the width of the hook point.")] = 0,
    k: Annotated[int, typer.Option("--k", help="Active features a vector.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", help="Vectors to train on.")] = 1_000_000,
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            help="embedded (texts; for the miniature its prompts, for the synthetic world its texts), a .txt, .jsonl or .parquet file, a folder, or hub:NAME; pipelines: one prompt a line.",
            autocompletion=complete.one_of("embedded"),
        ),
    ] = "embedded",
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            help="Pipelines: own (a prompt's tokens and EOS), padded (padding too, the default) or all (BOS too).",
            autocompletion=complete.one_of("own", "padded", "all"),
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint in --out.")] = False,
    settings: o.Settings = [],  # noqa: B006
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Trains one SAE a hook point in one pass of the model; writes folders that sae-lens reads too."""
    o.check_model(model)
    points = [p.strip() for p in at.split(",") if p.strip()]
    if not points:
        raise InputError("--at is empty; name a hook point such as layers.10.mlp_out")
    options: dict[str, Any] = {"architecture": arch, "d_sae": d_sae or None, "k": k, "resume": resume, "positions": positions}
    values = {"tokens": tokens, "seed": seed, **parse_assignments(settings)}
    saes = _trained(model, points, corpus, out, values, (dtype, device), options)
    report = {p: s.card["metrics"] for p, s in saes.items()}
    rows = [[p, *(f"{m[key]:.4g}" for key in ("l0", "fvu", "cosine", "dead_share"))] for p, m in report.items()]
    o.emit(
        {"out": str(out), "metrics": report}, o.table(["hook point", "L0", "FVU", "cosine", "dead"], rows) + f"\nsaved in {out}", as_json
    )


def _trained(
    model: str, points: list[str], corpus: str, out: Path, values: dict[str, Any], place: tuple[str, str], options: dict[str, Any]
) -> "dict[str, SAE]":
    """Hook point -> SAE, on texts, or on pictures that are drawn where the hook points lie in a denoiser."""
    from ..llm.synthetic.corpus import texts_of
    from ..sae.config import TrainConfig
    from ..sae.recipes import train_on_host
    from ..t2i.aliases import embedded_prompts, is_pipeline
    from ..t2i.drawing_config import DrawingConfig

    pipeline = is_pipeline(model)
    draws = pipeline and not any(p.startswith("text_encoder") for p in points)
    of_drawing = _taken(values, DrawingConfig, TrainConfig) if draws else {}
    options["config"], drawing = from_mapping(TrainConfig, values, where="--set"), from_mapping(DrawingConfig, of_drawing, where="--set")
    if draws and options.pop("positions") is not None:
        raise InputError("--positions: of prompts, and the hook points lie in the denoiser; --set halves=… says which rows are read there")
    texts = (embedded_prompts(model) if pipeline else texts_of(model) or corpus) if corpus == "embedded" else corpus
    host = o.load_any_host(model, *place)
    if not draws:
        return train_on_host(host, texts, points, out, **options)
    from ..t2i.training import train_on_denoiser

    return train_on_denoiser(cast("ImageHost", host), texts, points, out, drawing, **options)


def _taken(values: dict[str, Any], first: type, second: type) -> dict[str, Any]:
    """Takes the fields of the dataclass `first` out of `values`, which may hold those of `second` besides."""
    known = {**first.__dataclass_fields__, **second.__dataclass_fields__}
    for key in values:
        if key not in known:
            raise UnknownName("key in --set", key, known)
    return {n: values.pop(n) for n in list(values) if n in first.__dataclass_fields__}
