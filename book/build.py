"""Execute the chapters and build the site. The Makefile's commands end here.

python book/build.py book          execute into _build, then build the site from the executed copies
python book/build.py site          build the site from the outputs stored in chapters/*.ipynb
python book/build.py run [02]      execute one chapter (or all) and store the outputs in its .ipynb
python book/build.py solutions     execute one chapter (or all), then the solutions of its exercises
python book/build.py sync          after an edit of one of a pair (.md, .ipynb), update the other
python book/build.py chapter NAME  start a chapter from book/template.md: its two files, and its line in every list
python book/build.py times [02]    as solutions, and write into the README's table how long each took
python book/build.py address       rewrite badges and first cells from pyproject.toml's repository address
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from evidence import alternative_text, evidence_page
from jupytext.cli import jupytext as jupytext_command
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
BUILD = ROOT / "_build"
SOURCE = BUILD / "source"  # what Sphinx reads: the chapters, executed or as stored, and the pages beside them
SITE = BUILD / "site"

CHAPTER_BUDGET = 90  # seconds on two CPU cores: over it, a warning
CHAPTER_LIMIT = 600  # seconds: over it, the chapter is stopped
SLIDER = "application/vnd.jupyter.widget-view+json"  # how a notebook refers to a widget, which lives in its kernel

FIRST_CELL = """\
# On Colab this installs the book's library; where it is installed already it does nothing.
import importlib.util

if importlib.util.find_spec("seqgan_lib") is None:
    %pip install -q "git+{repository}\""""


class ChapterFailed(Exception):
    """A cell failed, or the chapter took too long."""


class ChapterSkipped(Exception):
    """The chapter's data cannot be had on this machine."""


# ---------------------------------------------------------------- chapters and their two files


def chapters(prefix: str = "") -> list[Path]:
    """The text of every chapter, `chapters/NN_name.md`, in order; the numbered ones before the lettered."""
    return sorted(path for path in CHAPTERS.glob("*_*.md") if path.name.startswith(prefix))


def cell_id(cell, taken: set[str]) -> str:
    """An id made from the cell's content, so that executing a chapter again changes no id."""
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    number, name = 1, digest
    while name in taken:
        number += 1
        name = f"{digest}-{number}"
    taken.add(name)
    return name


def clean(notebook):
    """Keep in a notebook only what its content and its results are: nothing of the machine or of the moment."""
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": "ipynb,md:myst"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in notebook.cells:
        cell.id = cell_id(cell, taken)
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            # Progress bars are written to stderr: they are for whoever is watching, not for the page.
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            # A slider, with what it draws, is for whoever has a kernel.
            if any(SLIDER in out.get("data", {}) for out in cell.outputs):
                cell.outputs = []
    return notebook


def write(notebook, path: Path) -> None:
    """Write the notebook only where something changed, and never half of it."""
    text = nbformat.writes(clean(notebook)) + "\n"
    if not path.exists() or path.read_text("utf8") != text:
        part = path.with_name(path.name + ".part")
        part.write_text(text, "utf8")
        part.replace(path)


# ---------------------------------------------------------------- execution


class Progress:
    """One line a chapter, printed at its end; on a terminal also one line that says what is being executed now."""

    running: dict[str, str] = {}
    took: dict[str, float] = {}  # seconds, of those that came to their end
    lock = threading.Lock()

    def __init__(self, name: str, cells: int):
        self.name, self.cells, self.start = name, cells, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def cell(self, number: int) -> None:
        with self.lock:
            self.running[self.name] = f"{self.name} {number}/{self.cells}"
            self.show("")

    def end(self, word: str = "") -> None:
        with self.lock:
            self.running.pop(self.name, None)
            self.took[self.name] = self.seconds
            self.show(f"  {self.name:<28} {self.cells:>2} cells  {self.seconds:5.1f} s  {word}\n")

    def show(self, line: str) -> None:
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(
                "\r" + " " * width + "\r" + line + "  " + ", ".join(self.running.values())[: width - 2],
                end="",
                flush=True,
            )
        elif line:
            print(line, end="", flush=True)


def each(texts: list[Path], solutions: bool = False):
    """Execute chapters side by side, one thread each; yields, in order, each with its notebook or ChapterSkipped."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting = [(text, pool.submit(execute, text, solutions)) for text in texts]
        for text, future in waiting:
            try:
                yield text, future.result()
            except ChapterSkipped as reason:
                yield text, reason
            except BaseException as failure:
                pool.shutdown(wait=True, cancel_futures=True)
                if isinstance(failure, ChapterFailed):
                    raise SystemExit(f"\n{failure}") from None
                raise


def execute(text: Path, solutions: bool = False):
    """The chapter's notebook, executed from an empty folder in a fresh kernel; its solutions after it, if asked for."""
    notebook = jupytext.read(text)
    if solutions:
        notebook.cells += [nbformat.v4.new_code_cell(block) for block in solutions_of(notebook)]
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    number = {index: count for count, index in enumerate(code, start=1)}
    progress = Progress(text.stem, len(code))

    def started(cell, cell_index):
        if cell_index in number:
            progress.cell(number[cell_index])

    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            timeout_func=lambda cell: max(1, CHAPTER_LIMIT - progress.seconds),
            record_timing=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            coalesce_streams=True,
            on_cell_start=started,
        )
        # What a slider draws would be sent back to the kernel; a send while the client waits can make it miss the
        # answer, and stand still.
        client.comm_open_handlers.clear()
        try:
            client.execute()
        except CellExecutionError as error:
            if error.ename == "DataUnavailable":
                progress.end("skipped")
                raise ChapterSkipped(error.evalue) from None
            progress.end("FAILED")
            raise ChapterFailed(describe(text, notebook, number)) from None
        except (CellTimeoutError, DeadKernelError) as error:
            progress.end("FAILED")
            raise ChapterFailed(f"{text.stem}: stopped after {progress.seconds:.0f} s: {error}") from None

    slow = f"over the budget of {CHAPTER_BUDGET} s" if progress.seconds > CHAPTER_BUDGET else ""
    progress.end(slow)
    return notebook


def solutions_of(notebook) -> list[str]:
    """The Python in the chapter's prose, which is that of its folded solutions."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [block.rstrip() for block in re.findall(r"^```python\n(.*?)^```", prose, flags=re.M | re.S)]


def describe(text: Path, notebook, number: dict[int, int]) -> str:
    """Which cell failed, its source, and its error, as a reader can use them."""
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                where = f"{text.relative_to(ROOT)}, code cell {number[index]} of {len(number)}"
                return f"{where} failed:\n\n{indent(cell.source)}\n\n{indent(trace)}"
    return f"{text.relative_to(ROOT)} failed"


def indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


# ---------------------------------------------------------------- the site


def describe_images(notebook) -> None:
    """Hand a figure's alternative text to the page: myst-nb reads it from the cell, notebooks keep it by the image."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if alt := alternative_text(output):
                cell.metadata["mystnb"] = {"image": {"alt": alt}}


def stage(notebooks: dict[str, nbformat.NotebookNode]) -> None:
    """Lay out what Sphinx reads, in one folder, with the pairs' text left out."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "chapters").mkdir(parents=True)
    shutil.copy(ROOT / "_toc.yml", SOURCE)
    shutil.copytree(ROOT / "book", SOURCE / "book", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in CHAPTERS.iterdir():
        if page.is_file() and page not in chapters() and page.suffix != ".ipynb":
            shutil.copy(page, SOURCE / "chapters")
    evidence = SOURCE / "chapters" / "evidence.md"
    evidence.write_text(f"{evidence.read_text('utf8')}\n{evidence_page(notebooks, repository())}", "utf8")
    for name, notebook in notebooks.items():
        describe_images(notebook)
        nbformat.write(notebook, SOURCE / "chapters" / f"{name}.ipynb")


def build_site(notebooks: dict[str, nbformat.NotebookNode]) -> None:
    """Sphinx, every warning an error; always from nothing, so that no page of an older build is left."""
    stage(notebooks)
    shutil.rmtree(SITE, ignore_errors=True)
    print("Building the site ...", flush=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    command += ["-d", BUILD / "doctrees", "-E", "-c", ROOT / "book", SOURCE, SITE]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit("The site was not built: see the warnings above.")
    # The pages lie under chapters/ as in the repository; whoever opens the folder itself is sent there.
    (SITE / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>SeqGAN Step by Step</title>'
        '<meta http-equiv="refresh" content="0; url=chapters/index.html">'
        '<p><a href="chapters/index.html">SeqGAN Step by Step</a></p></html>\n',
        "utf8",
    )
    size = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) / 1e6
    page = SITE / "index.html"
    print(f"The site is in {page.relative_to(ROOT)} ({size:.0f} MB). Open it in a browser:\n  {page.as_uri()}")


# ---------------------------------------------------------------- commands


def stored(text: Path):
    path = text.with_suffix(".ipynb")
    if not path.exists():
        raise SystemExit(f"{path.relative_to(ROOT)} is missing: make run CHAPTER={text.stem.split('_')[0]}")
    return nbformat.read(path, as_version=4)


def command_book(_) -> None:
    texts = chapters()
    print(f"Executing {len(texts)} chapters; each is made to take less than {CHAPTER_BUDGET} s on two cores.")
    notebooks, start = {}, time.monotonic()
    for text, notebook in each(texts):
        if isinstance(notebook, ChapterSkipped):
            print(f"skipped: chapter {text.stem}, {notebook}\n  (the site shows its stored outputs)")
            notebooks[text.stem] = stored(text)
        else:
            notebooks[text.stem] = clean(notebook)
    print(f"All executed in {time.monotonic() - start:.0f} s.")
    build_site(notebooks)


def command_site(_) -> None:
    build_site({text.stem: stored(text) for text in chapters()})


def asked_for(arguments) -> list[Path]:
    """The chapters that a command names, or all."""
    texts = chapters(arguments.chapter)
    if not texts:
        known = ", ".join(text.stem.split("_")[0] for text in chapters())
        raise SystemExit(f"There is no chapter {arguments.chapter!r}; there are {known}.")
    return texts


def command_run(arguments) -> None:
    for text, notebook in each(asked_for(arguments)):
        if isinstance(notebook, ChapterSkipped):
            print(f"skipped: chapter {text.stem}, {notebook}\n  (its stored outputs are kept)")
        else:
            write(notebook, text.with_suffix(".ipynb"))


def command_solutions(arguments) -> None:
    for text, notebook in each(asked_for(arguments), solutions=True):
        if isinstance(notebook, ChapterSkipped):
            print(f"skipped: chapter {text.stem}, {notebook}")


def command_sync(_) -> None:
    stems = {path.with_suffix("") for suffix in ("md", "ipynb") for path in CHAPTERS.glob(f"*_*.{suffix}")}
    for stem in sorted(stems):
        # The newer of the two wins; jupytext carries the outputs over to the cells that did not change.
        pair = [path for path in (stem.with_suffix(".md"), stem.with_suffix(".ipynb")) if path.exists()]
        newest = max(pair, key=lambda path: path.stat().st_mtime)
        notebook = stem.with_suffix(".ipynb")
        # Twice: what is cleaned away there, such as the kernel's name by JupyterLab, leaves the .md's header as well.
        for source in (newest, notebook):
            jupytext_command(["--quiet", "--sync", str(source)])
            write(nbformat.read(notebook, as_version=4), notebook)
        os.utime(stem.with_suffix(".md"))  # the pair is one: the next edit, of either, is the newer
        os.utime(notebook)


# Where every chapter has a line. A new one's goes below the last that stands before it in the book.
LISTS = {
    "_toc.yml": "      - file: chapters/{stem}",
    "README.md": "| {number} | [{title}](chapters/{stem}.ipynb) | {question} | | {badge} |",
    "chapters/index.md": "| [{number}. {title}]({stem}) | {question} |",
}


def new_chapter(name: str) -> Path:
    """Write `chapters/NN_name.md` from the template, and its line into every list; the number is free or given."""
    match = re.fullmatch(r"(?:(0[1-9]|[1-9]\d|[A-Z])_)?([a-z][a-z0-9]*(?:_[a-z0-9]+)*)", name)
    if match is None:
        raise SystemExit(
            f"A chapter's name is small letters, digits and underscores, with or without a number before it, such as "
            f"'attention' or '16_attention' (or a letter, for an appendix: 'B_attention'); this one is {name!r}."
        )
    numbers = [text.stem.partition("_")[0] for text in chapters()]
    number = match[1] or f"{max((int(n) for n in numbers if n.isdigit()), default=0) + 1:02}"
    if number in numbers:
        raise SystemExit(f"There is a chapter {number} already: {chapters(number + '_')[0].relative_to(ROOT)}")

    template = (ROOT / "book" / "template.md").read_text("utf8")
    stem, title = f"{number}_{match[2]}", match[2].replace("_", " ").capitalize()
    question = re.search(r"^\*\*(.+)\*\*$", template, flags=re.M)[1]
    words = {"stem": stem, "number": number.lstrip("0"), "title": title, "question": question}
    words["badge"] = badge(stem, repository(), folder="")
    for name, line in LISTS.items():
        add_line(ROOT / name, stem, line.format(**words))
    text = CHAPTERS / f"{stem}.md"
    filled = template.replace("{{number}}", words["number"]).replace("{{title}}", title)
    text.write_text(with_address(filled, stem, repository()), "utf8")
    return text


def add_line(path: Path, stem: str, line: str) -> None:
    """Put the new chapter's line where the book's order wants it, among the lines of the chapters that there are."""
    lines = path.read_text("utf8").splitlines()
    known = {text.stem for text in chapters()}
    places = [
        (index, min(found))
        for index, old in enumerate(lines)
        if old.strip().startswith(("|", "- file:")) and (found := known.intersection(re.findall(r"\w+", old)))
    ]
    lines.insert(max(index for index, other in places if other < stem) + 1, line)
    path.write_text("\n".join(lines) + "\n", "utf8")


def write_time(text: Path) -> None:
    """Write into the chapter's row of the README how long it was executed just now."""
    page = ROOT / "README.md"
    page.write_text(with_time(page.read_text("utf8"), text.stem, Progress.took[text.stem]), "utf8")


def with_time(page: str, stem: str, seconds: float) -> str:
    """The README's text with the last two columns of the chapter's row made anew: its time and its badge."""
    row = rf"^(\| \w+ \| \[.*\]\(chapters/{stem}\.ipynb\) \| [^|]* \|).*$"
    return re.sub(row, lambda m: f"{m[1]} {seconds:.0f} s | {badge(stem, repository(), folder='')} |", page, flags=re.M)


def command_times(arguments) -> None:
    for text, notebook in each(asked_for(arguments), solutions=True):
        if not isinstance(notebook, ChapterSkipped):
            write_time(text)


def command_chapter(arguments) -> None:
    text = new_chapter(arguments.name)
    number = text.stem.partition("_")[0]
    write(execute(text), text.with_suffix(".ipynb"))
    write_time(text)
    print(
        f"{text.relative_to(ROOT)} is a chapter now, and {', '.join(LISTS)} list it. Next:\n"
        f"  write it, in the .md or in JupyterLab (make lab)\n"
        f"  make run CHAPTER={number}    executes it and stores its outputs\n"
        f"  make test          says what is still missing"
    )


def command_address(_) -> None:
    for text in chapters():
        old = text.read_text("utf8")
        new = with_address(old, text.stem, repository())
        if new != old:
            text.write_text(new, "utf8")
            print(f"rewritten: {text.relative_to(ROOT)}")
    for page in PAGES_WITH_ADDRESS:
        old = (ROOT / page).read_text("utf8")
        new = page_with_address(old, repository())
        if new != old:
            (ROOT / page).write_text(new, "utf8")
            print(f"rewritten: {page}")
    command_sync(_)


def repository() -> str:
    """The repository's address, from the one place where it stands."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]["urls"]["Repository"]


def badge(stem: str, address: str, folder: str = "../") -> str:
    path = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/main/chapters/{stem}.ipynb"
    return f"[![Open in Colab]({folder}book/static/colab.svg)]({link})"


def with_address(text: str, stem: str, address: str) -> str:
    """The chapter's text with its badge and its first cell's address replaced."""
    text = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: badge(stem, address), text)
    return re.sub(r'(%pip install -q )"git\+[^"]*"', lambda match: f'{match[1]}"git+{address}"', text)


PAGES_WITH_ADDRESS = ("README.md", "CITATION.cff")


def page_with_address(text: str, address: str) -> str:
    """A page's text with the repository's address replaced: in badges, and wherever it is cloned or cited."""
    path = address.removeprefix("https://github.com/")
    text = re.sub(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+", rf"\g<1>{path}", text)
    return re.sub(r"((?:git clone |repository-code: |git\+)https://github\.com/)[\w.-]+/[\w.-]+", rf"\g<1>{path}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in [
        ("book", command_book),
        ("site", command_site),
        ("run", command_run),
        ("solutions", command_solutions),
        ("sync", command_sync),
        ("chapter", command_chapter),
        ("times", command_times),
        ("address", command_address),
    ]:
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name == "chapter":
            command.add_argument("name", help="such as attention, or 16_attention with the number that it shall have")
        if name in ("run", "solutions", "times"):
            command.add_argument("chapter", nargs="?", default="", help="how the chapter's file begins, such as 02")
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except KeyboardInterrupt:
        raise SystemExit("\nstopped") from None


if __name__ == "__main__":
    main()
