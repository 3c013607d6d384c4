"""`efface synthetic`: a made-up world of facts, the language model that knows it, and gold models without a part of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import InputError
from . import completion as complete
from . import options as o

if TYPE_CHECKING:
    from ..llm.host import Host

synthetic_app = typer.Typer(no_args_is_help=True, help="A made-up world of facts, its language model, and models that never saw a part.")


@synthetic_app.command("build")
def build(out: o.Out, as_json: o.Json = False) -> None:
    """Writes the world out to be read: facts, training texts, second language, concept files. `train` needs none of them."""
    from ..base.files import new_folder, write_json, write_text
    from ..llm.synthetic.concepts import mapping, names
    from ..llm.synthetic.corpus import documents
    from ..llm.synthetic.language import word_map
    from ..llm.synthetic.world import packaged_world

    world = packaged_world()
    texts = documents(world)
    with new_folder(out) as work:
        write_json(work / "world.json", world.to_dict())
        write_json(work / "second-language.json", dict(word_map()))
        write_text(work / "corpus.txt", "\n\n".join(texts) + "\n")
        for name in (n for n in names(world) if not n.startswith("thing-")):
            write_json(work / "concepts" / f"{name}.json", mapping(name, world))
    found = {"folder": str(out), "things": len(world.names), "facts": len(world.facts), "texts": len(texts), "digest": world.digest}
    o.emit(found, f"{out}: {len(world.names)} things, {len(world.facts)} facts, {len(texts)} training texts", as_json)


@synthetic_app.command("train")
def train(
    out: o.Out,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="A domain that it never sees («gold»); may be repeated.", autocompletion=complete.domains),
    ] = None,
    seed: o.Seed = 0,
    steps: Annotated[int, typer.Option("--steps", help="Of the training; 0: the recipe's.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that lies in --out.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="Threads to use; 0: as torch has them.")] = 0,
    as_json: o.Json = False,
) -> None:
    """Trains the world's language model from scratch; minutes on two cores, resumable. The model lies in OUT/model."""
    import dataclasses

    from ..llm.synthetic.recipe import Recipe

    if steps < 0 or threads < 0:
        raise InputError(f"--steps and --threads must not be negative, {steps} and {threads} found")
    recipe = Recipe()
    if steps:
        recipe = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, steps=steps, warmup=min(recipe.loop.warmup, steps)))
    import torch

    from ..llm.synthetic.train import train as train_

    if threads:
        torch.set_num_threads(threads)
    folder = train_(out, recipe, without=without or (), seed=seed, resume=resume)
    o.emit({"model": str(folder)}, str(folder), as_json)


@synthetic_app.command("check")
def check(
    model: o.Model = "synthetic",
    edits: o.Edits = [],  # noqa: B006
    gold: Annotated[
        list[str] | None,
        typer.Option(
            "--gold", help="A model trained without --domain, to set the model against; may be repeated.", autocompletion=complete.models
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", help="Only this domain; may be repeated. --gold wants one.", autocompletion=complete.domains),
    ] = None,
    relearn: Annotated[str, typer.Option("--relearn", help="Beside --gold: full, lora, both with a comma, or none.")] = "full",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the figures into this JSON file; must not exist.")] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """What a model knows of the world in templates it never saw; with --gold, how far edits bring it to models that never saw the domain."""
    from ..base.files import write_json
    from ..deactivate.edit import Edit
    from ..llm.evaluation.suite import applied
    from ..llm.synthetic.recall import recall

    if out is not None and out.exists():
        raise InputError(f"output {out} exists already; choose another --out or remove it")
    domains = domain or []
    if gold and len(domains) != 1:
        raise InputError(f"--gold: name the one domain that these models never saw with --domain; {len(domains)} given")
    host = o.load_host(model, dtype, device)
    loaded = [Edit.load(e) for e in edits]
    with applied(host, loaded):
        found: dict[str, Any] = {"model": model, "recall": recall(host, domains=domains)}
    if gold:
        found["gold"] = _gold(host, loaded, [o.load_host(g, dtype, device) for g in gold], domains[0], relearn)
    if out is not None:
        write_json(out, found)
    o.emit(found, _told(found), as_json)


def _gold(host: "Host", edits: list[Any], golds: "list[Host]", domain: str, relearn: str) -> dict[str, Any]:
    from ..llm.synthetic.gold import GoldConfig, compare_with_gold

    modes: tuple[Any, ...] = () if relearn == "none" else tuple(m.strip() for m in relearn.split(","))
    if bad := [m for m in modes if m not in ("full", "lora")]:
        raise InputError(f"--relearn {bad[0]!r}: write full, lora, full,lora or none")
    return compare_with_gold(host, edits, golds, domain, GoldConfig(modes=modes))


def _told(found: dict[str, Any]) -> str:
    """Tables of what `check` found."""
    recall = found["recall"]
    parts = [("all", recall["all"]), *recall["forms"].items(), *recall["domains"].items()]
    rows = [[n, f"{v['recall']:.4f} [{v['low']:.4f}, {v['high']:.4f}]", str(v["n"])] for n, v in parts]
    text = o.table(["asked in held-out templates", "recall", "n"], rows)
    if "gold" not in found:
        return text
    g = found["gold"]
    rows = [
        [state, form, *(f"{v[k]:.3f}" for k in ("accuracy", "accuracy_told", "accuracy_untold", "truth_ratio"))]
        for state, forms in g["rows"].items()
        for form, v in forms.items()
    ]
    text += "\n\n" + o.table(["state", "form", "accuracy", "told", "untold", "truth ratio"], rows)
    rows = [
        [state, form, f"{d['mean']:.3f}", "-" if d["spread"] is None else f"{d['spread']:.3f}"]
        for form, states in g["distance"].items()
        for state, d in states.items()
    ]
    text += "\n\n" + o.table(["state", "form", "KS to gold", "among gold"], rows) + f"\n{g['note']}"
    rows = [
        [state, mode, *(f"{c[k]:.3f}" for k in ("area", "leak")), "never" if c["half_recovery"] is None else f"{c['half_recovery']:.0f}"]
        for mode, states in g.get("relearning", {}).items()
        for state, c in states.items()
    ]
    return text + ("\n\n" + o.table(["state", "relearning", "area", "leak", "steps to half"], rows) if rows else "")
