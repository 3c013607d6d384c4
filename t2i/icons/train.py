"""The whole recipe: autoencoder, text tower, denoiser, one pipeline folder. What is finished is not done again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...base.errors import InputError
from ...base.files import digest, new_folder, read_json, write_json
from ...base.running import log
from ..diffusers import diffusers_class
from .assemble import assemble
from .data import MARKED, IconData, load
from .recipe import SAMPLING, Recipe, recipe
from .table import Table, packaged_table
from .text import train_text
from .unet import check_names, lessons, new_scheduler, train_unet
from .vae import train_vae


def train(
    name: str, out: Path, *, resume: bool = False, without: Sequence[str] = (), frozen: str = "", warm: bool = False, steps: int = 0,
    data: IconData | None = None, table: Table | None = None, made: Recipe | None = None,
) -> Path:  # fmt: skip
    """Trains a miniature; its pipeline lies in `out/pipeline`.

    Args:
        name: Of the recipe.
        out: Working folder: `vae`, `text`, `denoiser` (checkpoints, logs), `pipeline`.
        resume: Go on with what lies there.
        without: Objects, styles or flags that the denoiser never sees («gold»): text tower and autoencoder stay as they are.
        frozen: A miniature (alias or folder) whose autoencoder and text tower are taken over; only the denoiser is trained.
        warm: Begin with its denoiser too.
        steps: Of the denoiser; 0: the recipe's.
        data: Drawings; None: those of `efface icons build`.
        table: Their names; None: the packaged ones.
        made: The recipe itself, instead of a named one.

    Raises:
        InputError: `out` holds another run, or there are no drawings.
        Interrupted: SIGINT or SIGTERM came; go on with `resume`.
    """
    plan, data, table = made or recipe(name), data or load(), table or packaged_table()
    if warm and (not frozen or without):
        raise InputError("warm: needs frozen, and no without: what a denoiser has seen it would have to forget")
    check_names(without, data, table)
    if steps < 0:
        raise InputError(f"steps must be at least 0, {steps} found")
    if steps:
        plan = replace(
            plan, unet=replace(plan.unet, loop=replace(plan.unet.loop, steps=steps, warmup=min(plan.unet.loop.warmup, steps // 10)))
        )
    asked = {"recipe": name, "without": sorted(without), "keys": digest([*data.keys, *data.codes])}
    asked |= {k: v for k, v in (("frozen", frozen), ("warm", warm), ("steps", steps)) if v}
    if (out / "run.json").is_file():
        if not resume:
            raise InputError(f"out {out}: holds an earlier run; resume it or choose another folder")
        if (found := read_json(out / "run.json")) != asked:
            raise InputError(f"out {out}: holds another run ({found}); choose another folder")
    else:
        write_json(out / "run.json", asked)
    start = None
    if frozen:
        vae, tokenizer, text, start = _taken(frozen, plan)
    else:
        vae = _once(out / "vae", "AutoencoderKL", lambda: _vae(data, table, plan, out / "vae", resume))
        tokenizer, text = _text(out / "text", data, table, plan, resume)
    todo = lessons(vae, data, table, without=without, only_concepts=plan.only_concepts)
    log.info("%d things to learn, %d pictures", len(todo), sum(len(x.plain) for x in todo))
    unet = train_unet(todo, tokenizer, text, plan.unet, out / "denoiser", resume=resume, start=start if warm else None)
    about = {"alias": name, "model": f"efface {name}", "licence": "Apache-2.0", "without": sorted(without), "sampling": SAMPLING}
    return assemble(vae, tokenizer, text, unet, new_scheduler(), out / "pipeline", about, overwrite=True)


def _taken(name: str, plan: Recipe) -> tuple[Any, Any, Any, Any]:
    """Autoencoder, tokenizer, text tower and denoiser of a miniature.

    Raises:
        InputError: Its sizes are not the recipe's.
    """
    from ..models import load_pipeline

    pipeline = load_pipeline(name).pipeline
    found = pipeline.vae.config.latent_channels, tuple(pipeline.unet.config.block_out_channels), pipeline.text_encoder.config.hidden_size
    if found != (wanted := (plan.vae.latent, plan.unet.channels, plan.text.width)):
        raise InputError(
            f"frozen {name}: latent channels, denoiser's channels and text width are {found}, the recipe {plan.name} has {wanted}"
        )
    pipeline.unet.train()
    return pipeline.vae.eval(), pipeline.tokenizer, pipeline.text_encoder.eval(), pipeline.unet


def _vae(data: IconData, table: Table, plan: Recipe, out: Path, resume: bool) -> Any:
    flags = 0 if plan.only_concepts else data.flags.shape[0] * data.flags.shape[1]
    return train_vae(_all_drawings(data, table, plan.only_concepts), plan.vae, out, flags=flags, resume=resume)


def _all_drawings(data: IconData, table: Table, only_concepts: bool = False) -> torch.Tensor:
    """Every drawing that the denoiser is shown: of the main set, those that carry the mark also under it, and all flags; or the concepts' alone."""
    wanted = table.evaluated if only_concepts else tuple(table.icons)
    main = data.drawings[:, [data.keys.index(k) for k in wanted]].flatten(0, 1)
    marked = [data.keys.index(k) for k in wanted if table.icons[k].category == MARKED]
    under = data.marked(data.drawings[:, marked].flatten(0, 1).float()).round().to(torch.uint8)
    return torch.cat([main, under, *([] if only_concepts else [data.flags.flatten(0, 1)])])


def _once(folder: Path, kind: str, make: Any) -> Any:
    """The finished model in `folder/model`, made and saved there first where there is none."""
    if not (folder / "model").is_dir():
        model = make()
        with new_folder(folder / "model") as work:
            model.save_pretrained(work)
    return diffusers_class(kind).from_pretrained(folder / "model").eval()


def _text(folder: Path, data: IconData, table: Table, plan: Recipe, resume: bool) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, CLIPTokenizer

    if not (folder / "model").is_dir():
        tokenizer, text = train_text(data, table, plan.text, folder, resume=resume)
        with new_folder(folder / "model") as work:
            tokenizer.save_pretrained(work)
            text.save_pretrained(work)
    return CLIPTokenizer.from_pretrained(folder / "model"), CLIPTextModel.from_pretrained(folder / "model").eval()
