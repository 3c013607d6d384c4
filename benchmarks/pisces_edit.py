"""How long a PISCES edit takes, without search: finding features, and the edit alone once they are known.

    python benchmarks/pisces_edit.py --model smollm2 --sae saes/ --concept harry-potter [--rounds 5] [--out FILE.json]

`edit` is what stands in docs/benchmarks.md («PISCES edit, six layers, without search»): features given, signs read, value vectors encoded,
factors made. `find and edit` adds the search for features, without and with the single-feature filters. One process, torch's own threads.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from _timing import interleaved, machine, quartiles

from efface.base.config import parse_assignments
from efface.base.files import write_json
from efface.deactivate.concept import Concept
from efface.llm import load_model
from efface.llm.methods.pisces import FeatureRef, PiscesConfig
from efface.llm.methods.pisces.fit import fit
from efface.sae import SAE


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--sae", type=Path, required=True, help="a folder of SAEs, one a layer")
    args.add_argument("--concept", default="harry-potter")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument("--set", nargs="*", default=[], help="key=value of the method's config")
    args.add_argument("--out", type=Path)
    options = args.parse_args()
    saes = [SAE.load(p.parent) for p in sorted(options.sae.rglob("cfg.json"))]
    host, concept = load_model(options.model), Concept.load(options.concept)
    _ = host.digest
    plain = PiscesConfig(**{"filters": False, **parse_assignments(options.set)})
    start = time.perf_counter()
    found = fit(host, [concept], config=plain, saes=saes).evidence["concepts"][0]["features"]
    first = time.perf_counter() - start
    refs = tuple(str(FeatureRef(int(f["hook_point"].split(".")[1]), f["id"], f["direction"])) for f in found)
    given = dataclasses.replace(plain, features=refs)
    cases = {
        "edit": lambda: fit(host, [concept], config=given, saes=saes),
        "find and edit": lambda: fit(host, [concept], config=plain, saes=saes),
        "find, filter and edit": lambda: fit(host, [concept], config=dataclasses.replace(plain, filters=True), saes=saes),
    }
    seconds = interleaved(cases, options.rounds)
    result = {
        "host": host.name, "concept": concept.name, "layers": len(saes), "features": refs, "first call": first,
        "seconds": {name: dict(zip(("lower", "median", "upper"), quartiles(s), strict=True)) for name, s in seconds.items()},
        "machine": machine(),
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
