"""What the book downloads, checked byte by byte, and the oracle that the paper's authors published."""

import os
import pickle
from pathlib import Path

import numpy as np
import pooch
import torch

from .language_model import LanguageModel
from .sampling import new_generator


class DataCorrupt(ValueError):
    """A file whose bytes are not the registered ones, or that holds what it should not."""


class DataUnavailable(ValueError):
    """A file that is not here and cannot be had now. A chapter that needs it is skipped."""


def data_folder() -> Path:
    """The folder ``data/``: inside the package after an installation, beside it in a clone."""
    here = Path(__file__).resolve().parent
    return here / "data" if (here / "data").is_dir() else here.parent / "data"


def fetch(name: str) -> Path:
    """The path of a file registered in ``data/registry.txt``, its SHA-256 checked.

    Looks in the folder named by the environment variable ``SEQGAN_DATA_DIR`` first and never writes there; then in the
    user's cache; then downloads, to a temporary file that is moved into place only when its bytes are right.
    ValueError for an unknown name, DataCorrupt for wrong bytes, DataUnavailable if it cannot be had or stored.
    """
    cache = pooch.create(path=pooch.os_cache("seqgan_lib"), base_url="", retry_if_failed=2)
    cache.load_registry(data_folder() / "registry.txt")
    if name not in cache.registry:
        raise ValueError(f"no data file {name!r}; there are {', '.join(cache.registry)}")
    folder = os.environ.get("SEQGAN_DATA_DIR")
    if folder and (local := Path(folder).expanduser() / name).is_file():
        if pooch.file_hash(str(local)) != cache.registry[name]:
            raise DataCorrupt(f"{local} is not the registered file (SHA-256 differs); delete it or fetch it again")
        return local
    address = cache.get_url(name)
    try:
        return Path(cache.fetch(name, downloader=pooch.HTTPDownloader(timeout=30)))
    except OSError as error:  # no network, no permission, disk full
        raise DataUnavailable(
            f"{name} is not in SEQGAN_DATA_DIR ({folder or 'not set'}) nor usable in {cache.abspath}, and getting it "
            f"from {address} failed: {error}. Connect once, or name a folder that has it in SEQGAN_DATA_DIR"
        ) from error
    except ValueError as error:  # pooch's word for a wrong SHA-256
        raise DataCorrupt(f"{address} did not give the registered file, nothing was kept: {error}") from error


_ADMITTED = {  # all that a pickle of NumPy arrays asks for, under NumPy's old name and its new one
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    ("numpy", "dtype"): lambda code, *_: np.dtype({"f4": "f4", "f8": "f8"}[code], copy=True),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else: a pickle from the internet may not run code."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only NumPy arrays are admitted")
        return _ADMITTED[module, name]


def read_arrays(path: str | Path) -> list[np.ndarray]:
    """The NumPy arrays of a pickled list, and nothing that is not an array. Raises DataCorrupt for anything else."""
    try:
        with Path(path).open("rb") as file:
            arrays = _ArraysOnly(file).load()
    except Exception as error:  # broken bytes make an unpickler raise almost anything
        raise DataCorrupt(f"{path} is not a pickle of NumPy arrays: {error}") from error
    if not isinstance(arrays, list) or not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in arrays):
        raise DataCorrupt(f"{path} is a pickle, but not of a list of float arrays")
    return arrays


def published_oracle() -> LanguageModel:
    """The oracle of the paper's own runs (vocabulary 5000, start token 0). Raises what :func:`fetch` raises."""
    # In the file: the embedding; W, U, b of the input, forget and output gate and of the candidate; the output's W, b.
    arrays = [torch.from_numpy(a) for a in read_arrays(fetch("oracle/target_params_py3.pkl"))]
    embedding, *gates, output, output_bias = arrays
    w, u, b = (torch.cat([gates[3 * k + kind] for k in (0, 1, 3, 2)], -1) for kind in range(3))  # PyTorch's order
    oracle = LanguageModel(len(embedding), generator=new_generator(0))
    lstm = {"lstm.weight_ih_l0": w.t(), "lstm.weight_hh_l0": u.t(), "lstm.bias_ih_l0": b}
    lstm["lstm.bias_hh_l0"] = torch.zeros_like(b)
    oracle.load_state_dict({"embedding": embedding, "output": output, "output_bias": output_bias, **lstm})
    return oracle.requires_grad_(False)
