"""What was recorded with a chapter's cells was recorded with the cells that the chapter still shows."""

import ast
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNS = sorted((ROOT / "data" / "results" / "rlhf-classroom").glob("seed-*/run.json"))

spec = importlib.util.spec_from_file_location("record", ROOT / "data" / "record.py")
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


def test_there_are_runs():
    assert len(RUNS) == record.EXPERIMENTS["rlhf-classroom"][1]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.parent.name)
def test_recorded_code_is_the_chapters(run):
    """Comments and line breaks may differ, the program may not."""
    recorded = "\n".join(json.loads(run.read_text("utf8"))["settings"]["code"])
    shown = record.chapter_code("14_rlhf")
    message = "a cell tagged recorded was changed: delete the runs and record them anew"
    assert ast.dump(ast.parse(recorded)) == ast.dump(ast.parse(shown)), message


def test_chapter_13_shows_what_was_recorded():
    """Its runs were made before their program moved into the chapter, which changed none of its functions; so they do
    not hold it, and this is how it read then.
    """
    shown = hashlib.sha256(record.chapter_code("13_pitfalls").encode()).hexdigest()
    known = "9f958cf4094c5765ba61829bee9985087f9f7db38ec3be94c05d0ce800cbd511"
    assert shown == known, (
        "a cell tagged recorded was changed: delete the runs and record them anew; then this number, too"
    )


def test_a_changed_program_is_noticed():
    shown = record.chapter_code("14_rlhf")
    changed = shown.replace("clip=0.2", "clip=0.3")
    assert changed != shown and ast.dump(ast.parse(changed)) != ast.dump(ast.parse(shown))
