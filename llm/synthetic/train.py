"""From the world's texts to a language model: `efface synthetic train`."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError
from ...base.files import new_folder, read_json, save_tensors, sha256_file, write_json
from ...base.running import log, quiet
from ...deactivate.training import LoopResult, fit_loop
from ..aliases import SYNTHETIC
from ..fetch import FORMAT, MANIFEST
from .corpus import documents
from .packing import Packed, pack
from .recipe import PARAMETERS, Recipe
from .tokenizer import make_tokenizer, value_ids
from .world import World, packaged_world


def train(
    out: Path,
    recipe: Recipe | None = None,
    *,
    without: Collection[str] = (),
    seed: int = 0,
    resume: bool = False,
    world: World | None = None,
) -> Path:
    """The folder of the trained model, `out/model`: an ordinary transformers checkpoint in float16.

    Args:
        out: Checkpoints, log and model.
        recipe: Sizes and schedule.
        without: Domains that it never sees («gold»).
        seed: Initial weights, order of the texts, stories.
        resume: Go on with the run that lies in `out`.
        world: None: the packaged one.

    Raises:
        UnknownName: `without` names no domain.
        InputError: `out` holds another run; more parameters than a model of the world may have; no domain is left.
        Interrupted: SIGINT or SIGTERM came; go on with `resume`.
    """
    recipe, world = recipe or Recipe(), world or packaged_world()
    recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, seed=seed))
    world.check(*without)
    if set(without) >= set(world.things):
        raise InputError("without: every domain is left out, nothing remains to be learnt")
    asked = {"world": world.digest, "without": sorted(set(without)), "seed": seed, "recipe": dataclasses.asdict(recipe)}
    _claim(out, asked, resume)
    if (out / "model").is_dir():
        return out / "model"
    tokenizer = make_tokenizer()
    rows = pack(tokenizer, documents(world, without=without, seed=seed, stories=recipe.stories), recipe.context)
    model = new_model(recipe, tokenizer, seed)
    log.info("%d rows of %d tokens, %d parameters", len(rows), recipe.context, size_of(model))
    fitted = fit(model, rows, recipe, value_ids(tokenizer), out, resume=resume)
    about = {"alias": SYNTHETIC, "model": "efface synthetic", "licence": "Apache-2.0", **asked}
    return save(model, tokenizer, out / "model", {**about, "loss": fitted.loss, "versions": {"torch": torch.__version__}})


def _claim(out: Path, asked: dict[str, Any], resume: bool) -> None:
    """Raises where `out` holds another run than the one asked for, or a run that is not to be resumed."""
    if not (out / "run.json").is_file():
        if out.exists() and (out.is_file() or any(out.iterdir())):
            raise InputError(f"output {out} exists already and is no run of this command; choose another --out or remove it")
        write_json(out / "run.json", asked)
        return
    if not resume:
        raise InputError(f"out {out}: holds an earlier run; resume it or choose another folder")
    found = read_json(out / "run.json")
    other = [k for k in asked if not isinstance(found, dict) or _plain(found.get(k)) != _plain(asked[k])]
    if other:
        raise InputError(f"out {out}: holds a run with another {other[0]}; resume with the same, or choose another folder")


def _plain(value: Any) -> Any:
    """What checkpoints may be written with is no part of what is computed."""
    if not isinstance(value, dict):
        return value
    return {k: _plain(v) for k, v in value.items() if k not in ("checkpoint_every", "keep", "log_every")}


def new_model(recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    """An untrained `LlamaForCausalLM`.

    Raises:
        InputError: More than 6 million parameters.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.width, intermediate_size=recipe.mlp, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, num_key_value_heads=recipe.heads, max_position_embeddings=max(256, recipe.context),
        tie_word_embeddings=True, initializer_range=recipe.init, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if (n := size_of(model)) > PARAMETERS:
        raise InputError(f"recipe: {n} parameters, at most {PARAMETERS} expected; lower width, layers or mlp")
    return model


def size_of(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def fit(model: Any, rows: Packed, recipe: Recipe, values: Sequence[int], out: Path | None = None, *, resume: bool = False) -> LoopResult:
    """Trains on all rows in a new order each pass; the step alone says which rows it sees, so a resumed run sees the same.

    The loss is the mean over tokens, those in `values` weighted; the log has their own mean loss beside it.
    """
    per_pass = max(1, len(rows) // recipe.batch)
    is_value = torch.zeros(model.get_input_embeddings().weight.shape[0], dtype=torch.bool)
    is_value[list(values)] = True
    weights = torch.where(is_value, recipe.value_weight, 1.0)

    def step(at: int, micro: int) -> tuple[Tensor, dict[str, float]]:
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.loop.seed * 1_000_003 + at // per_pass))
        chosen = order[at % per_pass * recipe.batch :][: recipe.batch]
        targets = rows.targets(chosen)
        predicts = targets >= 0
        logits, wanted = model(**rows.inputs(chosen), use_cache=False).logits[predicts], targets[predicts]
        losses, weight = nn.functional.cross_entropy(logits, wanted, reduction="none"), weights[wanted]
        told = {"value_loss": float(losses.detach()[is_value[wanted]].mean()), "tokens": float(len(wanted))}
        return (losses * weight).sum() / weight.sum(), told

    model.train()
    return fit_loop(step, dict(model.named_parameters()), recipe.loop, out, resume, desc="synthetic")


def save(model: Any, tokenizer: Any, folder: Path, about: dict[str, Any]) -> Path:
    """Model in float16 and tokenizer as transformers saves them, and a manifest of sizes and digests, last."""
    from ...base.files import load_tensors

    with new_folder(folder) as work, quiet():
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        weights = load_tensors(work / "model.safetensors")
        save_tensors(work / "model.safetensors", {k: v.to(torch.float16) for k, v in weights.items()}, {"format": "pt"})
        write_json(work / "config.json", {**read_json(work / "config.json"), "dtype": "float16"})
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(work.iterdir())}
        write_json(work / MANIFEST, {"format": FORMAT, **about, "files": files})
    return folder
