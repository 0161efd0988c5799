"""What nbval needs to know about the chapters; loaded by `make test` with `-p tests.nbval_chapters`.

After a chapter's cells it executes the solutions of its exercises, which have no stored outputs.

nbval compares no pictures, and most could not be compared: a live training draws a slightly different one on every
machine. Where a cell draws from recorded data alone it carries the tag `same-pixels`, and its pictures are compared.
"""

import base64
import importlib.metadata
import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile, NbCellError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book"))
from build import solutions_of  # noqa: E402

# Another version of matplotlib may draw a letter differently. The stored pictures are drawn by the newest in the lock.
LOCK = (Path(__file__).parent.parent / "requirements.lock").read_text("utf8")
NEWEST = max(re.findall(r"^matplotlib==([\d.]+)", LOCK, re.M), key=lambda v: [int(n) for n in v.split(".")])
COMPARABLE = importlib.metadata.version("matplotlib") == NEWEST
UNAVAILABLE = re.compile(r"^[\w.]*DataUnavailable: (.+)$", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if isinstance(collector, IPyNbFile) and report.passed:
        # Progress bars and warnings go to stderr. They differ from run to run and are not stored.
        collector.skip_compare += ("stderr",)
        report.result += [
            IPyNbCell.from_parent(
                collector,
                name=f"Solution {number}",
                cell_num=len(report.result) + number,
                cell=nbformat.v4.new_code_cell(block),
                options=defaultdict(bool),
            )
            for number, block in enumerate(solutions_of(collector.nb))
        ]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a chapter by name, with the reason, once one of its cells finds that its data cannot be had."""
    notebook = item.parent
    if getattr(notebook, "unavailable", None):
        pytest.skip(notebook.unavailable)
    try:
        result = yield
    except NbCellError as error:
        reason = UNAVAILABLE.search(ANSI.sub("", str(error.inner_traceback)))
        if reason is None:
            raise
        notebook.unavailable = f"chapter {notebook.path.stem}: {reason[1]}"
        pytest.skip(notebook.unavailable)
    if COMPARABLE and "same-pixels" in item.cell.metadata.get("tags", []):
        drawn, stored = pixels(item.test_outputs), pixels(item.cell.outputs)
        same = len(drawn) == len(stored) and all(map(np.array_equal, drawn, stored))
        if not same:
            item.raise_cell_error("the figure is not the stored one, pixel by pixel")
    return result


def pixels(outputs):
    """The pictures under a cell, decoded: how the same pixels are compressed may differ from machine to machine."""
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    return [np.array(PIL.Image.open(io.BytesIO(base64.b64decode(png)))) for png in pictures]
