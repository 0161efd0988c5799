"""Scales, worlds and recorded results."""

import json

import numpy as np
import pytest
import torch

from seqgan_lib.datasets import data_folder
from seqgan_lib.experiments import SCALES, MissingResult, Scale, load_results, make_world
from seqgan_lib.metrics import mean_nll

TINY = Scale(vocabulary=20, length=5, train=30, held_out=40, epochs=2)


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
    with pytest.raises(MissingResult, match="python data/record.py mle-paper"):
        load_results("mle-paper", tmp_path)


@pytest.mark.parametrize("folder", sorted({p.parent.name for p in (data_folder() / "results").glob("*/*.json")}))
def test_recorded_results_are_whole(folder):
    results = load_results(folder)
    assert [r.seed for r in results] == list(range(len(results))), "seeds are counted, not chosen"
    for result in results:
        assert {"command", "settings", "versions", "device", "seconds", "commit"} <= set(result.provenance)
        assert result.provenance["experiment"] == folder and result.provenance["commit"]
        for table in result.tables.values():
            assert len(table.rows) > 1
            for column in table.columns:
                trained = table["epoch"] > 0 if column == "loss" else slice(None)  # no loss before the first epoch
                assert np.isfinite(table[column][trained]).all(), f"{folder}: a gap in {column}"


def test_results_come_back_by_seed(tmp_path):
    (tmp_path / "x").mkdir()
    for seed in (10, 2):
        (tmp_path / f"x/seed-{seed}.json").write_text(json.dumps({"seed": seed, "tables": ["curve"]}))
        (tmp_path / f"x/seed-{seed}.curve.csv").write_text(f"epoch,loss\n0,\n1,{seed}.5\n")
    results = load_results("x", tmp_path)
    assert [r.seed for r in results] == [2, 10]
    assert results[1].tables["curve"]["loss"][1] == 10.5
