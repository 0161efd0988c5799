"""Play Colab: run chapters where the scientific packages are installed and the book's library is not.

    python tests/colab.py            one chapter whole, then the opening of every other: what it installs and imports
    python tests/colab.py 01 03      these chapters, whole
    python tests/colab.py all        every chapter, whole

A whole chapter begins without the library and installs it; an opening finds it there, as all first cells are the same.
The environment and everything else lie in a temporary folder, which is removed at the end. The repository's address is
redirected by git's configuration to this clone's last commit, so nothing is fetched from the internet but packages.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
from build import CHAPTER_LIMIT, repository  # noqa: E402

# What a chapter may expect of Colab, at the versions that the lock file has; all else, the library must bring.
COLAB_HAS = ("torch", "numpy", "scipy", "matplotlib", "seaborn", "pandas", "ipykernel")

# Run after the first cell: where the library came from, and what the installation left as it was.
REPORT = """\
import importlib.metadata as _metadata, json as _json, sys as _sys, seqgan_lib as _library
print(_json.dumps({"torch": _metadata.version("torch"), "numpy": _metadata.version("numpy"),
                   "library": _library.__file__, "prefix": _sys.prefix}))"""

REMOVE = "%pip uninstall --yes --quiet seqgan-lib"

OPENED = "use_style()"  # ends the imports of every chapter


def locked(names: tuple[str, ...]) -> list[str]:
    lines = (ROOT / "requirements.lock").read_text("utf8").splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


def make_environment(folder: Path) -> Path:
    python = folder / "colab" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "colab"], check=True)
    (folder / "packages.txt").write_text("\n".join(locked(COLAB_HAS)), "utf8")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-r", folder / "packages.txt"], check=True, stderr=subprocess.DEVNULL)
    return python


def versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('torch', 'numpy')}))"
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def environment(folder: Path) -> dict[str, str]:
    """The kernel's environment: this clone behind the repository's address, and no settings of the user's."""
    added = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository(),
        "PATH": f"{folder / 'colab' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder / "colab"),
        "JUPYTER_PATH": str(folder / "colab" / "share" / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "0",  # the kernel is the other environment's
        "IPYTHONDIR": str(folder / "ipython"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it might lead to this clone
    return kept | added


def play(path: Path, folder: Path, python: Path, before: dict[str, str], whole: bool) -> None:
    """Execute a chapter, or only its opening, as Colab would, and check what that did to the environment."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    report = nbformat.v4.new_code_cell(REPORT)
    opening = 1 + next(number for number, cell in enumerate(code) if OPENED in cell.source.splitlines())
    if whole:
        cells = [nbformat.v4.new_code_cell(REMOVE), code[0], report, *code[1:]]
    else:
        cells = [code[0], report, *code[1:opening]]
    played = nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)

    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        client = NotebookClient(
            played,
            kernel_name="python3",
            timeout=CHAPTER_LIMIT,
            resources={"metadata": {"path": empty}},
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
        client.create_kernel_manager()
        # The kernel of that environment, named outright: which kernels a machine has registered does not matter.
        client.km.kernel_spec.argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        try:
            client.execute(env=environment(folder))
        except CellExecutionError as error:
            said = "".join(output.get("text", "") for output in code[0].outputs)
            raise SystemExit(f"{path.stem} fails where Colab would run it:\n\n{said}\n{error}") from None
        left = sorted(file.name for file in Path(empty).iterdir())

    said = json.loads("".join(output.text for output in report.outputs if output.get("name") == "stdout"))
    assert said["torch"] == before["torch"], f"torch was changed from {before['torch']} to {said['torch']}"
    assert said["numpy"] == before["numpy"], f"NumPy was changed from {before['numpy']} to {said['numpy']}"
    library = Path(said["library"])
    assert (folder / "colab").resolve() in library.resolve().parents, f"seqgan_lib was imported from {library}"
    assert "site-packages" in library.parts
    what = f"{'whole' if whole else 'opening':<8} {time.monotonic() - start:5.1f} s"
    print(f"  {path.stem:<28} {what}  left behind: {left or 'nothing'}", flush=True)


def main() -> None:
    chosen = sys.argv[1:]
    paths = sorted((ROOT / "chapters").glob("*_*.ipynb"))
    if chosen:
        plan = [(path, True) for path in paths if chosen == ["all"] or path.name.startswith(tuple(chosen))]
    else:
        plan = [(paths[-1], True)] + [(path, False) for path in paths[:-1]]
    if not plan:
        raise SystemExit(f"no chapter begins with {' or '.join(chosen)}")

    with tempfile.TemporaryDirectory(prefix="colab-") as name:
        folder = Path(name).resolve()
        print(f"Playing Colab: an environment with {', '.join(COLAB_HAS)}, and without the library ...", flush=True)
        python = make_environment(folder)
        before = versions(python)
        print(f"  torch {before['torch']}, NumPy {before['numpy']}", flush=True)
        for path, whole in plan:
            play(path, folder, python, before, whole)
    print(f"{len(plan)} passed, 0 failed")


if __name__ == "__main__":
    main()
