"""Trains TOPPO as toppo_mt50.py does, with its flags, and keeps the Grams of every 48th minibatch.

    python benchmarks/capture_grams.py --benchmark MT10 --total-timesteps 200000 \\
        --eval-episodes 1 --eval-interval 200000

Writes results/fairgrad_solver_captured_grams.npz: critic and actor, both [n, K, K] fp64, in the
order of training.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import toppo_mt50  # noqa: E402

EVERY = 48


def capture(args, checkpoint):
    """Trains. Returns every Gram of the run that is wanted, {side: [n, K, K]}, and how many."""
    measure = toppo_mt50.gradient_metrics
    kept: dict[str, list[np.ndarray]] = {"actor": [], "critic": []}
    seen = {"actor": 0, "critic": 0}

    def keep(side, gram, weights):
        if seen[side] % EVERY == 0:
            kept[side].append(gram)
        seen[side] += 1
        return measure(side, gram, weights)

    toppo_mt50.gradient_metrics = keep
    toppo_mt50.main(args, checkpoint)
    toppo_mt50.gradient_metrics = measure
    return {side: np.array(grams) for side, grams in kept.items()}, seen["critic"]


if __name__ == "__main__":
    grams, seen = capture(*toppo_mt50.parse_args())
    path = ROOT / "results/fairgrad_solver_captured_grams.npz"
    np.savez_compressed(path, **grams)
    print(f"wrote {path.relative_to(ROOT)}: {len(grams['critic'])} minibatches of {seen}")
