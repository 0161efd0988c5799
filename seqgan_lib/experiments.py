"""Worlds, the four methods trained in them, and runs that can be killed and resumed."""

import contextlib
import copy
import gc
import importlib.util
import os
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from .adversarial import Game, Rules
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
from .mle import scheduled_inputs, train_mle
from .results import Result, describe_machine, load_result, read_provenance, run_folder, write_result
from .sampling import new_generator, resolve_device
from .training import TrainingDiverged, graphed_step

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
    scale: str | Scale, seed: int, device: str | torch.device = "auto", sharpness: float = 1.0, tell: bool = True
) -> World | CorpusWorld:
    """The world of ``seed`` at a scale, by name or your own; ``sharpness`` multiplies the oracle's logits.

    The world of a :class:`~seqgan_lib.configs.Task` is its corpus, the same for every seed. Where training takes hours,
    :func:`announce` says so first, unless not to ``tell``. Raises ValueError for an unknown scale, and what
    :func:`published_oracle` raises at paper scale, or what loads the corpus.
    """
    scale, device = scale_named(scale), resolve_device(device)
    if isinstance(scale, Task):
        sizes = {"vocabulary": scale.vocabulary, "length": scale.length}
        corpus = CORPORA[scale.corpus](train=scale.train, held_out=scale.held_out, **sizes)
        if (size := len(corpus.vocabulary)) < scale.vocabulary:
            raise ValueError(f"the vocabulary of so many lines of {corpus.name} is {size}, not {scale.vocabulary}")
        if tell:
            announce(scale, device)
        return CorpusWorld(scale, corpus, device)
    generator = new_generator(seed)
    oracle = published_oracle() if scale.published else random_oracle(scale.vocabulary, generator=generator)
    if tell:  # not before it is clear that there will be a world
        announce(scale, device)
    oracle = oracle.sharpen(sharpness).to(device)
    train, held_out = (oracle.sample(n, scale.length, generator=generator) for n in (scale.train, scale.held_out))
    return World(scale, oracle, train, held_out)


def scale_named(scale: str | Scale) -> Scale:
    """The scale of a name, or the one that is given. ValueError for a name that is none."""
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"no scale {scale!r}; there are {', '.join(SCALES)}")
        return SCALES[scale]
    return scale


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
    of the scale "speeches-classroom", but for ``changes``, such as ``epochs=40, rollouts=4``. Returns the model, the
    history and the corpus; ``corpus.decode(model.sample(5, length, generator=…))`` reads.
    """
    corpus = own_corpus(source, length=length, vocabulary=vocabulary, characters=characters)
    if given := {"train", "held_out", "published"} & {*changes}:
        raise ValueError(f"{', '.join(sorted(given))} cannot be set here: your lines say how many they are")
    settings = {f.name: getattr(SCALES["speeches-classroom"], f.name) for f in fields(Scale)}
    rules = {f.name: changes.pop(f.name) for f in fields(Rules) if f.name in changes}
    changes["rules"] = replace(changes.get("rules", settings["rules"]), **rules)
    settings |= {"vocabulary": len(corpus.vocabulary), "length": length, **changes}
    settings |= {"train": len(corpus.train), "held_out": len(corpus.validation)}
    if "windows" not in changes:
        settings["windows"] = tuple((min(width, length), kernels) for width, kernels in settings["windows"])
    world = CorpusWorld(Scale(**settings), corpus, resolve_device(device))
    return *train(method, world, seed, progress=progress), corpus


# ---------------------------------------------------------------- how long it will take

#: Vocabulary · length · sequences · (epochs + rounds) from which on a reader is told. Of the book's scales only "paper"
#: has it, with 3.2e11: an hour of MLE on a CPU core, a day or more of SeqGAN. Next is "speeches" with 2.9e10.
_HOURS = 1e11


@cache
def announce(scale: Scale, device: torch.device) -> None:
    """Print, once in a process, how long a run takes here and how much memory; nothing at a scale without hours."""
    if scale.vocabulary * scale.length * scale.train * (scale.epochs + scale.rounds) < _HOURS:
        return
    name = next((f"The scale {name!r}" for name, known in SCALES.items() if known == scale), "This scale")
    cpu = f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    times = [f"{method} {duration(seconds)}" for method, seconds in forecast(scale, device).items()]
    print(f"{name} takes long. To judge by a few steps, one run alone on this machine ({here}) takes about:")
    print(f"{', '.join(times)}; {_memory(device)}")
    print("A chapter may do several runs. The time left is shown while each trains.", flush=True)


def forecast(scale: str | Scale, device: str | torch.device = "auto") -> dict[str, float]:
    """About how many seconds a whole run at a scale will take on this machine, by method.

    A few steps of every kind are timed, on random tokens and with models of its sizes, and multiplied by how often
    :func:`run` does them. At paper scale that takes some ten seconds on one CPU core. Draws from streams of its own.
    """
    scale, device = scale_named(scale), resolve_device(device)
    costs = _costs(scale, device)
    return {method: sum(costs[what] * n for what, n in _counts(method, scale).items()) for method in METHODS}


def duration(seconds: float) -> str:
    """In seconds, minutes or hours, as one would say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _counts(method: str, scale: Scale) -> dict[str, int]:
    """How many steps of the generator and of the discriminator, and sequences of every other kind, a run takes."""
    rules, epoch = scale.rules, ceil(scale.train / 64)

    def graded(steps: int, every: int) -> int:  # twice at the start, every so many steps and at the end
        return 2 * scale.held_out * (1 + ceil(steps / every))

    if method in ("MLE", "scheduled sampling"):
        epochs = scale.epochs + scale.rounds
        return {method: epochs * epoch, "grade": graded(epochs, 5)}
    counts = {"MLE": scale.epochs * epoch, method: scale.rounds * rules.g_steps}
    counts["grade"] = graded(scale.epochs, 5) + graded(scale.rounds, scale.evaluate_every)
    if method == "SeqGAN":
        (rounds, epochs), d_steps = scale.d_pretraining, scale.rounds * rules.d_steps
        counts["D step"] = (rounds * epochs + d_steps * rules.k) * ceil(2 * scale.train / rules.batch_size)
        counts["draw"] = (rounds + d_steps) * scale.train
        counts["verdict"] = (2 + rounds + ceil(scale.rounds / scale.evaluate_every)) * min(scale.train, 2_000)
    return counts


def _costs(scale: Scale, device: torch.device) -> dict[str, float]:
    """The seconds of what :func:`_counts` counts."""
    generator = new_generator(0, device)
    data = torch.randint(scale.vocabulary, (scale.train, scale.length), generator=generator, device=device)
    few = data if device.type == "cuda" else data[:500]  # a GPU takes the same time for few as for many
    model = LanguageModel(scale.vocabulary, generator=generator).to(device)
    world = World(scale, model, few, few)
    judge, bleu = new_discriminator(world, generator), Bleu(data, scale.bleu_order)
    how = {"held_out": few, "rules": scale.rules, "generator": generator}
    seqgan, pg_bleu = Game(model, judge, few, **how), Game(model, bleu, few, **how)
    grader = LineGrader(few, few, scale.corpus == "music") if isinstance(scale, Task) else world.grade
    half = torch.full((), 0.5, device=device)

    def mixed(batch: Tensor) -> Tensor:
        return model.nll(batch, scheduled_inputs(model, batch, half, generator=generator))

    imitates = graphed_step(model.nll, seqgan._adam, 5.0, [])
    mixes = graphed_step(mixed, pg_bleu._adam, 5.0, [generator])
    judges = graphed_step(judge.loss, seqgan._d_adam, float("inf"), [judge.stream])
    both = torch.cat([few, few])[: scale.rules.batch_size]
    work = {
        "MLE": (lambda: imitates(few[:64]), 1),
        "scheduled sampling": (lambda: mixes(few[:64]), 1),
        "PG-BLEU": (pg_bleu._g_step, 1),
        "SeqGAN": (seqgan._g_step, 1),
        "D step": (lambda: judges(both, torch.ones_like(both[:, 0])), 1),
        "draw": (lambda: model.sample(*few.shape, generator=generator), len(few)),
        "verdict": (seqgan._verdicts, min(len(few), 2_000)),
        "grade": (lambda: grader(model, generator=generator), len(few)),
    }
    return {what: _seconds(call, device) / number for what, (call, number) in work.items()}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """What a call takes: the median, after those that warm up. On a CPU, what takes long is called only once."""
    gpu, times = device.type == "cuda", []
    for _ in range(10 if gpu else 4):  # on a GPU, a graph is recorded at the fourth
        begun = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
        if not gpu and sum(times) > 0.5:
            break
    return statistics.median(times[5 if gpu else 1 :] or times)


def _memory(device: torch.device) -> str:
    """The most that this process ever held, now that a step of every kind is done, and what there is for it."""
    if device.type == "cuda":
        most, there = torch.cuda.max_memory_reserved(device), torch.cuda.memory_reserved(device)
        there += torch.cuda.mem_get_info(device)[0]
        gc.collect()  # what was timed is in cycles
        torch.cuda.empty_cache()  # for the processes of --jobs
        torch.cuda.reset_peak_memory_stats(device)  # a run reports its own
    elif importlib.util.find_spec("resource") is None:  # Windows does not say
        return "it fits into memory."
    else:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"it needs about {most / 2**30:.1f} GiB of memory, and there are {there / 2**30:.1f}."


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
        elif progress:
            announce(experiment.scale, device)  # here, where it counts neither as time of the run nor as its memory
        record = _Record(folder, experiment, seed, device, tensorboard)
        keeper = Checkpoints(folder, seconds=save_every, limit=60 * minutes, look=record.look)
        record.seconds = keeper.seconds_so_far
        try:
            record.write("running")
            world = make_world(experiment.scale, seed, device, tell=False)
            fresh = new_generator(4_000 + seed, device)
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
        except Exception as error:  # settings that do not fit the data, for one: it cannot go on, and is not running
            record.write(str(error))
            raise


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
    """Do many runs, ``jobs`` at a time in processes of their own, through joblib; one that stops, or cannot begin, for
    want of its data or for settings that do not fit them, does not stop others.

    Inside ``with joblib.parallel_config(backend="dask")`` (or Ray's) they go to a cluster instead, whose machines
    must see ``folder``. ``minutes`` are for all of them together, the rest of ``how`` is what :func:`run` takes. Each
    result comes in the order of ``runs``, or the RunStopped in its place. Raises RunStopped if one of the processes was
    killed.
    """
    from joblib import Parallel, delayed

    deadline = time.time() + 60 * how.pop("minutes", float("inf"))
    work = delayed(_run_quietly)
    try:
        return Parallel(n_jobs=jobs)(work(named(name), seed, folder, deadline, os.getpid(), how) for name, seed in runs)
    except BrokenProcessPool as error:
        raise RunStopped(
            "a process of --jobs was killed, perhaps for want of memory, and with it all; the same command goes on"
        ) from error


def _run_quietly(
    experiment: Experiment, seed: int, folder: str | Path, deadline: float, caller: int, how: dict
) -> Result | RunStopped:
    """One of many runs. Only a stop by hand is meant for all of them."""
    _end_with(caller)
    if deadline < time.time():
        return RunPaused(f"{experiment.name}, seed {seed}: the time was up before it began")
    try:
        return run(experiment, seed, folder, minutes=(deadline - time.time()) / 60, **how)
    except RunStopped as stopped:
        if isinstance(stopped.__cause__, KeyboardInterrupt):
            raise
        return stopped
    except (DataUnavailable, ValueError) as error:
        stopped = RunStopped(f"{experiment.name}, seed {seed}: {error}")
        stopped.__cause__ = error  # so that whoever looks finds where
        return stopped


@cache  # one watch for all the runs of a process
def _end_with(caller: int) -> None:
    """End this process, if it is a child of the caller's, with the caller: ``kill -9`` tells nobody. No run is lost."""

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() == caller:  # and not the caller itself, or on another machine
        threading.Thread(target=watch, daemon=True).start()


class _Record:
    """What a run leaves in its folder while it goes on."""

    def __init__(self, folder: Path, experiment: Experiment, seed: int, device: torch.device, tensorboard: bool):
        self.folder, self.experiment, self.device = folder, experiment, device
        command = shlex.join(["python", "-m", "seqgan_lib", "run", experiment.name, "--seeds", str(seed)])
        self.facts = {"experiment": experiment.name, "seed": seed, "command": command}
        self.facts |= {"settings": experiment.to_dict(), **describe_machine(device)}
        self.tables: dict[str, History] = {}
        if (folder / "run.json").exists():
            known = load_result(folder)
            self.tables = known.tables
            self._remember(known.provenance)
        self.seconds: Callable[[], float] = lambda: 0.0
        self._rows, self._wants_board, self._boards = 0, tensorboard, {}

    def _remember(self, known: dict) -> None:
        """A run that goes on elsewhere, or with other code, says where and with which code it began."""
        before = {key: known.get(key) for key in ("versions", "device", "commit")}
        earlier = known.get("earlier", [])
        if any(self.facts[key] != value for key, value in before.items()) and any(self.folder.glob("checkpoint-*.pt")):
            earlier = [*earlier, before]
        if earlier:
            self.facts["earlier"] = earlier

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
