"""The book's experiments from the command line: python -m seqgan_lib --help"""

import argparse
import importlib.util
import json
import os
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch

from .configs import METHODS, SCALES, UNREAD, UnknownExperiment, command_for, named, names, study
from .experiments import RunPaused, RunStopped, announce, duration, resume, run_all
from .results import (
    MissingResult,
    Result,
    best_row,
    has_best,
    load_results,
    read_provenance,
    recorded_folder,
    run_folder,
    run_folders,
)
from .sampling import resolve_device

EPILOG = """\
a run, from its start to its picture:

  python -m seqgan_lib list                            what there is, and what is recorded
  python -m seqgan_lib show seqgan-classroom           every setting of an experiment
  python -m seqgan_lib run seqgan-classroom --seeds 0-2    two minutes a seed on one CPU core
  python -m seqgan_lib resume runs/seqgan-classroom/seed-1     after Ctrl-C, a crash, a power cut
  python -m seqgan_lib compare mle-classroom seqgan-classroom
  python -m seqgan_lib plot mle-classroom seqgan-classroom --since 40

an experiment is METHOD-SCALE, and may be changed in any of its settings:

  python -m seqgan_lib run seqgan-classroom --set rollouts=1 --set rollouts=16 --seeds 0-4 --jobs 2

runs two variants with five seeds each, two at a time. They are then called seqgan-classroom+rollouts=1 and so on.

the study of chapter 8, all its runs, two at a time, as often as it takes:

  python -m seqgan_lib study --jobs 2 --threads 1 --folder data/results
"""


def seeds(text: str) -> list[int]:
    """``0-4`` or ``0,2,5``, or both."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not numbers or numbers[-1] >= 2**32:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; write 0-4, or 0,2,5 (below 2^32)")
        found += numbers
    return found


def count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no such number; write 1 or more")
    return int(text)


def change(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} changes nothing; write SETTING=VALUE, as in rollouts=4")
    return key, value


def variants(bases: list[str], changes: list[tuple[str, str]]) -> list[str]:
    """Every base with every combination of the changes; a setting given twice has two values."""
    values: dict[str, list[str]] = {}
    for key, value in changes:
        values.setdefault(key, []).append(f"{key}={value}")
    return [named("+".join([base, *chosen])).name for base in bases for chosen in product(*values.values())]


def found(name: str, folder: str | None) -> list[Result]:
    """The runs of an experiment in ``folder``, or in ./runs, or among the book's own, that have a curve already."""
    try:
        name = named(name).name
    except UnknownExperiment:
        if not run_folders(folder or recorded_folder(), name):  # what was recorded for a chapter has a name of its own
            raise
    if folder is None:
        folder = "runs" if run_folders("runs", name) else None  # the recorded ones
    results = load_results(name, folder)
    if any("method" not in result.provenance["settings"] for result in results):
        raise MissingResult(
            f"{name} was recorded for a chapter: it is no run of one method, as 'list' names them with METHOD-SCALE. "
            "seqgan_lib.results.load_results reads its tables"
        )
    begun = [result for result in results if "curve" in result.tables]
    if not begun:
        where = folder or recorded_folder()
        raise MissingResult(f"nothing of {name} in {where} is evaluated yet; wait, or go on: {command_for(name)}")
    return begun


# ---------------------------------------------------------------- commands


def command_list(args: argparse.Namespace) -> None:
    print("Methods: " + ", ".join(METHODS) + ". Scales:")
    for name, scale in SCALES.items():
        print(
            f"  {name:<18} vocabulary {scale.vocabulary}, T {scale.length}, {scale.train} sequences; "
            f"{scale.epochs} epochs of MLE, {scale.rounds} rounds"
        )
    here, recorded = _there("runs"), _there(recorded_folder())
    others = sorted({*here, *recorded} - {*names()})
    for title, group in [
        ("Experiments, and the seeds of runs in ./runs or recorded with the book (r)", names()),
        ("With settings changed", [name for name in others if "+" in name]),
        ("Recorded for a chapter by data/record.py", [name for name in others if "+" not in name]),
    ]:
        if group:
            print(f"\n{title}:")
        for name in group:
            what = ", ".join([*here.get(name, []), *(f"{seed} r" for seed in recorded.get(name, []))])
            print(f"  {name:<37} {what}".rstrip())


def _there(folder: str | Path) -> dict[str, list[str]]:
    """Seeds by experiment; those that are not complete are marked."""
    seeds_of: dict[str, list[str]] = {}
    for run in run_folders(folder):
        facts = read_provenance(run)
        mark = "" if facts.get("status", "complete") == "complete" else " unfinished"
        seeds_of.setdefault(run.parent.name, []).append(f"{facts['seed']}{mark}")
    return seeds_of


def command_show(args: argparse.Namespace) -> None:
    if (Path(args.experiment) / "run.json").is_file():
        facts = read_provenance(Path(args.experiment))
        print(json.dumps(facts, indent=2))
        return
    experiment = named(args.experiment)
    print(f"{experiment.name}: {experiment.method}")
    idle = ["version", "method", *UNREAD[experiment.method]]
    for key, value in experiment.to_dict().items():
        if key == "rules":
            for rule, setting in value.items():
                if rule not in idle:
                    print(f"  {rule:<16} {setting}")
        elif key not in idle:
            text = ",".join(f"{width}x{kernels}" for width, kernels in value) if key == "windows" else value
            print(f"  {key:<16} {'x'.join(map(str, text)) if key == 'd_pretraining' else text}")
    print(f"make it: {command_for(experiment.name)}", flush=True)
    announce(experiment.scale, resolve_device())


def command_run(args: argparse.Namespace) -> None:
    _run(list(product(variants(args.experiment, args.set), args.seeds)), args)


def command_study(args: argparse.Namespace) -> None:
    _run(study(), args)


def _run(runs: list[tuple[str, int]], args: argparse.Namespace) -> None:
    _threads(args)
    runs = list(dict.fromkeys(runs))  # one that is named twice would meet itself in its folder
    if args.jobs > 1:  # a run that has the terminal for itself says so
        for name, seed in runs:
            if not (run_folder(args.folder, name, seed) / "run.json").exists():
                announce(named(name).scale, resolve_device(args.device))
    how = {"device": args.device, "minutes": args.minutes, "tensorboard": args.tensorboard}
    results = run_all(runs, args.folder, jobs=args.jobs, progress=args.jobs == 1, **how)
    stopped = [result for result in results if isinstance(result, RunStopped)]
    for (name, seed), result in zip(runs, results, strict=True):
        if isinstance(result, Result):
            seconds = result.provenance["seconds"]
            print(f"{name}, seed {seed}: complete, {duration(seconds)}, in {Path(args.folder) / name / f'seed-{seed}'}")
    if stopped:
        kind = RunPaused if all(isinstance(one, RunPaused) for one in stopped) else RunStopped
        raise kind("\n".join(map(str, stopped)))


def command_resume(args: argparse.Namespace) -> None:
    _threads(args)
    for folder in args.folder:
        result = resume(folder, device=args.device, minutes=args.minutes, tensorboard=args.tensorboard)
        print(f"{folder}: complete, {duration(result.provenance['seconds'])}")


def command_compare(args: argparse.Namespace) -> None:
    runs = {name: found(name, args.folder) for name in args.experiment}
    choose = _column(args, runs)
    column, shown = f"test_{choose}", ("best", "end") if has_best(choose) else ("end",)
    unit = " in nats per token" if choose in ("nll_oracle", "held_out", "entropy") else ""
    curves = [result.tables["curve"] for results in runs.values() for result in results]
    elsewhere = " on another sample" if all(column in curve.columns for curve in curves) else ""
    which = f"of the row with the best {choose}{elsewhere}" if "best" in shown else "at the end"
    print(f"{choose}{unit}, {which}; mean (least to most)")
    titles = "".join(f"{what:<25}" for what in shown)
    print(f"{'':<36} {'seeds':>5}  {titles}{shown[0]} less the first line's, same seeds")
    first: dict[int, float] = {}
    for name, results in runs.items():
        grades: dict[str, dict[int, float]] = {what: {} for what in shown}
        for result in results:
            curve = result.tables["curve"]
            reported = curve[column] if column in curve.columns else curve[choose]
            for what in shown:
                row = best_row(choose, curve[choose]) if what == "best" else -1
                grades[what][result.seed] = reported[row]
        ours = grades[shown[0]]
        first = first or ours
        both = [ours[seed] - first[seed] for seed in ours if seed in first]
        cells = "".join(f"{_spread(grades[what].values()):<25}" for what in shown)
        unfinished = [r.seed for r in results if r.provenance.get("status", "complete") != "complete"]
        print(
            f"{name:<36} {len(results):>5}  {cells}{_spread(both)}"
            + (f"  (unfinished: seeds {', '.join(map(str, unfinished))})" if unfinished else "")
        )


def _column(args: argparse.Namespace, runs: dict[str, list[Result]]) -> str:
    """The column that was asked for; else nll_oracle, or held_out where there was no oracle to ask."""
    known = [result.tables["curve"].columns for results in runs.values() for result in results]
    return args.column or ("nll_oracle" if all("nll_oracle" in columns for columns in known) else "held_out")


def _spread(values) -> str:
    values = list(values)
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "no seed in common"


def command_plot(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("seaborn") is None:
        raise MissingResult('plotting needs matplotlib and seaborn: pip install "seqgan_lib[plot]"')
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from .plotting import use_style

    use_style()
    fig, ax = pyplot.subplots(layout="constrained")
    runs = {name: found(name, args.folder) for name in args.experiment}
    column = _column(args, runs)
    for number, (name, results) in enumerate(runs.items()):
        for first, result in enumerate(results):
            curve, label = result.tables["curve"], None if first else name
            shown = curve["epoch"] >= args.since
            line = {"color": f"C{number}", "lw": 1, "alpha": 0.8, "label": label}
            ax.plot(curve["epoch"][shown], curve[column][shown], **line)
    ax.set(xlabel="epoch of MLE, then round of the game", ylabel=column.replace("_", " "))
    ax.legend()
    fig.savefig(args.out, dpi=150)
    print(f"drawn: {args.out}")


def _threads(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes of --jobs


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "python -m seqgan_lib",
        description="Run the experiments of the book SeqGAN Step by Step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    def names_of(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("experiment", nargs="+", help="METHOD-SCALE, such as seqgan-classroom; 'list' shows them")

    def how(sub: argparse.ArgumentParser) -> None:
        there = importlib.util.find_spec("tensorboard") is not None
        sub.add_argument("--device", default="auto", help="cpu or cuda (default: CUDA where there is a GPU)")
        sub.add_argument("--minutes", type=float, default=float("inf"), help="stop, saved, after so long")
        sub.add_argument("--threads", type=count, help="CPU threads; 1 lets several runs work side by side")
        board = argparse.BooleanOptionalAction
        sub.add_argument("--tensorboard", action=board, default=there, help="log for it (default: if installed)")

    command("list", command_list, "list the experiments, and what is recorded of them")
    show = command("show", command_show, "show every setting of an experiment, or what is known of a run")
    show.add_argument("experiment", help="an experiment's name, or a run's folder")
    sub = command("run", command_run, "run experiments, or go on with those that stopped; complete ones are left alone")
    names_of(sub)
    sub.add_argument("--seeds", type=seeds, default=[0], help="0-4, or 0,2,5 (default: 0)")
    text = "change a setting; the same one twice gives two variants"
    sub.add_argument("--set", type=change, action="append", default=[], metavar="SETTING=VALUE", help=text)
    text = f"do the study of chapter 8, {len(study())} runs, or go on with it; complete runs are left alone"
    for runs in (sub, command("study", command_study, text)):
        runs.add_argument("--folder", default="runs", help="where to keep runs (default: runs)")
        runs.add_argument("--jobs", type=count, default=1, help="how many at a time, each in a process (default: 1)")
        how(runs)
    sub = command("resume", command_resume, "go on with runs that were stopped or killed")
    sub.add_argument("folder", nargs="+", help="a run's folder, such as runs/seqgan-classroom/seed-0")
    how(sub)
    sub = command("compare", command_compare, "compare experiments in a table, seed by seed")
    names_of(sub)
    plot = command("plot", command_plot, "draw the curves of experiments, every seed a line")
    names_of(plot)
    plot.add_argument("--out", default="runs.png", help="the picture to write (default: runs.png)")
    plot.add_argument("--since", type=int, default=0, metavar="EPOCH", help="leave out what was before (default: 0)")
    for reads in (sub, plot):
        text = "nll_oracle (default), held_out (default where there is no oracle), entropy, bleu_2, ..."
        reads.add_argument("--column", help=text)
        reads.add_argument("--folder", help="where the runs are (default: ./runs, else the book's recorded results)")
    return top


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; or, with a sentence on stderr that says what to do, 75 if only the time was up (try again, to Unix), 130 for
    Ctrl-C before or between runs, and else 1.
    """
    args = parser().parse_args(words)
    try:
        args.function(args)
    except (ValueError, RunStopped, KeyError) as error:  # UnknownExperiment and MissingResult among them
        print(error.args[0] if error.args else error, file=sys.stderr)
        return 75 if isinstance(error, RunPaused) else 1
    except KeyboardInterrupt:
        print("\nstopped by hand; the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a picture or a run that cannot be written, a file that cannot be read
        print(f"{error.filename or 'a file'} cannot be read or written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
