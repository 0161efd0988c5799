"""Worlds, the four methods trained in them, and runs that can be killed and resumed."""

import contextlib
import copy
import importlib.util
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from .adversarial import Game
from .bleu import Bleu
from .checkpoint import Checkpoints, TimeIsUp, save_state
from .checks import check_at_least, check_positive
from .configs import METHODS, SCALES, Experiment, Scale, Task, named
from .corpora import CORPORA, Corpus, own_corpus
from .datasets import DataUnavailable, published_oracle
from .discriminator import Discriminator
from .history import History
from .language_model import LanguageModel, random_oracle
from .metrics import LineGrader, grade
from .mle import train_mle
from .results import Result, describe_machine, load_result, read_provenance, run_folder, write_result
from .sampling import new_generator, resolve_device
from .training import TrainingDiverged

# ---------------------------------------------------------------- worlds, and training in them


@dataclass(frozen=True)
class World:
    """An oracle and two sets of its sequences, (sequences, T) int64: one to train on, one never to train on."""

    scale: Scale
    oracle: LanguageModel
    train: Tensor
    held_out: Tensor

    @property
    def device(self) -> torch.device:
        """Where it is, and where generators for it are trained."""
        return self.oracle.device

    def grade(self, model: LanguageModel, *, generator: Generator, final: bool = False) -> dict[str, float]:
        """What :func:`~seqgan_lib.metrics.grade` says of a model. The same if it is ``final``: the oracle is exact."""
        return grade(model, self.oracle, self.held_out, generator=generator)


@dataclass(frozen=True)
class CorpusWorld:
    """Real lines for a world: no oracle to ask, but held-out lines to choose a model by and others to report it on."""

    scale: Scale
    corpus: Corpus
    device: torch.device

    @cached_property
    def train(self) -> Tensor:
        """The lines to train on, (lines, T) int64."""
        return self.corpus.train.to(self.device)

    @cached_property
    def held_out(self) -> Tensor:
        """The validation's lines, never trained on."""
        return self.corpus.validation.to(self.device)

    @cached_property
    def graders(self) -> tuple[LineGrader, LineGrader]:
        """By the validation's lines, and by the test's."""
        splits = self.held_out, self.corpus.test.to(self.device)
        return tuple(LineGrader(self.train, split, self.corpus.pitches) for split in splits)

    def grade(self, model: LanguageModel, *, generator: Generator, final: bool = False) -> dict[str, float]:
        """What a :class:`~seqgan_lib.metrics.LineGrader` says of a model; if it is ``final``, by the test's lines."""
        return self.graders[final](model, generator=generator)


def make_world(
    scale: str | Scale, seed: int, device: str | torch.device = "auto", sharpness: float = 1.0
) -> World | CorpusWorld:
    """The world of ``seed`` at a scale, by name or your own; ``sharpness`` multiplies the oracle's logits.

    The world of a :class:`~seqgan_lib.configs.Task` is its corpus, the same for every seed. Raises ValueError for an
    unknown scale, and what :func:`published_oracle` raises at paper scale, or what loads the corpus.
    """
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
        scale = SCALES[scale]
    if isinstance(scale, Task):
        sizes = {"vocabulary": scale.vocabulary, "length": scale.length}
        corpus = CORPORA[scale.corpus](train=scale.train, held_out=scale.held_out, **sizes)
        if (size := len(corpus.vocabulary)) < scale.vocabulary:
            raise ValueError(f"the vocabulary of so many lines of {corpus.name} is {size}, not {scale.vocabulary}")
        return CorpusWorld(scale, corpus, resolve_device(device))
    generator = new_generator(seed)
    oracle = published_oracle() if scale.published else random_oracle(scale.vocabulary, generator=generator)
    oracle = oracle.sharpen(sharpness).to(resolve_device(device))
    train, held_out = (oracle.sample(n, scale.length, generator=generator) for n in (scale.train, scale.held_out))
    return World(scale, oracle, train, held_out)


def train(
    method: str,
    world: World | CorpusWorld,
    seed: int,
    start: LanguageModel | None = None,
    also: Callable[[LanguageModel], dict[str, float]] | None = None,
    keeper: Checkpoints | None = None,
    progress: bool = True,
) -> tuple[LanguageModel, History]:
    """Train a generator in ``world`` by one of :data:`METHODS`, with the settings of its scale.

    MLE and scheduled sampling take ``epochs`` + ``rounds`` epochs. PG-BLEU and SeqGAN play ``rounds`` rounds, from a
    copy of ``start`` or, by default, from what MLE makes of ``epochs`` epochs. Returns the model at the end, and the
    history: every fifth epoch of MLE and every ``evaluate_every`` rounds, what the world's ``grade`` and
    ``also`` say of the model, and what :meth:`~seqgan_lib.adversarial.Game.play` notes; a round counts as an epoch.
    With a ``keeper`` all of it can be resumed. ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    scale, device = world.scale, world.device
    grader = new_generator(2_000 + seed, device)
    if keeper:
        keeper.also.append(grader)

    def evaluate(model: LanguageModel) -> dict[str, float]:
        return world.grade(model, generator=grader) | (also(model) if also else {})

    how = {"evaluate": evaluate, "keeper": keeper, "progress": progress}
    imitation = {"evaluate_every": 5, **how}
    if method in ("MLE", "scheduled sampling"):
        imitation["omega_decay"] = 0.0 if method == "MLE" else 0.002  # both as in the paper
        return imitate(world, seed, scale.epochs + scale.rounds, **imitation)
    if start:
        model, imitated = copy.deepcopy(start), History()
    else:
        model, imitated = imitate(world, seed, scale.epochs, **imitation)
    generator = new_generator(3_000 + seed, device)
    judge = new_discriminator(world, generator) if method == "SeqGAN" else Bleu(world.train, scale.bleu_order)
    game = Game(model, judge, world.train, held_out=world.held_out, rules=scale.rules, generator=generator)
    if method == "SeqGAN":
        game.train_discriminator(*scale.d_pretraining, progress=progress, keeper=keeper)
    played = game.play(scale.rounds, evaluate_every=scale.evaluate_every, **how)
    return model, joined(scale, imitated, played)


def tested(world: World | CorpusWorld, generator: Generator) -> Callable[[LanguageModel], dict[str, float]]:
    """A second grade, for ``also`` of :func:`train`: the best row is chosen by the first, and reported by this one.

    Its numbers are named ``test_…``. It draws from ``generator``, and where there is no oracle it asks other lines.
    """
    return lambda model: {f"test_{k}": v for k, v in world.grade(model, generator=generator, final=True).items()}


def joined(scale: Scale, imitated: History, played: History) -> History:
    """One curve of pre-training and game: rounds counted on from the last epoch, whose row is the game's round 0."""
    game = [{"epoch": scale.epochs + row["round"], **row} for row in played.rows]
    return History([row for row in imitated.rows if not game or row["epoch"] < scale.epochs] + game)


def imitate(world: World | CorpusWorld, seed: int, epochs: int, **training: object) -> tuple[LanguageModel, History]:
    """A new generator for ``world``, trained by :func:`~seqgan_lib.mle.train_mle`, and the history."""
    generator = new_generator(1_000 + seed, world.device)
    model = LanguageModel(world.scale.vocabulary, generator=generator).to(world.device)
    return model, train_mle(model, world.train, epochs=epochs, generator=generator, **training)


def new_discriminator(world: World | CorpusWorld, generator: Generator) -> Discriminator:
    """An untrained judge for ``world``, with the windows, the dropout and the L2 penalty of its scale."""
    scale = world.scale
    how = {"windows": scale.windows, "dropout": scale.dropout, "l2": scale.l2, "generator": generator}
    return Discriminator(scale.vocabulary, scale.length, **how).to(world.device)


def train_on(
    source: str | Path | Sequence[Sequence[str]],
    method: str = "SeqGAN",
    *,
    seed: int = 0,
    length: int = 20,
    vocabulary: int = 2_000,
    characters: bool = False,
    device: str | torch.device = "auto",
    progress: bool = True,
    **changes: Any,
) -> tuple[LanguageModel, History, Corpus]:
    """Train a generator on your own lines: a text file, a text a line, or a list of lists of tokens.

    How they are read: :func:`~seqgan_lib.corpora.own_corpus`, which also says what it refuses. The settings are those
    of the scale "speeches-classroom", but for ``changes``, such as ``epochs=40, rounds=20``. Returns the model, the
    history and the corpus; ``corpus.decode(model.sample(5, length, generator=…))`` reads.
    """
    corpus = own_corpus(source, length=length, vocabulary=vocabulary, characters=characters)
    settings = {f.name: getattr(SCALES["speeches-classroom"], f.name) for f in fields(Scale)}
    settings |= {"vocabulary": len(corpus.vocabulary), "length": length, **changes}
    settings |= {"train": len(corpus.train), "held_out": len(corpus.validation)}
    if "windows" not in changes:
        settings["windows"] = tuple((min(width, length), kernels) for width, kernels in settings["windows"])
    world = CorpusWorld(Scale(**settings), corpus, resolve_device(device))
    return *train(method, world, seed, progress=progress), corpus


# ---------------------------------------------------------------- runs


class RunStopped(RuntimeError):
    """A run that ended before its end, or that cannot begin; the message says why, and how it goes on."""


class RunPaused(RunStopped):
    """A run that was given so much time, and is saved."""


def run(
    experiment: str | Experiment,
    seed: int,
    folder: str | Path = "runs",
    *,
    device: str | torch.device = "auto",
    minutes: float = float("inf"),
    save_every: float = 60.0,
    tensorboard: bool = False,
    progress: bool = True,
) -> Result:
    """Do a run, or go on with it where it stopped: ``folder/NAME/seed-N`` holds all there is of it.

    In there: ``run.json`` (settings, machine, progress), ``curve.csv`` and, for SeqGAN, ``discriminator.csv``, written
    anew at every evaluation; while it runs, its checkpoints, one every ``save_every`` seconds; in the end ``model.pt``,
    the generator's weights, for :func:`~seqgan_lib.checkpoint.load_state`. A run that is complete is only read.
    Every evaluation grades the model twice on independent samples: ``nll_oracle`` … to choose the best row by, and
    ``test_nll_oracle`` … to report; where there is no oracle, also by other lines. After ``minutes`` the run is saved
    and stops.

    Raises UnknownExperiment, RunPaused when the time is up, and RunStopped for Ctrl-C, a number that is not finite, a
    folder that cannot be written, a full disk, a folder in use by another process, with a run of other settings in it
    or with one that was begun on another kind of device.
    """
    experiment, device = named(experiment), resolve_device(device)
    check_at_least(seed, 0, "seed")
    check_positive(save_every, "save_every", or_zero=True)
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("there is no tensorboard to log for: pip install tensorboard, or leave it out")
    folder = run_folder(folder, experiment.name, seed)
    again = f"python -m seqgan_lib resume {shlex.quote(str(folder))}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunStopped(f"{folder} cannot be made: {error.strerror}; name another folder for runs") from error
    with _alone(folder):
        if (folder / "run.json").exists():
            known = read_provenance(folder)
            if known["settings"] != experiment.to_dict():
                raise RunStopped(f"{folder} holds a run with other settings; move it away, or use another folder")
            if known["status"] == "complete":
                Checkpoints(folder).remove()  # there are some if it was killed as its last act
                return load_result(folder)
            if known["device"].startswith("CPU") != (device.type == "cpu") and any(folder.glob("checkpoint-*.pt")):
                raise RunStopped(
                    f"{folder} was begun on another kind of device, {known['device']}; its random numbers go on only "
                    f"on such a one (--device cpu or cuda). Or begin it anew in another folder"
                )
        record = _Record(folder, experiment, seed, device, tensorboard)
        keeper = Checkpoints(folder, seconds=save_every, limit=60 * minutes, look=record.look)
        record.seconds = keeper.seconds_so_far
        try:
            record.write("running")
            world, fresh = make_world(experiment.scale, seed, device), new_generator(4_000 + seed, device)
            keeper.also.append(fresh)

            how = {"also": tested(world, fresh), "keeper": keeper, "progress": progress}
            model, _ = train(experiment.method, world, seed, **how)
            record.look(keeper.histories)  # nothing new, unless it was killed just before the end
            save_state(folder / "model.pt", model.state_dict())
            record.write("complete")
            keeper.remove()
            return load_result(folder)
        except (KeyboardInterrupt, TimeIsUp, TrainingDiverged, OSError) as error:
            why = "stopped by hand" if isinstance(error, KeyboardInterrupt) else str(error)
            with contextlib.suppress(OSError):  # a full disk takes not even this; the last checkpoint is whole
                record.write(why)
            kind = RunPaused if isinstance(error, TimeIsUp) else RunStopped
            raise kind(f"{experiment.name}, seed {seed}: {why}. To go on: {again}") from error


def resume(folder: str | Path, **how: Any) -> Result:
    """Go on with the run whose folder this is, wherever it was moved to, by the settings it was begun with."""
    folder = Path(folder).resolve()
    known = read_provenance(folder)
    experiment = Experiment.from_dict(known["experiment"], known["settings"])
    if folder != run_folder(folder.parent.parent, experiment.name, known["seed"]):
        name = run_folder("", experiment.name, known["seed"])
        raise RunStopped(f"{folder} must be named {name}, as its run.json has it; rename it, then resume")
    return run(experiment, known["seed"], folder.parent.parent, **how)


def run_all(
    runs: Iterable[tuple[str | Experiment, int]], folder: str | Path = "runs", *, jobs: int | None = None, **how: Any
) -> list[Result | RunStopped]:
    """Do many runs, ``jobs`` at a time in processes of their own, through joblib; one that stops, or cannot begin for
    want of its data, does not stop others.

    Inside ``with joblib.parallel_config(backend="dask")`` (or Ray's) they go to a cluster instead, whose machines
    must see ``folder``. ``minutes`` are for all of them together, the rest of ``how`` is what :func:`run` takes. Each
    result comes in the order of ``runs``, or the RunStopped in its place.
    """
    from joblib import Parallel, delayed

    deadline = time.time() + 60 * how.pop("minutes", float("inf"))
    work = delayed(_run_quietly)
    return Parallel(n_jobs=jobs)(work(named(name), seed, folder, deadline, how) for name, seed in runs)


def _run_quietly(
    experiment: Experiment, seed: int, folder: str | Path, deadline: float, how: dict
) -> Result | RunStopped:
    """One of many runs. Only a stop by hand is meant for all of them."""
    if deadline < time.time():
        return RunPaused(f"{experiment.name}, seed {seed}: the time was up before it began")
    try:
        return run(experiment, seed, folder, minutes=(deadline - time.time()) / 60, **how)
    except RunStopped as stopped:
        if isinstance(stopped.__cause__, KeyboardInterrupt):
            raise
        return stopped
    except DataUnavailable as error:
        return RunStopped(f"{experiment.name}, seed {seed}: {error}")


class _Record:
    """What a run leaves in its folder while it goes on."""

    def __init__(self, folder: Path, experiment: Experiment, seed: int, device: torch.device, tensorboard: bool):
        self.folder, self.experiment, self.device = folder, experiment, device
        command = shlex.join(["python", "-m", "seqgan_lib", "run", experiment.name, "--seeds", str(seed)])
        self.facts = {"experiment": experiment.name, "seed": seed, "command": command}
        self.facts |= {"settings": experiment.to_dict(), **describe_machine(device)}
        self.tables = load_result(folder).tables if (folder / "run.json").exists() else {}
        self.seconds: Callable[[], float] = lambda: 0.0
        self._rows, self._wants_board, self._boards = 0, tensorboard, {}

    def look(self, histories: dict[str, History]) -> None:
        """Write what is new since the last look."""
        imitated, played = (histories.get(name, History()) for name in ("MLE", "game"))
        self.tables = {"curve": joined(self.experiment.scale, imitated, played)}
        if "discriminator" in histories:
            self.tables["discriminator"] = histories["discriminator"]
        if (rows := sum(len(history.rows) for history in histories.values())) != self._rows:
            self.write("running")
            self._rows = rows
            if self._wants_board:
                self._show(histories)

    def write(self, status: str) -> None:
        """Tables and ``run.json``."""
        facts = self.facts | {"status": status, "seconds": round(self.seconds(), 1)}
        if self.device.type == "cuda":
            facts["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        write_result(self.folder, self.tables, facts)

    def _show(self, histories: dict[str, History]) -> None:
        """New rows for TensorBoard, where each phase is a run of its own. A new process writes all of them again."""
        from torch.utils.tensorboard import SummaryWriter

        for phase, history in histories.items():
            if phase not in self._boards:
                self._boards[phase] = SummaryWriter(str(self.folder / "tensorboard" / phase), purge_step=0), []
            board, shown = self._boards[phase]
            for row in history.rows[len(shown) :]:
                for name, value in row.items():
                    board.add_scalar(name, value, next(iter(row.values())))
                shown.append(row)
            board.flush()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time works in a run's folder. The lock dies with its process, however that ends."""
    import fcntl

    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStopped(f"another process is working in {folder}; wait for it, or use another folder") from None
        yield
    finally:
        os.close(lock)
