"""The book's three scales, the worlds they are played in, and the results recorded under ``data/results``."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .datasets import data_folder, published_oracle
from .history import History
from .language_model import LanguageModel, random_oracle
from .sampling import new_generator, resolve_device


@dataclass(frozen=True)
class Scale:
    """One size of the synthetic task: V, T, sequences to train on and to hold out, epochs of MLE."""

    vocabulary: int
    length: int
    train: int
    held_out: int
    epochs: int
    published: bool = False  # the authors' oracle, or a random one from the seed


SCALES = {
    "classroom": Scale(vocabulary=200, length=10, train=2_000, held_out=2_000, epochs=60),
    "study": Scale(vocabulary=1_000, length=20, train=5_000, held_out=5_000, epochs=120),
    "paper": Scale(vocabulary=5_000, length=20, train=10_000, held_out=10_000, epochs=120, published=True),
}


@dataclass(frozen=True)
class World:
    """An oracle and two sets of its sequences, (sequences, T) int64: one to train on, one never to train on."""

    scale: Scale
    oracle: LanguageModel
    train: Tensor
    held_out: Tensor


def make_world(scale: str | Scale, seed: int, device: str | torch.device = "auto", sharpness: float = 1.0) -> World:
    """The world of ``seed`` at a scale, by name or your own; ``sharpness`` multiplies the oracle's logits.

    Raises ValueError for an unknown scale, and what :func:`published_oracle` raises at paper scale.
    """
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
        scale = SCALES[scale]
    generator = new_generator(seed)
    oracle = published_oracle() if scale.published else random_oracle(scale.vocabulary, generator=generator)
    oracle = oracle.sharpen(sharpness).to(resolve_device(device))
    train, held_out = (oracle.sample(n, scale.length, generator=generator) for n in (scale.train, scale.held_out))
    return World(scale, oracle, train, held_out)


class MissingResult(ValueError):
    """A recorded result that is not there; the message names the command that makes it."""


@dataclass(frozen=True)
class Result:
    """One recorded run: its tables by name, and where they come from (command, settings, versions, device, time)."""

    seed: int
    tables: dict[str, History]
    provenance: dict


def load_results(experiment: str, folder: str | Path | None = None) -> list[Result]:
    """All recorded runs of an experiment, by seed, from ``data/results`` or another ``folder``."""
    folder = Path(folder or data_folder() / "results")
    files = sorted((folder / experiment).glob("seed-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    if not files:
        raise MissingResult(f"no recorded {experiment!r} in {folder}; make it: python data/record.py {experiment}")
    results = []
    for file in files:
        provenance = json.loads(file.read_text(encoding="utf-8"))
        tables = {name: History.from_csv(file.parent / f"{file.stem}.{name}.csv") for name in provenance["tables"]}
        results.append(Result(provenance["seed"], tables, provenance))
    return results
