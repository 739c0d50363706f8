"""Figure D.5: Theorem 1 in numbers. The combined gradient's norm, and how far it moves, when each task's gradient is rescaled.

    python paper/figure_d5_theorem1.py      writes results/figure_d5_theorem1.png and .md (needs matplotlib)

Task k's gradient is multiplied by s_k, log-uniform in [1, R], R from 1 to 10^12. For alpha = 1 the norm is sqrt(K) and d does not
move beyond fp64's rounding; for every other alpha both change. The gradients are Gaussian; where
results/fairgrad_solver_captured_grams.npz holds Gram matrices of a training run, the sweep is repeated on those.
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
RANGES = 10.0 ** np.arange(13)


def sweep(grams, rng):
    """||d'|| / sqrt(K), ||d' - d|| / ||d|| and fallbacks, [alpha, R, Gram], for d' the combined gradient of the rescaled tasks
    and K the number of non-zero gradients."""
    shape = (len(ALPHAS), len(RANGES), len(grams))
    norms, errors, fallbacks = np.empty(shape), np.empty(shape), np.zeros(shape, dtype=bool)
    for i, gram in enumerate(grams):
        exponents = rng.random(len(gram))  # the same tasks grow at every R
        k = (gram.diagonal() > 0.0).sum()
        for a, alpha in enumerate(ALPHAS):
            w = solve_fairgrad(gram, alpha, tol=1e-15).weights
            for r, largest in enumerate(RANGES):
                s = largest**exponents
                result = solve_fairgrad(gram * s * s[:, None], alpha, tol=1e-15)
                # d' = sum_k w'_k s_k g_k, so every norm is a quadratic form in the Gram of the gradients as they were.
                coefficients = result.weights * s
                difference = coefficients - w
                norms[a, r, i] = np.sqrt(coefficients @ gram @ coefficients / k)
                errors[a, r, i] = np.sqrt(max(difference @ gram @ difference, 0.0) / (w @ gram @ w))
                fallbacks[a, r, i] = result.used_scipy_fallback
    return norms, errors, fallbacks


def plot(sweeps, path):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("the figure needs matplotlib; install it with: pip install matplotlib")
    figure, axes = plt.subplots(len(sweeps), 2, figsize=(10, 3.8 * len(sweeps)), squeeze=False)
    for row, (name, (norms, errors, _)) in zip(axes, sweeps.items(), strict=True):
        for panel, values, label in (
            (row[0], norms, r"$\|d\| / \sqrt{K}$"),
            (row[1], np.maximum(errors, 1e-17), r"$\|d' - d\| / \|d\|$"),  # R = 1 is no rescaling and error 0
        ):
            for a, alpha in enumerate(ALPHAS):
                line = panel.plot(RANGES, np.median(values[a], axis=1), marker="o", markersize=3, label=f"α = {alpha:g}")[0]
                panel.fill_between(RANGES, values[a].min(axis=1), values[a].max(axis=1), color=line.get_color(), alpha=0.15)
            panel.set(xscale="log", yscale="log", xlabel="largest rescaling R of a task", ylabel=label, title=name)
            panel.grid(alpha=0.3)
        row[0].legend()
        row[1].axhline(np.finfo(float).eps, color="black", linestyle=":", linewidth=1)
        row[1].text(RANGES[-1], np.finfo(float).eps * 2.0, "fp64 eps", fontsize=8, horizontalalignment="right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def table(name, norms, errors, fallbacks):
    lines = [f"## {name}", "", "| R | " + " | ".join(f"α = {a:g}: norm / √K | error" for a in ALPHAS) + " |"]
    lines.append("|---|" + "---|---|" * len(ALPHAS))
    for r, largest in enumerate(RANGES):
        cells = []
        for a, alpha in enumerate(ALPHAS):
            norm = np.median(norms[a, r])
            cells.append(f"1 {norms[a, r][np.abs(norms[a, r] - 1).argmax()] - 1:+.0e}" if alpha == 1.0 else f"{norm:.3g}")
            cells.append(f"{errors[a, r].max():.0e}" if alpha == 1.0 else f"{np.median(errors[a, r]):.1e}")
        lines.append(f"| {largest:.0e} | " + " | ".join(cells) + " |")
    counts = ", ".join(f"{fallbacks[a].sum()} for {alpha:g}" for a, alpha in enumerate(ALPHAS))
    return lines + ["", f"Fallbacks among the {fallbacks[0].size} solves per α: {counts}.", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10, help="K of the Gaussian gradients (default 10)")
    parser.add_argument("--dimensions", type=int, default=1000, help="their dimension (default 1000)")
    parser.add_argument("--grams", type=int, default=20, help="Gram matrices, also how many captured ones at most (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "figure_d5_theorem1", help="path without suffix")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)

    gaussian = [(j := rng.standard_normal((args.tasks, args.dimensions))) @ j.T for _ in range(args.grams)]
    sweeps = {f"Gaussian gradients, K = {args.tasks}": sweep(gaussian, rng)}
    if CAPTURED.exists():
        with np.load(CAPTURED) as captured:
            grams = np.asarray(captured["critic"], dtype=np.float64)
        chosen = grams[np.linspace(0, len(grams) - 1, min(args.grams, len(grams))).astype(int)]
        sweeps[f"captured critic gradients, K = {len(chosen[0])}"] = sweep(chosen, rng)

    lines = [
        "# Figure D.5: Theorem 1",
        "",
        f"`python {' '.join([Path(__file__).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]])}`",
        "",
        "Task k's gradient is rescaled by s_k, log-uniform in [1, R]. Norm: of the combined gradient d, over √K, K the number of",
        "non-zero gradients. Error: ‖d' − d‖ / ‖d‖ against no rescaling.",
        f"For α = 1 the worst of {args.grams} Gram matrices, the norm as its difference from 1; for the other α the median.",
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
