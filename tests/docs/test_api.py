"""Every public name stands in the documents, as its docstring says it now."""

import importlib.util
from pathlib import Path

import efface.deactivate
import efface.sae

ROOT = Path(__file__).parents[2]


def test_the_page_of_public_names_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec
    assert spec.loader
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == make_api.page(), "run: python docs/make_api.py"
    for module in (efface.sae, efface.deactivate):
        for name in module.__all__:
            assert f"* `{name}" in page, name
    assert not list(make_api.definitions(ROOT / "sae", "nonsense"))
