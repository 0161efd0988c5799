"""Experiments as data: three scales and three real tasks, four methods at each, any setting changed by name."""

import difflib
import json
import shlex
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

import numpy as np

from .adversarial import Rules
from .checks import check_at_least, check_positive
from .corpora import CORPORA
from .discriminator import PAPER_WINDOWS


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
    l2: float = 0.2
    d_pretraining: tuple[int, int] = (50, 3)  # rounds of new negatives, epochs on each
    bleu_order: int = 2  # the reward of PG-BLEU; the paper does not name its own
    published: bool = False  # the authors' oracle, or a random one from the seed
    evaluate_every: int = 1  # rounds of the game; imitators are evaluated every fifth epoch, as in the published code

    def __post_init__(self) -> None:
        for name in ("vocabulary", "length", "train", "held_out", "epochs", "rounds", "bleu_order", "evaluate_every"):
            check_at_least(getattr(self, name), 1, name)
        if self.published and self.vocabulary != 5_000:
            raise ValueError(f"the published oracle has a vocabulary of 5000, not {self.vocabulary}")
        for number in self.d_pretraining:
            check_at_least(number, 1, "each number of d_pretraining")
        check_positive(self.l2, "l2", or_zero=True)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, but is {self.dropout!r}")
        for width, kernels in self.windows:
            check_at_least(kernels, 1, "a window's number of kernels")
            if not 1 <= width <= self.length:
                raise ValueError(f"a window of {width} tokens does not fit in sequences of {self.length}")


@dataclass(frozen=True)
class Task(Scale):
    """One size of a real task: ``train`` and ``held_out`` count lines of a corpus, which is one of CORPORA."""

    corpus: str = "poems"

    def __post_init__(self) -> None:
        if self.published:
            raise ValueError("published names an oracle, and a corpus has none")
        super().__post_init__()
        if self.corpus not in CORPORA:
            raise ValueError(f"no corpus {self.corpus!r}; there are {', '.join(CORPORA)}")


# A small judge that reads pairs and triples, and learns fast: few epochs with new negatives each.
_SMALL = {"windows": ((2, 100), (3, 100)), "dropout": 0.5}
_CLASSROOM = Rules(g_steps=2, d_steps=1, k=1, rollouts=8, d_learning_rate=4e-3)
_STUDY = Rules(g_steps=1, d_steps=1, k=1, rollouts=16, d_learning_rate=4e-3)
_REAL = {"rounds": 20, "rules": _STUDY, "d_pretraining": (10, 1), "evaluate_every": 2, **_SMALL}
_REAL_CLASSROOM = {"rounds": 8, "rules": _CLASSROOM, "d_pretraining": (10, 1), **_SMALL}
SCALES: dict[str, Scale] = {
    "classroom": Scale(200, 10, 2_000, 2_000, epochs=60, rules=_CLASSROOM, d_pretraining=(20, 1), **_SMALL),
    "study": Scale(
        1_000, 20, 4_000, 2_000, epochs=40, rounds=24, rules=_STUDY, d_pretraining=(10, 1), evaluate_every=2, **_SMALL
    ),
    "paper": Scale(5_000, 20, 10_000, 10_000, epochs=120, rounds=200, published=True, evaluate_every=5),
    "poems": Task(4_000, 20, 12_000, 1_500, epochs=8, corpus="poems", **_REAL),
    "speeches": Task(4_000, 20, 12_000, 1_500, epochs=10, corpus="speeches", **_REAL),
    "music": Task(88, 32, 4_000, 600, epochs=40, corpus="music", **_REAL),
    "poems-classroom": Task(2_000, 20, 2_000, 500, epochs=8, corpus="poems", **_REAL_CLASSROOM),
    "speeches-classroom": Task(2_000, 20, 1_200, 150, epochs=20, corpus="obama", **_REAL_CLASSROOM),
    "music-classroom": Task(88, 32, 1_000, 300, epochs=24, corpus="music", **_REAL_CLASSROOM),
}

METHODS = ("MLE", "scheduled sampling", "PG-BLEU", "SeqGAN")
#: The methods as they stand in names.
SLUGS = {method: method.lower().replace(" ", "-") for method in METHODS}


# ---------------------------------------------------------------- experiments and their names


class UnknownExperiment(ValueError):
    """A name, an option or a configuration that this version does not know; the message says what there is."""


_VERSION = 1  # of the settings in run.json; raised when an older library would misread them


@dataclass(frozen=True)
class Experiment:
    """What a run does, whole: a method at a scale. A run is (experiment, seed). Made from its name by :func:`named`."""

    name: str
    method: str
    scale: Scale

    def to_dict(self) -> dict[str, Any]:
        """For ``run.json``: numbers, text and lists."""
        return {"version": _VERSION, "method": self.method, **json.loads(json.dumps(asdict(self.scale)))}

    @classmethod
    def from_dict(cls, name: str, settings: dict[str, Any]) -> "Experiment":
        """What :meth:`to_dict` gave. Raises UnknownExperiment for one of a newer version, or with unknown settings."""
        settings = dict(settings)
        version, method = settings.pop("version", 0), settings.pop("method", None)
        kind = Task if "corpus" in settings else Scale
        known, rules = {f.name for f in fields(kind)}, {f.name for f in fields(Rules)}
        strange = [k for k in settings if k not in known] + [k for k in settings.get("rules", ()) if k not in rules]
        if version > _VERSION or strange or method not in METHODS:
            odd = f"version {version} of the settings" if version > _VERSION else f"{strange or method!r}"
            raise UnknownExperiment(
                f"{name} was made by a newer seqgan_lib, or changed by hand: this one does not know {odd}. "
                "Install the newer one (in a clone: git pull), or start the run anew in another folder"
            )
        for key in ("windows", "d_pretraining"):
            settings[key] = tuple(tuple(x) if isinstance(x, list) else x for x in settings[key])
        return cls(name, method, kind(**settings | {"rules": Rules(**settings["rules"])}))


_OF_D = ("windows", "dropout", "l2", "d_pretraining", "d_steps", "k", "d_learning_rate")
_OF_GAMES = ("bleu_order", "evaluate_every", *(f.name for f in fields(Rules)), *_OF_D)
#: The settings that a method does not read: a change of one would change nothing but the name. Imitation has batches of
#: 64 and Adam at 0.01, whatever the game has.
UNREAD = {"MLE": _OF_GAMES, "scheduled sampling": _OF_GAMES, "PG-BLEU": _OF_D, "SeqGAN": ("bleu_order",)}


def named(name: str | Experiment) -> Experiment:
    """The experiment of a name: METHOD-SCALE, then changes, as in ``seqgan-study+rollouts=4+k=10``.

    Any setting of :class:`Scale`, :class:`Task` and :class:`~seqgan_lib.adversarial.Rules` that the method reads may be
    changed; ``windows`` as in ``windows=2x100,3x100``. Raises UnknownExperiment for a name that is none, and ValueError
    for a value that is not allowed.
    """
    if isinstance(name, Experiment):
        return name
    base, *changes = name.split("+")
    known = _known()
    if base not in known:
        close = difflib.get_close_matches(base, names(), 3, 0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names())}"
        raise UnknownExperiment(f"no experiment {base!r}; {hint}")
    (method, scale), changed = known[base], {}
    settings = {f.name: getattr(scale, f.name) for f in fields(scale) if f.name != "rules"}
    rules = {f.name: getattr(scale.rules, f.name) for f in fields(Rules)}
    for change in changes:
        key, _, text = change.partition("=")
        if key not in settings | rules:
            close = difflib.get_close_matches(key, settings | rules, 3, 0.5) or [*settings, *rules]
            raise UnknownExperiment(f"no setting {key!r} to change; did you mean {', '.join(close)}?")
        if key in UNREAD[method]:
            raise UnknownExperiment(f"{base} does not read {key}: {method} would be the same with it; leave it out")
        changed[key] = _value(key, text, (settings | rules)[key])
    in_rules = {k: v for k, v in changed.items() if k in rules}
    in_scale = {k: v for k, v in changed.items() if k in settings} | {"rules": replace(scale.rules, **in_rules)}
    different = [key for key in [*settings, *rules] if key in changed and changed[key] != (settings | rules)[key]]
    ordered = [f"{key}={_text(changed[key])}" for key in different]
    return Experiment("+".join([base, *ordered]), method, replace(scale, **in_scale))


def names() -> list[str]:
    """Every experiment without changes."""
    return [*_known()]


def _known() -> dict[str, tuple[str, Scale]]:
    """Method and scale of each of them."""
    return {f"{slug}-{name}": (method, scale) for name, scale in SCALES.items() for method, slug in SLUGS.items()}


def _value(key: str, text: str, like: Any) -> Any:
    """A setting's value from its text, of the type that it has now."""
    try:
        if key == "windows":
            pairs = [pair.split("x") for pair in text.split(",")]
            return tuple((int(width), int(kernels)) for width, kernels in pairs)
        if key == "d_pretraining":
            rounds, epochs = text.split("x")
            return int(rounds), int(epochs)
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(like)(text)
    except (ValueError, KeyError):
        form = {"windows": "windows=2x100,3x100", "d_pretraining": "d_pretraining=50x3"}.get(key, f"{key}={like}")
        raise UnknownExperiment(f"{key}={text} cannot be read; write it like {form}") from None


def _text(value: Any) -> str:
    """A setting's value as it stands in names, whichever way it was typed; :func:`_value` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_text(pair) for pair in value) if isinstance(value[0], tuple) else "x".join(map(str, value))
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return np.format_float_scientific(value, trim="-", exp_digits=1)  # 4e-4
    return str(value)


# ---------------------------------------------------------------- the study of chapter 8

#: What the study changes in ``seqgan-study``, one setting at a time, and to which values.
KNOBS = {
    "epochs": ("2", "5", "20"),
    "rollouts": ("0", "1", "4", "64"),
    "baseline": ("batch", "prefix"),
    "learning_rate": ("0.001", "0.03"),
    "g_steps": ("4",),
    "d_steps": ("0",),
    "k": ("10",),
    "train": ("1000", "8000"),
    "d_learning_rate": ("4e-4",),
    "windows": ("2x25,3x25", ",".join(f"{width}x{kernels // 3}" for width, kernels in PAPER_WINDOWS[20])),
    "dropout": ("0.0",),
    "l2": ("2.0",),
    "update_rate": ("0.0",),
}
_SLOW = "+d_learning_rate=4e-4"
#: The four settings of the paper's Figure 3, with a judge that learns as slowly as they need, at about equal cost.
FIGURE_3 = {
    "a": f"seqgan-study+rounds=3+evaluate_every=1+g_steps=100+k=10{_SLOW}",
    "b": f"seqgan-study+rounds=5+evaluate_every=1+g_steps=30+k=30{_SLOW}",
    "c": f"seqgan-study+rounds=20+k=10{_SLOW}",
    "d": f"seqgan-study+rounds=14+d_steps=5+k=3{_SLOW}",
}


def study() -> list[tuple[str, int]]:
    """Every run of the study, what matters most first: five seeds of the paper's own settings, three of the rest."""
    ours = ["seqgan-study", "mle-study", "pg-bleu-study", "scheduled-sampling-study"]
    papers = [named(name).name for name in [*ours, *FIGURE_3.values(), *_changed("epochs")]]
    others = [name for knob in KNOBS for name in _changed(knob) if name not in papers]
    return [*product(papers, range(5)), *product(others, range(3))]


def _changed(knob: str) -> list[str]:
    return [named(f"seqgan-study+{knob}={value}").name for value in KNOBS[knob]]


def command_for(experiment: str) -> str:
    """The command that makes a result."""
    try:
        return shlex.join(["python", "-m", "seqgan_lib", "run", named(experiment).name])
    except ValueError:
        return f"python data/record.py {experiment}"  # a measurement that belongs to one chapter
