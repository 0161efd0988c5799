"""`make chapter` starts a chapter that keeps what the book promises, and every list has it in its place."""

import shutil
import sys
from pathlib import Path

import jupytext
import pytest
import test_book
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A copy of the book's texts and lists, where a test may start chapters."""
    for name in ("book", "chapters"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.ipynb", "*.py", "static"))
    for name in ("_toc.yml", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "CHAPTERS", tmp_path / "chapters")
    return tmp_path


def contents(book):
    parts = yaml.safe_load((book / "_toc.yml").read_text("utf8"))["parts"]
    return [entry["file"].removeprefix("chapters/") for part in parts for entry in part["chapters"]]


def test_a_new_chapter_takes_the_next_number_and_stands_in_every_list(book):
    old = contents(book)
    numbered = [text.stem for text in build.chapters() if text.stem[0].isdigit()]
    text = build.new_chapter("self_attention")
    number = int(numbered[-1][:2]) + 1
    assert text == book / "chapters" / f"{number:02}_self_attention.md"
    assert text.read_text("utf8").count(f"# {number}. Self attention\n") == 1

    place = old.index(numbered[-1]) + 1
    assert contents(book) == [*old[:place], text.stem, *old[place:]]
    for page, link in [("README.md", f"chapters/{text.stem}.ipynb"), ("chapters/index.md", text.stem)]:
        before = (ROOT / page).read_text("utf8").splitlines()
        after = (book / page).read_text("utf8").splitlines()
        (row,) = [line for line in after if line not in before]
        assert f"]({link})" in row and numbered[-1] in after[after.index(row) - 1]
        assert row.count("|") == after[after.index(row) - 1].count("|")


def test_a_number_can_be_given(book):
    assert build.new_chapter("77_late").name == "77_late.md"
    assert build.new_chapter("76_early").name == "76_early.md"
    assert build.new_chapter("Y_costs").name == "Y_costs.md"
    assert contents(book).index("76_early") == contents(book).index("77_late") - 1
    assert contents(book).index("Y_costs") == contents(book).index("A_speed") + 1
    assert build.new_chapter("next").name == "78_next.md"


@pytest.mark.parametrize("name", ["", "Attention", "1_attention", "00_attention", "../x", "a b", "08_", "a__b"])
def test_a_name_that_is_none(book, name):
    with pytest.raises(SystemExit, match="small letters, digits and underscores"):
        build.new_chapter(name)
    assert contents(book) == contents(ROOT)


def test_a_number_that_is_taken(book):
    with pytest.raises(SystemExit, match="chapter 02 already: chapters/02_maximum_likelihood.md"):
        build.new_chapter("02_again")
    assert contents(book) == contents(ROOT)


def test_the_template_keeps_what_the_book_promises_and_runs(book):
    """Executed here without a kernel, which would take longer than all else in this file."""
    text = build.new_chapter("attention")
    notebook = jupytext.read(text)
    test_book.test_badge(text, notebook)
    test_book.test_first_code_cell(notebook)
    test_book.test_no_directive_in_a_code_fence(notebook)
    test_book.test_prose_reads_well_without_sphinx(test_book.prose_of(notebook))
    test_book.test_skeleton(test_book.prose_of(notebook))
    names = {}
    for source in [cell.source for cell in test_book.code_cells(notebook)[1:]] + build.solutions_of(notebook):
        exec(source, names)
