"""Recorded runs: ``EXPERIMENT/seed-N/`` holds the raw curves as CSV, and ``run.json``, which says whence they come."""

import glob
import json
import platform
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .configs import command_for
from .datasets import data_folder
from .history import History, write_whole


class MissingResult(ValueError):
    """A recorded result that is not there; the message names the command that makes it."""


@dataclass(frozen=True)
class Result:
    """One run: its tables by name, and where they come from (command, settings, versions, device, seconds, commit)."""

    seed: int
    tables: dict[str, History]
    provenance: dict


def run_folder(folder: str | Path, experiment: str, seed: int) -> Path:
    """Where a run lies under a folder of results."""
    return Path(folder) / experiment / f"seed-{seed}"


def run_folders(folder: str | Path, experiment: str | None = None) -> list[Path]:
    """The folders of an experiment's runs (of all) under a folder of results, by seed; not a copy, as seed-0.bak is."""
    name = glob.escape(experiment) if experiment else "*"
    runs = [file.parent for file in Path(folder).glob(f"{name}/seed-*/run.json")]
    runs = [run for run in runs if re.fullmatch(r"seed-\d+", run.name)]
    return sorted(runs, key=lambda run: int(run.name.removeprefix("seed-")))


def recorded_folder() -> Path:
    """The results that come with the book: ``data/results``, in a clone as in an installation."""
    return data_folder() / "results"


def load_results(experiment: str, folder: str | Path | None = None) -> list[Result]:
    """All runs of an experiment, by seed, from the book's recorded results or from another ``folder``.

    Raises MissingResult where there is none.
    """
    there = "" if folder is None or Path(folder) == Path("runs") else f" --folder {shlex.quote(str(folder))}"
    folder = Path(folder or recorded_folder())
    runs = run_folders(folder, experiment)
    if not runs:
        raise MissingResult(f"no {experiment!r} in {folder}; make it: {command_for(experiment)}{there}")
    return [load_result(run) for run in runs]


def load_result(folder: Path) -> Result:
    """One run from its own folder; its tables may be fewer than it will have, if it is not complete.

    Raises MissingResult if one of them was deleted.
    """
    provenance = read_provenance(folder)
    files = {name: folder / f"{name}.csv" for name in provenance["tables"]}
    for file in files.values():
        if not file.is_file():
            raise MissingResult(f"{file} is gone; delete {folder} and make it anew: {provenance['command']}")
    return Result(provenance["seed"], {k: History.from_csv(v) for k, v in files.items()}, provenance)


def read_provenance(folder: Path) -> dict:
    """What ``run.json`` says. Raises MissingResult for a folder that is not a run's, and for a file changed by hand."""
    file = folder / "run.json"
    if not file.is_file():
        raise MissingResult(f"{folder} is not the folder of a run: it has no run.json")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["seed"], facts["tables"]
    except (ValueError, KeyError, TypeError) as error:
        raise MissingResult(f"{file} cannot be read, it was changed by hand: restore it, or delete {folder}") from error
    return facts


def write_result(folder: Path, tables: dict[str, History], provenance: dict) -> None:
    """Write the tables, then ``run.json``: each whole, and what the latter names is there."""
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
    text = json.dumps(provenance | {"tables": list(tables)}, indent=2)
    write_whole(folder / "run.json", (text + "\n").encode())


def late_rows(run: Result, table: str = "curve", **only: float) -> dict[str, np.ndarray]:
    """A run's rows from the end of imitation on, where games begin and imitators go on: its columns by name.

    Of a table with several trainings in it, ``only`` those rows whose columns have these values, as in ``method=3``.
    """
    rows = run.tables[table]
    wanted = _where(rows, **only) & (rows["epoch"] >= run.provenance["settings"]["epochs"])
    return {name: rows[name][wanted] for name in rows.columns}


def reported(runs: list[Result], column: str, by: str, **only: float) -> np.ndarray:
    """``test_COLUMN`` of each run's best late row, (runs,).

    It is chosen on another sample, by the :func:`best_row` of ``by``.
    """
    grades = []
    for run in runs:
        rows = late_rows(run, **only)
        grades.append(rows[f"test_{column}"][best_row(by, rows[by])])
    return np.array(grades)


_MOST_IS_BEST = ("bleu", "distinct", "reward")
_LEAST_IS_BEST = ("nll_oracle", "held_out", "self_bleu", "squared_error")


def has_best(column: str) -> bool:
    """Whether more of a column, or less, is better; of an entropy neither is, nor of a discriminator's accuracy."""
    return column.removeprefix("test_").startswith(_MOST_IS_BEST + _LEAST_IS_BEST)


def best_row(column: str, values: np.ndarray) -> int:
    """Where a column is best, not where NaN: most, of BLEU, of shares of different lines or n-grams and of rewards, or
    least. Raises ValueError for a column that has no best, see :func:`has_best`.
    """
    if not has_best(column):
        raise ValueError(f"neither the most nor the least {column} is the best")
    return (np.nanargmax if column.removeprefix("test_").startswith(_MOST_IS_BEST) else np.nanargmin)(values)


def recorded_lines(table: History, **only: float) -> torch.Tensor:
    """The lines of a table of samples, (lines, T) int64, whose other columns have these values."""
    length = sum(re.fullmatch(r"t\d+", name) is not None for name in table.columns)
    tokens = np.stack([table[f"t{t}"] for t in range(1, length + 1)], axis=1)
    return torch.from_numpy(tokens[_where(table, **only)]).long()


def _where(table: History, **only: float) -> np.ndarray:
    """Which rows have these values, (rows,)."""
    return np.all([np.full(len(table.rows), True), *(table[name] == value for name, value in only.items())], axis=0)


def interval(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over runs, the first axis of ``x``, and half of its 95 % interval by Student's t."""
    from scipy import stats  # the ``plot`` extra

    return np.mean(x, 0), stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)


def describe_machine(device: torch.device, *files: Path) -> dict:
    """For a result's provenance: versions, device, and the commit of the library and of ``files`` beside it."""
    from . import __version__

    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.exists() else []
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())
        name = f"CPU, {model}, {torch.get_num_threads()} threads"
    return {"versions": versions | {"seqgan_lib": __version__}, "device": name, "commit": code_commit(*files)}


def code_commit(*more: Path) -> str:
    """The commit of the library (and of ``more`` files), marked where they were changed since; "" outside a clone."""
    library = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], capture_output=True, text=True, cwd=library).stdout.strip()
        except OSError:  # no git
            return ""

    if git("rev-parse", "--show-toplevel") != str(library.parent):  # installed, perhaps inside somebody else's clone
        return ""
    changed = git("status", "--porcelain", "--", *map(str, [library, *more]))
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
