"""Trains TOPPO as toppo_mt50.py does, with the same flags, and keeps the Gram matrices of every 48th minibatch.

    python benchmarks/capture_grams.py --benchmark MT10 --total-timesteps 200000 --eval-episodes 1 --eval-interval 200000

Writes results/fairgrad_solver_captured_grams.npz: critic and actor, both [n, K, K] fp64, in the order of training.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import toppo_mt50  # noqa: E402

EVERY = 48

if __name__ == "__main__":
    measure, seen = toppo_mt50.gradient_metrics, 0
    kept: dict[str, list[np.ndarray]] = {"actor": [], "critic": []}

    def keep(*sides):
        global seen
        if seen % EVERY == 0:
            for side, gram, _ in sides:
                kept[side].append(gram.numpy())
        seen += 1
        return measure(*sides)

    toppo_mt50.gradient_metrics = keep
    toppo_mt50.main()
    path = ROOT / "results/fairgrad_solver_captured_grams.npz"
    np.savez_compressed(path, actor=np.array(kept["actor"]), critic=np.array(kept["critic"]))
    print(f"wrote {path.relative_to(ROOT)}: {len(kept['critic'])} minibatches of {seen}")
