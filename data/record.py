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
from dataclasses import asdict, replace
from pathlib import Path

import torch

from seqgan_lib import LanguageModel, new_generator
from seqgan_lib.adversarial import Game, Rules
from seqgan_lib.bleu import Bleu, self_bleu
from seqgan_lib.checkpoint import load_state
from seqgan_lib.configs import SCALES
from seqgan_lib.datasets import published_oracle
from seqgan_lib.experiments import METHODS, World, imitate, make_world, new_discriminator, run, train
from seqgan_lib.history import History
from seqgan_lib.metrics import divergence_by_position, grade, mean_nll
from seqgan_lib.mle import train_mle
from seqgan_lib.results import describe_machine, recorded_folder, run_folder, write_result
from seqgan_lib.sampling import resolve_device

Tables = dict[str, History]


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


def judged(world: World, generator: torch.Generator) -> Callable[[LanguageModel], dict[str, float]]:
    """What to note of a model in this world, for `train_mle` and `Game.play`."""
    return lambda model: grade(model, world.oracle, world.held_out, generator=generator)


def cross_entropies_paper(seed: int) -> tuple[dict, Tables]:
    """Maximum likelihood at the paper's scale, as long as the published code trains it, judged every other epoch."""
    world, generator = make_world("paper", seed), new_generator(1_000 + seed)
    model = LanguageModel(world.scale.vocabulary, generator=generator).to(world.oracle.device)
    curve = train_mle(
        model,
        world.train,
        epochs=world.scale.epochs,
        generator=generator,
        evaluate=judged(world, generator),
        evaluate_every=2,
    )
    return asdict(world.scale), {"curve": curve}


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
        return grade(model, world.oracle, world.held_out, generator=judge)

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
    world, fresh, curve = make_world("classroom", seed), new_generator(4_000 + seed), History()

    def test(model: LanguageModel) -> dict[str, float]:
        graded = grade(model, world.oracle, world.held_out, generator=fresh)
        return {f"test_{name}": value for name, value in graded.items()}

    start, _ = imitate(world, seed, world.scale.epochs)
    for number, method in enumerate(METHODS):
        _, history = train(method, world, seed, start, also=test)
        curve.rows += [{"method": number, **row} for row in history.rows]
    return asdict(world.scale) | {"methods": METHODS}, {"curve": curve}


def cooling_classroom(seed: int) -> tuple[dict, Tables]:
    """The MLE writer from which the classroom games start, sampled at lower and lower temperatures."""
    world, table = make_world("classroom", seed), History()
    settings = {"temperatures": [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7]}
    start, _ = imitate(world, seed, world.scale.epochs)
    for temperature in settings["temperatures"]:
        colder = copy.deepcopy(start).sharpen(1 / temperature)
        graded = grade(colder, world.oracle, world.held_out, generator=new_generator(5_000 + seed))
        table.rows.append({"temperature": temperature, **graded})
    return asdict(world.scale) | settings, {"temperatures": table}


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
        history = game.play(settings["rounds"], evaluate=judged(world, grader))
        curve.rows += [{"method": number, "epoch": scale.epochs + row["round"], **row} for row in history.rows]
    return asdict(scale) | settings, {"curve": curve}


def swept(world: World, seed: int, writers: dict[str, LanguageModel]) -> tuple[dict, History]:
    """Every writer at every temperature: its grades, BLEU against the held-out sentences, and self-BLEU.

    All use the same random numbers, which no other evaluation has used. ``writer`` is the number of the writer.
    """
    settings = {"writers": list(writers), "temperatures": [1.3, 1.15, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5]}
    bleus, table = [Bleu(world.held_out, order) for order in (2, 3)], History()
    for number, writer in enumerate(writers.values()):
        for temperature in settings["temperatures"]:
            tempered, stream = copy.deepcopy(writer).sharpen(1 / temperature), new_generator(5_000 + seed)
            row = grade(tempered, world.oracle, world.held_out, generator=stream)
            own = tempered.sample(*world.held_out.shape, generator=stream)
            for bleu in bleus:
                row[f"bleu_{bleu.order}"] = bleu(own).mean().item()
                row[f"self_bleu_{bleu.order}"] = self_bleu(own, bleu.order).mean().item()
            row = {name: round(value, 5) for name, value in row.items()}
            table.rows.append({"writer": number, "temperature": temperature, **row})
    return settings, table


def early_and_late(world: World, seed: int, epochs: int) -> tuple[LanguageModel, LanguageModel, History]:
    """MLE after the epoch that is best on sentences drawn for this choice alone, and after the last; and its curve."""
    validation = world.oracle.sample(*world.held_out.shape, generator=new_generator(6_000 + seed))
    judge, snapshots = new_generator(2_000 + seed), []

    def evaluate(model: LanguageModel) -> dict[str, float]:
        snapshots.append(copy.deepcopy(model))
        grades = grade(model, world.oracle, world.held_out, generator=judge)
        return {"validation": mean_nll(model, validation), **grades}

    _, curve = imitate(world, seed, epochs, evaluate=evaluate)
    return snapshots[curve["validation"].argmin()], snapshots[-1], curve


def played(method: str, world: World, seed: int, start: LanguageModel) -> tuple[LanguageModel, LanguageModel, History]:
    """A game from ``start``: the model of its best round by one sample, that of the last, and the rounds' grades.

    The rounds are graded twice: by the sample that picks the best, and (named test_…) by another.
    """
    fresh, snapshots = new_generator(4_000 + seed), []

    def also(model: LanguageModel) -> dict[str, float]:
        snapshots.append(copy.deepcopy(model))
        graded = grade(model, world.oracle, world.held_out, generator=fresh)
        return {f"test_{name}": value for name, value in graded.items()}

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
    world = make_world(replace(SCALES["paper"], held_out=4_000), seed)
    early, _, imitation = early_and_late(world, seed, 12)
    writers = {"oracle": world.oracle, "MLE, last": finished("mle-paper", seed)[0], "MLE, early": early}
    writers["scheduled sampling"], _ = finished("scheduled-sampling-paper", seed)
    settings, table = swept(world, seed, writers)
    return asdict(world.scale) | settings | {"paths": ["MLE"]}, {"temperatures": table, "paths": paths([imitation])}


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
    "quality-diversity-classroom": (quality_diversity_classroom, 10),
    "quality-diversity-study": (quality_diversity_study, 5),
    "quality-diversity-paper": (quality_diversity_paper, 1),
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
    record, count = EXPERIMENTS[args.experiment]
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
        settings, tables = record(seed)
        seconds = time.perf_counter() - start
        facts |= {"settings": settings, **machine, "seconds": round(seconds, 1)}
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder, tables, facts)
        print(f"{args.experiment} seed {seed}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
