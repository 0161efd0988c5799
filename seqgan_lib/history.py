"""The record of a training: one row of numbers an evaluation. It saves, loads and plots itself."""

import csv
import io
import os
from pathlib import Path

import numpy as np


class History:
    """Rows of named numbers; ``history["nll_oracle"]`` is that column as an array, NaN where a row lacks it."""

    def __init__(self, rows: list[dict[str, float]] | None = None) -> None:
        self.rows = rows or []

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in order of first use."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.columns:
            raise KeyError(f"no column {column!r}; this history has {', '.join(self.columns) or 'no rows yet'}")
        return np.array([row.get(column, np.nan) for row in self.rows])

    def to_csv(self, path: str | Path) -> None:
        """Write one line a row, whole or not at all; floats keep all their digits."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(Path(path), text.getvalue().encode())

    @classmethod
    def from_csv(cls, path: str | Path) -> "History":
        """Read what :meth:`to_csv` wrote."""
        with Path(path).open(newline="", encoding="utf-8") as file:
            return cls([{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)])

    def plot(self, *columns: str, x="epoch", ax=None, **line):
        """Draw columns (default: all) over column ``x`` on matplotlib axes, new ones by default; returns the axes."""
        from matplotlib import pyplot  # the ``plot`` extra

        ax = ax or pyplot.subplots(layout="constrained")[1]
        for column in columns or [c for c in self.columns if c != x]:
            ax.plot(self[x], self[column], **{"label": column.replace("_", " "), **line})
        ax.set(xlabel=x, ylabel="nats per token")
        ax.legend()
        return ax


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is, at every moment, the old content or the new one, never a part.

    An OSError (disk full, no permission) leaves the old one, and nothing else.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk before it gets its name, or a power cut could leave the name alone
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
