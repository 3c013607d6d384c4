"""`efface erase | apply | undo | export`: edits made, folded in, taken back, carried elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.config import field_docs, from_mapping, parse_assignments
from ..base.running import progress
from . import completion as complete
from . import options as o

if TYPE_CHECKING:
    from ..deactivate.any_gate import AnyGate
    from ..deactivate.concept import Concept
    from ..deactivate.registry import Method

SHOWN = 8
"""Items of a list that are named on the terminal; `edit.json` has all."""


def erase_app() -> typer.Typer:
    """One subcommand a registered method, its config's fields in the help."""
    from ..deactivate.registry import methods

    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Fit an eraser and write its edit: efface erase METHOD --help shows a method's settings.",
    )
    for method in methods():
        app.command(method.name, help=_help(method))(_command(method))
    return app


def _help(method: "Method") -> str:
    fields = field_docs(method.load_config())
    settings = "\n\n".join(f"--set {name}=…  {text}" for name, text in fields.items())
    return f"{method.paper}\n\n{settings}"


def _command(method: "Method") -> Callable[..., None]:
    def erase(
        model: o.Model,
        concept: o.Concepts,
        out: o.Out,
        sae: o.Saes = [],  # noqa: B006
        settings: o.Settings = [],  # noqa: B006
        search: Annotated[bool, typer.Option("--search", help="Choose the settings on the validation split.")] = False,
        gated: Annotated[bool, typer.Option("--gated", help="Put a calibrated gate in front of the edit.")] = False,
        gate: Annotated[
            Path | None, typer.Option("--gate", help="Put this gate (`efface gate`) in front of the edit.", autocompletion=complete.gates)
        ] = None,
        seed: o.Seed = 0,
        device: o.Device = "auto",
        dtype: o.Dtype = "float32",
        as_json: o.Json = False,
    ) -> None:
        from ..base.errors import InputError
        from ..deactivate.any_gate import load_gate
        from ..deactivate.concept import Concept
        from ..deactivate.erasing import erase as fit_edit

        if out.exists():
            raise InputError(f"--out {out} exists already; choose another name")
        if gated and gate:
            raise InputError("--gated calibrates a gate and --gate brings one; give one of them")
        if gated and not sae:
            raise InputError("--gated calibrates a gate on features of an SAE; name one with --sae, or bring a gate with --gate")
        values = parse_assignments(settings)
        if search:
            values["search"] = True
        from_mapping(method.load_config(), values, where=f"--set of {method.name}")
        check_kind(method, model)
        concepts = [Concept.load(c) for c in progress(concept, desc="concepts", unit="concept", inner=True)]
        folders = sae or needed_saes(method, model)
        ready = load_gate(gate) if gate else None
        if ready:
            ready.require_threshold()
        host = o.load_any_host(model, dtype, device)
        saes = load_saes(folders)
        edit = fit_edit(method.name, host, concepts, saes=saes, seed=seed, **values)
        if (gated or ready) and edit.gate is not None:
            raise InputError(f"{method.name} puts a gate of its own in front of its edit; leave out {'--gated' if gated else '--gate'}")
        if gated:
            ready = fitted_gate(host, concepts, saes, seed)
        if ready:
            edit = edit.gated(ready)
        edit.save(out)
        summary = {
            "out": str(out),
            "eraser": method.name,
            "concepts": [c.name for c in concepts],
            "parts": [p.describe() for p in edit.parts],
        }
        o.emit(summary, "\n".join([f"{method.name}: {', '.join(summary['concepts'])} -> {out}", *map(_told, summary["parts"])]), as_json)

    return erase


def needed_saes(method: "Method", model: str) -> list[Path]:
    """Packaged SAEs of the model, for a method that needs one where none was named.

    Raises:
        InputError: There are none; before anything is loaded.
    """
    from ..base.errors import InputError
    from ..t2i.aliases import ALIASES, packaged_saes

    found = packaged_saes(model) if "sae" in method.needs and model in ALIASES else []
    if "sae" in method.needs and not found:
        raise InputError(
            f"{method.name} needs an SAE: name one with --sae DIR; efface train --model {model} --at HOOKPOINT --out DIR makes one"
        )
    return found


def check_kind(method: "Method", model: str) -> None:
    """Raises where there is no such model, or a method is for hosts of the other kind, before anything is loaded."""
    from ..base.errors import InputError
    from ..deactivate.registry import methods
    from ..t2i.aliases import is_pipeline

    o.check_model(model)
    kind = "t2i" if is_pipeline(model) else "llm"
    if method.domain not in (kind, "any"):
        others = ", ".join(m.name for m in methods(kind)) or "none yet"
        raise InputError(
            f"--model {model}: {method.name} is for {method.domain} hosts, and this is one of kind {kind} (methods for it: {others})"
        )


def fitted_gate(host: Any, concepts: "list[Concept]", saes: list, seed: int) -> "AnyGate":
    """The concept's gate on a host of either kind."""
    if getattr(host, "selective", False):
        from ..t2i.gating import concept_gate
    else:
        from ..llm.gating import concept_gate
    return concept_gate(host, concepts, saes, seed=seed)


def _short(value: Any) -> str:
    """A value on one line: four digits of a number, the first of many items."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) > SHOWN:
        return f"{', '.join(map(str, value[:SHOWN]))}, … ({len(value)})"
    return str(value)


def _told(part: dict[str, Any]) -> str:
    """A part in words: its kind, and what else it says of itself."""
    tensors = part.get("tensors")
    changed = [f"{name} (rank {rank})" if isinstance(rank, int) else name for name, rank in tensors.items()] if tensors else []
    rest = [f"{k} {_short(v)}" for k, v in part.items() if k not in ("kind", "tensors")]
    return f"  {part['kind']}: " + "; ".join([", ".join(changed), *rest] if changed else rest)


def load_saes(paths: list[Path]) -> list:
    """The SAEs in and below `paths`."""
    from ..sae import SAE

    return [SAE.load(p) for p in o.sae_folders(paths)] if paths else []


def apply(
    edits: Annotated[list[Path], typer.Argument(help="Edit folders.", autocompletion=complete.edits)],
    model: o.Model,
    out: o.Out,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    force: Annotated[
        bool, typer.Option("--force", help="Apply to another base than the edit was made for; recorded in the ledger.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Folds edits into the weights for good: DIR is an ordinary transformers or diffusers checkpoint with a ledger beside it."""
    from ..deactivate.edit import Edit
    from ..deactivate.ledger import apply_edits

    loaded = [Edit.load(e) for e in edits]
    apply_edits(o.load_any_host(model, dtype, device, whole=True), loaded, out, force=force)
    report = {"out": str(out), "edits": [e.name for e in loaded], "forced": force}
    o.emit(report, f"applied {len(loaded)} edit(s) -> {out}\nundo: efface undo --model {out} --out BASE", as_json)


def undo(
    model: o.Model,
    out: o.Out,
    edits: Annotated[list[Path] | None, typer.Argument(help="Edits to take back; none: all of them.")] = None,
    as_json: o.Json = False,
) -> None:
    """The base again, bit for bit, or the base with the other edits."""
    from ..deactivate.ledger import undo_edits

    undo_edits(Path(model), [str(e) for e in edits] if edits else None, out)
    o.emit({"out": str(out), "undone": [str(e) for e in edits] if edits else "all"}, f"restored -> {out}", as_json)


def export(
    edit: Annotated[Path, typer.Argument(help="An edit folder.", autocompletion=complete.edits)],
    out: o.Out,
    format: Annotated[
        str,
        typer.Option(
            "--format", help="lora, safetensors or diffusers.", autocompletion=complete.one_of("lora", "safetensors", "diffusers")
        ),
    ] = "lora",
    as_json: o.Json = False,
) -> None:
    """Writes an edit in another tool's format."""
    from ..deactivate.edit import Edit
    from ..deactivate.export import export_edit

    export_edit(Edit.load(edit), out, format=format)
    o.emit({"out": str(out), "format": format}, f"{format} -> {out}", as_json)
