"""Sphinx: `make docs` builds the site in build/docs.

With `EFFACE_DOCS_EXECUTE=1` the notebooks are run at the size that `EFFACE_NOTEBOOK_SIZE` says, and shown with what they print and draw;
a notebook that has not changed is taken from build/docs-cache.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "src")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))  # of the notebooks' kernels
for name, value in (("EFFACE_NOTEBOOK_SIZE", "small"), ("EFFACE_QUIET", "1"), ("HF_HUB_OFFLINE", "1"), ("EFFACE_LOG", "ERROR")):
    os.environ.setdefault(name, value)

import make_site  # noqa: E402

from efface import __version__  # noqa: E402

project, author, release = "efface", "the efface authors", __version__
project_copyright = "the efface authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
highlight_language = "text"  # blocks that say nothing are commands
nb_execution_mode = "cache" if os.environ.get("EFFACE_DOCS_EXECUTE") == "1" else "off"
nb_execution_cache_path = str(ROOT / "build" / "docs-cache")
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True
nb_ipywidgets_js = {}  # they would come from elsewhere, and no notebook has widgets
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
suppress_warnings = [
    "ref.python",  # a name that two packages export has two pages
    "misc.highlighting_failure",  # sketches of signatures are no Python to the letter
]

html_theme = "furo"
html_title = f"efface {release}"
html_static_path = ["_static"]
html_css_files = ["efface.css"]
html_show_sourcelink = html_copy_source = False
html_favicon = html_logo = None
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#275d8c", "color-brand-content": "#275d8c", "color-brand-visited": "#5b4a86"},
    "dark_css_variables": {"color-brand-primary": "#8ec1ee", "color-brand-content": "#8ec1ee", "color-brand-visited": "#c0b2ec"},
}
copybutton_prompt_text, copybutton_only_copy_prompt_lines = "$ ", True


def _docstring(app, what, name, obj, options, lines):  # what Sphinx passes
    lines[:] = make_site.plain("\n".join(lines)).split("\n")


def _links(app, docname, source):
    source[0] = source[0].replace("](../deactivate/linear/README.md)", "](erasers/leace.md)")


def _unbroken(app, pagename, templatename, context, doctree):
    context["body"] = make_site.unbroken(context.get("body", ""))


def setup(app):
    """Writes the made pages; docstrings and links are rewritten as they are read, line breaks as they are written."""
    make_site.write()
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon, at 500
    app.connect("source-read", _links)
    app.connect("html-page-context", _unbroken)
