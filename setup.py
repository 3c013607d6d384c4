"""Everything about the package stands in pyproject.toml; here a checkout that would build half of it is refused."""

from pathlib import Path

from setuptools import setup

LINKS = ("deactivate", "llm", "probes", "sae", "t2i")
package = Path(__file__).parent / "src" / "efface"
if broken := [name for name in LINKS if not (package / name).is_dir()]:
    raise SystemExit(
        f"src/efface: {', '.join(broken)} should be links to the folders of these names beside src/, or those folders themselves; "
        "this checkout made plain files of them. Check out with symbolic links (git config core.symlinks true), or copy the folders there"
    )
setup()
