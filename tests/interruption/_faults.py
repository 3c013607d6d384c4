"""A program: does a job again and again, each time dying (or finding the disk full) one write later; prints JSON lines.

`python _faults.py JOB FOLDER`: first it is killed each time, then the disk is full, then no file may be longer than a
few kilobytes (which the system sees to, so that writers in other languages meet it too). Each attempt is a fork, so that nothing is imported twice. What is counted are
the steps at which files change under FOLDER: opening for writing, writing, renaming, removing, making folders. `kill`
ends the process there, in the middle of the data where data are written; `full` lets that write and all later ones fail
with ENOSPC. After each attempt the job's `after` looks at what is left and says what a user would then see.
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 77
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_fdopen = os.fdopen


class Faults:
    """Counts the steps and strikes at one of them."""

    def __init__(self, folder: Path, at: int, kind: str) -> None:
        self.folder, self.at, self.kind, self.seen = str(folder), at, kind, 0

    def install(self) -> None:
        """In this process, for good."""
        sys.addaudithook(self.audit)
        os.fdopen = self.fdopen  # type: ignore[assignment]

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str) and args[0].startswith(self.folder) and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.step(writes=True)
        elif event in CHANGES and os.fspath(args[0]).startswith(self.folder):
            self.step(writes=event == "os.mkdir")

    def fdopen(self, handle: int, *args: Any, **options: Any) -> Any:
        file = _fdopen(handle, *args, **options)
        return Halved(file, self) if "w" in str(args) else file

    def step(self, *, writes: bool, on_the_way: Callable[[], object] = lambda: None) -> None:
        self.seen += 1
        if self.kind == "kill" and self.seen == self.at:
            on_the_way()
            os._exit(KILLED)
        if self.kind == "full" and self.seen >= self.at and writes:
            on_the_way()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Halved:
    """A file of which, when the fault strikes, half of the data was written."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def write(self, data: bytes) -> int:
        self.faults.step(writes=True, on_the_way=lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Halved":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def attempt(action: Callable[[], object], faults: Faults | None) -> int:
    """Runs `action` in a fork; its exit status: 0, KILLED, 3 an OSError, 4 anything else (printed)."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 4
    try:
        if faults:
            faults.install()
        action()
        status = 0
    except OSError as e:
        status = 3 if e.errno in (errno.ENOSPC, errno.EFBIG, None) else 4
        if status == 4:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(name: str, root: str) -> None:
    from interruption._jobs import JOBS

    base = Path(root)
    job = JOBS[name](base / "inputs")
    job.prepare()
    whole = base / "whole"
    whole.mkdir()
    assert attempt(lambda: job.act(whole), None) == 0
    for kind in ("kill", "full"):
        strike(job, kind, base, whole)
    place = base / "short"
    place.mkdir()
    status = attempt(lambda: (limit_files(4096), job.act(place)), None)
    tell(kind="short", n=1, status=status, left=left_in(place), after="")


def limit_files(size: int) -> None:
    """No file of this process may grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")


def left_in(place: Path) -> list[str]:
    return sorted(p.relative_to(place).as_posix() for p in place.rglob("*"))


def strike(job: Any, kind: str, base: Path, whole: Path) -> None:
    """One attempt after another, until one gets through."""
    n = 0
    while True:
        n += 1
        place = base / f"{n}"
        place.mkdir()
        status = attempt(lambda place=place, n=n: job.act(place), Faults(place, n, kind))
        told: dict[str, Any] = {"kind": kind, "n": n, "status": status, "left": left_in(place)}
        try:
            told["after"] = job.after(place, whole)
        except BaseException:
            told["after"] = "FAILED: " + traceback.format_exc()
        tell(**told)
        shutil.rmtree(place)
        if status == 0:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
