"""The packaged miniature: whole, small enough, drawn by diffusers alone, and its pictures are what was asked for."""

from pathlib import Path

import pytest
import torch

from efface.base.files import read_json
from efface.sae import SAE
from efface.t2i import load_pipeline
from efface.t2i.aliases import MANIFEST, embedded_prompts, packaged, packaged_saes
from efface.t2i.evaluation.judging import class_index, load_judges, verdicts
from efface.t2i.icons.cells import TABLE, admitted_cells, cells_of
from efface.t2i.icons.packs import STYLES

FOLDER, SMALL = packaged("icons"), packaged("icons-xs")
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def size(*folders: Path) -> int:
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def test_it_is_as_small_as_promised() -> None:
    assert {Path(f).parts[0] for f in read_json(FOLDER / MANIFEST)["files"]} >= set(PARTS)
    assert 10e6 < size(*(FOLDER / p for p in PARTS)) <= 35e6
    assert size(FOLDER.parent / "judges") <= 8.5e6
    assert 1e6 < size(*packaged_saes("icons")) <= 10e6
    assert 3e6 < size(SMALL) <= 5e6


@pytest.mark.parametrize("folder", [FOLDER, SMALL])
def test_diffusers_alone_draws_what_is_asked_for(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a dog, noto style", "a wolf, twemoji style", "a drawing of a guitar, flat style", "a butterfly, monotone style"]
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    found = pipe(prompts, num_inference_steps=10, guidance_scale=1.5, generator=seeds, output_type="pt").images
    images = (255 * found).round().to(torch.uint8)
    judges = load_judges("icons/object")
    said = {j.name: verdicts(j, j.scores(images)).tolist() for j in judges}
    assert said == {j.name: [class_index(j, n) for n in ("dog", "wolf", "guitar", "butterfly")] for j in judges}
    assert all(len(set(some)) == 4 for some in said.values())


def test_its_own_steps_and_cells() -> None:
    host = load_pipeline("icons")
    assert (host.sampling["steps"], host.sampling["guidance"]) == (10, 1.5)
    cells = admitted_cells(FOLDER / TABLE)
    assert sum(map(len, cells.values())) >= 140
    assert len(cells) == 20
    assert all(cells.values()), "every object is there in a style"
    assert {s for some in cells.values() for s in some} == {p.style for p in STYLES}
    assert "are admitted" in cells_of("icons", None, host.sampling)[1]
    sae = SAE.load(packaged_saes("icons")[0])
    point = sae.card["hook_point"]
    assert host.reader([point]).digest == sae.card["model_digest"]


def test_the_small_one_draws_the_twenty_alone_and_its_prompts_fit_its_encoder() -> None:
    host = load_pipeline("icons-xs")
    cells = admitted_cells(SMALL / TABLE)
    assert len(cells) == 20
    assert sum(map(len, cells.values())) >= 120
    prompts = embedded_prompts("icons-xs")
    assert set(prompts) < set(embedded_prompts("icons"))
    assert not any("flag" in p.split() for p in prompts)
    point = "text_encoder.layers.1.resid_post"
    rows = host.reader([point]).token_ids(prompts)  # a prompt that is too long is refused
    assert max(map(len, rows)) <= 24
