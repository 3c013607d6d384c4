"""Programs that are no modules of the package (docs/make_*.py, benchmarks/*.py), imported to be tested."""

import importlib.util
from pathlib import Path
from types import ModuleType


def script(path: Path) -> ModuleType:
    """The program as a module, made anew each time; its `__main__` part is not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
