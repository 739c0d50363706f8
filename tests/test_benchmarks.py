"""The benchmarks as a person runs them, but tiny and into a temporary file."""

import ast
import re
import subprocess
import sys

import pytest
from scripts import ROOT

SMALL = ["--benchmark", "MT10", "--repetitions", "1", "--threads", "1"]
RUNS = {  # flags, and a row of each table
    "rollout": ([*SMALL, "--num-envs-per-task", "1", "--steps", "20", "--envpool-steps", "500", "--goals", "1"],
                ["make_vec, sync", "make_vec, async", "ours, 1 a task", "EnvPool, 1 a task", "limit: MuJoCo alone"]),
    "per_task_gradients": ([*SMALL, "--device", "cpu", "--num-steps", "64"],
                           ["one backward of the mean loss (limit)", "ours", "a backward per task, `retain_graph`",
                            "forward and backward per task's slice", "`torch.func.vmap(grad)`", "ms", "to the limit"]),
    "update": ([*SMALL, "--device", "cpu", "--num-steps", "500", "--memory-passes", "1"],
               ["values", "GAE", "minibatch steps", "forward, losses", "FairGrad's weights", "diagnostics", "TOPPO", "vanilla",
                "plain PPO", "vanilla_mtppo.py", "toppo_mt50.py"]),
    "end_to_end": (["--tasks", "reach-v3", "push-v3", "--repetitions", "1", "--threads", "1", "--device", "cpu", "--steps", "500",
                    "--update-epochs", "1", "--num-minibatches", "4", "--num-workers", "1"],
                   ["vanilla_mtppo.py", "toppo_mt50.py", "TOPPO to vanilla"]),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_prints_and_writes_its_tables(name, tmp_path):
    (flags, rows), report, kept = RUNS[name], tmp_path / "report.md", ROOT / f"results/bench_{name}.md"
    before = kept.read_text() if kept.exists() else None
    command = [sys.executable, f"benchmarks/{name}.py", *flags, "--out", str(report)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout == report.read_text() + "\n"
    assert (kept.read_text() if kept.exists() else None) == before

    lines = report.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[2].startswith(f"`python benchmarks/{name}.py --")
    assert "cores, 1 threads" in lines[4] and "torch 2." in lines[5]
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert not set(rows) - {cells[0] for cells in tables}
    for first, *cells in tables:
        if first in rows and cells != ["500", "not installed", "", ""]:
            numbers = [re.fullmatch(r"(\d[\d,.]*(e[+-]\d+)?)(×| %)?", cell) for cell in cells if cell]
            assert all(numbers) and any(float(number[1].replace(",", "")) > 0 for number in numbers), (first, cells)


def test_minibatch_step_of_the_update_benchmark_is_the_scripts():
    """minibatch_step stands for main()'s loop over minibatches: statement by statement the same, but for its own bookkeeping."""

    def statements(path, function):
        tree = ast.parse((ROOT / path).read_text())
        [body] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
        nodes = [node for node in ast.walk(body) if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr))]
        return {ast.unparse(node).replace("script.", "") for node in nodes}

    scripts = statements("toppo_mt50.py", "main") | statements("vanilla_mtppo.py", "main")
    own = {s for s in statements("benchmarks/update.py", "minibatch_step") - scripts if not s.startswith("mark(")}
    assert len(statements("benchmarks/update.py", "minibatch_step") & scripts) >= 20
    assert all("s." in s or s.startswith(("'", "fairgrad_metrics")) for s in own), own
