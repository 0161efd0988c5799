"""The page of evidence: what it says of a small chapter, and that it lists every figure and assertion of the book."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))

import evidence  # noqa: E402

STORED = sorted((ROOT / "chapters").glob("*_*.ipynb"))


def notebook(*cells):
    """A chapter of cells of code, with a title and one section."""
    text = nbformat.v4.new_markdown_cell("# 3. A chapter\n\n## A section")
    return nbformat.v4.new_notebook(cells=[text, *map(nbformat.v4.new_code_cell, cells)])


@pytest.mark.parametrize(
    ("code", "behind"),
    [
        ("x = 1\nassert x", set()),
        ("runs = load_results('mle-study')\nbest = min(runs)\nassert best", {"mle-study"}),
        ("runs = load_results('mle-study')\nruns = 2\nassert runs", set()),
        ("a = []\nfor run in load_results('mle-study'):\n    a.setdefault(0, []).append(run)\nassert a", {"mle-study"}),
        ("def f(run):\n    return run, load_results('mle-paper')\nrun = f(0)\nassert run", {"mle-paper"}),
        ("run = load_results('mle-study')\nassert [run for run in range(3)]", set()),
        (
            "both = {m: load_results(f'{m}-study') for m in M}\nassert both",
            {"mle-study", "pg-bleu-study", "seqgan-study"},
        ),
        ("assert load_results(f'{m}-study') and 'nll_oracle-study'", {"mle-study", "pg-bleu-study", "seqgan-study"}),
        ("%pip install x\nassert FIGURE_3", {"seqgan-study+rounds=20+k=10+d_learning_rate=4e-4"}),
    ],
)
def test_where_a_number_comes_from(code, behind):
    [(section, _, found)] = evidence.Chapter(notebook(code)).claims
    assert section == "A section"
    assert behind <= found and bool(behind) == bool(found)
    assert "sequences-study" not in found and "quality-diversity-study" not in found  # no METHOD-study, though alike


def test_an_assertion_is_shown_with_its_comment():
    [(_, claim, _)] = evidence.Chapter(notebook("assert (1 <\n        2)  # äöü, of course")).claims
    assert claim == "`` (1 < 2) ``: äöü, of course"


def test_every_figure_and_assertion_of_the_book_is_listed():
    page = evidence.evidence_page({path.stem: nbformat.read(path, 4) for path in STORED}, "https://example.org/book")
    for path in STORED:
        chapter = nbformat.read(path, 4)
        code = "\n".join(cell.source for cell in chapter.cells if cell.cell_type == "code")
        tree = ast.parse(code.replace("%pip", "pass  #"))
        found = evidence.Chapter(chapter)
        assert len(found.claims) == sum(isinstance(node, ast.Assert) for node in ast.walk(tree)) > 0, path.stem
        assert found.recap and found.figures and all(title for title, _, _ in found.figures), path.stem
        for _, alt, _ in found.figures:
            assert " ".join(alt.split()).replace("|", "\\|") in page
    for name in evidence._experiments():
        assert "+" in name or f"/data/results/{name})" in page
