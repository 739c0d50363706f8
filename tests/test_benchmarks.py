"""The benchmarks as a person runs them, but tiny and into a temporary file, and their pieces."""

import copy
import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # at the end: it has a fairgrad_solver.py too
import per_task_gradients  # noqa: E402
import update  # noqa: E402

TINY = ["--benchmark", "MT10", "--repetitions", "1", "--threads", "1", "--device", "cpu"]
TWO_TASKS = ["--tasks", "reach-v3", "push-v3", *TINY[2:], "--steps", "500", "--num-workers", "1"]
FLAGS = {
    "per_task_gradients": [*TINY, "--num-steps", "64"],
    "update": [*TINY, "--num-steps", "500", "--passes", "1", "--memory-passes", "1"],
    "end_to_end": [*TWO_TASKS, "--update-epochs", "1", "--num-minibatches", "4"],
    "rollout": [*TINY, "--steps", "20", "--envpool-steps", "500", "--goals", "1"],
}
ROWS = {  # rows of each table, with numbers
    "per_task_gradients": ["ms", "to the limit", *per_task_gradients.ROWS],
    "update": [
        *update.PIECES,
        *update.STAGES,
        "TOPPO",
        "vanilla",
        "plain PPO",
        "vanilla_mtppo.py",
        "toppo_mt50.py",
    ],
    "end_to_end": ["vanilla_mtppo.py", "toppo_mt50.py", "TOPPO to vanilla"],
    "rollout": ["make_vec, sync", "make_vec, async", "ours", "EnvPool", "limit: MuJoCo alone"],
}


def run(name, *flags):
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def is_number(cell):
    found = re.fullmatch(r"(\d[\d,.]*(e[+-]\d+)?)(×| %)?", cell)
    return found and float(found[1].replace(",", "")) >= 0


@pytest.mark.parametrize(
    "name",
    [
        "per_task_gradients",
        pytest.param("update", marks=pytest.mark.long),
        pytest.param("end_to_end", marks=pytest.mark.long),
        pytest.param("rollout", marks=pytest.mark.long),
    ],
)
def test_prints_and_writes_its_tables(name, tmp_path):
    report = tmp_path / "report.md"
    kept = ROOT / f"results/bench_{name}.md"
    before = kept.read_text() if kept.exists() else None
    process = run(name, *FLAGS[name], "--out", report)
    assert process.returncode == 0, process.stderr
    assert process.stdout == report.read_text() + "\n"
    assert (kept.read_text() if kept.exists() else None) == before

    lines = report.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert f"python benchmarks/{name}.py --" in lines[2]
    assert "cores, 1 threads" in lines[4]
    assert "torch 2." in lines[5]
    tables = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    rows = [[cell.strip() for cell in cells] for cells in tables]
    assert not set(ROWS[name]) - {cells[0] for cells in rows}
    for first, *cells in rows:
        if first in ROWS[name] and "not installed" not in cells:
            assert all(is_number(cell) for cell in cells if cell), (first, cells)


@pytest.mark.long
def test_the_solver_benchmark(tmp_path):
    flags = [
        "--tasks",
        10,
        "--grams",
        1,
        "--rounds",
        1,
        "--budget",
        0.01,
        "--sweep",
        300,
        "--no-write",
    ]
    process = run("fairgrad_solver", *flags)
    assert process.returncode == 0, process.stderr
    titles = [line for line in process.stdout.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Table C.1",
        "## Gram matrices captured in training",
        "## Robustness sweep",
    ]


def test_all_ways_give_the_same_gradients():
    """And every row of the table ends in the same combined gradient."""
    p = per_task_gradients.problem("MT10", 320, "cpu", torch.float64)
    expected = per_task_gradients.ours(p)
    for way in (per_task_gradients.retain_graph_loop, per_task_gradients.slices_loop):
        found = way(p)
        torch.testing.assert_close(found.shared, expected.shared)
        for name, x in expected.rows.items():
            torch.testing.assert_close(found.rows[name], x)
    assert (expected.shared.norm(dim=1) > 0).all()

    per_task_gradients.whole(per_task_gradients.OURS, p)
    d = torch.cat([x.grad.flatten() for x in p.net.parameters()])
    per_task_gradients.whole("torchjd's autogram", p)
    other = torch.cat([x.grad.flatten() for x in p.hooked.parameters()])
    torch.testing.assert_close(other, d)

    per_task_gradients.plain_backward(p)
    plain = torch.cat([x.grad.flatten() for x in p.net.parameters()])
    torch.testing.assert_close(plain, expected.shared.mean(0))


@pytest.fixture(scope="module")
def vanilla():
    """vanilla_mtppo.py before its update on random episodes."""
    args = SimpleNamespace(num_steps=500, device="cpu")
    return update.collect(update.vanilla_mtppo, "MT10", args, passes=1)


def test_plain_ppos_step_is_vanillas(vanilla):
    """The mean of the tasks' gradients is the gradient of the mean: the same step, but cheaper."""
    (mb, *_) = update.some_minibatches(vanilla)
    assert mb["obs"].shape == (10, 16, 49)
    assert torch.equal(mb["obs"][:, 0, 39:], torch.eye(10))
    agents = []
    for step in (update.vanilla_mtppo.update_minibatch, update.plain_step):
        agent = copy.deepcopy(vanilla.agent)
        optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
        metrics = step(agent, optimizer, mb, vanilla.rng, vanilla.args)
        agents.append((agent, metrics))
    (theirs, expected), (plain, found) = agents
    for x, y, start in zip(theirs.parameters(), plain.parameters(), vanilla.agent.parameters()):
        assert not torch.equal(x, start)
        torch.testing.assert_close(x - start, y - start, rtol=1e-3, atol=1e-6)
    for tag, x in found.items():
        torch.testing.assert_close(x, expected[tag])


def test_the_clock_sees_all_of_the_update():
    """Each function as often as the script calls it, and none is patched afterwards."""
    args = SimpleNamespace(num_steps=500, device="cpu")
    s = update.collect(update.toppo_mt50, "MT10", args, passes=1)
    s.args.num_minibatches = 3
    function = s.script.gae
    clock = update.time_update(s, "cpu")
    calls = {label: len(seconds) for label, seconds in clock.seconds.items()}
    once = {"log-probabilities", "values", "GAE", "PopArt's statistics", "dealing the minibatches"}
    twice_a_step = {"fp64 Grams", "combined gradients", "gradient clips"}
    expected = {label: 1 for label in once | {"update"}} | {"normalising": 2, "diagnostics": 9}
    for label in [*update.STAGES, "minibatch steps"]:
        expected.setdefault(label, 6 if label in twice_a_step else 3)
    assert calls == expected
    assert set(calls) == {*update.PIECES, *update.STAGES, "update"}
    assert s.script.gae is function


def test_capture_grams(tmp_path, monkeypatch):
    """Those of every EVERY-th minibatch, in the order of training."""
    capture_grams = import_module("capture_grams")
    script = capture_grams.toppo_mt50
    monkeypatch.setattr(capture_grams, "EVERY", 2)
    flags = {"num_steps": 500, "update_epochs": 1, "num_minibatches": 5, "hidden_sizes": (16,)}
    args = script.Args(
        tasks=("reach-v3", "push-v3"),
        total_timesteps=1,
        eval_episodes=1,
        torch_threads=1,
        num_workers=1,
        cuda=False,
        run_dir=str(tmp_path),
        **flags,
    )
    measure = script.gradient_metrics
    grams, seen = capture_grams.capture(args, None)
    assert script.gradient_metrics is measure
    assert seen == 5
    for side in ("actor", "critic"):
        assert grams[side].shape == (3, 2, 2)
        assert grams[side].dtype == np.float64
        np.testing.assert_allclose(grams[side], grams[side].transpose(0, 2, 1), rtol=1e-12)
        assert len(np.unique(grams[side][:, 0, 0])) == 3
