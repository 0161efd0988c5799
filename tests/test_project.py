"""The repository's own pages say what is so: versions, addresses, commands, links, and the list of chapters."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml
from nbval_chapters import COMPARABLE

import seqgan_lib
from seqgan_lib.results import interval

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402
import result  # noqa: E402

PAGES = ["README.md", "CONTRIBUTING.md", "data/README.md", ".github/pull_request_template.md"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))


def read(name):
    return (ROOT / name).read_text("utf8")


def test_the_version_is_the_same_everywhere():
    project = build.tomllib.loads(read("pyproject.toml"))["project"]
    newest = re.search(r"^## (\d+\.\d+\.\d+), (not released yet|\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), flags=re.M)
    assert {project["version"], str(CITATION["version"]), newest[1]} == {seqgan_lib.__version__}


def test_citation():
    """Checked once with cffconvert, which asks for versions that the rest of the environment cannot have."""
    assert CITATION["cff-version"] == "1.2.0" and CITATION["title"] == "SeqGAN Step by Step"
    assert CITATION["repository-code"] == build.repository()
    assert CITATION["license"] == ["MIT", "CC-BY-4.0"]


@pytest.mark.parametrize("page", build.PAGES_WITH_ADDRESS)
def test_the_address_is_the_one_in_pyproject(page):
    text = read(page)
    assert build.page_with_address(text, build.repository()) == text, "make address rewrites it"
    assert build.repository() in text
    moved = build.page_with_address(text, "https://github.com/someone/else")
    assert build.repository().removeprefix("https://github.com/") not in moved


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_names_exists(page):
    targets = set(re.findall(r"^(\w+):", read("Makefile"), flags=re.M))
    named = " ".join(re.findall(r"(?:^|`)make((?: [a-z]+)+)", read(page), flags=re.M))
    assert set(named.split()) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_exists(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", read(page))
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("text", build.chapters(), ids=lambda text: text.stem)
@pytest.mark.parametrize("page, link", [("README.md", "chapters/{stem}.ipynb"), ("chapters/index.md", "{stem}")])
def test_the_list_of_chapters_has_each_with_its_title_and_question(page, link, text):
    number, title = re.search(r"^# (\w+)\. (.+)$", text.read_text("utf8"), flags=re.M).groups()
    question = re.search(r"^\*\*(.+)\*\*$", text.read_text("utf8"), flags=re.M)[1]
    link = link.format(stem=text.stem)
    (row,) = [line for line in read(page).splitlines() if line.startswith("|") and f"]({link})" in line]
    assert f"{title}]({link}) | {question} |" in row and re.match(rf"\| \[?{number}\b", row)


@pytest.mark.parametrize("text", build.chapters(), ids=lambda text: text.stem)
def test_the_readme_has_each_chapter_s_time_and_badge(text):
    (row,) = [line for line in read("README.md").splitlines() if f"](chapters/{text.stem}.ipynb) |" in line]
    time, badge = row.rstrip(" |").split(" | ")[-2:]
    assert re.fullmatch(r"\d+ s", time), f"make times CHAPTER={text.stem.partition('_')[0]}"
    assert int(time.removesuffix(" s")) > 0
    assert badge == build.badge(text.stem, build.repository(), folder="")


def test_a_row_gets_its_time_whatever_stood_there():
    page = "| 7 | [One](chapters/07_one.ipynb) | Why? |\n| 8 | [Two](chapters/08_two.ipynb) | How? | 9 s | old |\n"
    once = build.with_time(build.with_time(page, "07_one", 30.4), "08_two", 12.6)
    first, second = once.splitlines()
    assert first.startswith("| 7 | [One](chapters/07_one.ipynb) | Why? | 30 s | [![") and "/07_one.ipynb) |" in first
    assert second.startswith("| 8 | [Two](chapters/08_two.ipynb) | How? | 13 s | [![") and "old" not in second
    assert build.with_time(once, "08_two", 12.6) == once


def test_the_readme_s_figure_shows_what_it_says():
    quality, diversity = result.changes("nll_oracle"), result.changes("entropy")
    assert all(len(worlds) == 5 for worlds in [*quality.values(), *diversity.values()])
    for game in ("PG-BLEU", "SeqGAN"):
        assert sum(interval(quality[game])) < 0 and sum(interval(diversity[game])) < 0
    assert sum(interval(diversity["MLE"])) < 0 < sum(interval(quality["MLE"]))
    assert 0.7 < diversity["MLE"].mean() / diversity["SeqGAN"].mean() < 1
    for higher in (quality["scheduled sampling"], diversity["scheduled sampling"]):
        assert (higher > 0).all() and np.subtract(*interval(higher)) > 0


@pytest.mark.skipif(not COMPARABLE, reason="another matplotlib may draw a letter differently")
def test_the_readme_s_figure_is_that_of_the_recorded_runs():
    drawn, stored = (np.array(PIL.Image.open(x)) for x in (io.BytesIO(result.picture()), result.FIGURE))
    assert np.array_equal(drawn, stored), "make figure"
