"""Resident memory of streaming training: how far it grows from 100,000 to a million vectors.

    python benchmarks/streaming_memory.py [--model smollm2] [--at layers.0.mlp_out] [--tokens 1000000] [--out FILE]

Trains in a process of its own (`efface train`, activations read from the host as they are needed, nothing stored), and reads that process's
resident memory (VmRSS) whenever the log says that another block of vectors is done. A layer near the bottom keeps the run short; what
streaming keeps in memory does not depend on the layer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import machine

from efface.base.files import write_json


def resident(pid: int) -> float:
    """MB in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


def trained(folder: Path) -> int:
    """Vectors of the last line of the training log, 0 before the first."""
    logs = list(folder.rglob("*.jsonl"))
    lines = [json.loads(x) for log in logs for x in log.read_text().splitlines() if x.endswith("}")]
    return max((int(x["details/n_training_samples"]) for x in lines if "details/n_training_samples" in x), default=0)


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--at", default="layers.0.mlp_out")
    args.add_argument("--tokens", type=int, default=1_000_000)
    args.add_argument("--out", type=Path)
    o = args.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        command = [str(Path(sys.executable).with_name("efface")), "train", "--model", o.model, "--at", o.at, "--tokens", str(o.tokens)]
        run = subprocess.Popen([*command, "--out", f"{tmp}/sae"], stdout=subprocess.DEVNULL)
        seen: list[tuple[int, float]] = []
        while run.poll() is None:
            n = trained(Path(tmp))
            if n and (not seen or n > seen[-1][0]):
                seen.append((n, resident(run.pid)))
                print(f"{n:>9} vectors  {seen[-1][1]:7.0f} MB", flush=True)
            time.sleep(0.5)
    if run.returncode:
        raise SystemExit(run.returncode)
    start = next(mb for n, mb in seen if n >= 100_000)
    most = max(mb for n, mb in seen if n >= 100_000)
    print(f"from 100,000 vectors on: {start:.0f} MB, at most {most:.0f} MB, grown by {most - start:.0f} MB (goal: less than 200)")
    if o.out:
        write_json(o.out, {"machine": machine(), "command": command, "resident MB": seen, "grown MB": most - start})


if __name__ == "__main__":
    main()
