"""Scales, worlds and recorded results."""

import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seqgan_lib import LanguageModel, __main__, adversarial, experiments, new_generator, random_oracle
from seqgan_lib.adversarial import Game, Rules
from seqgan_lib.configs import Experiment, named
from seqgan_lib.datasets import data_folder
from seqgan_lib.discriminator import Discriminator
from seqgan_lib.experiments import (
    METHODS,
    SCALES,
    RunPaused,
    Scale,
    announce,
    duration,
    forecast,
    imitate,
    make_world,
    run,
    train,
    train_on,
)
from seqgan_lib.history import History
from seqgan_lib.metrics import mean_nll
from seqgan_lib.mle import train_mle
from seqgan_lib.results import (
    MissingResult,
    Result,
    best_row,
    interval,
    late_rows,
    load_results,
    recorded_lines,
    reported,
    run_folder,
    write_result,
)

TINY = Scale(vocabulary=20, length=5, train=30, held_out=40, epochs=2, windows=((2, 4),))


def test_a_world_is_its_seed():
    one, two, other = make_world(TINY, 0), make_world(TINY, 0), make_world(TINY, 1)
    assert torch.equal(one.train, two.train) and torch.equal(one.held_out, two.held_out)
    assert not torch.equal(one.train, other.train)
    assert one.train.shape == (30, 5) and one.held_out.shape == (40, 5)
    assert not torch.equal(one.train[:10], one.held_out[:10])


def test_a_sharper_world_has_a_lower_floor():
    plain, sharp = (make_world(TINY, 0, sharpness=s) for s in (1.0, 3.0))
    assert mean_nll(sharp.oracle, sharp.held_out) < mean_nll(plain.oracle, plain.held_out) - 0.3


def test_the_paper_scale_is_the_papers():
    paper = SCALES["paper"]
    assert (paper.vocabulary, paper.length, paper.train, paper.published) == (5000, 20, 10_000, True)


def test_an_unknown_scale_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'huge'.*classroom, study, paper"):
        make_world("huge", 0)


def test_a_missing_result_names_its_command(tmp_path):
    with pytest.raises(MissingResult, match="python data/record.py oracle-paper"):
        load_results("oracle-paper", tmp_path)


@pytest.mark.parametrize(
    "folder", sorted({p.parent.parent.name for p in (data_folder() / "results").glob("*/*/run.json")})
)
def test_recorded_results_are_whole(folder):
    results = load_results(folder)
    assert [r.seed for r in results] == list(range(len(results))), "seeds are counted, not chosen"
    for result in results:
        assert {"command", "settings", "versions", "device", "seconds", "commit"} <= set(result.provenance)
        assert result.provenance["experiment"] == folder and result.provenance["commit"]
        if "status" in result.provenance:
            check_a_run(result)
            continue
        for table in result.tables.values():
            assert len(table.rows) > 1
            clock = next((name for name in ("epoch", "round") if name in table.columns), None)
            begins = np.zeros(len(table.rows) - 1, bool)
            if clock:  # trainings one after the other, each with a label of its own or from its own beginning
                begins = (np.diff(table[clock]) < 0) | (np.diff(table[table.columns[0]]) != 0) & (
                    table.columns[0] != clock
                )
            trainings = np.split(np.arange(len(table.rows)), np.flatnonzero(begins) + 1)
            for column in table.columns:
                for rows in trainings:
                    finite = np.isfinite(table[column][rows])
                    # Before its first step a training has no loss, and before the game no rounds; what one notes
                    # another may not. But what was noted once is noted to the end.
                    assert (np.diff(finite.astype(int)) >= 0).all(), f"{folder}: a gap in {column}"


def check_a_run(result):
    """What `python -m seqgan_lib run` records: a curve without gaps, and as long as its status says."""
    settings, curve = result.provenance["settings"], result.tables["curve"]
    assert named(result.provenance["experiment"]).to_dict() == settings
    assert (np.diff(curve["epoch"]) > 0).all() and curve["epoch"][0] == 0
    graded = ("distinct_2", "bleu_2", "self_bleu_2", "copied") if "corpus" in settings else ("nll_oracle",)
    for column in ("held_out", "entropy", "distinct", *graded):
        assert np.isfinite(curve[column]).all() and np.isfinite(curve[f"test_{column}"]).all()
    whole = curve["epoch"][-1] == settings["epochs"] + settings["rounds"]
    assert whole == (result.provenance["status"] == "complete")
    if "round" in curve.columns:
        played = curve["round"] > 0
        assert all(
            np.isfinite(curve[name][played]).all() for name in curve.columns if name.startswith(("d_", "reward"))
        )


WATCHED = {"epoch", "nll_oracle", "held_out", "entropy", "distinct", "twice"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_through_the_same_interface(method):
    rules = Rules(g_steps=1, d_steps=1, k=1, rollouts=2, batch_size=10)
    scale = replace(TINY, epochs=3, rounds=2, rules=rules, d_pretraining=(1, 1))
    world = make_world(scale, 0)
    start, _ = imitate(world, 0, 3)
    before = {name: w.clone() for name, w in start.state_dict().items()}
    models = []
    for given in (start, None):  # left alone, it trains the same start itself
        model, history = train(method, world, 0, given, also=lambda m: {"twice": 2.0})
        models.append(model)
        assert set(history.columns) >= WATCHED and (history["twice"] == 2).all()
        if method in ("PG-BLEU", "SeqGAN"):
            assert history["epoch"].tolist() == ([3, 4, 5] if given else [0, 3, 4, 5])
        else:
            assert history["epoch"].tolist() == [0, 5]
        assert ("d_accuracy_fresh" in history.columns) == (method == "SeqGAN")
    for name, w in models[0].state_dict().items():
        assert torch.equal(w, models[1].state_dict()[name])
        assert torch.equal(before[name], start.state_dict()[name]), "the start is copied, not trained on"
    assert not torch.equal(models[0].output, start.output)


def test_what_a_scale_says_reaches_every_part(monkeypatch):
    """Each number of it is unlike its default, and what the parts are given is noted."""
    rules = Rules(g_steps=1, d_steps=1, k=1, rollouts=2, batch_size=10, d_learning_rate=0.003)
    how = {"windows": ((2, 3), (4, 5)), "dropout": 0.125, "l2": 0.75, "bleu_order": 3, "d_pretraining": (2, 4)}
    world = make_world(replace(TINY, epochs=3, rounds=2, evaluate_every=2, rules=rules, **how), 0)
    games, seen = [], []

    class Noted(Game):
        def __init__(self, *parts, **how):
            super().__init__(*parts, **how)
            games.append(self)

        def train_discriminator(self, *how, **more):
            seen.append(how)
            return super().train_discriminator(*how, **more)

        def play(self, *how, **more):
            seen.append((*how, more["evaluate_every"]))
            return super().play(*how, **more)

    def train_noted(*parts, **how):
        seen.append((how["epochs"], how.get("omega_decay", 0.0)))
        return train_mle(*parts, **how)

    monkeypatch.setattr(experiments, "Game", Noted)
    monkeypatch.setattr(experiments, "train_mle", train_noted)
    expected = [[(5, 0.0)], [(5, 0.002)], [(3, 0.0), (2, 2)], [(3, 0.0), (2, 4), (2, 2)]]
    for method, noted in zip(METHODS, expected, strict=True):
        seen.clear()
        train(method, world, 0, progress=False)
        assert seen == noted, method
    pg_bleu, seqgan = games
    assert pg_bleu.judge.order == 3 and torch.equal(pg_bleu.judge(world.train), torch.ones(30).double())
    assert (seqgan.judge.windows, seqgan.judge.dropout, seqgan.judge.l2) == (how["windows"], 0.125, 0.75)
    for game in games:
        assert game.rules == rules
        assert torch.equal(game.data, world.train) and torch.equal(game.held_out, world.held_out)


def test_a_recorded_run_begins_as_the_library_makes_it_today(tmp_path):
    """The same world, weights, batches, negatives and samples to grade by: a stream that moved would show.

    Another machine's rounding moves a rare token, and a row by far less than another stream does.
    """
    name = "seqgan-study+epochs=2"
    recorded = load_results(name)[0].tables
    for _ in range(3):  # two epochs of MLE, then a round of the discriminator's pre-training
        with pytest.raises(RunPaused):
            run(name, 0, tmp_path, minutes=1e-9, save_every=0, device="cpu", progress=False)
    now = load_results(name, tmp_path)[0].tables
    for column in ("nll_oracle", "test_nll_oracle", "held_out", "entropy", "test_entropy"):
        assert now["curve"][column][0] == pytest.approx(recorded["curve"][column][0], abs=1e-3), column
    assert now["curve"]["held_out"][1] == pytest.approx(recorded["curve"]["held_out"][1], abs=1e-3)
    for column in ("d_loss", "d_loss_fresh"):
        assert now["discriminator"][column][:2] == pytest.approx(recorded["discriminator"][column][:2], abs=1e-3)


def test_your_own_lines_train_a_generator(tmp_path):
    lines = [[f"w{(k * k + 3 * j) % 11}" for j in range(6)] + [f"x{k}"] for k in range(60)]
    quick = {"epochs": 2, "rounds": 1, "d_pretraining": (1, 1), "windows": ((2, 4),), "progress": False}
    quick["rules"] = Rules(g_steps=1, d_steps=1, k=1, rollouts=2, batch_size=10)
    model, history, corpus = train_on(lines, length=7, **quick)
    assert history["epoch"].tolist() == [0, 2, 3] and "d_accuracy" in history.columns and "bleu_2" in history.columns
    assert len(corpus.train) == 48 and model.vocabulary == len(corpus.vocabulary)
    assert all(len(text.split()) == 7 for text in corpus.decode(model.sample(5, 7, generator=new_generator(0))))
    path = tmp_path / "mine.txt"
    path.write_text("\n".join(map(" ".join, lines)))
    again, _, _ = train_on(path, length=7, **quick)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, _, _ = train_on(path, length=7, seed=1, **quick)
    assert not torch.equal(other.output, model.output)
    by_name, _, _ = train_on(path, length=7, **quick, rollouts=1)  # a number of the game, by its name
    assert not torch.equal(by_name.output, model.output)
    del quick["windows"]  # those of the scale, cut to what fits
    _, history, corpus = train_on(path, "MLE", length=2, seed=1, **quick)
    assert "reward_1" not in history.columns and corpus.test.shape[1] == 2


def test_your_own_lines_are_refused_as_a_corpus_refuses_them(tmp_path):
    with pytest.raises(ValueError, match="your lines holds no text"):
        train_on([])
    with pytest.raises(TypeError, match="colour"):
        train_on([[str(k), "b"] for k in range(20)], length=2, colour="red")
    with pytest.raises(ValueError, match="held_out, train cannot be set here: your lines say how many"):
        train_on([[str(k), "b"] for k in range(20)], length=2, train=10, held_out=2)


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match="'GAN'.*MLE, scheduled sampling, PG-BLEU, SeqGAN"):
        train("GAN", make_world(TINY, 0), 0)


def test_results_come_back_by_seed(tmp_path):
    for seed in (10, 2):
        folder = run_folder(tmp_path, "x", seed)
        folder.mkdir(parents=True)
        write_result(folder, {"curve": History([{"epoch": 0}, {"epoch": 1, "loss": seed + 0.5}])}, {"seed": seed})
    results = load_results("x", tmp_path)
    assert [r.seed for r in results] == [2, 10]
    assert results[1].tables["curve"]["loss"][1] == 10.5
    assert results[0].provenance == {"seed": 2, "tables": ["curve"]}


def test_recorded_results_travel_with_an_installation(tmp_path):
    """In a wheel, unpacked elsewhere, one function finds them; what is needed only while a run goes on stays out."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import seqgan_lib.results as r; print(r.__file__, len(r.load_results('oracle-paper')), r.code_commit())"
    elsewhere = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}}
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, **elsewhere).stdout
    assert said.split() == [str(tmp_path / "site" / "seqgan_lib" / "results.py"), "3"]
    assert not [p for p in (tmp_path / "site").rglob("*") if p.suffix == ".pt"]


@pytest.mark.parametrize("runs", [3, 5, 10])
def test_an_interval_holds_the_mean_as_often_as_it_says(runs):
    mean, half = interval(np.random.default_rng(0).normal(3.0, 2.0, size=(runs, 20_000)))
    assert mean.shape == half.shape == (20_000,)
    assert np.mean(np.abs(mean - 3.0) < half) == pytest.approx(0.95, abs=0.01)


def runs_of_two_trainings():
    """Two runs, each with a table of two trainings: three epochs of imitation, then rounds."""
    tables = [
        [
            {"method": method, "epoch": epoch, "nll_oracle": nll, "bleu_2": -nll, "test_entropy": 10 * seed + epoch}
            for method in (0, 1)
            for epoch, nll in ((2, 0.0), (3, 5.0), (4, 3.0 + method), (5, 4.0))
        ]
        for seed in range(2)
    ]
    return [Result(seed, {"curve": History(rows)}, {"settings": {"epochs": 3}}) for seed, rows in enumerate(tables)]


def test_the_rows_after_imitation():
    run = runs_of_two_trainings()[1]
    assert late_rows(run)["epoch"].tolist() == [3, 4, 5, 3, 4, 5]
    late = late_rows(run, method=1)
    assert late["nll_oracle"].tolist() == [5, 4, 4] and late["test_entropy"].tolist() == [13, 14, 15]
    again = Result(0, {"again": run.tables["curve"]}, run.provenance)
    assert late_rows(again, "again", method=1)["epoch"].tolist() == [3, 4, 5]


def test_the_best_row_is_chosen_by_one_grade_and_reported_by_another():
    runs = runs_of_two_trainings()  # the best row of all is before the end of imitation, and does not count
    assert reported(runs, "entropy", by="nll_oracle", method=0).tolist() == [4, 14]
    assert reported(runs, "entropy", by="bleu_2", method=0).tolist() == [4, 14]
    with pytest.raises(KeyError, match="no column 'round'"):
        reported(runs, "entropy", by="nll_oracle", round=0)


@pytest.mark.parametrize(
    ("column", "row"), [("nll_oracle", 1), ("self_bleu_2", 1), ("bleu_2", 2), ("distinct_2", 2), ("reward_5", 2)]
)
def test_what_is_best_is_least_or_most(column, row):
    values = np.array([np.nan, 1.0, 3.0, 2.0])
    assert best_row(column, values) == best_row(f"test_{column}", values) == row


@pytest.mark.parametrize("column", ["entropy", "test_entropy", "epoch", "d_accuracy", "loss"])
def test_what_has_no_best_has_no_best_row(column):
    with pytest.raises(ValueError, match=f"neither the most nor the least {column} is the best"):
        best_row(column, np.array([1.0, 2.0]))


def test_recorded_lines_are_the_lines_that_were_recorded():
    rows = [{"method": k % 2, **{f"t{t}": 100 * k + t for t in range(1, 13)}, "temperature": 1.0} for k in range(6)]
    lines = recorded_lines(History(rows), method=1)
    assert (
        lines.dtype == torch.int64
        and lines[:, 0].tolist() == [101, 301, 501]
        and lines[1].tolist() == [*range(301, 313)]
    )
    assert (
        len(recorded_lines(History(rows))) == 6 and len(recorded_lines(History(rows), method=0, temperature=0.5)) == 0
    )


# ---------------------------------------------------------------- told beforehand

COSTS = {"MLE": 1, "scheduled sampling": 2, "PG-BLEU": 3, "SeqGAN": 5, "D step": 7}
COSTS |= {"draw": 0.01, "verdict": 0.02, "grade": 0.03}


def test_a_forecast_is_the_sum_of_all_steps(monkeypatch):
    """By hand: classroom has 32 batches an epoch and 63 with negatives, paper 157 and 313."""
    monkeypatch.setattr(experiments, "_costs", lambda scale, device: COSTS)
    graded = 0.03 * 2_000 * 2
    game = 60 * 32 + graded * (13 + 21)
    judge = (20 + 20) * 63 * 7 + 0.01 * 2_000 * (20 + 20) + 0.02 * 2_000 * (21 + 21)
    assert forecast("classroom") == pytest.approx(
        {
            "MLE": 80 * 32 + graded * 17,
            "scheduled sampling": 80 * 32 * 2 + graded * 17,
            "PG-BLEU": game + 20 * 2 * 3,
            "SeqGAN": game + 20 * 2 * 5 + judge,
        }
    )
    graded = 0.03 * 10_000 * 2
    game = 120 * 157 + graded * (25 + 41)
    judge = (50 * 3 + 200 * 5 * 3) * 313 * 7 + 0.01 * 10_000 * (50 + 200 * 5) + 0.02 * 2_000 * (51 + 41)
    assert forecast(SCALES["paper"]) == pytest.approx(
        {
            "MLE": 320 * 157 + graded * 65,
            "scheduled sampling": 320 * 157 * 2 + graded * 65,
            "PG-BLEU": game + 200 * 3,
            "SeqGAN": game + 200 * 5 + judge,
        }
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_forecast_counts_what_training_does(monkeypatch, method):
    did, names = Counter(), {LanguageModel: "nll", Game: "_g_step", Discriminator: "loss"}

    def noted(owner, name, what=lambda *_: 1):
        real = getattr(owner, name)

        def noting(*args, **how):
            did[name] += what(*args)
            return real(*args, **how)

        monkeypatch.setattr(owner, name, noting)

    rules = Rules(g_steps=2, d_steps=3, k=2, rollouts=1, batch_size=10)
    scale = replace(TINY, train=70, epochs=3, rounds=4, evaluate_every=3, rules=rules, d_pretraining=(2, 2))
    world = make_world(scale, 0)
    for owner, name in names.items():
        noted(owner, name)
    noted(experiments, "grade", lambda model, oracle, held_out: len(held_out))
    noted(adversarial, "verdict", lambda judge, real, generated: len(generated) / 2)  # twice a row
    train(method, world, 0, also=experiments.tested(world, new_generator(5)), progress=False)
    counts = Counter(experiments._counts(method, scale))
    assert did["nll"] == sum(counts[name] for name in METHODS)
    assert did["_g_step"] == counts["PG-BLEU"] + counts["SeqGAN"]
    assert did["loss"] == counts["D step"] and did["verdict"] == counts["verdict"] and did["grade"] == counts["grade"]


def test_a_forecast_comes_true():
    """Within a factor of three, at the second try if the machine did something else at the first."""
    rules = Rules(g_steps=2, d_steps=1, k=1, rollouts=8)
    how = {"windows": ((2, 50), (3, 50)), "d_pretraining": (2, 1), "rules": rules}
    scale = Scale(300, 10, 500, 200, epochs=5, rounds=3, **how)
    world, before = make_world(scale, 0, "cpu"), torch.get_rng_state()
    for last in (False, True):
        expected, took = forecast(scale, "cpu"), {}
        for method in ("MLE", "SeqGAN"):
            begun = time.perf_counter()
            train(method, world, 0, also=experiments.tested(world, new_generator(5)), progress=False)
            took[method] = time.perf_counter() - begun
        if all(1 / 3 < expected[method] / took[method] < 3 for method in took):
            break
        assert not last, (expected, took)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("scale", "pitches"), [("music-classroom", True), ("poems-classroom", False)])
def test_a_real_task_has_a_forecast_without_its_lines(monkeypatch, scale, pitches):
    graders = []
    monkeypatch.setattr(experiments, "LineGrader", lambda *given: graders.append(given) or (lambda *_, **__: {}))
    monkeypatch.setattr(experiments, "_seconds", lambda call, device: (call(), 1.0)[1])
    monkeypatch.setattr(Game, "_g_step", lambda self: None)
    assert set(forecast(scale, "cpu")) == set(METHODS) and graders[0][2] == pitches


@pytest.fixture
def known_times(monkeypatch):
    """Every forecast is the same, and nothing has been told yet."""
    monkeypatch.setattr(experiments, "forecast", lambda scale, device: {"MLE": 90, "SeqGAN": 90_000})
    announce.cache_clear()
    yield
    announce.cache_clear()


def test_only_the_papers_scale_says_how_long_it_takes(known_times, capsys):
    for name, scale in SCALES.items():
        announce(scale, torch.device("cpu"))
        told = capsys.readouterr().out
        assert bool(told) == (name == "paper")
        if told:
            assert "'paper'" in told and "CPU" in told and "MLE 90 s, SeqGAN 25.0 h" in told and "GiB" in told


def test_a_world_says_it_once_unless_told_not_to(known_times, capsys, monkeypatch):
    monkeypatch.setattr(experiments, "published_oracle", lambda: random_oracle(2, generator=new_generator(0)))
    make_world("classroom", 0)
    make_world("paper", 0, "cpu", tell=False)
    assert capsys.readouterr().out == ""
    make_world("paper", 0, "cpu")
    assert capsys.readouterr().out.count("SeqGAN 25.0 h") == 1
    make_world("paper", 1, "cpu")
    assert capsys.readouterr().out == ""


def test_a_run_says_it_at_its_beginning(monkeypatch, tmp_path):
    told, tiny = [], Experiment("mle-tiny", "MLE", TINY)
    monkeypatch.setattr(experiments, "announce", lambda scale, device: told.append(scale))
    run(tiny, 0, tmp_path, device="cpu", progress=False)
    assert told == []
    for _ in range(2):  # once begun, it goes on without
        with pytest.raises(RunPaused):
            run(tiny, 1, tmp_path, device="cpu", minutes=1e-9)
        assert told == [TINY]


def test_the_command_line_says_it(known_times, capsys, monkeypatch, tmp_path):
    assert __main__.main(["show", "seqgan-paper"]) == 0
    assert "SeqGAN 25.0 h" in capsys.readouterr().out.partition("make it:")[2]
    assert __main__.main(["show", "seqgan-study"]) == 0
    assert "25.0 h" not in capsys.readouterr().out
    announce.cache_clear()
    monkeypatch.setattr(__main__, "run_all", lambda runs, *_, **__: [RunPaused("later")] * len(runs))
    command = ["run", "seqgan-paper", "mle-paper", "--seeds", "0-1", "--device", "cpu", "--folder", str(tmp_path)]
    assert __main__.main(command) == 75  # one at a time: each says it itself
    assert "25.0 h" not in capsys.readouterr().out
    assert __main__.main([*command, "--jobs", "2"]) == 75
    assert capsys.readouterr().out.count("SeqGAN 25.0 h") == 1


def test_durations_are_said_as_one_would():
    assert [duration(seconds) for seconds in (99, 600, 7_200)] == ["99 s", "10 min", "2.0 h"]
