"""Make the measurements that belong to one chapter: `python data/record.py EXPERIMENT [--seeds 0 1 2]`.

Whole trainings of one method are `python -m seqgan_lib run`. Either leaves data/results/EXPERIMENT/seed-N/run.json,
which says where the numbers come from, and a CSV file for each of its tables. A seed that is recorded already is left
alone, so an interrupted recording is continued by the same command. Seeds are 0, 1, 2, …: counted, not chosen.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import jupytext
import torch

from seqgan_lib import LanguageModel, adversarial, new_generator, rollout
from seqgan_lib.adversarial import Game, Rules, train_discriminator
from seqgan_lib.bleu import Bleu, self_bleu_scores
from seqgan_lib.checkpoint import load_state
from seqgan_lib.configs import SCALES, SLUGS, named
from seqgan_lib.corpora import Corpus, poems
from seqgan_lib.datasets import published_oracle
from seqgan_lib.experiments import (
    METHODS,
    CorpusWorld,
    World,
    imitate,
    joined,
    make_world,
    new_discriminator,
    run,
    tested,
    train,
)
from seqgan_lib.history import History
from seqgan_lib.metrics import LineGrader, divergence_by_position, mean_nll
from seqgan_lib.mle import train_mle
from seqgan_lib.policy_gradient import policy_gradient_loss
from seqgan_lib.results import describe_machine, recorded_folder, run_folder, write_result
from seqgan_lib.rollout import action_values
from seqgan_lib.sampling import resolve_device

CHAPTERS = Path(__file__).resolve().parent.parent / "chapters"
Tables = dict[str, History]


def chapter_code(chapter: str) -> str:
    """The code of a chapter's cells that carry the tag "recorded": what the reader sees is what is recorded."""
    cells = jupytext.read(CHAPTERS / f"{chapter}.md").cells
    return "\n\n\n".join(cell.source for cell in cells if "recorded" in cell.metadata.get("tags", ()))


def chapter_module(chapter: str) -> ModuleType:
    """What that code defines."""
    module = ModuleType(chapter)
    code = compile(chapter_code(chapter), f"chapters/{chapter}.md", "exec", dont_inherit=True)
    sys.modules[chapter] = module  # where its dataclasses look for what they are made of
    exec(code, vars(module))
    return module


def oracle_paper(seed: int) -> tuple[dict, Tables]:
    """What sequences cost under the published oracle, by position: its own, at other temperatures, random ones."""
    oracle, generator = published_oracle(), new_generator(seed)
    settings = {"sequences": 10_000, "length": 20, "temperatures": [0.5, 0.8, 1.0, 1.25]}
    count, length = settings["sequences"], settings["length"]
    columns = {
        f"temperature {t}": oracle.sample(count, length, generator=generator, temperature=t)
        for t in settings["temperatures"]
    }
    columns["uniform"] = torch.randint(oracle.vocabulary, (count, length), generator=generator)
    columns["random model"] = LanguageModel(oracle.vocabulary, generator=generator).sample(
        count, length, generator=generator
    )
    columns["another oracle"] = LanguageModel(oracle.vocabulary, generator=generator, std=1.0).sample(
        count, length, generator=generator
    )
    with torch.no_grad():
        costs = {name: -oracle.log_probs(tokens).double().mean(0) for name, tokens in columns.items()}
    rows = [{"position": t + 1, **{name: c[t].item() for name, c in costs.items()}} for t in range(length)]
    return settings, {"positions": History(rows)}


COOLER = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7]  # temperatures


def cooled(world: World, model: LanguageModel, seed: int, temperatures: list[float] = COOLER) -> History:
    """How a writer is graded at lower and lower temperatures."""
    table = History()
    for temperature in temperatures:
        colder = copy.deepcopy(model).sharpen(1 / temperature)
        graded = world.grade(colder, generator=new_generator(5_000 + seed))
        table.rows.append({"temperature": temperature, **graded})
    return table


def cross_entropies_paper(seed: int) -> tuple[dict, Tables]:
    """Maximum likelihood at the paper's scale, as long as the published code trains it, judged every other epoch.

    Then the writer, which is the start of a game there, at lower and lower temperatures.
    """
    world, generator = make_world("paper", seed, tell=False), new_generator(1_000 + seed)
    model = LanguageModel(world.scale.vocabulary, generator=generator).to(world.oracle.device)
    curve = train_mle(
        model,
        world.train,
        epochs=world.scale.epochs,
        generator=generator,
        evaluate=partial(world.grade, generator=generator),
        evaluate_every=2,
    )
    settings = {"temperatures": COOLER}
    return asdict(world.scale) | settings, {"curve": curve, "temperatures": cooled(world, model, seed)}


def watched(
    world: World, seed: int, tables: Tables, label: dict[str, float], *, pasts: int, **training: object
) -> None:
    """Train an imitator of ``world`` by MLE; add its grades and its errors at every position to ``tables``.

    The error is KL(model ‖ oracle) of the next token, after true pasts (forced) and after the model's own (free).
    Whatever is trained for one seed has the same start, the same order of batches and the same judge.
    """
    judge, errors, true_pasts = new_generator(2_000 + seed), [], world.held_out[:pasts]

    def evaluate(model: LanguageModel) -> dict[str, float]:
        own_pasts = model.sample(*true_pasts.shape, generator=judge)
        errors.append([divergence_by_position(model, world.oracle, past) for past in (true_pasts, own_pasts)])
        return world.grade(model, generator=judge)

    _, curve = imitate(world, seed, evaluate=evaluate, **training)
    for row, (forced, free) in zip(curve.rows, errors, strict=True):
        tables["curve"].rows.append({**label, **row})
        for t in range(world.scale.length):
            at = {**label, "epoch": row["epoch"], "position": t + 1}
            error = {"forced": round(forced[t].item(), 6), "free": round(free[t].item(), 6)}
            tables["positions"].rows.append(at | error)


def scheduled_study(seed: int) -> tuple[dict, Tables]:
    """Scheduled sampling at study scale: three rates of decay from one start, and the error at every position."""
    epochs, size = 120, {"train": 5_000, "held_out": 5_000}  # longer, and in more detail, than the games need
    world, tables = make_world(replace(SCALES["study"], **size), seed), {"curve": History(), "positions": History()}
    settings = {"omega_decays": [0.0, 0.002, 1 / epochs], "evaluate_every": 8, "pasts": 2_000}
    sizes = {"epochs": epochs, "evaluate_every": settings["evaluate_every"], "pasts": settings["pasts"]}
    for decay in settings["omega_decays"]:
        watched(world, seed, tables, {"omega_decay": decay}, omega_decay=decay, **sizes)
    return asdict(world.scale) | settings, tables


def sharpness_classroom(seed: int) -> tuple[dict, Tables]:
    """Teacher forcing in worlds of growing sharpness, and the error at every position as training goes on."""
    tables = {"curve": History(), "positions": History()}
    settings = {"sharpness": [1, 2, 4], "epochs": 60, "evaluate_every": 5, "pasts": 2_000}
    sizes = {name: settings[name] for name in ("epochs", "evaluate_every", "pasts")}
    for sharpness in settings["sharpness"]:
        world = make_world("classroom", seed, sharpness=sharpness)
        watched(world, seed, tables, {"sharpness": sharpness}, **sizes)
    return asdict(world.scale) | settings, tables


def methods_classroom(seed: int) -> tuple[dict, Tables]:
    """The four methods at classroom scale, PG-BLEU and SeqGAN from the MLE model of ``epochs`` epochs.

    Every evaluation grades the model twice, on independent samples: one grade to choose the best by, another (named
    test_…) to report. ``method`` is the number of the method in METHODS.
    """
    world, curve = make_world("classroom", seed), History()
    test = tested(world, new_generator(4_000 + seed))
    start, _ = imitate(world, seed, world.scale.epochs)
    for number, method in enumerate(METHODS):
        _, history = train(method, world, seed, start, also=test)
        curve.rows += [{"method": number, **row} for row in history.rows]
    return asdict(world.scale) | {"methods": METHODS}, {"curve": curve}


def cooling_classroom(seed: int) -> tuple[dict, Tables]:
    """The MLE writer from which the classroom games start, sampled at lower and lower temperatures."""
    world = make_world("classroom", seed)
    start, _ = imitate(world, seed, world.scale.epochs)
    return asdict(world.scale) | {"temperatures": COOLER}, {"temperatures": cooled(world, start, seed)}


def collapse_classroom(seed: int) -> tuple[dict, Tables]:
    """A strong gradient against three judges from one start: BLEU, a discriminator that is frozen, one that learns."""
    world, curve = make_world("classroom", seed), History()
    scale, rules = world.scale, Rules(g_steps=4, d_steps=1, k=1, rollouts=8, baseline="prefix", d_learning_rate=4e-3)
    settings = {"judges": ["BLEU", "frozen", "learning"], "rules": asdict(rules), "rounds": 12}
    start, _ = imitate(world, seed, scale.epochs)
    for number, name in enumerate(settings["judges"]):
        generator, grader = new_generator(3_000 + seed), new_generator(2_000 + seed)
        judge = Bleu(world.train, scale.bleu_order) if name == "BLEU" else new_discriminator(world, generator)
        played = replace(rules, d_steps=1 if name == "learning" else 0)
        game = Game(copy.deepcopy(start), judge, world.train, rules=played, generator=generator)
        if name != "BLEU":
            game.train_discriminator(*scale.d_pretraining)
        history = game.play(settings["rounds"], evaluate=partial(world.grade, generator=grader))
        curve.rows += [{"method": number, "epoch": scale.epochs + row["round"], **row} for row in history.rows]
    return asdict(scale) | settings, {"curve": curve}


class NewSentences(Game):
    """A game whose judge never sees a true sentence twice: every d-step has new ones, drawn by the oracle."""

    def __init__(self, oracle: LanguageModel, stream: torch.Generator, *game: object, **settings: object) -> None:
        super().__init__(*game, **settings)
        self.oracle, self.stream = oracle, stream

    def _d_step(self, epochs: int) -> None:
        self.data = self.oracle.sample(*self.data.shape, generator=self.stream)
        super()._d_step(epochs)


def judges_classroom(seed: int) -> tuple[dict, Tables]:
    """The game from the imitator that stopped in time, with three judges who know ever more of the oracle."""
    world, curve = make_world("classroom", seed), History()
    scale, settings = world.scale, {"judges": ["training sentences", "new sentences", "both distributions"]}
    start, _, _ = early_and_late(world, seed, scale.epochs)
    for number, knows in enumerate(settings["judges"]):
        model, generator, grader = copy.deepcopy(start), new_generator(3_000 + seed), new_generator(2_000 + seed)
        rules, game_of = scale.rules, Game
        if knows == "both distributions":
            rules = replace(rules, d_steps=0)

            @torch.no_grad()
            def judge(y: torch.Tensor, model: LanguageModel = model) -> torch.Tensor:
                """The best verdict there is: p / (p + q), p the oracle's probability and q the writer's."""
                return (world.oracle.log_probs(y) - model.log_probs(y)).sum(1).sigmoid()

        else:
            judge = new_discriminator(world, generator)
        if knows == "new sentences":
            game_of = partial(NewSentences, world.oracle, new_generator(9_000 + seed))
        game = game_of(model, judge, world.train, held_out=world.held_out, rules=rules, generator=generator)
        if rules.d_steps:
            game.train_discriminator(*scale.d_pretraining)
        history = game.play(scale.rounds, evaluate=partial(world.grade, generator=grader))
        curve.rows += [{"judge": number, **row} for row in history.rows]
    swept_settings, table = swept(world, seed, {"the games' start": start})
    return asdict(scale) | settings | swept_settings, {"curve": curve, "temperatures": table}


def truth_classroom(seed: int) -> tuple[dict, Tables]:
    """Five rounds under a judge who knows the truth and grades by it, from an early and a late imitator, each without a
    baseline and with that of the prefix; and both imitators, cooled.
    """
    world, curve, colder = make_world("classroom", seed), History(), History()
    scale, settings = world.scale, {"starts": ["early", "last"], "baselines": ["none", "prefix"], "rounds": 5}
    settings["temperatures"] = [*COOLER, 0.6, 0.5, 0.4, 0.3, 0.2]
    for number, start in enumerate(early_and_late(world, seed, scale.epochs)[:2]):
        colder.rows += [{"start": number, **row} for row in cooled(world, start, seed, settings["temperatures"]).rows]
        typical = start.sample(2_000, scale.length, generator=new_generator(9_000 + seed))
        with torch.no_grad():
            log_p = world.oracle.log_probs(typical).sum(1)
        mean, std = log_p.mean(), log_p.std()

        @torch.no_grad()
        def judge(y: torch.Tensor, mean: torch.Tensor = mean, std: torch.Tensor = std) -> torch.Tensor:
            """Grows with log p, so that the start's sentences fill the range from 0 to 1."""
            return ((world.oracle.log_probs(y).sum(1) - mean) / std).sigmoid()

        for which, baseline in enumerate(settings["baselines"]):
            model, grader = copy.deepcopy(start), new_generator(2_000 + seed)
            rules = replace(scale.rules, d_steps=0, baseline=baseline)
            game = Game(model, judge, world.train, rules=rules, generator=new_generator(3_000 + seed))
            history = game.play(settings["rounds"], evaluate=partial(world.grade, generator=grader))
            curve.rows += [{"start": number, "baseline": which, **row} for row in history.rows]
    return asdict(scale) | settings, {"curve": curve, "temperatures": colder}


def rlhf_classroom(seed: int) -> tuple[dict, Tables]:
    """Ways of learning from one judge, all from one start, by the code of chapter 14 itself.

    ``game``: the judge learns on, as in SeqGAN; every row has the grades of two samples, as in methods-classroom.
    ``frozen``: it does not, as in RLHF, for leashes from none to tight; in rows with ``dice`` = 1 dice take its place.
    ``asked``: what each leash asks for, however it is reached. ``cooled``: the start at lower and lower temperatures.
    """
    chapter = chapter_module("14_rlhf")
    world, game, frozen, cooled = make_world("classroom", seed), History(), History(), History()
    start, judge, d_adam = chapter.beginners(world, seed)
    four = {"learning_rate": 0.003, "epochs": 4}
    settings = {
        "ways": {
            "roll-outs": {"estimate": "by_rollouts"},
            "critic": {"estimate": "by_critic"},
            "PPO": {"estimate": "by_critic", **four},
            "PPO, leashed": {"estimate": "by_critic", **four, "leash": 0.1},
            "GRPO": {"estimate": "by_group", **four},
            "dice": {"estimate": "by_critic"},
        },
        "rounds": 20,
        "every": 2,
        "frozen_rounds": 100,
        "frozen_way": {"estimate": "by_critic", "learning_rate": 0.001, "epochs": 4, "batch": 128, "every": 4},
        "leashes": [0.0, 0.01, 0.03, 0.1, 0.3],
        "temperatures": [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5],
    }

    def measured(**streams: torch.Generator) -> Callable[[object], dict[str, float]]:
        """What to note of a player, from one sample or two."""
        return lambda who: {
            prefix + name: value
            for prefix, stream in streams.items()
            for name, value in chapter.measure(who, world, stream).items()
        }

    def played(judge: torch.nn.Module, d_step: Callable | None, rounds: int, note: Callable, **way: object) -> History:
        way = {"learning_rate": 0.01, "leash": 0.0, **way}
        estimate = getattr(chapter, way.pop("estimate"))
        who = chapter.Player(start, judge, new_generator(6_000 + seed), way.pop("learning_rate"), way.pop("leash"))
        return chapter.play(who, estimate, rounds, note, d_step, **way)

    def dice() -> torch.nn.Module:
        return chapter.Dice(world.scale.length, new_generator(7_000 + seed))

    for number, (name, way) in enumerate(settings["ways"].items()):
        note = measured(**{"": new_generator(2_000 + seed), "test_": new_generator(4_000 + seed)})
        pair = (dice(), None) if name == "dice" else chapter.learner(world, judge, d_adam)
        history = played(*pair, settings["rounds"], note, every=settings["every"], **way)
        game.rows += [{"way": number, **row} for row in history.rows]
    for leash, by_dice in [(leash, 0) for leash in settings["leashes"]] + [(0.1, 1)]:
        note, way = measured(**{"": new_generator(2_000 + seed)}), {**settings["frozen_way"], "leash": leash}
        history = played(dice() if by_dice else judge, None, settings["frozen_rounds"], note, **way)
        frozen.rows += [{"leash": leash, "dice": by_dice, **row} for row in history.rows]
    asked = [
        {"leash": x, **chapter.asked_for(start, judge, world.oracle, x, new_generator(5_000 + seed))}
        for x in settings["leashes"]
        if x > 0
    ]
    note = measured(**{"": new_generator(5_000 + seed)})
    for temperature in settings["temperatures"]:
        who = chapter.Player(start, judge, new_generator(seed), 0.01)
        who.writer.sharpen(1 / temperature)
        cooled.rows.append({"temperature": temperature, **note(who)})
    tables = {"game": game, "frozen": frozen, "asked": History(asked), "cooled": cooled}
    return asdict(world.scale) | settings | {"code": chapter_code("14_rlhf").splitlines()}, tables


def pitfalls() -> dict[str, dict]:
    """Chapter 13's, by name: what is replaced in a game, what is done to its judge, which settings differ."""
    chapter = chapter_module("13_pitfalls")
    rewards = {
        "constant reward": chapter.constant_reward,
        "wrong axes": chapter.wrong_axes,
        "one position late": chapter.one_late,
        "log D as reward": chapter.log_rewards,
        "mean of logs": chapter.mean_of_logs,
        "no start token": chapter.no_start_token,
    }
    return {
        "nothing": {},
        "another stream": {"stream": 6_000},
        **{name: {"patch": (adversarial, "action_values", wrong)} for name, wrong in rewards.items()},
        "dropout in the reward": {"patch": (rollout, "judging", chapter.dropout_stays_on)},
        "no roll-outs": {"patch": (adversarial, "action_values", chapter.no_rollouts)},
        "β never follows": {"patch": (adversarial, "update_policy", chapter.never_follow)},
        "same negatives": {"patch": (Game, "_d_step", chapter.same_negatives), "from_scratch": True},
        "one highway matrix": {"judge": chapter.share_one_matrix},
        "keep 0.75": {"judge": lambda judge: setattr(judge, "dropout", 0.25)},
        "drop 0.75": {"judge": lambda judge: setattr(judge, "dropout", 0.75)},
        "D trained a tenth": {"d_pretraining": (2, 1)},
        "G's rate a tenth": {"rules": {"learning_rate": 1e-3}},
    }


def pitfalls_classroom(seed: int) -> tuple[dict, Tables]:
    """SeqGAN from one start, with nothing planted and then with one pitfall at a time.

    Graded twice, as in methods-classroom, whose SeqGAN has the same start and the same stream as "nothing" here. What
    does not touch the discriminator's pre-training goes on from a copy of the one game that did it rightly.
    """
    world, curve = make_world("classroom", seed), History()
    scale, ready = world.scale, None
    start, _ = imitate(world, seed, scale.epochs)
    names = pitfalls()
    for number, (name, planted) in enumerate(names.items()):
        grader, test = new_generator(2_000 + seed), tested(world, new_generator(4_000 + seed))

        def evaluate(model: LanguageModel, grader: torch.Generator = grader, test: Callable = test) -> dict:
            return world.grade(model, generator=grader) | test(model)

        with patch.object(*planted["patch"]) if "patch" in planted else nullcontext():
            if ready and planted.keys() == {"patch"}:
                game = copy.deepcopy(ready)
            else:
                generator = new_generator(planted.get("stream", 3_000) + seed)
                judge = new_discriminator(world, generator)
                planted.get("judge", lambda judge: None)(judge)
                how = {"held_out": world.held_out, "rules": replace(scale.rules, **planted.get("rules", {}))}
                game = Game(copy.deepcopy(start), judge, world.train, generator=generator, **how)
                game.train_discriminator(*planted.get("d_pretraining", scale.d_pretraining))
            if name == "nothing":
                ready = copy.deepcopy(game)
            history = game.play(scale.rounds, evaluate=evaluate, evaluate_every=2)
        curve.rows += [{"pitfall": number, **row} for row in history.rows]
    settings = {"pitfalls": list(names), "evaluate_every": 2, "code": chapter_code("13_pitfalls").splitlines()}
    return asdict(scale) | settings, {"curve": curve}


def sequences_study(seed: int) -> tuple[dict, Tables]:
    """What a per-sequence test sees: the finished writers of the study's four methods, and two of them made again.

    The four come from runs/, where ``python -m seqgan_lib study`` leaves them; what is not there is run. "MLE again" is
    another imitator of the same sentences, with other first weights and batches; "SeqGAN again" has the same start as
    SeqGAN, and another stream of random numbers, its curve is kept. Of 10 000 sequences of each: number, mean and
    standard deviation of their NLL_oracle, nats per token. ``method`` is the number of the writer in ``writers``.
    """
    world, writers, again = make_world("study", seed), {}, 500 + seed
    for method, slug in SLUGS.items():
        writers[method], _ = finished(f"{slug}-study", seed)
    writers["MLE again"], _ = train("MLE", world, again)
    start, _ = imitate(world, seed, world.scale.epochs)
    test = tested(world, new_generator(4_000 + again))
    writers["SeqGAN again"], curve = train("SeqGAN", world, again, start, also=test)
    settings, table, generator = {"count": 10_000, "writers": list(writers)}, History(), new_generator(5_000 + seed)
    for number, model in enumerate(writers.values()):
        tokens = model.sample(settings["count"], world.scale.length, generator=generator)
        with torch.no_grad():
            costs = -world.oracle.log_probs(tokens).double().mean(1)  # of each sequence, nats per token
        summary = {"count": len(costs), "mean": costs.mean().item(), "std": costs.std().item()}
        table.rows.append({"method": number, **summary})
    return asdict(world.scale) | settings, {"sequences": table, "again": curve}


def indifferent_study(seed: int) -> tuple[dict, Tables]:
    """The study's reference game with a judge that gives every sentence one half: nothing to learn from but luck."""
    world, settings = make_world("study", seed), {"verdict": 0.5, "rollouts": 0, "d_steps": 0}
    scale, grader, test = world.scale, new_generator(2_000 + seed), tested(world, new_generator(4_000 + seed))
    start, _ = imitate(world, seed, scale.epochs)
    rules = replace(scale.rules, rollouts=settings["rollouts"], d_steps=settings["d_steps"])

    def judge(sequences: torch.Tensor) -> torch.Tensor:
        return torch.full((len(sequences),), settings["verdict"], device=sequences.device)

    def evaluate(model: LanguageModel) -> dict[str, float]:
        return world.grade(model, generator=grader) | test(model)

    game = Game(start, judge, world.train, rules=rules, generator=new_generator(3_000 + seed))
    history = game.play(scale.rounds, evaluate=evaluate, evaluate_every=scale.evaluate_every)
    return asdict(scale) | settings, {"curve": joined(scale, History(), history)}


def costs_study(seed: int) -> tuple[dict, Tables]:
    """What the parts of a round cost at study scale, side by side in one process: CPU seconds, many times over.

    A g-step (64 sequences, N roll-outs of each prefix, the gradient), the negatives of a d-step, an epoch of the judge
    on them, an epoch of MLE. Only their ratios mean something on another machine.
    """
    settings = {"repeats": 12, "rollouts": [0, 1, 4, 16, 64], "epochs of MLE": 5}
    world, generator, table = make_world("study", seed), new_generator(3_000 + seed), History()
    rules = world.scale.rules
    model, _ = imitate(world, seed, settings["epochs of MLE"])
    judge, adam = new_discriminator(world, generator), torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    d_adam = torch.optim.Adam(judge.parameters(), lr=rules.d_learning_rate, fused=True)
    policy = copy.deepcopy(model).requires_grad_(False)
    negatives = model.sample(*world.train.shape, generator=generator)
    how = {"batch_size": rules.batch_size, "generator": generator}

    def g_step(rollouts: int) -> None:
        batch = model.sample(rules.batch_size, world.scale.length, generator=generator)
        values = action_values(policy, batch, judge, rollouts=rollouts, generator=generator)
        adam.zero_grad()
        policy_gradient_loss(model, batch, values).backward()
        adam.step()

    parts = {f"g_step_{n}": partial(g_step, n) for n in settings["rollouts"]}
    parts["negatives"] = partial(model.sample, *world.train.shape, generator=generator)
    parts["d_epoch"] = partial(train_discriminator, judge, d_adam, world.train, negatives, epochs=1, **how)
    parts["mle_epoch"] = partial(train_mle, copy.deepcopy(model), world.train, epochs=1, progress=False, **how)
    for repeat in range(settings["repeats"] + 1):
        row = {"repeat": repeat}
        for name, part in parts.items():
            begun = time.process_time()
            part()
            row[name] = round(time.process_time() - begun, 4)
        if repeat:  # the first warms up
            table.rows.append(row)
    return asdict(world.scale) | settings, {"costs": table}


def swept(world: World, seed: int, writers: dict[str, LanguageModel]) -> tuple[dict, History]:
    """Every writer at every temperature: its grades, BLEU against the held-out sentences, and self-BLEU.

    All use the same random numbers, which no other evaluation has used. ``writer`` is the number of the writer.
    """
    settings = {"writers": list(writers), "temperatures": [1.3, 1.15, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5]}
    bleu, table = Bleu(world.held_out, 3), History()
    for number, writer in enumerate(writers.values()):
        for temperature in settings["temperatures"]:
            tempered, stream = copy.deepcopy(writer).sharpen(1 / temperature), new_generator(5_000 + seed)
            row = world.grade(tempered, generator=stream)
            own = tempered.sample(*world.held_out.shape, generator=stream)
            held_out, others = bleu.scores(own), self_bleu_scores(own, 3)
            for order in (2, 3):
                row[f"bleu_{order}"] = held_out[order].mean().item()
                row[f"self_bleu_{order}"] = others[order].mean().item()
            row = {name: round(value, 5) for name, value in row.items()}
            table.rows.append({"writer": number, "temperature": temperature, **row})
    return settings, table


def early_and_late(world: World, seed: int, epochs: int) -> tuple[LanguageModel, LanguageModel, History]:
    """MLE after the epoch that is best on sentences drawn for this choice alone, and after the last; and its curve."""
    validation = world.oracle.sample(*world.held_out.shape, generator=new_generator(6_000 + seed))
    judge, snapshots = new_generator(2_000 + seed), []

    def evaluate(model: LanguageModel) -> dict[str, float]:
        snapshots.append(copy.deepcopy(model))
        grades = world.grade(model, generator=judge)
        return {"validation": mean_nll(model, validation), **grades}

    _, curve = imitate(world, seed, epochs, evaluate=evaluate)
    return snapshots[curve["validation"].argmin()], snapshots[-1], curve


def played(method: str, world: World, seed: int, start: LanguageModel) -> tuple[LanguageModel, LanguageModel, History]:
    """A game from ``start``: the model of its best round by one sample, that of the last, and the rounds' grades.

    The rounds are graded twice: by the sample that picks the best, and (named test_…) by another.
    """
    test, snapshots = tested(world, new_generator(4_000 + seed)), []

    def also(model: LanguageModel) -> dict[str, float]:
        snapshots.append(copy.deepcopy(model))
        return test(model)

    _, curve = train(method, world, seed, start, also=also)
    return snapshots[curve["nll_oracle"].argmin()], snapshots[-1], curve


def paths(curves: list[History]) -> History:
    """The grades of several trainings in one table; ``path`` is the number of the training."""
    table = History()
    for number, curve in enumerate(curves):
        for row in curve.rows:
            kept = {k: round(v, 5) for k, v in row.items() if not k.startswith(("reward_", "d_", "loss"))}
            table.rows.append({"path": number, **kept})
    return table


def quality_diversity_classroom(seed: int) -> tuple[dict, Tables]:
    """Quality against diversity: writers by all four methods, and two starts of the game, over temperatures."""
    world = make_world("classroom", seed)
    early, late, imitation = early_and_late(world, seed, world.scale.epochs)
    writers = {"oracle": world.oracle, "MLE, last": late, "MLE, early": early}
    writers["scheduled sampling"], _ = train("scheduled sampling", world, seed)
    curves = {"MLE": imitation}
    for method, start, origin in (("PG-BLEU", late, "last"), ("SeqGAN", late, "last"), ("SeqGAN", early, "early")):
        name = f"{method} from {origin}"
        writers[f"{name}, best"], writers[f"{name}, end"], curves[name] = played(method, world, seed, start)
    settings, table = swept(world, seed, writers)
    tables = {"temperatures": table, "paths": paths(list(curves.values()))}
    return asdict(world.scale) | settings | {"paths": list(curves)}, tables


def quality_diversity_study(seed: int) -> tuple[dict, Tables]:
    """The same at study scale; what starts from the last epoch is read from whole runs, made if they are not there."""
    world = make_world("study", seed)
    early, late, imitation = early_and_late(world, seed, world.scale.epochs)
    writers = {"oracle": world.oracle, "MLE, last": late, "MLE, early": early}
    curves = {"MLE": imitation}
    for experiment, name in (
        ("scheduled-sampling-study", "scheduled sampling"),
        ("pg-bleu-study", "PG-BLEU from last, end"),
        ("seqgan-study", "SeqGAN from last, end"),
    ):
        writers[name], curves[name.removesuffix(", end")] = finished(experiment, seed)
    name = "SeqGAN from early"
    writers[f"{name}, best"], writers[f"{name}, end"], curves[name] = played("SeqGAN", world, seed, early)
    settings, table = swept(world, seed, writers)
    tables = {"temperatures": table, "paths": paths(list(curves.values()))}
    return asdict(world.scale) | settings | {"paths": list(curves)}, tables


def quality_diversity_paper(seed: int) -> tuple[dict, Tables]:
    """The same at the paper's scale, without SeqGAN: 12 epochs for the early MLE, the rest read from whole runs."""
    world = make_world(replace(SCALES["paper"], held_out=4_000), seed, tell=False)
    early, _, imitation = early_and_late(world, seed, 12)
    writers = {"oracle": world.oracle, "MLE, last": finished("mle-paper", seed)[0], "MLE, early": early}
    writers["scheduled sampling"], _ = finished("scheduled-sampling-paper", seed)
    settings, table = swept(world, seed, writers)
    return asdict(world.scale) | settings | {"paths": ["MLE"]}, {"temperatures": table, "paths": paths([imitation])}


def samples(task: str, seed: int) -> tuple[dict, Tables]:
    """Lines by the finished writers of a real task, for people to read: ``method`` is the number in METHODS.

    They come from runs/, or are made, as in sequences-study. Tokens, not texts: the corpus of ``task`` decodes them.
    """
    scale, table, generator = SCALES[task], History(), new_generator(5_000 + seed)
    settings = {"methods": METHODS, "lines": 50}
    for number, slug in enumerate(SLUGS.values()):
        writer, _ = finished(f"{slug}-{task}", seed)
        table.rows += written(writer, settings["lines"], scale.length, generator=generator, method=number)
    return asdict(scale) | settings, {"samples": table}


def written(model: LanguageModel, lines: int, length: int, *, generator: torch.Generator, **label: float) -> list[dict]:
    """Rows of new lines as tokens ``t1`` …, each with the label, for :func:`~seqgan_lib.results.recorded_lines`."""
    tokens = model.sample(lines, length, generator=generator).tolist()
    return [{**label, **{f"t{k}": token for k, token in enumerate(line, 1)}} for line in tokens]


def cooling(task: str, seed: int) -> tuple[dict, Tables]:
    """The MLE writer from which the games of a real task start, at lower and lower temperatures: the fair rival.

    ``temperatures``: graded by the validation's lines and, named ``test_…``, by the test's. ``samples``: fifty lines at
    each temperature, as tokens.
    """
    world, graded, lines = make_world(task, seed), History(), History()
    settings = {"temperatures": [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6], "lines": 50}
    start, _ = imitate(world, seed, world.scale.epochs)
    generator = new_generator(5_000 + seed)
    test = tested(world, generator)
    for temperature in settings["temperatures"]:
        colder = copy.deepcopy(start).sharpen(1 / temperature)
        graded.rows.append({"temperature": temperature, **world.grade(colder, generator=generator), **test(colder)})
        how = {"generator": generator, "temperature": temperature}
        lines.rows += written(colder, settings["lines"], world.scale.length, **how)
    return asdict(world.scale) | settings, {"temperatures": graded, "samples": lines}


WHY_POEMS_GAME = "seqgan-poems-classroom+rounds=4+evaluate_every=4+held_out=1000"
#: What why-poems changes in it, by name: settings as in an experiment's name. The first changes nothing.
WHY_POEMS = {
    "nothing": "",
    "verses begin anywhere": "",
    "vocabulary 1000": "+vocabulary=1000",
    "500 poems": "+train=500+epochs=32",  # as many steps of imitation as with 2000
    "8000 poems": "+train=8000+epochs=2",
    "2 epochs": "+epochs=2",
    "16 epochs": "+epochs=16",
}


def why_poems(seed: int) -> tuple[dict, Tables]:
    """SeqGAN on poems at classroom scale, four rounds, one thing changed at a time; ``case`` is the number of it.

    All is graded by the test's lines, on more lines than a run writes. ``game``: before and after. ``cooled``: the
    start at lower temperatures. ``real``: real lines, the validation's.
    """
    settings = {"cases": WHY_POEMS, "lines": 3_000, "temperatures": [0.9, 0.8]}
    tables = {name: History() for name in ("game", "cooled", "real")}
    test = new_generator(4_000 + seed)
    for case, (name, changes) in enumerate(WHY_POEMS.items()):
        scale = named(WHY_POEMS_GAME + changes).scale
        corpus = poems(scale.vocabulary, scale.length, scale.train, scale.held_out)
        if name == "verses begin anywhere":
            corpus = rotated(corpus)
        # 500 poems have fewer than 2000 different characters: then all of them are the vocabulary.
        world = CorpusWorld(replace(scale, vocabulary=len(corpus.vocabulary)), corpus, resolve_device("auto"))
        grader = LineGrader(world.train, corpus.test.to(world.device))

        def graded(model: LanguageModel, grader: LineGrader = grader) -> dict[str, float]:
            own = model.sample(settings["lines"], grader.held_out.shape[1], generator=test)
            costs = {"held_out": mean_nll(model, grader.held_out), "entropy": mean_nll(model, own)}
            return {f"test_{k}": round(v, 5) for k, v in (costs | grader.compare(own)).items()}

        tables["real"].rows.append({"case": case, **grader.compare(world.held_out)})
        start, _ = imitate(world, seed, scale.epochs)
        for temperature in settings["temperatures"]:
            colder = copy.deepcopy(start).sharpen(1 / temperature)
            tables["cooled"].rows.append({"case": case, "temperature": temperature, **graded(colder)})
        _, history = train("SeqGAN", world, seed, start, also=graded)
        for row in history.rows:
            kept = {k: v for k, v in row.items() if k in ("epoch", "round") or k.startswith("test_")}
            tables["game"].rows.append({"case": case, **kept})
    return asdict(named("seqgan-poems-classroom").scale) | settings, tables


def unknown_poems(seed: int) -> tuple[dict, Tables]:
    """What the games of why-poems that gain most do with the unknown character, on 3000 poems of each writer.

    ``writer`` 0 is the game's start, 1 the writer after it, 2 the start at temperature 0.9, 3 real poems, the
    validation's. ``unknown``: the share of unknown characters. ``known``: of all pairs of neighbours, the share that
    stands in some poem of the test; ``known_whole``: of the pairs without an unknown character.
    """
    settings = {"cases": {name: WHY_POEMS[name] for name in ("nothing", "vocabulary 1000", "8000 poems")}}
    settings |= {"lines": 3_000, "writers": ["start", "game", "cooled", "real"]}
    table, stream = History(), new_generator(4_000 + seed)
    for case, changes in enumerate(settings["cases"].values()):
        world = make_world(named(WHY_POEMS_GAME + changes).scale, seed)
        judge = Bleu(world.corpus.test.to(world.device), 2)
        start, _ = imitate(world, seed, world.scale.epochs)
        player, _ = train("SeqGAN", world, seed, start)
        writers = (start, player, copy.deepcopy(start).sharpen(1 / 0.9))
        lines = [who.sample(settings["lines"], world.scale.length, generator=stream) for who in writers]
        for writer, own in enumerate([*lines, world.held_out]):
            known, whole = judge.known(own), (own[:, 1:] != 0) & (own[:, :-1] != 0)
            shares = {"unknown": own == 0, "known": known, "known_whole": known[whole]}
            row = {name: round(share.double().mean().item(), 5) for name, share in shares.items()}
            table.rows.append({"case": case, "writer": writer, "bleu_2": round(judge(own).mean().item(), 5), **row})
    return asdict(named("seqgan-poems-classroom").scale) | settings, {"unknown": table}


def rotated(corpus: Corpus) -> Corpus:
    """Every line begins at a place of its own, drawn once, and goes on from its end to its beginning."""
    generator = new_generator(0)

    def turned(lines: torch.Tensor) -> torch.Tensor:
        offsets = torch.randint(lines.shape[1], (len(lines), 1), generator=generator)
        return lines.gather(1, (torch.arange(lines.shape[1]) + offsets) % lines.shape[1])

    splits = {split: turned(getattr(corpus, split)) for split in ("train", "validation", "test")}
    return replace(corpus, **splits)


def real_lines(seed: int) -> tuple[dict, Tables]:
    """What real lines score in the three tasks: the validation's and the first of the training's, by the test's."""
    table, tasks = History(), ("poems", "speeches", "music")
    for number, task in enumerate(tasks):
        corpus = make_world(task, seed).corpus
        grader = LineGrader(corpus.train, corpus.test, corpus.pitches)
        for split in ("validation", "train"):
            lines = getattr(corpus, split)[: len(corpus.test)]
            table.rows.append({"task": number, "trained_on": int(split == "train"), **grader.compare(lines)})
    return {"tasks": tasks}, {"real": table}


def finished(experiment: str, seed: int) -> tuple[LanguageModel, History]:
    """The generator at the end of a whole run, and its curve: read from ``runs/``, or made if it is not there."""
    result = run(experiment, seed)
    weights = load_state(run_folder("runs", experiment, seed) / "model.pt")
    model = LanguageModel(len(weights["embedding"]), generator=new_generator(0))
    model.load_state_dict(weights)
    return model.to(resolve_device("auto")), result.tables["curve"]


EXPERIMENTS = {
    "oracle-paper": (oracle_paper, 3),
    "cross-entropies-paper": (cross_entropies_paper, 3),
    "scheduled-study": (scheduled_study, 3),
    "sharpness-classroom": (sharpness_classroom, 5),
    "methods-classroom": (methods_classroom, 10),
    "cooling-classroom": (cooling_classroom, 10),
    "collapse-classroom": (collapse_classroom, 5),
    "judges-classroom": (judges_classroom, 10),
    "truth-classroom": (truth_classroom, 10),
    "rlhf-classroom": (rlhf_classroom, 5),
    "pitfalls-classroom": (pitfalls_classroom, 6),
    "sequences-study": (sequences_study, 5),
    "indifferent-study": (indifferent_study, 5),
    "costs-study": (costs_study, 1),
    "quality-diversity-classroom": (quality_diversity_classroom, 10),
    "quality-diversity-study": (quality_diversity_study, 5),
    "quality-diversity-paper": (quality_diversity_paper, 3),
    "real-lines": (real_lines, 1),
    "why-poems": (why_poems, 5),
    "unknown-poems": (unknown_poems, 5),
    "samples-poems": (partial(samples, "poems"), 5),
    "samples-speeches": (partial(samples, "speeches"), 5),
    "samples-music": (partial(samples, "music"), 5),
    "cooling-poems": (partial(cooling, "poems"), 5),
    "cooling-speeches": (partial(cooling, "speeches"), 5),
    "cooling-music": (partial(cooling, "music"), 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all that the book shows")
    parser.add_argument("--threads", type=int, help="CPU threads, to run several recordings side by side")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # A training that Ctrl-C stops returns what it has; a recording is whole or it is not made.
    signal.signal(signal.SIGINT, lambda *_: sys.exit("stopped by hand: nothing of this seed is recorded"))
    measure, count = EXPERIMENTS[args.experiment]
    for seed in args.seeds or range(count):
        folder = run_folder(recorded_folder(), args.experiment, seed)
        if (folder / "run.json").exists():
            print(f"{args.experiment} seed {seed}: recorded already")
            continue
        print(f"{args.experiment} seed {seed}: running", file=sys.stderr)
        command = shlex.join(["python", "data/record.py", args.experiment, "--seeds", str(seed)])
        facts = {"experiment": args.experiment, "seed": seed, "command": command}
        machine = describe_machine(resolve_device("auto"), Path(__file__))  # asked now: files may change while it runs
        start = time.perf_counter()
        settings, tables = measure(seed)
        seconds = time.perf_counter() - start
        facts |= {"settings": settings, **machine, "seconds": round(seconds, 1)}
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder, tables, facts)
        print(f"{args.experiment} seed {seed}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
