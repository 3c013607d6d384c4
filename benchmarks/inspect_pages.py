"""How quickly pages of a large SAE open under `efface serve`, and how large a file of 500 features is, with and without pictures.

python benchmarks/inspect_pages.py [--features 65536] [--picture FILE.png] [--out FILE.json]

The store is made up: every row of the table is drawn at random, and one block of 64 features with contexts of the default sizes is written again and
again, so that what is read at a time is as large as it really is. Each of the 500 features has six pictures (three prompts, with and without), all the
bytes of `--picture` (unset: left out). Times are of a headless Chromium on the same machine.
"""

import argparse
import base64
import json
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import chromium
from chromium import Browser

from efface.base.files import sha256_file, write_json
from efface.deactivate.inspect.page import write_page
from efface.deactivate.inspect.server import Pages, PageServer
from efface.deactivate.inspect.site import Site
from efface.deactivate.inspect.stores import StoreView
from efface.sae import SAE, SAEConfig
from efface.sae.evidence import EvidenceConfig, FeatureStore
from efface.sae.evidence import schema as s

WORDS = 30_000
PATIENCE = 300
"""Seconds that a step may take."""
COUNT = "parseInt(document.querySelector('.count').textContent.replace(/,/g, ''))"


def context(rng: random.Random, kind: str, quantile: int | None) -> dict:
    tokens = [rng.randrange(WORDS) for _ in range(25)]
    acts = [rng.random() * 5 if i == 16 or rng.random() < 0.1 else 0.0 for i in range(25)]
    return {
        "kind": kind,
        "quantile": quantile,
        "document": 1,
        "position": 40,
        "peak": 16,
        "value": acts[16],
        "tokens": tokens,
        "activations": acts,
    }


def contexts(rng: random.Random, c: EvidenceConfig) -> list[dict]:
    drawn = [context(rng, "quantile", q) for q in range(c.quantiles) for _ in range(c.reservoir // c.quantiles)]
    held = [context(rng, part, None) for part in ("validation", "test") for _ in range(c.held)]
    return [context(rng, "top", None) for _ in range(c.top)] + drawn + held


def detail(rng: random.Random, f: int, n: int) -> dict:
    ids = [rng.randrange(WORDS) for _ in range(10)]
    return {
        "feature": f, "first_bin": 40, "counts": [rng.randrange(999) for _ in range(14)], "promoted": ids, "suppressed": ids[::-1],
        "firing": [{"id": t, "share": 0.1, "log_odds": 2.0} for t in ids], "neighbours": [{"id": rng.randrange(n), "cosine": 0.3} for _ in range(10)],
    }  # fmt: skip


def write_parquet(path: Path, schema: pa.Schema, block: list[dict], n: int) -> None:
    table = pa.Table.from_pylist(block, schema=schema)
    with parquet.ParquetWriter(path, schema, compression="zstd") as out:
        for first in range(0, n, s.BLOCK):
            out.write_table(table.set_column(0, schema.field(0), pa.array(range(first, first + s.BLOCK), pa.int32())))


def make_store(folder: Path, n: int) -> None:
    rng, c = random.Random(0), EvidenceConfig()
    folder.mkdir()
    words = [f" word{i}" for i in range(WORDS)]
    db = sqlite3.connect(folder / s.TABLE)
    for statement in s.TABLES:
        db.execute(statement)
    rows = (
        (
            i,
            i % 997,
            rng.random() ** 6 * 0.1,
            9,
            5.0,
            1.0,
            f"word{i % 3000}, other{i}",
            "labelled",
            None,
            "words",
            0.7,
            *(rng.random(), 0.4, 0.9),
            *(rng.random(), 0.4, 0.9),
        )
        for i in range(n)
    )
    db.executemany(f"INSERT INTO features VALUES ({', '.join('?' * len(s.COLUMNS))})", rows)
    tokens = ((f"word{(i * 7 + k * 13) % WORDS}", i, kind, k) for i in range(n) for kind in ("promoted", "firing") for k in range(10))
    db.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)", tokens)
    for index in s.INDEXES:
        db.execute(index)
    db.commit()
    db.close()
    write_parquet(folder / s.CONTEXTS, s.CONTEXT_SCHEMA, [{"feature": 0, "contexts": contexts(rng, c)} for _ in range(s.BLOCK)], n)
    write_parquet(folder / s.DETAILS, s.DETAIL_SCHEMA, [detail(rng, 0, n) for _ in range(s.BLOCK)], n)
    parquet.write_table(pa.table({"piece": words}), folder / s.VOCABULARY)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in s.FILES}
    write_json(folder / s.MANIFEST, {"format": s.FORMAT, "d_sae": n, "files": files, "labels": {}, "corpus": {}})


def until_drawn(browser: Browser, address: str) -> float:
    start = time.perf_counter()
    tab = browser.open(address)
    tab.until(f"{COUNT} > 0", PATIENCE)
    return time.perf_counter() - start


def steps(tab, n: int) -> dict[str, float]:
    """Seconds from an action to what it shows."""
    found = {}
    for name, act, done in (
        ("sort", "document.querySelector('[data-sort=density]').click()", "document.querySelector('[data-sort=density]').parentNode.getAttribute('aria-sort')"),
        ("search", "(e => { e.value = 'word12'; e.dispatchEvent(new Event('input', {bubbles: true})); })(document.querySelector('input[type=search]'))", f"{COUNT} < {n}"),
        ("feature", f"location.hash = '#/sae/0/f/{n // 2}'", "document.querySelector('.ctx')"),
    ):  # fmt: skip
        start = time.perf_counter()
        tab.run(act)
        tab.until(done, PATIENCE)
        found[name] = round(time.perf_counter() - start, 3)
    return found


def with_pictures(work: Path, view: StoreView, picture: Path | None) -> dict[str, float]:
    """Size of the same file with six pictures a feature."""
    if picture is None:
        return {}
    address = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    shown = [{"prompt": f"prompt {i}", "seed": i, "with": address, "without": address} for i in range(3)]
    path = write_page(work / "pictures.html", Site("made up", [view], pictures=lambda *_: shown), features=500, pictured=500)
    return {"bytes a picture": picture.stat().st_size, "file of 500 features with pictures (MB)": round(path.stat().st_size / 1e6, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=65536)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chromium.PATIENCE = PATIENCE
    n = args.features
    with tempfile.TemporaryDirectory() as work, Browser() as browser:
        os.environ["EFFACE_CACHE"] = work
        make_store(Path(work) / "features", n)
        sae = SAE(SAEConfig("topk", 64, n, k=8), {"hook_point": "layers.0.mlp_out", "model": "made up"})
        start = time.perf_counter()
        view = StoreView(sae, work, FeatureStore.open(Path(work) / "features", verify=False))
        site = Site("made up", [view])
        opened = time.perf_counter() - start
        server = PageServer(Pages(site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        first = until_drawn(browser, server.address)
        again = [until_drawn(browser, server.address) for _ in range(5)]
        after = steps(browser.open(server.address), n)
        server.shutdown()
        path = write_page(Path(work) / "page.html", site, features=500)
        drawn = with_pictures(Path(work), view, args.picture)
        found = {
            "features": n, "machine": f"{os.cpu_count()} CPU cores", "torch": torch.__version__, "store opened (s)": round(opened, 3),
            "first page (s)": round(first, 3), "page again (s), 5 times": [round(t, 3) for t in again], **{f"{k} (s)": v for k, v in after.items()},
            "file of 500 features (MB)": round(path.stat().st_size / 1e6, 2), "file opens (s)": round(until_drawn(browser, path.as_uri()), 3), **drawn,
            "load (1, 5, 15 min)": [round(v, 2) for v in os.getloadavg()],
        }  # fmt: skip
    text = json.dumps(found, indent=2)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
