"""Draw the README's figure, book/static/result.png, from the recorded runs at study scale: `make figure`."""

import io
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from seqgan_lib.configs import SLUGS
from seqgan_lib.plotting import PALETTE, use_style
from seqgan_lib.results import interval, late_rows, load_results, reported

FIGURE = Path(__file__).parent / "static" / "result.png"
TITLES = {
    "nll_oracle": r"Quality: NLL$_\mathrm{oracle}$ (lower is better)",
    "entropy": "Diversity: entropy (lower is less)",
}


def changes(column: str) -> dict[str, np.ndarray]:
    """For every method and in each of its worlds: the best row from epoch 40 on, less the imitator of that epoch."""
    imitators = [late_rows(run)[f"test_{column}"][0] for run in load_results("mle-study")]
    return {
        method: reported(load_results(f"{slug}-study"), column, by="nll_oracle") - imitators
        for method, slug in SLUGS.items()
    }


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
    fig.supxlabel("less the imitator of 40 epochs, nats per token", fontsize=10)
    axes[0].set_yticks(range(len(SLUGS)), SLUGS)
    axes[0].set_ylim(len(SLUGS) - 0.5, -0.5)
    return fig


def picture() -> bytes:
    buffer = io.BytesIO()
    fig = draw()
    fig.savefig(buffer, dpi=120, metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


if __name__ == "__main__":
    FIGURE.write_bytes(picture())
