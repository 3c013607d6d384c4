"""The whole recipe: autoencoder, text tower, denoiser, one pipeline folder. What is finished is not done again."""

from collections.abc import Sequence
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
from .unet import lessons, new_scheduler, train_unet
from .vae import train_vae


def train(
    name: str, out: Path, *, resume: bool = False, without: Sequence[str] = (), data: IconData | None = None, table: Table | None = None,
    made: Recipe | None = None,
) -> Path:  # fmt: skip
    """Trains a miniature; its pipeline lies in `out/pipeline`.

    Args:
        name: Of the recipe.
        out: Working folder: `vae`, `text`, `denoiser` (checkpoints, logs), `pipeline`.
        resume: Go on with what lies there.
        without: Objects, styles or flags that the denoiser never sees («gold»): text tower and autoencoder stay as they are.
        data: Drawings; None: those of `efface icons build`.
        table: Their names; None: the packaged ones.
        made: The recipe itself, instead of a named one.

    Raises:
        InputError: `out` holds another run, or there are no drawings.
        Interrupted: SIGINT or SIGTERM came; go on with `resume`.
    """
    plan, data, table = made or recipe(name), data or load(), table or packaged_table()
    asked = {"recipe": name, "without": sorted(without), "keys": digest([*data.keys, *data.codes])}
    if (out / "run.json").is_file():
        if not resume:
            raise InputError(f"out {out}: holds an earlier run; resume it or choose another folder")
        if (found := read_json(out / "run.json")) != asked:
            raise InputError(f"out {out}: holds another run ({found['recipe']}, without {found['without']}); choose another folder")
    else:
        write_json(out / "run.json", asked)
    vae = _once(out / "vae", "AutoencoderKL", lambda: train_vae(_all_drawings(data, table), plan.vae, out / "vae", resume=resume))
    tokenizer, text = _text(out / "text", data, table, plan, resume)
    todo = lessons(vae, data, table, without=without, only_concepts=plan.only_concepts)
    log.info("%d things to learn, %d pictures", len(todo), sum(len(x.plain) for x in todo))
    unet = train_unet(todo, tokenizer, text, plan.unet, out / "denoiser", resume=resume)
    about = {"alias": name, "model": f"efface {name}", "licence": "Apache-2.0", "without": sorted(without), "sampling": SAMPLING}
    return assemble(vae, tokenizer, text, unet, new_scheduler(), out / "pipeline", about, overwrite=True)


def _all_drawings(data: IconData, table: Table) -> torch.Tensor:
    """Every drawing, those that carry the mark also under it, and all flags."""
    marked = [data.keys.index(k) for k, i in table.icons.items() if i.category == MARKED]
    under = data.marked(data.drawings[:, marked].flatten(0, 1).float()).round().to(torch.uint8)
    return torch.cat([data.drawings.flatten(0, 1), under, data.flags.flatten(0, 1)])


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
