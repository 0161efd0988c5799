"""Sphinx's settings. `book/build.py` lays out the source folder and calls Sphinx."""

import re
import sys
from pathlib import Path

from PIL import Image

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
templates_path = ["templates"]
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

# Formulas are drawn by KaTeX 0.16.47, which lies in static/katex as its authors publish it. Sphinx's MathJax extension
# marks the formulas and asks for the script, on the pages that have any.
mathjax_path = "katex/katex.min.js"
myst_update_mathjax = False


def draw_formulas(app, pagename, templatename, context, doctree) -> None:
    if context.get("has_maths_elements"):
        app.add_js_file("formulas.js", defer="defer")
        app.add_css_file("katex/katex.min.css")


def shrink_figures(app, error) -> None:
    """Figures as lossless WebP: the same pixels in less than half of PNG's bytes."""
    if error:
        return
    figures = list(Path(app.outdir, "_images").glob("*.png"))
    for figure in figures:
        with Image.open(figure) as image:
            image.save(figure.with_suffix(".webp"), lossless=True, save_all=True)
        figure.unlink()
    names = "|".join(re.escape(figure.stem) for figure in figures)
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf8")
        page.write_text(re.sub(rf"(_images/(?:{names}))\.png", r"\1.webp", text), "utf8")


def setup(app) -> None:
    app.connect("html-page-context", draw_formulas)
    app.connect("build-finished", shrink_figures)
