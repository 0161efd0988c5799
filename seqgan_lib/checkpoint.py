"""Runs that survive: whatever stops one, the newest whole checkpoint in its folder is where it goes on."""

import hashlib
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .history import History, write_whole
from .training import Part, restore, state_of

_MAGIC = b"seqgan_lib checkpoint 1 "  # then the SHA-256 of all that follows, as 64 digits, and a line break


class CheckpointCorrupt(ValueError):
    """A checkpoint that is truncated, altered, or no checkpoint at all."""


def save_state(path: Path, state: dict) -> None:
    """Write ``state`` (tensors, numbers, text, in dictionaries and lists), whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(path, _MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def load_state(path: Path) -> dict:
    """Read what :func:`save_state` wrote. Raises CheckpointCorrupt for anything else; never runs code of the file."""
    head, _, content = path.read_bytes().partition(b"\n")
    if head != _MAGIC + hashlib.sha256(content).hexdigest().encode():
        raise CheckpointCorrupt(f"{path} is truncated or altered: it does not have the content it was saved with")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class TimeIsUp(RuntimeError):
    """The time that a run was given is over; it is saved, and can go on."""


class Checkpoints:
    """Keeps a run of one or more trainings in ``folder``, for :func:`~seqgan_lib.training.run_steps`.

    A checkpoint holds the trainings that are over (their histories), the one under way (its history and the states of
    its parts) and ``also``: further parts, such as the streams that evaluations draw from. One is saved after every
    step, but at most every ``seconds``, as ``checkpoint-N.pt``; the two newest stay. ``look`` is called after every
    step, before saving, with the histories of all phases by name. After ``limit`` seconds the run is saved and ended
    by TimeIsUp.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: float = 10.0,
        limit: float = float("inf"),
        look: Callable[[dict[str, History]], None] = lambda _: None,
    ) -> None:
        self.folder, self.seconds, self.limit, self.look = folder, seconds, limit, look
        self.also: list[Part] = []
        self.histories: dict[str, History] = {}
        self.done: dict[str, int] = {}
        self.spent = 0.0  # seconds of all the run's processes before this one
        self._begun = self._saved_at = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.partial"):  # of a file that a killed process was writing
            part.unlink()
        self._saved = self._newest()
        if self._saved:
            self.spent = self._saved["seconds"]

    def resume(self, phase: str, parts: list[Part], history: History) -> int:
        """Restore what was saved of ``phase``; returns how many of its steps are done."""
        self.histories[phase] = history
        if not self._saved or phase not in self._saved["done"]:
            return 0
        history.rows[:] = self._saved["histories"][phase]
        self.done[phase] = self._saved["done"][phase]
        if phase == list(self._saved["done"])[-1]:  # of an earlier one only the history is needed
            for part, state in zip([*parts, *self.also], self._saved["parts"], strict=True):
                restore(part, state)
            self._saved = None  # and its memory is free
        return self.done[phase]

    def keep(self, phase: str, done: int, parts: list[Part], history: History) -> None:
        """Note that ``done`` steps of ``phase`` are done, let ``look`` see it, and save if it is time."""
        self.done[phase] = done
        self.look(self.histories)
        now = time.perf_counter()
        if now - self._saved_at >= self.seconds or now - self._begun >= self.limit:
            self.save(parts)
        if now - self._begun >= self.limit:
            raise TimeIsUp(f"the time is up, after step {done} of {phase}")

    def save(self, parts: list[Part]) -> None:
        """Write a checkpoint now, and remove all but the two newest."""
        state: dict[str, Any] = {"done": self.done, "seconds": self.seconds_so_far()}
        # Plain numbers: what an evaluation took from NumPy could be saved, but not loaded without running code.
        state["histories"] = {
            name: [{k: v if type(v) is int else float(v) for k, v in row.items()} for row in history.rows]
            for name, history in self.histories.items()
        }
        state["parts"] = [state_of(part) for part in [*parts, *self.also]]
        save_state(self.folder / f"checkpoint-{sum(self.done.values()):06d}.pt", state)
        for old in self._files()[2:]:
            old.unlink()
        self._saved_at = time.perf_counter()

    def remove(self) -> None:
        """The run is over: its checkpoints are not needed any more."""
        for file in self._files():
            file.unlink()

    def seconds_so_far(self) -> float:
        """Wall time of this run, in seconds, over all the processes it took."""
        return self.spent + time.perf_counter() - self._begun

    def _files(self) -> list[Path]:
        """The folder's checkpoints, newest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)

    def _newest(self) -> dict | None:
        """The newest whole checkpoint; one that is not is named in a warning, and renamed to be out of the way."""
        for file in self._files():
            try:
                return load_state(file)
            except CheckpointCorrupt as error:
                warnings.warn(f"{error}; one before it is used, if there is one", stacklevel=2)
                file.rename(file.with_suffix(".corrupt"))
        return None
