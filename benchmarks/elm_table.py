"""The figures of ELM's goals, and what ELM and RMU leave of language, from what `efface bench benchmarks/elm.yaml --out DIR` made.

    python benchmarks/elm_table.py DIR [--json benchmarks/results/elm.json]

Prints the tables of docs/benchmarks.md, those of what is written where it was read. Fluency is compared text by text, where both wrote something: difference of the reader's mean
negative log-likelihood a token, over the concepts' texts with the concept as the unit.
"""

import argparse
from pathlib import Path
from typing import Any

from efface.base.files import read_json, write_json
from efface.deactivate.evaluation.statistics import hierarchical_bootstrap, paired_bootstrap


def cells(folder: Path) -> list[dict[str, Any]]:
    """Finished cells: their figures, and the rows and texts of their results."""
    found = []
    for path in sorted(folder.glob("cells/*/cell.json")):
        cell = read_json(path)
        if cell.get("status") != "done":
            continue
        inputs, result = cell["inputs"], read_json(path.parent / "work" / "result.json")
        written = {n: w[0] for n, w in result["extra"].get("written", {}).items()}
        rows = {r["name"]: r["metrics"] for r in result["rows"]}
        found.append(
            {"concept": inputs["concept"], "eraser": inputs["eraser"], "figures": cell["figures"], "rows": rows, "written": written}
        )
    return found


def spoken(written: dict[str, Any]) -> dict[int, float]:
    """Number of a beginning -> the reader's mean negative log-likelihood a token of what was written after it."""
    kept = [n for n, t in enumerate(written["texts"]) if t.strip()]
    return {n: x / t for n, x, t in zip(kept, written["nll"], written["tokens"], strict=True)}


def compared(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean of one's less the other's, paired by concept and beginning."""
    left, right = [], []
    for a in (a for a in one if a["written"]):
        for b in (b for b in other if b["written"] and b["concept"] == a["concept"]):
            x, y = spoken(a["written"][a["eraser"]]), spoken(b["written"][b["eraser"]])
            both = sorted(x.keys() & y.keys())
            left.append([x[n] for n in both])
            right.append([y[n] for n in both])
    if not left:
        return None
    pair = paired_bootstrap(left, right)
    return {"difference": [pair.difference.mean, pair.difference.low, pair.difference.high], "concepts": len(left), "verdict": pair.verdict}


def line(cell: dict[str, Any]) -> str:
    """A row of the table of goals."""
    f, row = cell["figures"], cell["rows"][cell["eraser"]]
    low, high = (
        1 - row["margin"]["high"] / cell["rows"]["base"]["margin"]["mean"],
        1 - row["margin"]["low"] / cell["rows"]["base"]["margin"]["mean"],
    )
    pair = [f.get(f"fall - 3 x random directions, unseen, {k}") for k in ("mean", "low", "high")]
    shown = "–" if pair[0] is None else f"{pair[0]:.2f} [{pair[1]:.2f}, {pair[2]:.2f}]"
    control = f.get("random directions: unseen margin lost")
    return " | ".join(
        [
            f"| {cell['concept']}", f"{f['margin lost']:.0%} [{low:.0%}, {high:.0%}]", f"{f['unseen margin lost']:.0%}", f"{f['neighbours lost']:.1%}",
            f"{f['perplexity']:+.1%}", f"{f['accuracy before']:.3f} → {f['accuracy']:.3f}", "–" if control is None else f"{control:.1%}", f"{shown} |",
        ]
    )  # fmt: skip


def read_line(concept: str, of: dict[str, dict[str, Any] | None]) -> str:
    """A row of the table of what is written: of the base, and of each eraser's cell, «–» where there is none."""
    parts = [f"| {concept}"]
    base = next(c for c in of.values() if c)
    for name, cell in (("base", base), *of.items()):
        row = cell["rows"][name] if cell else {}
        p, d = row.get("ppl_written"), row.get("distinct_written")
        parts.append("–" if p is None else f"{p['mean']:.1f} [{p['low']:.1f}, {p['high']:.1f}], {d['mean']:.2f}")
    return " | ".join(parts) + " |"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=Path)
    args.add_argument("--json", type=Path)
    given = args.parse_args()
    found = cells(given.folder)
    by = {e: [c for c in found if c["eraser"] == e] for e in sorted({c["eraser"] for c in found})}
    for eraser, own in by.items():
        print(f"\n{eraser}: margin lost, of unseen answers, neighbours, neutral perplexity, accuracy, random directions, fall - 3 x random")
        print("\n".join(line(c) for c in own))
        mean = hierarchical_bootstrap([[c["figures"]["margin lost"]] for c in own])
        print(f"mean of the margins lost {mean.mean:.2f}, n {len(own)}")
    if told := [c for c in found if c["written"]]:
        print("\nperplexity of what is written, distinct trigrams: base,", ", ".join(by))
        for concept in dict.fromkeys(c["concept"] for c in told):
            print(read_line(concept, {e: next((c for c in own if c["concept"] == concept), None) for e, own in by.items()}))
    pair = compared(by.get("elm", []), by.get("rmu", []))
    print("ELM less RMU, nats a token:", pair)
    if given.json:
        shown = ("margin", "ppl_written", "distinct_written")
        rows = [{n: {m: v for m, v in r.items() if m in shown} for n, r in c["rows"].items()} for c in found]
        kept = [{k: c[k] for k in ("concept", "eraser", "figures")} | {"rows": r} for c, r in zip(found, rows, strict=True)]
        write_json(given.json, {"cells": kept, "ELM less RMU, nats a token": pair})


if __name__ == "__main__":
    main()
