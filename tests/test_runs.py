"""Scripts as a person runs them, on real Meta-World."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from scripts import MODULES, PATHS, SMALL, TASKS, Terminal, result, run, run_here, scalars

FLAGS = [*SMALL, "--total-timesteps", "2000", "--eval-interval", "2000"]  # two collects
FLAGS += ["--keep-checkpoints-every", "1"]
KINDS_OF_STATE = ["toppo_mt50.py", "ablations/toppo_popart_ema.py"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A function that runs a script to its end, once. Returns its process and its directory.

    The scripts that have no kind of state of their own run in this process, where PyTorch and
    Meta-World are loaded already.
    """
    runs = {}

    def finished_run(path):
        if path not in runs:
            run_dir = tmp_path_factory.mktemp("finished") / "run"
            run_it = run if path in KINDS_OF_STATE else run_here
            runs[path] = run_it(path, *FLAGS, "--run-dir", run_dir), run_dir
        return runs[path]

    return finished_run


def load(run_dir):
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def evaluations(run_dir):
    with open(run_dir / "evals.csv") as file:
        return list(csv.DictReader(file))


def expected_tags(path):
    """The names of all scalars but the speeds."""
    per_task = ["eval_success", "train_success", "train_return", "explained_variance"]
    per_task += ["actor_gradient_norm", "critic_gradient_norm"]
    tags = {"eval/success_worst_1", "replaced_episodes"}
    losses = "policy value entropy approx_kl ratio_clip_fraction value_clip_fraction"
    tags |= {f"losses/{name}" for name in losses.split()}
    for side in ("actor", "critic"):
        what = "log10_norm_spread mean_cosine top1_share combined_norm"
        tags |= {f"gradients/{side}_{name}" for name in what.split()}
    if "popart" in path or "toppo" in path:
        per_task += ["popart_mu", "popart_sigma"]
    if "fairgrad" in path or "toppo" in path:
        per_task += ["fairgrad_weight", "fairgrad_contribution"]
        solver = "kkt_residual newton_iterations used_scipy_fallback solver_fallback"
        tags |= {f"fairgrad/{name}" for name in solver.split()}
    if "fairgrad_fairgrad" in path:
        per_task += ["actor_fairgrad_weight", "actor_fairgrad_contribution"]
        tags |= {f"actor_fairgrad/{name}" for name in solver.split()}
    return tags | {f"{tag}/{name}" for tag in per_task for name in ("mean", *TASKS)}


@pytest.mark.parametrize("path", PATHS)
def test_trains_logs_and_evaluates(path, finished):
    process, run_dir = finished(path)
    assert process.returncode == 0, process.stderr

    # In a file there is one line a collect, and no progress bar
    script = MODULES[path].SCRIPT
    parameters = sum(p.numel() for p in MODULES[path].Agent(2, (16,)).parameters())
    lines = process.stdout.splitlines()
    assert process.stderr == ""
    assert lines[0] == f"{script}: K = 2, {parameters:,} parameters, device cpu"
    assert lines[1] == f"to continue: python {path} --run-dir {run_dir}"
    assert lines[-1] == f"{script}: {run_dir} is finished"
    for n, line in zip((1, 2), lines[2:-1], strict=True):
        expected = rf"collect {n}/2, {n},000 steps, success [01]\.\d\d\d, [\d,]+ steps/s, "
        assert re.fullmatch(expected + r"ETA \d\.\d\d h", line), line

    # evals.csv
    rows = evaluations(run_dir)
    expected = [(step, task, "1") for step in ("0", "2000") for task in TASKS]
    assert [(row["step"], row["task"], row["episodes"]) for row in rows] == expected
    assert all(row["success_rate"] in ("0.0", "1.0") for row in rows)
    assert all(float(row["mean_return"]) > 0 for row in rows)

    # The checkpoints
    kept = [f"checkpoint_0000{n}.pt" for n in (0, 1, 2)]
    assert sorted(file.name for file in run_dir.glob("checkpoint*")) == ["checkpoint.pt", *kept]
    assert (run_dir / kept[2]).read_bytes() == (run_dir / "checkpoint.pt").read_bytes()
    assert load(run_dir)["progress"]["collects"] == 2

    # TensorBoard
    logged = scalars(run_dir)
    assert logged.keys() == expected_tags(path)
    for tag, series in logged.items():
        steps = [0, 2000] if tag.startswith("eval") else [1000, 2000]
        assert [step for step, _ in series] == steps, tag
        assert all(abs(value) < float("inf") for _, value in series), tag
    assert logged["replaced_episodes"] == [(1000, 0), (2000, 0)]


def continued(checkpoint, run_dir, path, *flags):
    """Continues a run from a checkpoint, in a directory with nothing else."""
    run_dir.mkdir()
    shutil.copy(checkpoint, run_dir / "checkpoint.pt")
    process = run(path, "--run-dir", run_dir, *flags)
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.parametrize("path", KINDS_OF_STATE)
def test_a_kept_checkpoint_continues_to_the_very_same_end(path, finished, tmp_path):
    _, run_dir = finished(path)
    process = continued(run_dir / "checkpoint_00001.pt", tmp_path / "run", path)
    assert process.stdout.splitlines()[2].startswith("collect 2/2, 2,000 steps")

    tensors, tables, logged = result(run_dir)
    new_tensors, new_tables, new_logged = result(tmp_path / "run")
    assert new_tensors == tensors
    assert new_tables == tables
    later = {tag: [x for x in series if x[0] > 1000] for tag, series in logged.items()}
    assert new_logged == later


def test_a_larger_budget_continues_a_finished_run(finished, tmp_path):
    """With other flags that may change, too. The end is not the finished run's, but goes on."""
    _, run_dir = finished("toppo_mt50.py")
    shutil.copytree(run_dir, tmp_path / "run")
    flags = ["--total-timesteps", 4000, "--eval-interval", 3000, "--keep-checkpoints-every", 4]
    process = run("toppo_mt50.py", "--run-dir", tmp_path / "run", *flags)
    assert process.returncode == 0, process.stderr
    bars = [line for line in process.stdout.splitlines() if line.startswith("collect")]
    assert [line.split(",")[0] for line in bars] == ["collect 3/4", "collect 4/4"]

    steps = [int(row["step"]) for row in evaluations(tmp_path / "run")]
    assert steps == [0, 0, 2000, 2000, 3000, 3000, 4000, 4000]
    logged = scalars(tmp_path / "run")
    assert [step for step, _ in logged["losses/value"]] == [1000, 2000, 3000, 4000]
    assert [step for step, _ in logged["eval_success/mean"]] == [0, 2000, 3000, 4000]
    kept = sorted(file.name for file in (tmp_path / "run").glob("checkpoint_*"))
    assert kept == [f"checkpoint_0000{n}.pt" for n in (0, 1, 2, 4)]
    flags = json.loads((tmp_path / "run/args.json").read_text())
    assert (flags["total_timesteps"], flags["eval_interval"]) == (4000, 3000)


def test_a_finished_run_says_so_and_stays_as_it_is(finished):
    _, run_dir = finished("vanilla_mtppo.py")

    def content():
        return {file.name: file.read_bytes() for file in run_dir.iterdir()}

    before = content()
    process = run("vanilla_mtppo.py", *FLAGS, "--run-dir", run_dir)
    said = f"{run_dir} is finished; a larger --total-timesteps continues it"
    assert process.stdout == f"vanilla_mtppo: {said}\n"
    assert (process.returncode, process.stderr) == (0, "")
    assert content() == before


def test_progress_in_a_terminal(finished, tmp_path):
    """A bar moves within the collect and leaves the lines of a file. Seed 2 is another run."""
    flags = ["--num-steps", 1500, "--update-epochs", 20, "--eval-episodes", 3, "--seed", 2]
    flags += ["--total-timesteps", 3000, "--run-dir", tmp_path]
    terminal = Terminal("toppo_mt50.py", *FLAGS, *flags)
    assert terminal.read_to_the_end() == 0
    for part in ("evaluation", "rollout", "update"):
        seen = re.findall(rf"\r{part}: +(\d+)%", terminal.screen)
        assert seen and max(map(int, seen)) > 0, (part, terminal.screen)

    # What is left on the screen: a bar wipes itself out before the next line is written over it
    lines = [line.split("\r")[-1] for line in terminal.screen.split("\r\n")]
    assert len(lines) == 5 and lines[4] == ""
    assert lines[1] == f"to continue: python toppo_mt50.py --run-dir {tmp_path}"
    assert lines[2].startswith("collect 1/1, 3,000 steps")
    assert lines[3] == f"toppo_mt50: {tmp_path} is finished"

    first = scalars(finished("toppo_mt50.py")[1])
    second = scalars(tmp_path)
    for tag in ("losses/policy", "losses/value", "train_return/mean"):
        assert first[tag][0][1] != second[tag][0][1]


def open_run(module, tmp_path, monkeypatch, **flags):
    """What a script does in its run directory before it trains. Returns the flags written."""
    args = module.Args(tasks=tuple(TASKS), run_dir=str(tmp_path / "run"), **flags)
    module.open_run(args, 0).close()
    return json.loads((tmp_path / "run/args.json").read_text())


@pytest.mark.parametrize("folder", [".", "ablations"])
def test_args_json_holds_flags_commit_edits_and_packages(folder, tmp_path, monkeypatch):
    """In a repository of its own, where an edit of the shared module is an edit, too."""
    repository = tmp_path / "a repository"
    (repository / "ablations").mkdir(parents=True)
    files = ["solver.py", "ablations/script.py", "page.md"]

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        words = ["git", "-C", repository, *identity, *words]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    for file in files:
        (repository / file).write_text("before\n")
    git("init")
    git("add", ".")
    git("commit", "--message", "first")
    for file in files:
        (repository / file).write_text(f"after, {file}\n")

    module = MODULES["toppo_mt50.py"]
    monkeypatch.setattr(module, "__file__", str(repository / folder / "script.py"))
    written = open_run(module, tmp_path, monkeypatch, seed=7)
    assert (written["script"], written["seed"], written["tasks"]) == ("toppo_mt50", 7, TASKS)
    assert written["commit"] == git("rev-parse", "HEAD")
    assert "+after, ablations/script.py" in written["edits"]
    assert "+after, solver.py" in written["edits"]
    assert "page.md" not in written["edits"]
    assert written["packages"]["torch"] == version("torch")
    assert {"metaworld", "mujoco", "numpy", "tyro"} <= written["packages"].keys()


def test_track_mirrors_to_weights_and_biases(tmp_path, monkeypatch):
    """wandb is imported with --track only, and asked to follow TensorBoard. Notes what is said.

    A run that was killed or stopped goes on as the same one: "auto" is by a file in its directory.
    """
    said = {}
    stand_in = SimpleNamespace(init=said.update)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for path, module in MODULES.items():
        monkeypatch.setattr(module, "find_spec", lambda name: stand_in)
        (tmp_path / path).mkdir(parents=True)
        open_run(module, tmp_path / path, monkeypatch)
        assert not said
        written = open_run(module, tmp_path / path / "tracked", monkeypatch, track=True)
        assert (said["name"], said["sync_tensorboard"], said["resume"]) == ("run", True, "auto")
        assert said["dir"] == tmp_path / path / "tracked" / "run"
        assert said["config"] | {"tasks": TASKS, "hidden_sizes": [400, 400, 400]} == written
        said.clear()


@pytest.mark.long
def test_all_fifty_tasks(tmp_path):
    """One collect of MT50. Without the value clip every task has a gradient."""
    flags = ["--num-steps", 500, "--total-timesteps", 25_000, "--update-epochs", 1]
    flags += [
        "--num-minibatches",
        8,
        "--eval-episodes",
        1,
        "--no-clip-vloss",
        "--run-dir",
        tmp_path,
    ]
    process = run("toppo_mt50.py", *flags, timeout=1800)
    assert process.returncode == 0, process.stderr
    assert "toppo_mt50: K = 50, 717,105 parameters" in process.stdout
    rows = evaluations(tmp_path)
    assert len(rows) == 100
    assert len({row["task"] for row in rows}) == 50

    logged = scalars(tmp_path)
    assert len([tag for tag in logged if tag.startswith("popart_sigma/")]) == 51
    # Theorem 1 on every minibatch
    assert abs(logged["gradients/critic_combined_norm"][0][1] - 50**0.5) < 1e-4
    assert abs(logged["fairgrad_contribution/mean"][0][1] - 1) < 1e-6
    assert load(tmp_path)["progress"]["collects"] == 1


EXTREMES = {  # what the flags' checks let through
    "least": "--update-epochs 1 --num-minibatches 1 --gamma 0 --gae-lambda 0 --clip-coef 0 "
    "--vf-coef 0 --ent-coef 0 --max-grad-norm 0 --learning-rate 0 --hidden-sizes 1 --seed 0",
    "most": "--update-epochs 1 --num-minibatches 500 --gamma 1 --gae-lambda 1 --clip-coef 1e9 "
    "--vf-coef 1e3 --ent-coef 1 --max-grad-norm 1e9 --learning-rate 1e-3 --seed 4294967295",
}


@pytest.mark.long
@pytest.mark.parametrize("which", EXTREMES)
def test_flags_at_their_ends_train(which, tmp_path):
    process = run_here("toppo_mt50.py", *FLAGS, "--run-dir", tmp_path, *EXTREMES[which].split())
    assert process.returncode == 0, process.stderr
    assert os.path.exists(tmp_path / "checkpoint.pt")
