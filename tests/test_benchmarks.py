"""The benchmarks as a person runs them, but tiny, and the ways to the same gradients."""

import re
import subprocess
import sys
from pathlib import Path

import metaworld
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # at the end: it has a fairgrad_solver.py too
import per_task_gradients as benchmark  # noqa: E402
import rollout  # noqa: E402

TINY = {
    "per_task_gradients": "--repetitions 1 --num-steps 64 --device cpu",
    "fairgrad_solver": "--num-tasks 10 --grams 1 --rounds 1",
}
ROWS = {
    "per_task_gradients": [benchmark.LIMIT, *benchmark.WAYS],
    "fairgrad_solver": ["well-conditioned", "one small row, 1e6"],
}


@pytest.mark.parametrize("name", TINY)
def test_prints_its_table(name):
    command = [sys.executable, ROOT / f"benchmarks/{name}.py", *TINY[name].split()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    lines = [line.strip("|").split("|") for line in process.stdout.splitlines() if line[:1] == "|"]
    rows = {first.strip(): cells for first, *cells in lines}
    for row in ROWS[name]:
        for cell in rows[row]:
            assert re.fullmatch(r"\s*\d[\d,.]*(e[+-]\d+)?×?\s*", cell), (row, cell)


def test_rollouts_play(monkeypatch):
    # make_vec's num_goals stays set in Meta-World, for the tests after this one, too
    monkeypatch.setattr(metaworld, "_N_GOALS", metaworld._N_GOALS)
    args = rollout.Args(goals=1)
    rollout.vector_rollout("sync", args)(2)
    rollout.script_rollout(rollout.vanilla_mtppo, args)(500)


def test_all_ways_give_the_same_gradients():
    p = benchmark.problem(benchmark.Args(num_steps=320, device="cpu"), torch.float64)
    J, head_gradients = benchmark.vmap_of_grad(p)
    assert (J.norm(dim=1) > 0).all()
    for way in benchmark.WAYS.values():
        other_J, other_gradients = way(p)
        torch.testing.assert_close(other_J, J)
        for name, x in head_gradients.items():
            torch.testing.assert_close(other_gradients[name], x)

    benchmark.one_backward(p)
    mean = torch.cat([x.grad.flatten() for x in p.net.parameters()])
    torch.testing.assert_close(mean, J.mean(0))
