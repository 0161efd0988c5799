"""Downloads: checked, cached, refused when tampered with, and clear about what to do when they fail."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from seqgan_lib import datasets, new_generator
from seqgan_lib.datasets import DataCorrupt, DataUnavailable, fetch, published_oracle
from seqgan_lib.metrics import mean_nll

NAME = "oracle/target_params_py3.pkl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no local folder, and no network."""
    monkeypatch.delenv("SEQGAN_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")

    def no_network(self, url, output, *rest, **more):
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", no_network)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tmp_path / "cache"


def served(monkeypatch, content: bytes) -> None:
    def download(self, url, output, *rest, **more):
        Path(output).write_bytes(content)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)


def files(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file()]


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """A registry of one small file, so that the tests need no real download."""
    content = b"twelve bytes"
    (tmp_path / "good").write_bytes(content)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "registry.txt").write_text(
        f"a/b.bin {pooch.file_hash(str(tmp_path / 'good'))} https://example.org/b.bin\n"
    )
    monkeypatch.setattr(datasets, "data_folder", lambda: folder)
    return content


def test_a_download_is_kept_and_used_again(cache, registered, monkeypatch):
    offline = pooch.HTTPDownloader.__call__
    served(monkeypatch, registered)
    path = fetch("a/b.bin")
    assert path.read_bytes() == registered and path.is_relative_to(cache)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    assert fetch("a/b.bin") == path


def test_a_tampered_download_is_refused_and_nothing_is_left(cache, registered, monkeypatch):
    served(monkeypatch, b"other bytes!")
    with pytest.raises(DataCorrupt, match=r"https://example.org/b.bin.*nothing was kept"):
        fetch("a/b.bin")
    assert files(cache) == []


def test_no_network_and_no_cache(cache, registered):
    with pytest.raises(DataUnavailable, match=r"a/b.bin.*SEQGAN_DATA_DIR.*unreachable.*Connect once"):
        fetch("a/b.bin")
    assert files(cache) == []


def test_a_download_that_breaks_off_leaves_nothing(cache, registered, monkeypatch):
    def breaks(self, url, output, *rest, **more):
        Path(output).write_bytes(b"twel")
        raise ConnectionError("connection reset")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", breaks)
    with pytest.raises(DataUnavailable, match="connection reset"):
        fetch("a/b.bin")
    assert files(cache) == []


def test_a_cache_that_cannot_be_written(cache, registered, monkeypatch):
    served(monkeypatch, registered)
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match=r"nor usable in .*cache"):
        fetch("a/b.bin")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_cache_without_permission(cache, registered, monkeypatch):
    served(monkeypatch, registered)
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(DataUnavailable, match="(?i)permission"):
        fetch("a/b.bin")


def test_the_local_folder_comes_first_and_is_checked_and_never_written(cache, registered, monkeypatch, tmp_path):
    local = tmp_path / "local"
    (local / "a").mkdir(parents=True)
    monkeypatch.setenv("SEQGAN_DATA_DIR", str(local))
    (local / "a/b.bin").write_bytes(registered)
    assert fetch("a/b.bin") == local / "a/b.bin"
    (local / "a/b.bin").write_bytes(b"twelve bytez")
    with pytest.raises(DataCorrupt, match="SHA-256"):
        fetch("a/b.bin")
    assert (local / "a/b.bin").read_bytes() == b"twelve bytez"


def test_a_name_that_is_not_registered():
    with pytest.raises(ValueError, match=r"'no/such'.*target_params_py3"):
        fetch("no/such")


def test_the_data_folder_is_found_beside_or_inside_the_package(monkeypatch, tmp_path):
    assert (datasets.data_folder() / "registry.txt").is_file()
    (tmp_path / "seqgan_lib/data").mkdir(parents=True)
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "seqgan_lib/datasets.py"))
    assert datasets.data_folder() == tmp_path / "seqgan_lib/data"


class Evil:
    def __reduce__(self):
        return (os.system, ("echo this must not run > evil",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Evil()),
        pickle.dumps([np.ones(2), Evil()]),
        pickle.dumps(eval),
        pickle.dumps({"not": "a list"}),
        pickle.dumps([1, 2, 3]),
        pickle.dumps([np.array(["words"])]),
        pickle.dumps([np.ones(2)])[:-5],
        b"",
        b"\x80\x99 no pickle",
    ],
)
def test_only_a_list_of_float_arrays_is_admitted(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.pkl").write_bytes(content)
    with pytest.raises(DataCorrupt):
        datasets.read_arrays("p.pkl")
    assert not Path("evil").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_come_back_whole(protocol, tmp_path):
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float32)]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    for got, want in zip(datasets.read_arrays(tmp_path / "p.pkl"), arrays, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.fixture(scope="module")
def oracle():
    try:
        return published_oracle()
    except DataUnavailable:
        pytest.skip("the published oracle is neither here nor to be had now")


def test_the_published_oracle_has_the_published_shape(oracle):
    assert oracle.embedding.shape == (5000, 32) and oracle.hidden == 32 and oracle.start_token == 0
    assert not any(p.requires_grad for p in oracle.parameters())


def test_its_own_samples_cost_the_known_floor(oracle):
    own = oracle.sample(10_000, 20, generator=new_generator(0))
    assert mean_nll(oracle, own) == pytest.approx(5.76, abs=0.03)


def test_the_published_oracle_equals_the_reference(oracle):
    folder = os.environ.get("SEQGAN_DATA_DIR", "")
    reference = Path(folder).parent / "reference/published_oracle_nll.json"
    if not folder or not reference.is_file():
        pytest.skip("the reference NLLs are not beside SEQGAN_DATA_DIR")
    known = json.loads(reference.read_text())
    got = -oracle.log_probs(torch.tensor(known["sequences"])).mean(1)
    assert len(got) == 32
    torch.testing.assert_close(got, torch.tensor(known["nll"]), atol=1e-5, rtol=0)


def test_a_flipped_byte_in_the_published_oracle_is_refused(oracle, tmp_path, monkeypatch):
    local = tmp_path / NAME
    local.parent.mkdir()
    shutil.copyfile(fetch(NAME), local)
    content = bytearray(local.read_bytes())
    content[1000] ^= 1
    local.write_bytes(content)
    monkeypatch.setenv("SEQGAN_DATA_DIR", str(tmp_path))
    with pytest.raises(DataCorrupt):
        published_oracle()
