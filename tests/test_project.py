"""The repository's own pages say what is so: versions, addresses, commands, links, and the list of chapters."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import seqgan_lib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402

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
