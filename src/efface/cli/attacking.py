"""`efface attack`: what brings an erased concept back, beside the same attacks on controls."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.config import parse_assignments
from ..base.errors import InputError
from . import completion as complete
from . import options as o
from .editing import load_saes


def attack(
    name: Annotated[str, typer.Argument(help="An attack, or all (see `efface attacks`).", autocompletion=complete.attacks)],
    model: o.Model,
    concept: o.OneConcept,
    out: o.Resumed,
    edit: o.Edits = [],  # noqa: B006
    sae: o.Saes = [],  # noqa: B006
    gold: Annotated[
        str | None,
        typer.Option("--gold", help="A model trained without the concept: what attacks teach anew.", autocompletion=complete.models),
    ] = None,
    split: o.Split = "validation",
    decoys: Annotated[
        bool, typer.Option("--decoys/--no-decoys", help="Aim attacks at wrong options too: their false-positive rate.")
    ] = True,
    settings: Annotated[
        list[str], typer.Option("--set", help="key=value of the attack's config; with all, attack.key=value; may be repeated.")
    ] = [],  # noqa: B006
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Attacks an edited language model, the base and a random control; without --edit, the base alone.

    Writes result.json and report.html. What an earlier run of the same inputs left in --out is used.
    """
    from ..llm.attacks.registry import attack as registered

    if split not in ("validation", "test"):
        raise InputError(f"--split {split!r}: write validation or test")
    if name != "all":
        registered(name)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    own = settings_by_attack(name, parse_assignments(settings))
    for attacked, values in own.items():
        registered(attacked).make(values, seed)
    _run(name, model, concept, out, edit, sae, gold, split, decoys, own, seed, device, dtype, as_json)


def settings_by_attack(name: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Attack -> its settings, of `key=value` (one attack) or `attack.key=value`.

    Raises:
        UnknownName: An unknown attack before the dot.
        InputError: With `all`, a key without an attack; with one attack, a key of another.
    """
    from ..llm.attacks.registry import attack as registered
    from ..llm.attacks.registry import attacks

    known = {r.name for r in attacks()}
    out: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        first, dot, rest = key.partition(".")
        if name != "all" and first not in known:
            out.setdefault(name, {})[key] = value
            continue
        if not dot or not rest:
            raise InputError(f"--set {key}: with all, write attack.key=value (such as gcg.steps=50)")
        registered(first)
        if name not in ("all", first):
            raise InputError(f"--set {key}: a setting of {first}, and {name} is run; leave it out")
        out.setdefault(first, {})[rest] = value
    return out


def _run(
    name: str, model: str, concept: str, out: Path, edit: list[Path], sae: list[Path], gold: str | None, split: str,
    decoys: bool, settings: dict[str, dict[str, Any]], seed: int, device: str, dtype: str, as_json: bool,
) -> None:  # fmt: skip
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation.compare import compare
    from ..llm.attacks.reporting import write_attacks
    from ..llm.attacks.suite import run_attacks

    wanted, edits = Concept.load(concept), [Edit.load(e) for e in edit]
    host = o.load_host(model, dtype, device)
    never = o.load_host(gold, dtype, device) if gold else None
    result = run_attacks(
        name, host, edits, wanted, out / "attacks", split, settings=settings, saes=load_saes(sae), gold=never, decoys=decoys, seed=seed
    )
    title = f"Attacks on {host.name}: {wanted.name}" + (f", {' + '.join(e.eraser for e in edits)}" if edits else "")
    report = write_attacks(out, result, title)
    o.emit({"out": str(out), **result.to_json()}, o.comparison(compare([result])) + f"\n{report}", as_json)


def attacks(as_json: o.Json = False) -> None:
    """Attacks: what each needs to know of the model, and its source."""
    from ..llm.attacks.registry import attacks as registered

    rows = [r.as_dict() for r in registered()]
    text = [[r["name"], r["level"], "decoys" if r["aimed"] else "", r["paper"]] for r in rows]
    o.emit({"attacks": rows}, o.table(["name", "level", "controls", "paper"], text), as_json)
