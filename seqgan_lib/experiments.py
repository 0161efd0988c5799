"""The book's three scales, the four methods at each of them, and the results recorded under ``data/results``."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from .adversarial import Game, Rules
from .bleu import Bleu
from .datasets import data_folder, published_oracle
from .discriminator import PAPER_WINDOWS, Discriminator
from .history import History
from .language_model import LanguageModel, random_oracle
from .metrics import grade
from .mle import train_mle
from .sampling import new_generator, resolve_device


@dataclass(frozen=True)
class Scale:
    """One size of the synthetic task: V, T, sequences to train on and to hold out, epochs of MLE, and the game."""

    vocabulary: int
    length: int
    train: int
    held_out: int
    epochs: int
    rounds: int = 20  # of the game, after the epochs
    rules: Rules = Rules()
    windows: tuple[tuple[int, int], ...] = PAPER_WINDOWS[20]  # of the discriminator
    dropout: float = 0.25
    d_pretraining: tuple[int, int] = (50, 3)  # rounds of new negatives, epochs on each
    bleu_order: int = 2  # the reward of PG-BLEU; the paper does not name its own
    published: bool = False  # the authors' oracle, or a random one from the seed


_SMALL = {"rules": Rules(g_steps=2, d_steps=1, k=1, rollouts=8, d_learning_rate=4e-3), "d_pretraining": (20, 1)}
_THIRD = tuple((width, kernels // 3) for width, kernels in PAPER_WINDOWS[20])
SCALES = {
    "classroom": Scale(200, 10, 2_000, 2_000, epochs=60, windows=((2, 100), (3, 100)), dropout=0.5, **_SMALL),
    "study": Scale(1_000, 20, 5_000, 5_000, epochs=120, rounds=100, windows=_THIRD),
    "paper": Scale(5_000, 20, 10_000, 10_000, epochs=120, rounds=200, published=True),
}

METHODS = ("MLE", "scheduled sampling", "PG-BLEU", "SeqGAN")


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


def train(
    method: str, world: World, seed: int, start: LanguageModel | None = None, also: Callable | None = None
) -> tuple[LanguageModel, History]:
    """Train a generator in ``world`` by one of :data:`METHODS`, with the settings of its scale.

    MLE and scheduled sampling take ``epochs`` + ``rounds`` epochs. PG-BLEU and SeqGAN play ``rounds`` rounds from a
    copy of ``start``, by default what MLE makes of ``epochs`` epochs. Returns the model at the end, and the history:
    after every round, or every fifth epoch, what :func:`~seqgan_lib.metrics.grade` and ``also`` say of the model, and
    what :meth:`~seqgan_lib.adversarial.Game.play` notes; a round counts as an epoch. ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    scale, grader = world.scale, new_generator(2_000 + seed)

    def evaluate(model: LanguageModel) -> dict[str, float]:
        return grade(model, world.oracle, world.held_out, generator=grader) | (also(model) if also else {})

    if method in ("MLE", "scheduled sampling"):
        how = {"omega_decay": 0.0 if method == "MLE" else 0.002, "evaluate_every": 5}  # both as in the paper
        return imitate(world, seed, scale.epochs + scale.rounds, evaluate=evaluate, **how)
    model = copy.deepcopy(start) if start else imitate(world, seed, scale.epochs)[0]
    generator = new_generator(3_000 + seed)
    judge = new_discriminator(world, generator) if method == "SeqGAN" else Bleu(world.train, scale.bleu_order)
    game = Game(model, judge, world.train, held_out=world.held_out, rules=scale.rules, generator=generator)
    if method == "SeqGAN":
        game.train_discriminator(*scale.d_pretraining)
    history = game.play(scale.rounds, evaluate=evaluate)
    history.rows = [{"epoch": scale.epochs + row["round"], **row} for row in history.rows]
    return model, history


def imitate(world: World, seed: int, epochs: int, **training: object) -> tuple[LanguageModel, History]:
    """A new generator for ``world``, trained by :func:`~seqgan_lib.mle.train_mle`, and the history."""
    generator = new_generator(1_000 + seed)
    model = LanguageModel(world.scale.vocabulary, generator=generator).to(world.oracle.device)
    return model, train_mle(model, world.train, epochs=epochs, generator=generator, **training)


def new_discriminator(world: World, generator: Generator) -> Discriminator:
    """An untrained judge for ``world``, with the windows and the dropout of its scale."""
    how = {"windows": world.scale.windows, "dropout": world.scale.dropout, "generator": generator}
    return Discriminator(world.scale.vocabulary, world.scale.length, **how).to(world.oracle.device)


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
