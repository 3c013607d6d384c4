"""How quickly pages of a large SAE open and answer under `efface serve`, and how large a file of 500 features is, with and without pictures.

python benchmarks/inspect_pages.py [--features 65536 --features 100000] [--picture FILE.png] [--page FILE.html ...] [--out FILE.json]

The store is made up: every row of the table is drawn at random, and one block of 64 features with contexts of the default sizes is written again and
again, so that what is read at a time is as large as it really is. `efface serve` runs as a command of its own. Times are of a headless Chromium on the
same machine, taken by its own clock: of a page from the start of navigation until the first rows are drawn, of an action until what it shows is drawn (a
search waits 0.18 s for more letters first). Each of the 500 features has six pictures (three prompts, with and without), all the bytes of `--picture`
(unset: left out). `--page`: files of `efface inspect` whose size and opening are told too.
"""

import argparse
import base64
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import chromium
from chromium import Browser, Tab

from efface.base.files import sha256_file, write_json
from efface.deactivate.inspect.page import write_page
from efface.deactivate.inspect.site import Site
from efface.deactivate.inspect.stores import StoreView
from efface.sae import SAE, SAEConfig
from efface.sae.evidence import EvidenceConfig, FeatureStore
from efface.sae.evidence import schema as s

WORDS = 30_000
PATIENCE = 300
"""Seconds that a step may take."""
WIDTH = 576
"""Of the made-up SAE: SmolLM2-135M's."""
REPEATS = 7
COUNT = "parseInt(document.querySelector('.count').textContent.replace(/,/g, ''))"
ROWS = "document.querySelectorAll('.vt-row').length"
SORTED = "document.querySelector('[data-sort=density]').parentNode.getAttribute('aria-sort')"
WATCH = """(() => {
  const seen = new MutationObserver(() => {
    if (!document.querySelector('.vt-row')) return;
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.rowsDrawn = performance.now(); }));
  });
  seen.observe(document, { childList: true, subtree: true });
})()"""
"""When the frame with the first rows was drawn, in milliseconds since navigation began."""
TIMED = """new Promise((told) => {
  const start = performance.now();
  %s;
  const done = () => { try { return %s; } catch (e) { return false; } };
  const look = () => (done() ? setTimeout(() => told(performance.now() - start)) : requestAnimationFrame(look));
  requestAnimationFrame(look);
})"""


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


def until_drawn(browser: Browser, address: str) -> tuple[Tab, dict[str, float]]:
    """A new tab, and seconds from the start of navigation to its load event and to the first rows."""
    tab = browser.open(address, early=WATCH)
    tab.until("window.rowsDrawn", PATIENCE)
    load = tab.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    return tab, {"load": load / 1e3, "rows": tab.run("window.rowsDrawn") / 1e3}


def actions(tab: Tab, n: int) -> dict[str, float]:
    """Seconds from an action to what it shows."""
    search = (
        "(e => {{ e.value = '{}'; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})(document.querySelector('input[type=search]'))"
    )
    last = "[...document.querySelectorAll('.vt-row')].pop().dataset.index"
    steps = {
        "sort": ("document.querySelector('[data-sort=density]').click()", f"{ROWS} && {SORTED} === 'descending'"),
        "sort the other way": ("document.querySelector('[data-sort=density]').click()", f"{ROWS} && {SORTED} === 'ascending'"),
        "scroll to the middle": (f"document.querySelector('.vt').scrollTop = 36 * {n // 2}", f"Math.abs({last} - {n // 2}) < 100"),
        "scroll to the end": ("document.querySelector('.vt').scrollTop = 1e9", f"{last} == {n - 1}"),
        "search a word": (search.format("word12"), f"{COUNT} < {n} && {COUNT} > 0"),
        "search one letter": (search.format("o"), f"{COUNT} > {n // 2}"),
        "feature": (f"location.hash = '#/sae/0/f/{n // 2}'", "document.querySelector('.ctx')"),
    }  # fmt: skip
    return {name: tab.run(TIMED % (act, done)) / 1e3 for name, (act, done) in steps.items()}


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, float]]:
    """`efface serve` on a folder: its address, and the seconds until it said it."""
    command = [sys.executable, "-c", "from efface.cli.main import main; main()", "serve", str(folder), "--no-model", "--port", "0"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0], time.perf_counter() - start
        finally:
            process.terminate()


def spread(values: list[float]) -> dict[str, float]:
    """Median and largest."""
    return {"median": round(statistics.median(values), 3), "largest": round(max(values), 3)}


def measured(browser: Browser, work: Path, n: int, picture: Path | None) -> dict[str, Any]:
    """Everything of an SAE of `n` features."""
    sae = SAE(SAEConfig("topk", WIDTH, n, k=8), {"hook_point": "layers.0.mlp_out", "model": "made up"})
    sae.save(work / "sae")
    make_store(work / "sae" / "features", n)
    with served(work / "sae") as (address, started):
        first = until_drawn(browser, address)[1]
        pages, steps = [], []
        for _ in range(REPEATS):
            tab, times = until_drawn(browser, address)
            pages.append(times)
            steps.append(actions(tab, n))
            tab.close()
    view = StoreView(sae, work / "sae", FeatureStore.open(work / "sae" / "features", verify=False))
    path = write_page(work / "page.html", Site("made up", [view]), features=500)
    return {
        "server ready (s)": round(started, 2), "first page: rows (s)": round(first["rows"], 3),
        f"pages after it, {REPEATS} times (s)": {k: spread([t[k] for t in pages]) for k in pages[0]},
        "answers (s)": {k: spread([t[k] for t in steps]) for k in steps[0]},
        "file of 500 features (MB)": round(path.stat().st_size / 1e6, 2), "file: rows (s)": round(until_drawn(browser, path.as_uri())[1]["rows"], 3),
        **with_pictures(work, view, picture),
    }  # fmt: skip


def with_pictures(work: Path, view: StoreView, picture: Path | None) -> dict[str, float]:
    """Size of the same file with six pictures a feature."""
    if picture is None:
        return {}
    address = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    shown = [{"prompt": f"prompt {i}", "seed": i, "with": address, "without": address} for i in range(3)]
    path = write_page(work / "pictures.html", Site("made up", [view], pictures=lambda *_: shown), features=500, pictured=500)
    return {"bytes a picture": picture.stat().st_size, "file of 500 features with pictures (MB)": round(path.stat().st_size / 1e6, 2)}


def known_page(browser: Browser, path: Path) -> dict[str, Any]:
    """Size of a page that `efface inspect` wrote, what stands in it, and how quickly it opens."""
    data = json.loads(path.read_text(encoding="utf-8").split('id="data">', 1)[1].split("</script>", 1)[0])
    details = [d for s in data["saes"] for d in s.get("details", {}).values()]
    return {
        "title": data["title"], "features": len(details), "pictures": sum(2 * len(d.get("pictures") or ()) for d in details),
        "MB": round(path.stat().st_size / 1e6, 2), "rows (s)": round(until_drawn(browser, path.resolve().as_uri())[1]["rows"], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, action="append")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--page", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chromium.PATIENCE = PATIENCE
    found: dict[str, Any] = {"machine": f"{os.cpu_count()} CPU cores", "torch": torch.__version__, "width of the SAE": WIDTH}
    with Browser() as browser:
        for n in args.features or [65536, 100000]:
            with tempfile.TemporaryDirectory() as work:
                os.environ["EFFACE_CACHE"] = work
                found[f"{n} features"] = measured(browser, Path(work), n, args.picture)
        found["pages of efface inspect"] = [known_page(browser, p) for p in args.page]
    found["load (1, 5, 15 min)"] = [round(v, 2) for v in os.getloadavg()]
    text = json.dumps(found, indent=2)
    sys.stdout.write(text + "\n")
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
