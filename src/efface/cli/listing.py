"""`efface models | methods`: what there is."""

from . import options as o


def models(as_json: o.Json = False) -> None:
    """Model aliases: where they come from, size, licence, cached or not."""
    from ..llm.aliases import list_models
    from ..t2i.aliases import list_models as list_image_models

    rows = [*list_models(), *list_image_models()]
    cells = [[str(r["name"]), o.size(float(r["size"] or 0)), "yes" if r["cached"] else "no", str(r["licence"])] for r in rows]
    o.emit({"models": rows}, o.table(["name", "size", "cached", "licence"], cells), as_json)


def methods(as_json: o.Json = False) -> None:
    """Erasers: domain, parts, needs, paper."""
    from ..deactivate.registry import methods as registered

    rows = [m.as_dict() for m in registered()]
    keys = ["name", "domain", "parts", "needs", "paper"]
    text = [[", ".join(v) if isinstance(v := r.get(k, ""), list | tuple) else str(v) for k in keys] for r in rows]
    o.emit({"methods": rows}, o.table(keys, text), as_json)
