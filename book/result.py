"""Draw the README's figure, book/static/result.png, from the recorded runs at study scale: `make figure`."""

import io
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from seqgan_lib.plotting import PALETTE, use_style
from seqgan_lib.results import Result, interval, load_results

FIGURE = Path(__file__).parent / "static" / "result.png"
METHODS = {
    "MLE": "mle-study",
    "scheduled sampling": "scheduled-sampling-study",
    "PG-BLEU": "pg-bleu-study",
    "SeqGAN": "seqgan-study",
}
TITLES = {
    "nll_oracle": r"Quality: NLL$_\mathrm{oracle}$ (lower is better)",
    "entropy": "Diversity: entropy (lower is less)",
}


def change(run: Result, column: str) -> float:
    """From the end of imitation to the best row after it, which is chosen by one sample and measured by another."""
    curve = run.tables["curve"]
    late = curve["epoch"] >= run.provenance["settings"]["epochs"]
    measured = curve[f"test_{column}"][late]
    return measured[curve["nll_oracle"][late].argmin()] - measured[0]


def changes(column: str) -> dict[str, np.ndarray]:
    """For every method the change in each of its worlds."""
    return {method: np.array([change(run, column) for run in load_results(name)]) for method, name in METHODS.items()}


def draw() -> Figure:
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 2.8), sharey=True, layout="constrained")
    for ax, (column, title) in zip(axes, TITLES.items(), strict=True):
        for row, (method, worlds) in enumerate(changes(column).items()):
            mean, half = interval(worlds)
            ax.plot(worlds, np.full(len(worlds), row), "o", color=PALETTE[method], alpha=0.35, ms=6, mew=0)
            ax.errorbar(mean, row, xerr=half, fmt="D", color=PALETTE[method], ms=6, capsize=4, lw=2)
        ax.axvline(0, color="grey", lw=1, ls=":")
        ax.set_title(title, fontsize=11)
    fig.supxlabel("change since the end of imitation, nats per token", fontsize=10)
    axes[0].set_yticks(range(len(METHODS)), METHODS)
    axes[0].set_ylim(len(METHODS) - 0.5, -0.5)
    return fig


def picture() -> bytes:
    buffer = io.BytesIO()
    fig = draw()
    fig.savefig(buffer, dpi=120, metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


if __name__ == "__main__":
    FIGURE.write_bytes(picture())
