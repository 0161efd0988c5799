"""The book's files keep what the book promises: pairs agree, first cells, alternative text, skeleton, dependencies."""

import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import PIL.Image
import pytest
import yaml
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build  # noqa: E402
from evidence import alternative_text  # noqa: E402
from nbval_chapters import COMPARABLE  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOTEBOOKS = sorted((ROOT / "chapters").glob("*_*.ipynb"))
IGNORED = {"nbval-ignore-output", "nbval-skip", "raises-exception", "nbval-raises-exception"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def prose(notebook):
    return prose_of(notebook)


def prose_of(notebook):
    """The chapter's Markdown without code blocks and code spans."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def contents(notebook):
    return [(cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))) for cell in notebook.cells]


# ---------------------------------------------------------------- the two files of a chapter


def test_there_are_chapters():
    assert NOTEBOOKS


def test_every_text_has_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in build.chapters()]


def test_pair_agrees(path, notebook):
    text = jupytext.read(path.with_suffix(".md"))
    message = f"{path.stem}: the .md and the .ipynb differ; `make sync` copies the newer one over"
    assert contents(text) == contents(notebook), message


def test_notebook_was_executed_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert not any(out.output_type == "error" for cell in code_cells(notebook) for out in cell.outputs)


def test_notebook_keeps_nothing_of_the_machine(path, notebook):
    stored = path.read_text("utf8")
    assert stored == nbformat.writes(build.clean(notebook)) + "\n", "make run, or make sync, writes it clean"
    assert str(ROOT) not in stored and str(Path.home()) not in stored


def test_what_a_run_adds_of_its_machine_is_taken_out(path, notebook):
    """Kernel, versions, ids, times, progress bars, sliders: none makes a difference when a chapter is run again."""
    notebook.metadata.kernelspec = {"display_name": "my own", "language": "python", "name": "mine"}
    notebook.metadata.language_info.version = "3.99"
    notebook.metadata.widgets = {"state": {}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"drawn-{number}"
        cell.metadata.execution = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
        if cell.cell_type == "code":
            if not cell.outputs:
                slider = {build.SLIDER: {"model_id": f"drawn-{number}"}, "text/plain": "interactive(children=("}
                drawn = {"text/plain": "<IPython.core.display.Image object>"}
                cell.outputs = [nbformat.v4.new_output("display_data", data) for data in (drawn, slider)]
            cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stderr", text="100%|##########| 9/9"))
    assert path.read_text("utf8") == nbformat.writes(build.clean(notebook)) + "\n"


def test_a_slider_calls_its_function_and_is_not_stored():
    """Moved as a browser moves it, by a message to the kernel."""
    slider = "from seqgan_lib.plotting import interact\nseen = []\ninteract(lambda n=4: seen.append(n), n=(1, 64))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (slider, "seen")])
    client = NotebookClient(notebook, kernel_name="python3")
    client.comm_open_handlers.clear()  # as in build.execute
    with client.setup_kernel():
        client.execute_cell(notebook.cells[0], 0)
        assert [build.SLIDER in output.data for output in notebook.cells[0].outputs] == [True]
        (model,) = [name for name, state in client.widget_state.items() if state["_model_name"] == "IntSliderModel"]
        moved = {"comm_id": model, "data": {"method": "update", "state": {"value": 16}, "buffer_paths": []}}
        client.kc.session.send(client.kc.shell_channel.socket, "comm_msg", moved)
        client.execute_cell(notebook.cells[1], 1)
    assert notebook.cells[1].outputs[0].data["text/plain"] == "[4, 16]"
    assert build.clean(notebook).cells[0].outputs == []


def test_sync_takes_out_what_jupyterlab_saved_in_both_files(tmp_path, monkeypatch):
    """An edit in JupyterLab changes its own cell in both files, and after `make sync` nothing else."""
    (tmp_path / "chapters").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(build, "CHAPTERS", tmp_path / "chapters")
    text = tmp_path / "chapters" / "01_oracle.md"
    for suffix in (".md", ".ipynb"):
        shutil.copy((ROOT / "chapters" / text.name).with_suffix(suffix), text.parent)
    old = text.read_text("utf8")
    edited = old.replace("Show a", "Give a")
    saved = edited.replace("  display_name: Python 3\n", "  display_name: Python 3 (ipykernel)\n")
    assert saved != edited != old
    text.write_text(saved, "utf8")
    build.command_sync(None)
    assert text.read_text("utf8") == edited
    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    assert "Give a" in notebook.cells[0].source and notebook.metadata.kernelspec.display_name == "Python 3"
    assert [cell.get("outputs") for cell in notebook.cells] == [
        cell.get("outputs") for cell in nbformat.read(ROOT / "chapters" / "01_oracle.ipynb", as_version=4).cells
    ]


# ---------------------------------------------------------------- Colab


def test_badge(path, notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert build.badge(path.stem, build.repository()) in first.source.splitlines()


def test_first_code_cell(notebook):
    expected = build.FIRST_CELL.format(repository=build.repository())
    assert code_cells(notebook)[0].source == expected


# ---------------------------------------------------------------- reading


def test_skeleton(prose):
    """Every chapter closes with three exercises, their solutions folded, and a recap."""
    headings = re.findall(r"^## (.+)$", prose, flags=re.M)
    assert "Exercises" in headings and "Recap" in headings
    exercises = prose.partition("## Exercises")[2]
    assert exercises.count("<details>") == exercises.count("</details>") == 3
    assert exercises.count("<summary>") == 3


def test_nbval_executes_the_solutions():
    command = "-m pytest -q --nbval -p tests.nbval_chapters --collect-only chapters".split()
    listed = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in NOTEBOOKS:
        solutions = len(build.solutions_of(nbformat.read(path, as_version=4)))
        assert solutions > 0 and listed.count(f"{path.name}::Solution ") == solutions


def test_prose_reads_well_without_sphinx(prose):
    """MyST directives and roles show as raw text in JupyterLab, on Colab and on GitHub."""
    assert not re.search(r"^:::|\{[\w:-]+\}`|^\([\w-]+\)=$", prose, flags=re.M)
    assert not re.search(r"^```+\{", prose, flags=re.M)


def test_no_directive_in_a_code_fence(notebook):
    for cell in notebook.cells:
        assert cell.cell_type == "code" or not re.search(r"^(```+|:::+)\{", cell.source, flags=re.M)


def test_every_figure_has_alternative_text(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                assert len(alternative_text(output)) > 15, f"a figure without a description: {cell.source[-200:]}"


def test_every_image_in_the_text_has_alternative_text(prose):
    assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]\(", prose))
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", prose))


# ---------------------------------------------------------------- what nbval compares


def test_enough_outputs_are_compared():
    """At least four in ten code cells that print something are compared, in every chapter."""
    shares = {}
    for path in NOTEBOOKS:
        with_text = [
            cell
            for cell in code_cells(nbformat.read(path, as_version=4))
            if any("text" in out or set(out.get("data", {})) == {"text/plain"} for out in cell.outputs)
        ]
        compared = [cell for cell in with_text if not IGNORED & set(cell.metadata.get("tags", []))]
        shares[path.stem] = (len(compared), len(with_text))
    print("cells with text output, compared of all:", shares)
    assert all(10 * compared >= 4 * total for compared, total in shares.values()), shares


@pytest.mark.skipif(not COMPARABLE, reason="pictures are compared under the newest matplotlib of the lock alone")
@pytest.mark.parametrize("altered", [False, True])
def test_a_figure_is_compared_pixel_by_pixel(tmp_path, altered):
    image = PIL.Image.new("RGB", (8, 8), "white")
    source = (
        "import io, PIL.Image\nfrom IPython.display import Image, display\nfile = io.BytesIO()\n"
        "PIL.Image.new('RGB', (8, 8), 'white').save(file, 'PNG')\ndisplay(Image(file.getvalue()))"
    )
    if altered:
        image.putpixel((3, 5), (255, 255, 254))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)  # other bytes, the same pixels
    data = {
        "image/png": base64.b64encode(file.getvalue()).decode(),
        "text/plain": "<IPython.core.display.Image object>",
    }
    cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[nbformat.v4.new_output("display_data", data)])
    cell.metadata["tags"] = ["same-pixels"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    how = ["-q", "--nbval", "--nbval-current-env", "-p", "tests.nbval_chapters", "--rootdir", str(tmp_path)]
    words = [sys.executable, "-m", "pytest", *how, str(tmp_path)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ("1 failed" in run.stdout and "pixel by pixel" in run.stdout) if altered else "1 passed" in run.stdout


# ---------------------------------------------------------------- lists that must agree


def test_contents_list_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert len(listed) == len(set(listed))
    assert {f"chapters/{path.stem}" for path in NOTEBOOKS} <= set(listed)
    assert all((ROOT / name).with_suffix(".md").exists() for name in listed)


def name_and_range(requirement):
    """`torch>=2.4` and `pytorch >=2.4` as ("torch", ">=2.4"); conda calls PyTorch differently."""
    requirement = requirement.partition(";")[0].replace(" ", "")
    name, _, lowest = requirement.partition(">=")
    return {"pytorch": "torch"}.get(name, name), lowest


def test_conda_environment_equals_the_package():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))["dependencies"]
    by_pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    listed = {name_and_range(entry) for entry in [*conda, *by_pip] if isinstance(entry, str)}
    listed -= {("pip", ""), ("-e.", ""), ("python", PROJECT["requires-python"].removeprefix(">="))}
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    declared = {name_and_range(entry) for entry in PROJECT["dependencies"] + extras}
    assert listed == {entry for entry in declared if not entry[0].startswith("seqgan-lib")}


def test_lock_has_every_dependency():
    lock = (ROOT / "requirements.lock").read_text("utf8")
    pinned = {re.split("==", line)[0] for line in lock.splitlines() if "==" in line}
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    names = {name_and_range(entry)[0] for entry in PROJECT["dependencies"] + extras}
    assert {name for name in names if not name.startswith("seqgan-lib")} <= pinned
    assert "://" not in lock, "the lock names packages, not where they are fetched from"


# ---------------------------------------------------------------- the library's layers


def imports(module: str) -> set[str]:
    """The library's modules that a module imports, wherever it does, but for type checkers alone."""
    text = (ROOT / "seqgan_lib" / f"{module}.py").read_text("utf8")
    text = re.sub(r"^if TYPE_CHECKING:\n(    .*\n)+", "", text, flags=re.M)
    return set(re.findall(r"^ *from \.(\w+) import", text, flags=re.M))


def test_the_library_imports_only_downwards():
    """The API page lists the modules in the order in which they build on one another, as it says."""
    listed = re.findall(r"automodule:: seqgan_lib\.(\w+)", (ROOT / "chapters" / "api.md").read_text("utf8"))
    inside = {"checks", "fused", "kernels"}  # not for users, so not on the page
    assert set(listed) | inside == {p.stem for p in (ROOT / "seqgan_lib").glob("[a-z]*.py")}
    for number, module in enumerate(listed):
        above = set(listed[:number]) | inside
        assert imports(module) <= above, f"{module} imports {imports(module) - above}, which stand below it"
    assert imports("fused") == {"graphs", "kernels"} and imports("kernels") == {"graphs"} and not imports("checks")
