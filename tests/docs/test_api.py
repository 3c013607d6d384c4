"""Every public name stands in the documents, as its docstring says it now."""

from pathlib import Path

from scripts import script

import efface.deactivate
import efface.sae

ROOT = Path(__file__).parents[2]


def test_the_page_of_public_names_is_what_the_code_says() -> None:
    make_api = script(ROOT / "docs" / "make_api.py")
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == make_api.page(), "run: python docs/make_api.py"
    for module in (efface.sae, efface.deactivate):
        for name in module.__all__:
            assert f"* `{name}" in page, name
    assert not list(make_api.definitions(ROOT / "sae", "nonsense"))
