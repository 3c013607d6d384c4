"""Time what a user waits for before anything runs: `import efface`, and `--help` of every command.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 5 --json out.json

Each is a new process, and what a bare `python -c pass` takes in the same round is printed beside it. Commands run
interleaved, one round after the other. Goals: 0.3 s more than a bare python for the import, 1 s in all for a help.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import typer
from _timing import quartiles, store

from efface.cli.main import app

IMPORT, HELP = 0.3, 1.0
"""Goals in seconds."""


def lines() -> list[tuple[str, ...]]:
    """Every command there is, as words: `()` is `efface` itself."""
    found: list[tuple[str, ...]] = [()]

    def walk(command: object, words: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            found.append((*words, name))
            walk(inner, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def seconds(*words: str) -> float:
    """Wall time of one python process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="store results here")
    args = parser.parse_args()
    runs = {"python -c pass": ("-c", "pass"), "import efface": ("-c", "import efface")}
    for words in lines():
        runs[" ".join(["efface", *words, "--help"])] = ("-m", "efface.cli.main", *words, "--help")
    load = os.getloadavg()[0]
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.rounds + 1):
        for name, words in runs.items():
            spent = seconds(*words)
            if turn:  # the first round fills the page cache
                took[name].append(spent)
    bare = quartiles(took["python -c pass"])[1]
    rows = {}
    print(f"{'':32}{'median s':>10}   quartiles        goal")
    for name, values in took.items():
        low, middle, high = quartiles(values)
        goal = HELP if name.endswith("--help") else IMPORT + bare if name == "import efface" else None
        rows[name] = {"seconds": values, "median": middle, "goal": goal}
        verdict = "" if goal is None else f"{goal:.2f} {'held' if middle <= goal else 'MISSED'}"
        print(f"{name:32}{middle:10.2f}   [{low:.2f}, {high:.2f}]   {verdict}")
    about = {"cores": os.cpu_count(), "load before": load, "load after": os.getloadavg()[0]}
    store(args.json, {"rounds": args.rounds, **about, "rows": rows})


if __name__ == "__main__":
    main()
