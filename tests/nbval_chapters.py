"""What nbval needs to know about the chapters; loaded by `make test` with `-p tests.nbval_chapters`."""

import re

import pytest
from nbval.plugin import IPyNbFile, NbCellError

UNAVAILABLE = re.compile(r"^[\w.]*DataUnavailable: (.+)$", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def pytest_collection_modifyitems(items):
    for notebook in {item.parent for item in items if isinstance(item.parent, IPyNbFile)}:
        # Progress bars and warnings go to stderr. They differ from run to run and are not stored.
        notebook.skip_compare += ("stderr",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip a chapter by name, with the reason, once one of its cells finds that its data cannot be had."""
    notebook = item.parent
    if getattr(notebook, "unavailable", None):
        pytest.skip(notebook.unavailable)
    try:
        return (yield)
    except NbCellError as error:
        reason = UNAVAILABLE.search(ANSI.sub("", str(error.inner_traceback)))
        if reason is None:
            raise
        notebook.unavailable = f"chapter {notebook.path.stem}: {reason[1]}"
        pytest.skip(notebook.unavailable)
