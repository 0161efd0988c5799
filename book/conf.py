"""Sphinx's settings. `book/build.py` lays out the source folder and calls Sphinx."""

import importlib.metadata
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from build import repository  # the address stands in pyproject.toml

project = "SeqGAN Step by Step"
author = "The SeqGAN Step by Step authors"
copyright = "2026, the authors. Text CC BY 4.0, code MIT"
language = "en"

extensions = [
    "myst_nb",
    "sphinx_external_toc",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinxcontrib.bibtex",
]
external_toc_path = "_toc.yml"
external_toc_exclude_missing = True
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"
bibtex_reference_style = "author_year"

# Chapters are executed before they come here, by nbclient, with a line of progress.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # the default loads scripts from the internet
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = False
html_domain_indices = False  # the API page is its own list of modules
html_show_sourcelink = False
# A page opened from disk may not read its neighbours, so the search lists titles without excerpts.
html_show_search_summary = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the sidebar; once is enough
    "repository_url": repository(),
    "repository_branch": "main",
    "path_to_docs": ".",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Formulas come from the site's own folder. Of MathJax only what pages use is copied: one script, its fonts, and the
# TeX extensions that it loads when a formula asks for them.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")


def copy_mathjax(app, error) -> None:
    if error is None:
        for file in importlib.metadata.files("sphinx-mathjax-offline"):
            _, _, part = file.as_posix().partition("/static/mathjax/")
            if part.startswith(MATHJAX_PARTS):
                target = Path(app.outdir, "_static", "mathjax", part)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), target)


def setup(app) -> None:
    app.connect("build-finished", copy_mathjax)
