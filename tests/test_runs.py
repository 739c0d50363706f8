"""Scripts as a person runs them: whole processes on real Meta-World."""

import csv
import json
import os
import re

import numpy as np
import pytest
import torch
from scripts import MODULES, PATHS, ROOT, run, scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

TASKS = ["reach-v3", "drawer-close-v3", "push-v3"]
SMALL = ["--tasks", *TASKS, "--num-steps", "500", "--update-epochs", "2", "--num-minibatches", "4", "--eval-episodes", "1",
         "--eval-interval", "3000", "--torch-threads", "1"]  # fmt: skip


def load(run_dir):
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def tensorboard_layout(run_dir):
    """What TensorBoard's tab "custom scalars" opens with: {panel: regular expression of the tags in it}."""
    events = EventAccumulator(str(run_dir))
    events.Reload()
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    assert [chart.title for chart in category.chart] == ["success", "tails", "critic health", "speed"]
    return {chart.title: "|".join(chart.multiline.tag) for chart in category.chart}


def check_dump(run_dir, path):
    """Of every second collect from the first on; the gradients' own Gram, and the rule that the weights come from."""
    (file,) = (run_dir / "gradients").iterdir()
    assert file.name == "collect_00000.npz"
    with np.load(file, allow_pickle=False) as dump:
        x = {name: dump[name] for name in dump}
    popart = {"popart_mu", "popart_sigma"} if "popart" in path or "toppo" in path else set()
    per_task = {"actor_weights", "critic_weights", "success_ema", *popart}
    assert x.keys() == {"tasks", "collect", "global_step", "actor_gradients", "critic_gradients", *per_task}
    assert x["tasks"].tolist() == TASKS and (x["collect"], x["global_step"]) == (0, 0)
    assert all(x[name].shape == (3,) for name in per_task)
    agent = MODULES[path].Agent(3, (400,) * 3)
    for side, net in ("actor", agent.actor), ("critic", agent.critic):
        assert x[f"{side}_gradients"].shape == (3, sum(p.numel() for p in net.parameters()))
        G, w = (J := x[f"{side}_gradients"].astype(float)) @ J.T, x[f"{side}_weights"]
        if side == "critic" and ("fairgrad" in path or "toppo" in path):
            np.testing.assert_allclose((w * (G @ w))[G.diagonal() > 0], 1, rtol=1e-6)  # FairGrad's KKT condition
        elif "cagrad" not in path and "pcgrad" not in path and "fairgrad_fairgrad" not in path and "toppo" not in path:
            np.testing.assert_array_equal(w, 1 / 3)


@pytest.mark.parametrize("path", PATHS)
def test_trains_logs_evaluates_and_resumes(path, tmp_path):
    run_dir, script = tmp_path / "run", path.split("/")[-1][:-3]
    process = run(path, *SMALL, "--total-timesteps", 3000, "--dump-gradients-every", 2, "--run-dir", run_dir)
    assert process.returncode == 0, process.stderr
    first, *bars = process.stdout.splitlines()
    parameters = sum(p.numel() for p in MODULES[path].Agent(3, (400,) * 3).parameters())
    assert first == f"{script} on {' '.join(TASKS)}: K = 3, {parameters:,} parameters, device cpu, run directory {run_dir}"
    assert [bar.split(",")[0].split("|")[2].strip() for bar in bars] == ["collect 0/2", "collect 1/2", "collect 2/2"]
    assert all("steps/s" in bar and "ETA" in bar and "success" in bar and "\r" not in bar for bar in bars)

    args = json.loads((run_dir / "args.json").read_text())
    assert (args["script"], args["tasks"], args["num_steps"], args["total_timesteps"]) == (script, TASKS, 500, 3000)
    rows = list(csv.DictReader(open(run_dir / "evals.csv")))
    assert [(int(r["step"]), r["task"], int(r["episodes"])) for r in rows] == [(s, t, 1) for s in (0, 3000) for t in TASKS]
    assert all(0 <= float(r["success_rate"]) <= 1 and float(r["mean_return"]) >= 0 for r in rows)
    checkpoint = load(run_dir)
    assert {"args", "collect", "global_step", "agent", "optimizer"} <= checkpoint.keys()
    assert (checkpoint["collect"], checkpoint["global_step"]) == (2, 3000)

    logged = scalars(run_dir)
    for title, tags in tensorboard_layout(run_dir).items():
        assert any(re.match(tags, tag) for tag in [*logged, "speed/all_steps_per_second"]), title
    expected = """eval_success/mean eval_success/push-v3 eval/success_worst_1 eval/success_worst_3 train_success/mean
        train_return/mean explained_variance/mean explained_variance/push-v3 losses/policy losses/value losses/entropy
        losses/approx_kl losses/ratio_clip_fraction losses/value_clip_fraction gradients/actor_mean_cosine
        gradients/critic_mean_cosine gradients/critic_log10_norm_spread gradients/critic_top1_share gradients/norm_ratio
        critic_gradient_norm/reach-v3""".split()
    if "popart" in path or "toppo" in path:
        expected += ["popart_mu/reach-v3", "popart_sigma/push-v3"]
    if "fairgrad" in path or "toppo" in path:
        expected += """fairgrad_weight/reach-v3 fairgrad_contribution/mean fairgrad/kkt_residual fairgrad/newton_iterations
            fairgrad/used_scipy_fallback fairgrad/solver_fallback""".split()
        # KKT and Theorem 1; where the value clip leaves a task no gradient, its contribution is 0 and the norm sqrt(K - 1)
        assert all(value < 1e-8 for _, value in logged["fairgrad/kkt_residual"])
        assert all(0.3 < value < 1 + 1e-6 for task in TASKS for _, value in logged[f"fairgrad_contribution/{task}"])
        assert all(1 < value < 3**0.5 + 1e-6 for _, value in logged["gradients/critic_combined_norm"])
    assert set(expected) <= logged.keys()
    assert all(value == value for series in logged.values() for _, value in series)

    check_dump(run_dir, path)
    if path not in ("vanilla_mtppo.py", "toppo_mt50.py", "ablations/toppo_popart_ema.py"):  # three kinds of state to resume
        return
    again = run(path, "--resume", run_dir, "--total-timesteps", 4500)
    assert again.returncode == 0, again.stderr
    assert load(run_dir)["global_step"] == 4500
    assert [s for s, _ in scalars(run_dir)["losses/value"]] == [1500, 3000, 4500]
    assert len(list(csv.DictReader(open(run_dir / "evals.csv")))) == 9


@pytest.mark.parametrize("script", ["vanilla_mtppo", "toppo_mt50"])
def test_same_seed_gives_the_numbers_of_before_it_was_made_fast(script, tmp_path):
    """The first collect's scalars as an earlier commit logged them, up to the rounding of sums in another order. Later collects
    drift apart, because contacts amplify rounding."""
    reference = json.loads((ROOT / "tests/reference_scalars.json").read_text())
    flags = reference["command"].split()[3:]  # behind python SCRIPT.py --no-cuda
    process = run(f"{script}.py", *flags, "--run-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    first = {tag: min(series)[1] for tag, series in scalars(tmp_path).items()}
    for tag, value in reference["scalars"][script].items():  # a fraction counts samples, some of which are at its threshold
        assert first[tag] == pytest.approx(value, rel=2e-3, abs=5e-3 if tag.endswith("fraction") else 1e-5), tag


def test_track_mirrors_to_weights_and_biases(tmp_path):
    """wandb is imported with --track only, and asked to follow TensorBoard. A stand-in notes what it is told."""
    note = f"open({str(tmp_path / 'said')!r}, 'w').write(repr(sorted(said.items())))"
    (tmp_path / "wandb.py").write_text(f"def init(**said):\n    {note}\n")
    flags = [*SMALL, "--total-timesteps", 1500, "--run-dir", tmp_path / "run"]
    process = run("vanilla_mtppo.py", *flags, "--track", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert process.returncode == 0, process.stderr
    said = (tmp_path / "said").read_text()
    assert "('name', 'run')" in said and "('sync_tensorboard', True)" in said and "'num_steps': 500" in said


def test_all_fifty_tasks(tmp_path):
    """One collect of MT50 through rollout, update, evaluation, checkpoint; without the value clip every task has a gradient."""
    flags = ["--num-steps", 500, "--total-timesteps", 25_000, "--update-epochs", 2, "--eval-episodes", 1, "--no-clip-vloss"]
    flags += ["--run-dir", tmp_path]
    process = run("toppo_mt50.py", *flags, timeout=600)
    assert process.returncode == 0, process.stderr
    assert "on MT50: K = 50, 717,105 parameters" in process.stdout
    rows = list(csv.DictReader(open(tmp_path / "evals.csv")))
    assert len({r["task"] for r in rows}) == 50 and len(rows) == 100
    logged = scalars(tmp_path)
    assert len([tag for tag in logged if tag.startswith("popart_sigma/")]) == 51
    assert abs(logged["gradients/critic_combined_norm"][0][1] - 50**0.5) < 1e-4  # Theorem 1 on every minibatch
    assert abs(logged["fairgrad_contribution/mean"][0][1] - 1) < 1e-6
    assert load(tmp_path)["global_step"] == 25_000
