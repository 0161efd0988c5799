"""Runs: killed at any moment, stopped, moved, resumed, refused; many at once; and their command line."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seqgan_lib import __main__ as command_line
from seqgan_lib import experiments, new_generator, training
from seqgan_lib.adversarial import Game, Rules
from seqgan_lib.bleu import Bleu
from seqgan_lib.checkpoint import CheckpointCorrupt, Checkpoints, load_state, save_state
from seqgan_lib.configs import (
    KNOBS,
    METHODS,
    SCALES,
    UNREAD,
    Experiment,
    Scale,
    Task,
    UnknownExperiment,
    command_for,
    named,
    names,
    study,
)
from seqgan_lib.corpora import CORPORA, make_corpus
from seqgan_lib.datasets import DataUnavailable
from seqgan_lib.experiments import RunStopped, make_world, resume, run, run_all
from seqgan_lib.history import write_whole
from seqgan_lib.language_model import LanguageModel
from seqgan_lib.results import MissingResult, load_results, read_provenance, run_folder

RULES = Rules(g_steps=1, d_steps=1, k=1, rollouts=2, batch_size=10, baseline="batch")
TINY = Scale(20, 5, 30, 40, epochs=6, rounds=5, rules=RULES, windows=((2, 4),), d_pretraining=(3, 1))
SEQGAN = Experiment("tiny-seqgan", "SeqGAN", TINY)
QUIET = {"save_every": 0.0, "progress": False, "device": "cpu"}


def content(folder):
    """Everything of a run that must not depend on how often it was stopped."""
    files = {name: (folder / name).read_bytes() for name in ("curve.csv", "discriminator.csv", "model.pt")}
    return {"settings": json.dumps(read_provenance(folder)["settings"]), **files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(SEQGAN, 0, folder, **QUIET)
    assert result.provenance["status"] == "complete"
    return content(run_folder(folder, SEQGAN.name, 0))


def left(folder):
    return sorted(p.name for p in run_folder(folder, SEQGAN.name, 0).iterdir())


# ---------------------------------------------------------------- survival


@pytest.fixture(scope="module")
def processes():
    """Processes that start within milliseconds, because torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["seqgan_lib.experiments"])
    return context


def test_fifty_kills_at_random_times_lose_nothing(whole, processes, tmp_path):
    times, kills, runs = random.Random(0), 0, 0
    while kills < 50:  # over as many runs as it takes
        folder = tmp_path / str(runs)
        for attempt in range(200):
            process = processes.Process(target=run, args=(SEQGAN, 0, folder), kwargs=QUIET)
            process.start()
            # From before its first step to after its last, also on a machine with much else to do.
            process.join(times.uniform(0.3, 1.6) * (1 + attempt / 20))
            if process.is_alive():
                process.kill()  # SIGKILL: nothing in the process can prepare for it
                kills += 1
            process.join()
            if process.exitcode == 0:
                break
        assert content(run_folder(folder, SEQGAN.name, 0)) == whole
        assert left(folder) == ["curve.csv", "discriminator.csv", "model.pt", "run.json"]
        runs += 1


def test_stopped_and_resumed_at_every_step_it_is_the_same_run(whole, tmp_path):
    stops = 0
    while True:
        try:
            run(SEQGAN, 0, tmp_path, minutes=1e-9, **QUIET)
            break
        except RunStopped as stopped:
            stops += 1
            assert "the time is up" in str(stopped) and "resume" in str(stopped)
            assert len([name for name in left(tmp_path) if name.startswith("checkpoint")]) in (1, 2)
    assert stops == TINY.epochs + TINY.d_pretraining[0] + TINY.rounds
    assert content(run_folder(tmp_path, SEQGAN.name, 0)) == whole


def stop_in_round(monkeypatch, number, error):
    """Let the game's round of this number, counted in this process, raise ``error`` half-way."""
    rounds, step = [], experiments.Game._d_step

    def spoilt(self, epochs):
        rounds.append(1)
        if len(rounds) == number:
            raise error
        step(self, epochs)

    monkeypatch.setattr(experiments.Game, "_d_step", spoilt)


def test_ctrl_c_leaves_a_run_that_goes_on(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_round(patch, 6, KeyboardInterrupt())
        with pytest.raises(RunStopped, match=r"stopped by hand. To go on: python -m seqgan_lib resume \S+seed-0"):
            run(SEQGAN, 0, tmp_path, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    assert read_provenance(folder)["status"] == "stopped by hand"
    assert load_results(SEQGAN.name, tmp_path)[0].tables["curve"]["round"][-1] == 2  # what is there can be read
    resume(folder, **QUIET)
    assert content(folder) == whole


def test_ctrl_c_saves_the_last_whole_step(whole, tmp_path, monkeypatch):
    how = QUIET | {"save_every": 1e9}  # nothing else is ever saved
    with monkeypatch.context() as patch:
        stop_in_round(patch, 6, KeyboardInterrupt())
        with pytest.raises(RunStopped, match="stopped by hand"):
            run(SEQGAN, 0, tmp_path, **how)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    assert load_state(next(folder.glob("checkpoint-*.pt")))["done"] == {"MLE": 6, "discriminator": 3, "game": 2}
    resume(folder, **how)
    assert content(folder) == whole


def test_a_run_that_goes_on_elsewhere_says_where_it_began(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_round(patch, 6, KeyboardInterrupt())
        patch.setattr(experiments, "describe_machine", lambda device: ELSEWHERE)
        with pytest.raises(RunStopped):
            run(SEQGAN, 0, tmp_path, **QUIET)
    for _ in range(2):  # stopped once more, here, which adds nothing
        with pytest.raises(RunStopped):
            run(SEQGAN, 0, tmp_path, minutes=1e-9, **QUIET)
    result = run(SEQGAN, 0, tmp_path, **QUIET)
    assert result.provenance["earlier"] == [ELSEWHERE] and result.provenance["commit"] != ELSEWHERE["commit"]
    assert "earlier" not in run(SEQGAN, 1, tmp_path, **QUIET).provenance


ELSEWHERE = {"versions": {"torch": "2.4.0"}, "device": "CPU, another", "commit": "0123456789ab-dirty"}


def test_a_number_that_is_not_finite_leaves_a_run_that_goes_on(whole, tmp_path, monkeypatch):
    calls, usual = [], LanguageModel.nll

    def spoilt(self, *args, **how):
        calls.append(1)
        return usual(self, *args, **how) * (float("nan") if len(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "nll", spoilt)
        with pytest.raises(RunStopped, match=r"the loss not finite in epoch 5 \(MLE\).*lower the learning rate"):
            run(SEQGAN, 0, tmp_path, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    assert "not finite" in read_provenance(folder)["status"]
    run(SEQGAN, 0, tmp_path, **QUIET)  # naming it again is as good as resume
    assert content(folder) == whole


@pytest.mark.parametrize("limit", [6_000, 20_000])  # bytes a file: too small for a checkpoint of MLE, of the game
def test_a_file_that_cannot_be_written_leaves_a_run_that_goes_on(whole, tmp_path, limit):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(RunStopped, match="too large.*To go on"):
            run(SEQGAN, 0, tmp_path, **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(".partial" in name for name in left(tmp_path))
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    resume(folder, **QUIET)
    assert content(folder) == whole


def test_a_full_disk_leaves_a_run_that_goes_on(whole, tmp_path, monkeypatch):
    writes, usual = [], os.fsync

    def full(number):
        writes.append(1)
        if len(writes) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        usual(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunStopped, match="No space left on device.*To go on"):
            run(SEQGAN, 0, tmp_path, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    resume(folder, **QUIET)
    assert content(folder) == whole


@pytest.mark.parametrize("harm", ["truncated", "a byte changed", "emptied", "another file"])
def test_a_checkpoint_that_is_not_whole_is_named_and_the_one_before_it_used(whole, tmp_path, monkeypatch, harm):
    with monkeypatch.context() as patch:
        stop_in_round(patch, 5, KeyboardInterrupt())
        with pytest.raises(RunStopped):
            run(SEQGAN, 0, tmp_path, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    older, newest = sorted(folder.glob("checkpoint-*.pt"))
    data = bytearray(newest.read_bytes())
    if harm == "a byte changed":
        data[len(data) // 2] ^= 1
    newest.write_bytes({"truncated": data[:-100], "emptied": b"", "another file": b"PK\3\4"}.get(harm, bytes(data)))
    with pytest.raises(CheckpointCorrupt, match=newest.name):
        load_state(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is truncated or altered.*one before it is used"):
        resume(folder, **QUIET)
    assert older.name < newest.name and content(folder) == whole


def test_a_checkpoint_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    save_state(tmp_path / "evil.pt", {"x": Evil()})
    with pytest.raises(Exception, match="(?i)weights.only"):
        load_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_checkpoints_are_not_saved_more_often_than_asked_for(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    keeper = Checkpoints(tmp_path, seconds=10)
    history = training.History()
    keeper.resume("MLE", [], history)
    for step in range(1, 25):
        now[0] += 1
        keeper.keep("MLE", step, [], history)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["checkpoint-000010.pt", "checkpoint-000020.pt"]


def test_a_game_that_had_enough_has_it_when_resumed(tmp_path):
    """Patience ran out, and the process ended before anything else was saved: no round is played on top of it."""
    world = make_world(TINY, 0)

    def played():
        model = LanguageModel(20, generator=new_generator(1))
        game = Game(model, Bleu(world.train, 2), world.train, rules=RULES, generator=new_generator(2))
        worse = iter(range(100))
        how = {"keep_best": "x", "patience": 2, "progress": False, "keeper": Checkpoints(tmp_path, seconds=0)}
        return model, game.play(9, evaluate=lambda m: {"x": next(worse)}, **how)

    (one, history), (two, again) = played(), played()
    assert history["round"].tolist() == again["round"].tolist() == [0, 1, 2]
    assert torch.equal(one.output, two.output)


def test_the_seconds_of_all_processes_add_up(tmp_path, monkeypatch):
    now, history = [50.0], training.History()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    first = Checkpoints(tmp_path, seconds=0)
    first.resume("MLE", [], history)
    now[0] = 57.0
    first.keep("MLE", 1, [], history)
    now[0] = 200.0  # another process, another clock
    second = Checkpoints(tmp_path)
    now[0] = 205.0
    assert second.seconds_so_far() == 7 + 5


def test_numbers_of_an_evaluation_may_be_numpys(tmp_path):
    keeper, history = Checkpoints(tmp_path, seconds=0), training.History()
    keeper.resume("MLE", [], history)
    history.rows.append({"epoch": 1, "a": np.float64(1 / 3), "b": np.float32(0.5), "c": np.int64(2)})
    keeper.keep("MLE", 1, [], history)
    again = training.History()
    assert Checkpoints(tmp_path).resume("MLE", [], again) == 1
    assert again.rows == [{"epoch": 1, "a": 1 / 3, "b": 0.5, "c": 2.0}] and type(again.rows[0]["epoch"]) is int


# ---------------------------------------------------------------- other folders, other settings


@pytest.mark.parametrize("begun", ["NVIDIA H100 80GB HBM3", "CPU, some model, 2 threads"])
def test_a_run_goes_on_only_on_the_kind_of_device_where_it_began(tmp_path, monkeypatch, begun):
    with pytest.raises(RunStopped, match="the time is up"):
        run(SEQGAN, 0, tmp_path, minutes=1e-9, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    (folder / "run.json").write_text(json.dumps(read_provenance(folder) | {"device": begun}))
    if begun.startswith("CPU"):
        monkeypatch.setattr(experiments, "resolve_device", lambda device: torch.device("cuda"))
    with pytest.raises(RunStopped, match=f"begun on another kind of device, {begun}; .*--device cpu or cuda"):
        resume(folder, **QUIET)
    for checkpoint in folder.glob("checkpoint-*.pt"):
        checkpoint.unlink()
    monkeypatch.undo()
    run(SEQGAN, 0, tmp_path, **QUIET)  # nothing is left that could not go on here


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunStopped, match="file/tiny-seqgan/seed-0 cannot be made: Not a directory; name another"):
        run(SEQGAN, 0, tmp_path / "file", **QUIET)


def test_a_path_may_hold_any_characters(tmp_path):
    folder = tmp_path / "Läufe & 'Zeug' 诗"
    with pytest.raises(RunStopped, match="resume") as stopped:
        run(SEQGAN, 0, folder, minutes=1e-9, **QUIET)
    *_, named_there = shlex.split(str(stopped.value))
    assert resume(named_there, **QUIET).provenance["status"] == "complete"


def test_a_run_may_be_moved_and_resumed_there(whole, tmp_path):
    with pytest.raises(RunStopped):
        run(SEQGAN, 0, tmp_path / "here", minutes=1e-9, **QUIET)
    shutil.move(tmp_path / "here", tmp_path / "there with a space")
    folder = run_folder(tmp_path / "there with a space", SEQGAN.name, 0)
    resume(folder, **QUIET)
    assert content(folder) == whole and not (tmp_path / "here").exists()


def test_a_complete_run_is_only_read(tmp_path, monkeypatch):
    one = run(SEQGAN, 1, tmp_path, **QUIET)
    monkeypatch.setattr(experiments, "make_world", None)
    again = run(SEQGAN, 1, tmp_path, **QUIET)
    assert again.provenance == one.provenance
    np.testing.assert_array_equal(again.tables["curve"]["nll_oracle"], one.tables["curve"]["nll_oracle"])


def test_what_a_killed_process_left_lying_is_cleared_away(tmp_path):
    run(SEQGAN, 0, tmp_path, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    for name in ("checkpoint-000014.pt", "checkpoint-000012.pt.partial", "run.json.partial"):
        (folder / name).write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint-000014.pt is truncated"):
        run(SEQGAN, 0, tmp_path, **QUIET)
    assert left(tmp_path) == ["checkpoint-000014.corrupt", "curve.csv", "discriminator.csv", "model.pt", "run.json"]


def test_a_run_in_a_folder_of_another_name_says_how_to_name_it(tmp_path):
    with pytest.raises(RunStopped):
        run(SEQGAN, 0, tmp_path, minutes=1e-9, **QUIET)
    shutil.move(run_folder(tmp_path, SEQGAN.name, 0), tmp_path / "mine")
    with pytest.raises(RunStopped, match="mine must be named tiny-seqgan/seed-0"):
        resume(tmp_path / "mine", **QUIET)


def test_a_deleted_table_names_the_command_that_makes_it(tmp_path):
    run(SEQGAN, 0, tmp_path, **QUIET)
    (run_folder(tmp_path, SEQGAN.name, 0) / "discriminator.csv").unlink()
    with pytest.raises(
        MissingResult, match="discriminator.csv is gone.*python -m seqgan_lib run tiny-seqgan --seeds 0"
    ):
        load_results(SEQGAN.name, tmp_path)


def test_a_folder_with_another_run_in_it_is_left_alone(tmp_path):
    run(SEQGAN, 0, tmp_path, **QUIET)
    with pytest.raises(RunStopped, match="holds a run with other settings"):
        run(replace(SEQGAN, scale=replace(TINY, dropout=0.1)), 0, tmp_path, **QUIET)


def test_two_processes_do_not_work_in_one_folder(tmp_path):
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    folder.mkdir(parents=True)
    with experiments._alone(folder), pytest.raises(RunStopped, match="another process is working in"):
        run(SEQGAN, 0, tmp_path, **QUIET)
    run(SEQGAN, 0, tmp_path, **QUIET)


def test_settings_of_a_newer_version_are_refused(tmp_path):
    with pytest.raises(RunStopped):
        run(SEQGAN, 0, tmp_path, minutes=1e-9, **QUIET)
    folder = run_folder(tmp_path, SEQGAN.name, 0)
    facts = read_provenance(folder)
    for change in ({"version": 99}, {"sparkle": 3}, {"rules": facts["settings"]["rules"] | {"temper": 1}}):
        (folder / "run.json").write_text(json.dumps(facts | {"settings": facts["settings"] | change}))
        with pytest.raises(UnknownExperiment, match="newer seqgan_lib.*(99|sparkle|temper).*git pull"):
            resume(folder, **QUIET)


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(MissingResult, match="no run.json"):
        resume(tmp_path)


def test_the_row_to_choose_by_and_the_row_to_report_come_from_different_samples(tmp_path):
    curve = run(SEQGAN, 0, tmp_path, **QUIET).tables["curve"]
    assert (curve["nll_oracle"] != curve["test_nll_oracle"]).all()
    assert curve["held_out"].tolist() == curve["test_held_out"].tolist()  # no sampling in that one
    assert curve["epoch"].tolist() == [0, 5, 6, 7, 8, 9, 10, 11]


# ---------------------------------------------------------------- many runs


@pytest.fixture
def few():
    return [(replace(SEQGAN, name="a"), 0), (Experiment("b", "MLE", TINY), 0), (Experiment("b", "MLE", TINY), 1)]


def curves(results):
    return [result.tables["curve"]["test_nll_oracle"].tolist() for result in results]


def test_many_runs_in_processes_are_the_same_runs(few, tmp_path):
    alone = run_all(few, tmp_path / "alone", jobs=1, **QUIET)
    many = run_all(few, tmp_path / "many", jobs=2, **QUIET)
    assert curves(alone) == curves(many) and len({tuple(c) for c in curves(many)}) == 3


def test_many_runs_on_a_dask_cluster_are_the_same_runs(few, tmp_path):
    distributed, joblib = pytest.importorskip("distributed"), pytest.importorskip("joblib")
    alone = run_all(few, tmp_path / "alone", jobs=1, **QUIET)
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend="dask"):
            many = run_all(few, tmp_path / "many", **QUIET)
    assert curves(alone) == curves(many)


def test_a_run_that_stops_does_not_stop_the_others(few, tmp_path):
    folder = run_folder(tmp_path, "b", 0)
    folder.mkdir(parents=True)
    with experiments._alone(folder):
        one, stopped, other = run_all(few, tmp_path, jobs=1, **QUIET)
    assert isinstance(stopped, RunStopped) and "another process" in str(stopped)
    assert one.provenance["status"] == other.provenance["status"] == "complete"


def test_a_run_whose_data_are_not_there_does_not_stop_the_others(few, tmp_path, monkeypatch):
    def unreachable(**sizes):
        raise DataUnavailable("no network: connect once")

    monkeypatch.setitem(CORPORA, "poems", unreachable)
    without, *others = run_all([(TASK, 0), *few[:2]], tmp_path, jobs=1, **QUIET)
    assert isinstance(without, RunStopped) and str(without) == "tiny-task, seed 0: no network: connect once"
    assert all(other.provenance["status"] == "complete" for other in others)


def test_a_run_whose_settings_do_not_fit_its_data_does_not_stop_the_others(few, tiny_corpus, tmp_path):
    wrong = replace(TASK, name="wrong", scale=replace(TASK.scale, vocabulary=900))
    spoilt, *others = run_all([(wrong, 0), *few[:2]], tmp_path, jobs=1, **QUIET)
    assert isinstance(spoilt, RunStopped) and "wrong, seed 0: the vocabulary of so many lines" in str(spoilt)
    assert read_provenance(run_folder(tmp_path, "wrong", 0))["status"].startswith("the vocabulary")
    assert all(other.provenance["status"] == "complete" for other in others)


def test_a_killed_process_of_many_is_told_in_a_sentence(tmp_path):
    long = [(Experiment("long", "MLE", replace(TINY, epochs=100_000)), seed) for seed in range(2)]

    def kill_one():
        while not [*tmp_path.glob("long/seed-*/curve.csv")]:
            time.sleep(0.1)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may be gone by now
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"popen_loky" in (process / "cmdline").read_bytes():
                    return os.kill(int(process.name), signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(RunStopped, match="a process of --jobs was killed.*the same command goes on"):
        run_all(long, tmp_path, jobs=2, **QUIET)


def test_a_kill_of_the_command_ends_its_processes_too(tmp_path):
    """Else they train on, unseen, and keep others out of their folders."""
    long = [(Experiment("long", "MLE", replace(TINY, epochs=100_000)), seed) for seed in range(2)]
    how = {"jobs": 2, **QUIET}
    command = multiprocessing.get_context("spawn").Process(target=run_all, args=(long, tmp_path), kwargs=how)
    command.start()
    while len([*tmp_path.glob("long/seed-*/curve.csv")]) < 2:
        time.sleep(0.1)
    command.kill()
    command.join()
    time.sleep(5)
    for seed in range(2):
        with experiments._alone(run_folder(tmp_path, "long", seed)):  # raises if one is still in there
            pass


def test_the_minutes_are_for_all_of_them(few, tmp_path):
    first, *rest = run_all(few, tmp_path, jobs=1, minutes=1e-6, **QUIET)
    assert all("the time was up before it began" in str(r) for r in rest) and isinstance(first, RunStopped)


def test_a_stop_by_hand_stops_them_all(few, tmp_path, monkeypatch):
    stop_in_round(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(RunStopped, match="by hand"):
        run_all(few, tmp_path, jobs=1, **QUIET)
    assert not (tmp_path / "b").exists()


def test_tensorboard_shows_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(RunStopped):
        run(SEQGAN, 0, tmp_path, minutes=1e-9, tensorboard=True, **QUIET)
    curve = run(SEQGAN, 0, tmp_path, tensorboard=True, **QUIET).tables["curve"]
    events = EventAccumulator(str(run_folder(tmp_path, SEQGAN.name, 0) / "tensorboard" / "game")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("nll_oracle")]
    assert [step for step, _ in shown] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([value for _, value in shown], curve["nll_oracle"][-6:], rtol=1e-6)


# ---------------------------------------------------------------- runs without an oracle

LINES = [random.Random(k).choices("abcdefgh", k=5) for k in range(21)]
TASK = Experiment("tiny-task", "SeqGAN", Task(9, 5, 14, 3, 6, 2, RULES, ((2, 4),), d_pretraining=(2, 1)))


@pytest.fixture
def tiny_corpus(monkeypatch):
    def load(vocabulary, length, train, held_out):
        return make_corpus("tiny", [[tuple(line)] for line in LINES], train=train, held_out=held_out,
                           vocabulary=vocabulary, join=" ".join)  # fmt: skip

    monkeypatch.setitem(CORPORA, "poems", load)


@pytest.mark.parametrize("method", METHODS)
def test_a_real_task_is_an_experiment_like_others(tiny_corpus, tmp_path, method):
    result = run(replace(TASK, method=method), 0, tmp_path, **QUIET)
    curve = result.tables["curve"]
    for column in ("held_out", "entropy", "distinct", "distinct_2", "bleu_2", "bleu_4", "self_bleu_2", "copied"):
        assert np.isfinite(curve[column]).all() and np.isfinite(curve[f"test_{column}"]).all()
    assert "nll_oracle" not in curve.columns and curve["epoch"][-1] == 8
    assert (curve["test_held_out"] != curve["held_out"]).all(), "other lines to report by than to choose by"
    assert Experiment.from_dict("tiny-task", result.provenance["settings"]) == replace(TASK, method=method)


def test_a_real_task_stopped_at_every_step_is_the_same_run(tiny_corpus, tmp_path):
    run(TASK, 0, tmp_path / "whole", **QUIET)
    stops = 0
    while True:
        try:
            run(TASK, 0, tmp_path / "stopped", minutes=1e-9, **QUIET)
            break
        except RunStopped:
            stops += 1
    assert stops == 6 + 2 + 2
    one, two = (content(run_folder(tmp_path / name, TASK.name, 0)) for name in ("whole", "stopped"))
    assert one == two


def test_a_corpus_has_the_vocabulary_that_is_asked_for(tiny_corpus, tmp_path):
    with pytest.raises(ValueError, match="the vocabulary of so many lines of tiny is [0-9]+, not 900"):
        make_world(replace(TASK.scale, vocabulary=900), 0)
    with pytest.raises(ValueError, match="no corpus 'novels'; there are poems, speeches, obama, music"):
        named("seqgan-poems+corpus=novels")
    with pytest.raises(ValueError, match="a corpus has none"):
        named("seqgan-poems+published=true")


def test_the_best_bleu_is_the_largest(tiny_corpus, say):
    SCALES["classroom"] = TASK.scale  # undone by ``say``
    flags = "--no-tensorboard --device cpu"
    assert say(f"run mle-classroom seqgan-classroom {flags}")[0] == 0
    curve = load_results("seqgan-classroom", "runs")[0].tables["curve"]
    status, said = say("compare mle-classroom seqgan-classroom --column bleu_2")
    assert status == 0 and f"{curve['test_bleu_2'][curve['bleu_2'].argmax()]:.3f}" in said.splitlines()[-1]
    assert "nats" not in said
    assert say("compare mle-classroom seqgan-classroom")[1].startswith("held_out in nats per token")
    assert say("plot mle-classroom seqgan-classroom")[0] == 0


# ---------------------------------------------------------------- experiments by name


def test_every_method_at_every_scale_has_a_name_that_comes_back():
    assert len(names()) == len(METHODS) * len(SCALES) == 36
    for name in names():
        experiment = named(name)
        assert experiment.name == name and experiment == named(experiment)
        assert Experiment.from_dict(name, json.loads(json.dumps(experiment.to_dict()))) == experiment


def test_a_name_may_change_any_setting():
    changed = named("seqgan-study+k=10+rollouts=4+windows=2x10,3x20+dropout=0.5+d_pretraining=7x2+baseline=prefix")
    assert changed.method == "SeqGAN" and changed.scale.rules.k == 10 and changed.scale.rules.rollouts == 4
    assert changed.scale.windows == ((2, 10), (3, 20)) and changed.scale.dropout == 0.5
    assert changed.scale.d_pretraining == (7, 2) and changed.scale.rules.baseline == "prefix"
    assert replace(changed.scale, **{n: getattr(SCALES["study"], n) for n in ("windows", "dropout", "d_pretraining")}
                   ).rules.g_steps == SCALES["study"].rules.g_steps  # fmt: skip
    assert named(changed.name) == changed


def test_one_configuration_has_one_name():
    one, two = named("seqgan-study+k=10+rollouts=4"), named("seqgan-study+rollouts=4+epochs=40+k=10")
    assert one == two and one.name == "seqgan-study+k=10+rollouts=4"
    assert named("seqgan-study+rollouts=16").name == "seqgan-study"  # what it is anyway
    spellings = {
        "rollouts=01": "rollouts=1",
        "dropout=0": "dropout=0.0",
        "d_learning_rate=0.0004": "d_learning_rate=4e-4",
        "windows=02x9,3x9": "windows=2x9,3x9",
        "d_pretraining=07x2": "d_pretraining=7x2",
        "published=TRUE+vocabulary=5000": "vocabulary=5000+published=true",
    }
    for typed, name in spellings.items():
        assert named(f"seqgan-study+{typed}").name == f"seqgan-study+{name}"
        assert named(named(f"seqgan-study+{typed}").name) == named(f"seqgan-study+{typed}")


def test_a_setting_that_a_method_does_not_read_cannot_be_changed_for_it():
    """And what it does read makes another run of it."""
    other = {"vocabulary": 21, "length": 6, "train": 31, "held_out": 41, "epochs": 7, "rounds": 6, "evaluate_every": 2}
    other |= {"windows": ((2, 5),), "dropout": 0.5, "l2": 1.0, "d_pretraining": (4, 1), "bleu_order": 1}
    other |= {"g_steps": 2, "d_steps": 2, "k": 2, "rollouts": 3, "update_rate": 0.0, "baseline": "none"}
    other |= {"batch_size": 11, "learning_rate": 0.1, "d_learning_rate": 0.1, "clip": 0.01}
    for method in METHODS:
        known = _weights(method, TINY)
        for name, value in other.items():
            in_rules = name in vars(RULES)
            changed = replace(TINY, **({"rules": replace(RULES, **{name: value})} if in_rules else {name: value}))
            same = _weights(method, changed) == known
            assert same == (name in UNREAD[method]), f"{method}, {name}"


def _weights(method, scale):
    """Whatever a training of this scale leaves, as text, in which NaN equals itself."""
    model, history = experiments.train(method, make_world(scale, 0, "cpu"), 0, progress=False)
    return str([p.double().abs().sum().item() for p in model.parameters()] + history.rows)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("seqgan-clasroom", "did you mean.*seqgan-classroom"),
        ("xyz", "there are mle-classroom, .*seqgan-paper"),
        ("seqgan-study+rollout=4", "no setting 'rollout'.*rollouts"),
        ("seqgan-study+rollouts=many", "rollouts=many cannot be read; write it like rollouts=16"),
        ("seqgan-study+windows=2", "write it like windows=2x100,3x100"),
        ("seqgan-study+d_pretraining=5", "write it like d_pretraining=50x3"),
        ("seqgan-study+published=maybe", "published=maybe cannot be read"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(name, says):
    with pytest.raises(UnknownExperiment, match=says):
        named(name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rollouts=-1", "rollouts must be"),
        ("dropout=1.0", "dropout must be from 0"),
        ("l2=-1", "l2 must be"),
        ("epochs=0", "epochs must be"),
        ("windows=30x4", "window of 30 tokens does not fit"),
        ("windows=2x0", "number of kernels"),
        ("d_pretraining=0x3", "d_pretraining must be"),
        ("baseline=best", "no baseline 'best'"),
        ("baseline=batch+batch_size=1", "needs a batch of at least 2"),
        ("published=true", "the published oracle has a vocabulary of 5000, not 200"),
        ("evaluate_every=0", "evaluate_every must be"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_runs(change, says):
    with pytest.raises(ValueError, match=says):
        named(f"seqgan-classroom+{change}")


def test_a_result_names_the_command_that_makes_it(tmp_path):
    assert command_for("seqgan-study+k=2") == "python -m seqgan_lib run seqgan-study+k=2"
    assert command_for("oracle-paper") == "python data/record.py oracle-paper"
    with pytest.raises(MissingResult, match="make it: python -m seqgan_lib run pg-bleu-study"):
        load_results("pg-bleu-study", tmp_path)


def test_the_study_is_a_list_of_runs_each_once():
    runs = study()
    assert len(set(runs)) == len(runs) and all(named(name).name == name for name, _ in runs)
    seeds_of = {name: [seed for other, seed in runs if other == name] for name, _ in runs}
    assert len(seeds_of["seqgan-study"]) == 5 and min(map(len, seeds_of.values())) == 3
    for knob, values in KNOBS.items():
        for value in values:
            changed = named(f"seqgan-study+{knob}={value}")
            assert changed.name != "seqgan-study", f"{knob}={value} is what it is anyway"
            assert changed.name in seeds_of


# ---------------------------------------------------------------- the command line


@pytest.fixture
def say(tmp_path, monkeypatch, capsys):
    """Type a command in an empty folder; returns its exit status and all it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SCALES, "classroom", TINY)

    def typed(line):
        try:
            status = command_line.main(line.split())
        except SystemExit as refused:
            status = refused.code
        out, err = capsys.readouterr()
        return status, out + err

    return typed


def test_from_a_run_to_its_picture(say, tmp_path):
    flags = "--no-tensorboard --device cpu"
    status, said = say(f"run seqgan-classroom mle-classroom --seeds 0-1 {flags}")
    assert status == 0 and said.count("complete") == 4 and "runs/mle-classroom/seed-1" in said
    status, said = say(f"run seqgan-classroom --set rollouts=1 --set rollouts=3 --minutes 0.001 {flags}")
    assert status == 75 and "seqgan-classroom+rollouts=1, seed 0: the time is up" in said
    assert "seqgan-classroom+rollouts=3, seed 0: the time was up before it began" in said
    status, said = say("list")
    changed, recorded = said.partition("With settings changed:")[2].split("Recorded for a chapter by data/record.py:")
    assert status == 0 and re.search(r"seqgan-classroom\+rollouts=1 +0 unfinished\n", changed)
    rows = [line.split()[0] for line in recorded.splitlines() if line]
    assert "oracle-paper" in rows and rows == sorted(rows)
    status, said = say(f"resume runs/seqgan-classroom+rollouts=1/seed-0 {flags}")
    assert status == 0 and "complete" in said
    status, said = say("show runs/seqgan-classroom+rollouts=1/seed-0")
    assert json.loads(said)["settings"]["rules"]["rollouts"] == 1
    status, said = say("show seqgan-classroom")
    assert status == 0 and "d_learning_rate" in said and "make it: python -m seqgan_lib run seqgan-classroom" in said
    status, said = say("compare mle-classroom seqgan-classroom seqgan-classroom+rollouts=1")
    lines = said.splitlines()
    assert status == 0 and lines[2].split()[:2] == ["mle-classroom", "2"] and lines[2].endswith("0 (0.000 to 0.000)")
    best = load_results("seqgan-classroom", tmp_path / "runs")[0].tables["curve"]
    assert f"{best['test_nll_oracle'][best['nll_oracle'].argmin()]:.3f}" in lines[3]
    assert "best nll_oracle on another sample;" in lines[0]
    said = say("compare mle-classroom --column held_out")[1]
    assert "best held_out on another sample;" in said
    said = say("compare mle-classroom seqgan-classroom --column entropy")[1]  # of which there is no best
    assert "entropy in nats per token, at the end;" in said and "best" not in said and "end less" in said
    typed = say("compare mle-classroom seqgan-classroom+rollouts=02")[1]  # which is what seqgan-classroom has
    assert typed.replace("+rollouts=02", " " * 12) == say("compare mle-classroom seqgan-classroom")[1]
    text = say("show mle-classroom")[1]
    assert "epochs" in text and "rollouts" not in text and "windows" not in text  # which it does not read
    status, said = say("plot mle-classroom seqgan-classroom --out picture.png")
    assert status == 0 and (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_study_is_one_command(say, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "study", lambda: [("seqgan-classroom", 1), ("seqgan-classroom+rollouts=0", 0)])
    flags = "--no-tensorboard --device cpu --folder there"
    assert say(f"study --minutes 0.0001 {flags}")[0] == 75
    status, said = say(f"study {flags}")
    assert status == 0 and said.count("complete") == 2
    assert load_results("seqgan-classroom+rollouts=0", tmp_path / "there")[0].seed == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run seqgan-clasroom", "did you mean seqgan-classroom"),
        ("run seqgan-classroom --seeds two", "write 0-4, or 0,2,5"),
        ("run seqgan-classroom --seeds 3-1", "is no list of seeds"),
        ("run seqgan-classroom --set rollouts", "write SETTING=VALUE"),
        ("run seqgan-classroom --set roll=1", "did you mean"),
        ("run seqgan-classroom --set rollouts=-1", "rollouts must be"),
        ("run mle-classroom --set rollouts=3", "mle-classroom does not read rollouts: MLE would be the same"),
        ("run seqgan-classroom --seeds 99999999999", "write 0-4, or 0,2,5 (below 2^32)"),
        ("run seqgan-classroom --device mps", 'no device "mps"; use device="auto", "cpu", "cuda"'),
        ("compare seqgan-clasroom", "did you mean seqgan-classroom"),
        ("compare seqgan-stud*", "no experiment 'seqgan-stud*'"),
        ("compare pg-bleu-classroom --folder else", "run pg-bleu-classroom --folder else"),
        ("run seqgan-classroom --rollouts 3", "unrecognized arguments"),
        ("resume nowhere", "no run.json"),
        ("compare pg-bleu-classroom", "make it: python -m seqgan_lib run pg-bleu-classroom"),
        ("run seqgan-classroom --seeds 0-1-5", "is no list of seeds"),
        ("run seqgan-classroom --seeds 0,3-1", "is no list of seeds"),
        ("run seqgan-classroom --threads 0", "write 1 or more"),
        ("run seqgan-classroom --jobs 0", "write 1 or more"),
        ("run seqgan-classroom --device gpu", 'no device "gpu"; use device="auto", "cpu", "cuda"'),
        ("run seqgan-classroom --folder file", "file/seqgan-classroom/seed-0 cannot be made: Not a directory"),
        ("plot oracle-paper", "oracle-paper was recorded for a chapter: it is no run of one method"),
        ("compare methods-classroom", "methods-classroom was recorded for a chapter"),
        ("compare mle-study --column beauty", "no column 'beauty'; this history has epoch, nll_oracle"),
        ("plot mle-study --out nowhere/picture.png", "nowhere/picture.png cannot be read or written: No such file"),
        ("resume broken/mle-classroom/seed-0", "run.json cannot be read, it was changed by hand: restore it"),
        ("compare mle-classroom --folder broken", "run.json cannot be read, it was changed by hand: restore it"),
        ("compare seqgan-classroom --folder begun", "nothing of seqgan-classroom in begun is evaluated yet"),
        ("dance", "invalid choice"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(say, tmp_path, line, says):
    (tmp_path / "file").touch()
    for folder, text in (
        ("broken/mle-classroom", '{"seed": 0,'),
        ("begun/seqgan-classroom", '{"seed": 0, "tables": [], "settings": {"method": "SeqGAN"}}'),
    ):
        (tmp_path / folder / "seed-0").mkdir(parents=True)
        (tmp_path / folder / "seed-0" / "run.json").write_text(text)
    status, said = say(line)
    assert status != 0 and says in said and "Traceback" not in said


def test_a_copy_beside_a_run_is_no_run(say, tmp_path):
    flags = "--no-tensorboard --device cpu --seeds 0,0"
    status, said = say(f"run mle-classroom mle-classroom {flags}")
    assert status == 0 and said.count("complete") == 1, "named four times, it is made once"
    shutil.copytree(tmp_path / "runs/mle-classroom/seed-0", tmp_path / "runs/mle-classroom/seed-0.bak")
    status, said = say("list")
    assert status == 0 and re.search(r"mle-classroom +0$", said, re.MULTILINE)
    status, said = say("compare mle-classroom")
    assert status == 0 and said.splitlines()[2].split()[:2] == ["mle-classroom", "1"]


def test_without_tensorboard_nothing_begins(say, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, said = say("run mle-classroom --tensorboard")
    assert status == 1 and "pip install tensorboard" in said and not (tmp_path / "runs").exists()
