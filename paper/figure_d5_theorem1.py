"""Figure D.5: Theorem 1 in numbers, the combined gradient when tasks' gradients are rescaled.

    python paper/figure_d5_theorem1.py    # writes results/figure_d5_theorem1.png and .md

Task k's gradient is multiplied by s_k, log-uniform in [1, R], R from 1 to 10^12. For alpha = 1 the
combined gradient d has the norm sqrt(K) and does not move beyond fp64's rounding; for every other
alpha both change. The gradients are Gaussian. Where results/fairgrad_solver_captured_grams.npz
holds Gram matrices of a training run, the sweep is repeated on those.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fairgrad_solver import solve_fairgrad  # noqa: E402

CAPTURED = ROOT / "results" / "fairgrad_solver_captured_grams.npz"
ALPHAS = (0.5, 1.0, 2.0, 5.0)
COLORS = ["#E69F00", "#000000", "#56B4E9", "#009E73"]  # of runs.py's PALETTE, by alpha
RANGES = 10.0 ** np.arange(13)
EPS = np.finfo(float).eps


def sweep(grams, rng):
    """Rescales the tasks of each Gram by every R and solves for every alpha.

    Returns ||d'|| / sqrt(K), ||d' - d|| / ||d|| and fallbacks, each [alpha, R, Gram], for d' the
    combined gradient of the rescaled tasks and K the number of non-zero gradients.
    """
    shape = (len(ALPHAS), len(RANGES), len(grams))
    norms = np.empty(shape)
    errors = np.empty(shape)
    fallbacks = np.zeros(shape, dtype=bool)
    for i, gram in enumerate(grams):
        exponents = rng.random(len(gram))  # the same tasks grow at every R
        k = (gram.diagonal() > 0.0).sum()
        for a, alpha in enumerate(ALPHAS):
            w = solve_fairgrad(gram, alpha, tol=1e-15).weights
            for r, largest in enumerate(RANGES):
                s = largest**exponents
                result = solve_fairgrad(gram * s * s[:, None], alpha, tol=1e-15)
                # d' = sum_k w'_k s_k g_k, so that every norm is a quadratic form in the Gram of
                # the gradients as they were
                coefficients = result.weights * s
                difference = coefficients - w
                norms[a, r, i] = np.sqrt(coefficients @ gram @ coefficients / k)
                errors[a, r, i] = np.sqrt(max(difference @ gram @ difference, 0.0) / (w @ gram @ w))
                fallbacks[a, r, i] = result.used_scipy_fallback
    return norms, errors, fallbacks


def plot_panel(panel, values):
    """values: [alpha, R, Gram]. The median over the Grams, in a band from least to largest."""
    for a, alpha in enumerate(ALPHAS):
        median = np.median(values[a], axis=1)
        style = {"marker": "o", "markersize": 3, "color": COLORS[a]}
        panel.plot(RANGES, median, label=f"α = {alpha:g}", **style)
        band = values[a].min(axis=1), values[a].max(axis=1)
        panel.fill_between(RANGES, *band, color=COLORS[a], alpha=0.15)
    panel.set(xscale="log", yscale="log", xlabel="largest rescaling R of a task")
    panel.grid(alpha=0.3)


def plot(sweeps, path):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("the figure needs matplotlib; install it with: pip install matplotlib")
    figure, axes = plt.subplots(len(sweeps), 2, figsize=(10, 3.8 * len(sweeps)), squeeze=False)
    for (left, right), (name, (norms, errors, _)) in zip(axes, sweeps.items(), strict=True):
        plot_panel(left, norms)
        left.set(ylabel=r"$\|d\| / \sqrt{K}$", title=name)
        left.legend()
        plot_panel(right, np.maximum(errors, 1e-17))  # R = 1 is no rescaling and error 0
        right.set(ylabel=r"$\|d' - d\| / \|d\|$", title=name)
        right.axhline(EPS, color="black", linestyle=":", linewidth=1)
        right.text(RANGES[-1], 2 * EPS, "fp64 eps", fontsize=8, horizontalalignment="right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def cells(alpha, norms, errors):
    """Norm and error at one alpha and R, over the Grams: the worst for alpha = 1, else medians."""
    if alpha != 1.0:
        return [f"{np.median(norms):.3g}", f"{np.median(errors):.1e}"]
    off = norms - 1
    return [f"1 {off[np.abs(off).argmax()]:+.0e}", f"{errors.max():.0e}"]


def table(name, norms, errors, fallbacks):
    columns = " | ".join(f"α = {a:g}: norm / √K | error" for a in ALPHAS)
    lines = [f"## {name}", "", f"| R | {columns} |", "|---|" + "---|---|" * len(ALPHAS)]
    for r, largest in enumerate(RANGES):
        row = [f"{largest:.0e}"]
        for a, alpha in enumerate(ALPHAS):
            row += cells(alpha, norms[a, r], errors[a, r])
        lines.append(f"| {' | '.join(row)} |")
    counts = ", ".join(f"{fallbacks[a].sum()} for {alpha:g}" for a, alpha in enumerate(ALPHAS))
    return lines + ["", f"Fallbacks among the {fallbacks[0].size} solves per α: {counts}.", ""]


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def flag(name, default, text):
        text += f" (default {default})"
        parser.add_argument(name, type=type(default), default=default, help=text)

    flag("--tasks", 10, "K of the Gaussian gradients")
    flag("--dimensions", 1000, "their dimension")
    flag("--grams", 20, "Gram matrices, also how many captured ones at most")
    flag("--seed", 0, "of the gradients and the rescaling")
    path = ROOT / "results" / "figure_d5_theorem1"
    parser.add_argument("--output", type=Path, default=path, help="path without suffix")
    return parser.parse_args()


def main():
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    gaussian = []
    for _ in range(args.grams):
        gradients = rng.standard_normal((args.tasks, args.dimensions))
        gaussian.append(gradients @ gradients.T)
    sweeps = {f"Gaussian gradients, K = {args.tasks}": sweep(gaussian, rng)}
    if CAPTURED.exists():
        with np.load(CAPTURED) as captured:
            grams = np.asarray(captured["critic"], dtype=np.float64)
        chosen = grams[np.linspace(0, len(grams) - 1, min(args.grams, len(grams))).astype(int)]
        sweeps[f"captured critic gradients, K = {len(chosen[0])}"] = sweep(chosen, rng)

    command = [Path(__file__).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]
    lines = [
        "# Figure D.5: Theorem 1",
        "",
        f"`python {' '.join(command)}`",
        "",
        "Task k's gradient is rescaled by s_k, log-uniform in [1, R]. Norm: of the combined",
        "gradient d, over √K, K the number of non-zero gradients. Error: ‖d' − d‖ / ‖d‖ against no",
        f"rescaling. For α = 1 the worst of {args.grams} Gram matrices, the norm as its difference",
        "from 1; for the other α the median.",
        "",
    ]
    for name, found in sweeps.items():
        lines += table(name, *found)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    plot(sweeps, args.output.with_suffix(".png"))
    args.output.with_suffix(".md").write_text("\n".join(lines))
    print("\n".join(lines))
    print(f"wrote {args.output.with_suffix('.png')} and .md")


if __name__ == "__main__":
    main()
