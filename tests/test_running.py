"""Starting, stopping and continuing a run, bad flags and damaged files, on real Meta-World.

A start of Meta-World's processes takes seconds, so that runs are few and tests share them.
"""

import csv
import json
import os
import re
import resource
import shlex
import signal
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import (
    MODULES,
    ROOT,
    SMALL,
    Terminal,
    every_script,
    result,
    run,
    run_here,
    scalars,
    start,
)

SCRIPT = "toppo_mt50.py"
toppo = MODULES[SCRIPT]
TASKS = ("reach-v3", "push-v3")
FLAGS = [*SMALL, "--total-timesteps", 3000, "--eval-interval", 2000]  # three collects
FLAGS += ["--keep-checkpoints-every", 2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted: its directory, and what it printed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    return run_dir, run_here(SCRIPT, *FLAGS, "--run-dir", run_dir).stdout.splitlines()


def content(run_dir):
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


def refusal(path, *flags):
    """The message with which a script refuses to start."""
    with pytest.raises(SystemExit) as end:
        run_here(path, *flags)
    assert "\n" not in end.value.code
    return end.value.code


# --- A run, from its start to its end


def test_a_run_prints_logs_and_evaluates(finished):
    run_dir, lines = finished
    assert lines[0] == "toppo_mt50: new run, 3,000 steps of MT2, seed 1, on cpu"
    assert lines[1].startswith("to continue: python ")
    assert lines[2].startswith("0 steps, success ")
    steps = [line.split(" steps")[0] for line in lines[2:]]
    assert steps == ["0", "1,000", "2,000", "2,000", "3,000", "3,000"]
    assert lines[3] == "1,000 steps, 0.0 hours to go"

    with open(run_dir / "evals.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [(row["step"], row["task"]) for row in rows]
    assert steps == [(step, task) for step in ("0", "2000", "3000") for task in TASKS]
    assert all(row["episodes"] == "1" for row in rows)
    assert all(float(row["success_rate"]) in (0, 1) for row in rows)
    assert all(float(row["mean_return"]) > 0 for row in rows)

    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events.out")}
    kept = {"checkpoint_00000.pt", "checkpoint_00002.pt"}
    assert names == {"args.json", "evals.csv", "checkpoint.pt", *kept}


def test_a_run_logs_these_numbers(finished):
    per_task = "eval_success train_success train_return explained_variance popart_mu popart_sigma"
    per_task += " actor_gradient_norm critic_gradient_norm actor_contribution critic_contribution"
    tags = {"eval/success_worst_5"}
    losses = "policy value entropy approx_kl ratio_clip_fraction value_clip_fraction"
    tags |= {f"losses/{name}" for name in losses.split()}
    for side in ("actor", "critic"):
        what = "log10_norm_spread mean_cosine top1_share combined_norm"
        tags |= {f"gradients/{side}_{name}" for name in what.split()}
    solver = "residual iterations used_scipy_fallback solver_fallback"
    tags |= {f"fairgrad/{name}" for name in solver.split()}
    tags |= {
        f"{tag}/{name}"
        for tag in (*per_task.split(), "fairgrad/weights")
        for name in ("mean", *TASKS)
    }

    logged = scalars(finished[0])
    assert logged.keys() == tags
    for tag, series in logged.items():
        steps = [0, 2000, 3000] if tag.startswith("eval") else [1000, 2000, 3000]
        assert [step for step, _ in series] == steps, tag
        assert np.isfinite([value for _, value in series]).all(), tag


def test_a_finished_run_says_so_and_stays_as_it_is(finished):
    run_dir, _ = finished
    before = content(run_dir)
    said = run_here(SCRIPT, "--run-dir", run_dir).stdout
    assert said == f"toppo_mt50: {run_dir} is finished; a larger --total-timesteps continues it\n"
    assert content(run_dir) == before


# --- Stopping and continuing


def test_a_killed_run_ends_as_if_nothing_had_been(finished, tmp_path):
    """kill -9; the weights, the evaluations and what is logged are the same to the last bit."""
    process = start(SCRIPT, *FLAGS, "--run-dir", tmp_path)
    assert any(line.startswith("2,000 steps") for line in process.stdout), process.stderr.read()
    process.kill()
    process.communicate(timeout=60)  # until the workers are gone, too
    collects = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["collects"]
    assert collects in (1, 2)

    # What a kill in the middle of writing leaves
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.tmp").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "evals.csv").write_text("step,task,epi")

    lines = run_here(SCRIPT, "--run-dir", tmp_path).stdout.splitlines()
    assert lines[0].startswith(f"toppo_mt50: after {collects} collects, 3,000 steps of MT2")
    assert result(tmp_path) == result(finished[0])

    # Each start's flags
    first = json.loads((tmp_path / "args.json").read_text())
    second = json.loads((tmp_path / f"args_{collects:05}.json").read_text())
    assert first == second


def test_ctrl_c_is_one_line(tmp_path):
    """And the command that continues can be pasted, with a space in the directory's name too."""
    terminal = Terminal(SCRIPT, *FLAGS, "--run-dir", tmp_path / "a run")
    termios.tcsetwinsize(terminal.master, (24, 80))  # else there are no progress bars
    terminal.read_until("rollout:")
    terminal.press_ctrl_c()
    assert terminal.read_to_the_end() == 1
    before, after = terminal.screen.split("^C")
    lines = [line.split("\r")[-1].strip() for line in after.split("\r\n")]
    assert [line for line in lines if line][-1:] == ["toppo_mt50: error: KeyboardInterrupt()"]
    assert "Traceback" not in after

    (pasted,) = re.findall("to continue: (.+?)\r\n", terminal.screen)
    words = ["python", str(ROOT / SCRIPT), "--run-dir", str(tmp_path / "a run")]
    assert shlex.split(pasted) == words


def test_main_from_a_notebook(tmp_path, monkeypatch, capsys):
    """In a thread; without a run_dir in a new directory; again, it continues that run."""
    monkeypatch.chdir(tmp_path)
    flags = {"tasks": TASKS, "num_steps": 500, "update_epochs": 1, "num_minibatches": 2}
    flags |= {"hidden_sizes": (16,), "eval_episodes": 1, "num_workers": 1, "cuda": False}

    def train(**others):
        args = toppo.Args(**flags, **others)
        with ThreadPoolExecutor() as pool:
            pool.submit(toppo.main, args).result()
        return args.run_dir, capsys.readouterr().out

    run_dir, said = train(total_timesteps=1000)
    assert re.fullmatch(r"runs/\d{8}-\d{6}__toppo_mt50__MT2__1", run_dir)
    assert "new run" in said
    for expected in ("after 1 collects, 2,000 steps", "is finished"):
        _, said = train(run_dir=run_dir, total_timesteps=2000, eval_interval=500)
        assert expected in said
    assert {path.name for path in Path(run_dir).glob("args*")} == {"args.json", "args_00001.json"}
    logged = scalars(run_dir)
    assert [step for step, _ in logged["losses/value"]] == [1000, 2000]
    assert [step for step, _ in logged["eval_success/mean"]] == [0, 1000, 2000]


def start_one_worker():
    others = set(active_children())
    args = toppo.Args(tasks=TASKS, hidden_sizes=(16,), num_workers=1)
    workers = toppo.start_workers(args)
    (process,) = set(active_children()) - others
    return workers, process


def test_a_dead_worker_ends_the_run():
    workers, process = start_one_worker()
    process.kill()
    with pytest.raises(SystemExit, match="^toppo_mt50: error: a process with environments died"):
        toppo.play(workers, toppo.Agent(2, (16,)).actor, np.zeros(2, int))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ignores_ctrl_c_from_its_first_moment():
    _, process = start_one_worker()
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.kill()
    ignored = int(re.search(r"^SigIgn:\s(\w+)$", status, flags=re.M)[1], 16)
    assert ignored & 1 << (signal.SIGINT - 1)


def test_gradients_that_are_not_finite_name_the_task():
    args = toppo.Args(tasks=(*TASKS, "door-open-v3"), num_steps=500, hidden_sizes=(16,))
    agent = toppo.Agent(3, args.hidden_sizes)
    optimizer = torch.optim.Adam(agent.parameters())
    rng = np.random.default_rng(0)
    rollout = {
        "obs": rng.standard_normal((3, 1, 501, toppo.OBS_DIM + 3), np.float32),
        "actions": rng.standard_normal((3, 1, 500, 4), np.float32),
        "rewards": rng.standard_normal((3, 1, 500), np.float32),
    }
    rollout["rewards"][1, 0, 499] = np.inf
    before = agent.actor.state_dict()
    with pytest.raises(SystemExit, match="not finite: push-v3$"):
        toppo.update(agent, optimizer, rollout, rng, args)
    assert all(x.equal(before[name]) for name, x in agent.actor.state_dict().items())


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_one_process_for_each_core_that_this_one_may_use(cores, monkeypatch):
    """As taskset, SLURM and containers set them."""
    started = []
    ends = SimpleNamespace(close=lambda: None), SimpleNamespace(close=lambda: None)

    def process(target, args, daemon):
        return SimpleNamespace(start=lambda: started.append(args[2].tolist()))

    context = SimpleNamespace(Pipe=lambda: ends, Process=process)
    monkeypatch.setattr(toppo, "get_context", lambda method: context)
    monkeypatch.setattr(toppo.sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    toppo.start_workers(toppo.Args(tasks=(*TASKS, "door-open-v3")))
    assert started == {1: [[0, 1, 2]], 2: [[0, 2], [1]], 8: [[0], [1], [2]]}[cores]


# --- A run directory that cannot be continued

CHANGED = {  # another value for each flag that changes what is learned
    "seed": "4",
    "benchmark": "MT10",
    "tasks": "reach-v3",
    "reward_version": "v1",
    "num_steps": "1000",
    "update_epochs": "3",
    "num_minibatches": "8",
    "learning_rate": "1e-3",
    "adam_eps": "1e-8",
    "gamma": "0.98",
    "gae_lambda": "0.9",
    "bootstrap_truncation": None,
    "clip_coef": "0.1",
    "clip_vloss": None,
    "vf_coef": "0.5",
    "ent_coef": "0",
    "max_grad_norm": "0.5",
    "hidden_sizes": "64 64",
}


def test_a_flag_that_changes_what_is_learned_contradicts_the_run(finished):
    run_dir, _ = finished
    before = content(run_dir)
    names = [field.name for field in fields(toppo.Args)]
    assert [*CHANGED] == names[: names.index("total_timesteps")]
    for name, value in CHANGED.items():
        flag = name.replace("_", "-")
        flags = [f"--{flag}", *value.split()] if value else [f"--no-{flag}"]
        message = refusal(SCRIPT, *flags, "--run-dir", run_dir)
        assert message == f"toppo_mt50: error: {run_dir} has a run with another {name}"
    assert content(run_dir) == before


def test_another_scripts_run_is_refused(finished, tmp_path):
    message = refusal("vanilla_mtppo.py", "--run-dir", finished[0])
    expected = f"{finished[0]} has a run of toppo_mt50.py, which continues it"
    assert message == f"vanilla_mtppo: error: {expected}"

    # Also of one with a flag of its own
    ema = MODULES["ablations/toppo_popart_ema.py"]
    checkpoint = {"script": ema.SCRIPT, "args": asdict(ema.Args())}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    message = refusal(SCRIPT, "--run-dir", tmp_path)
    assert "not of toppo_mt50.py" in message and "popart_beta" in message


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_damaged_or_hostile_checkpoint_is_refused_and_executes_nothing(finished, tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = (finished[0] / "checkpoint.pt").read_bytes()
    checkpoint = torch.load(finished[0] / "checkpoint.pt", weights_only=True)

    def saved(x):
        torch.save(x, path)
        return path.read_bytes()

    files = [b"", b"hello\n", whole[: len(whole) // 2], whole[:100]]
    files += [saved([1, 2]), saved({"weights": torch.zeros(2)})]
    files += [saved(checkpoint | {"args": checkpoint["args"] | {"num_steps": 750}})]
    files += [saved(checkpoint | {"agent": Payload(str(tmp_path / "executed"))})]
    for file in files:
        path.write_bytes(file)
        message = refusal(SCRIPT, "--run-dir", tmp_path)
        assert message.startswith(f"toppo_mt50: error: {path} is damaged, or not of toppo_mt50.py")
        assert content(tmp_path) == {"checkpoint.pt": file}

    torch.load(path, weights_only=False)  # it would have
    assert (tmp_path / "executed").exists()


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    """In a process of its own, as a person sees it."""
    (tmp_path / "file").write_text("")
    process = run(SCRIPT, *FLAGS, "--run-dir", tmp_path / "file/run")
    assert (process.returncode, process.stdout) == (1, "")
    assert re.fullmatch("toppo_mt50: error: .*Not a directory.*\n", process.stderr)


def test_a_full_disk_is_an_oserror_and_leaves_the_last_checkpoint(tmp_path):
    args = toppo.Args(tasks=TASKS, hidden_sizes=(16,), run_dir=str(tmp_path))
    agent = toppo.Agent(2, args.hidden_sizes)
    optimizer = torch.optim.Adam(agent.parameters())
    toppo.save(args, agent, optimizer, 1, [])
    before = (tmp_path / "checkpoint.pt").read_bytes()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError):
            toppo.save(args, agent, optimizer, 2, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- Flags


def said_in_the_box(text):
    """What tyro says in the box that it draws, on one line."""
    return " ".join(re.sub("[─-╿]", " ", text).split())  # Unicode's box drawings


BAD = [  # flags, and what the message says of them
    ("--benchmark MT7", "'MT7' for argument '--benchmark'. Expected one"),
    ("--tasks reach-v3 reach-v9", "tasks: Meta-World has no reach-v9"),
    ("--tasks reach-v3 push-v3 reach-v3", "tasks: expected each once"),
    ("--reward-version v3", "'v3' for argument '--reward-version'"),
    ("--num-steps 499", "num_steps: expected a multiple of 500"),
    ("--num-steps 0", "num_minibatches: expected 1 to num_steps"),
    ("--num-steps 1e4", "--num-steps: invalid literal"),
    ("--update-epochs 0", "expected more than 0"),
    ("--eval-interval 0", "expected more than 0"),
    ("--num-minibatches 0", "num_minibatches: expected 1 to num_steps"),
    ("--num-steps 500 --num-minibatches 501", "num_minibatches: expected 1 to num_steps"),
    ("--total-timesteps -1", "expected finite numbers of 0 or more"),
    ("--learning-rate inf", "expected finite numbers of 0 or more"),
    ("--ent-coef nan", "expected finite numbers of 0 or more"),
    ("--eval-episodes 0", "eval_episodes: expected 1 to 50"),
    ("--eval-episodes 51", "eval_episodes: expected 1 to 50"),
    ("--run-dir=", "run_dir: expected the name of a directory"),
    ("--sede 1", "Unrecognized options: --sede"),
    ("--seed", "Missing value for argument '--seed'"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_flags_end_before_anything_starts(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *flags.split()])
    with pytest.raises(SystemExit) as end:
        toppo.parse_args()
    assert end.value.code == 2
    assert message in said_in_the_box(capsys.readouterr().err)


@every_script
def test_help_names_every_flag_and_says_what_it_is(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{module.SCRIPT}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        module.parse_args()
    assert end.value.code == 0
    said = said_in_the_box(capsys.readouterr().out)
    assert said.startswith(f"usage: {module.SCRIPT}.py [-h] [OPTIONS] ")
    assert " ".join(module.__doc__.split()) in said

    source = Path(module.__file__).read_text()
    explained = re.findall(r'^    (\w+): .+\n    """(.+)"""$', source, flags=re.M)
    assert [name for name, _ in explained] == [field.name for field in fields(module.Args)]
    for name, explanation in explained:
        assert f" --{name.replace('_', '-')}" in said
        assert explanation in said


# --- What a start writes down


def test_args_json_has_the_flags_and_the_commit(tmp_path, monkeypatch):
    def written():
        args = toppo.Args(tasks=TASKS, seed=7, run_dir=str(tmp_path / "run"))
        toppo.open_run(args, 0).close()
        flags = json.loads((tmp_path / "run/args.json").read_text())
        assert set(flags) == {"script", "commit", *asdict(args)}
        assert (flags["script"], flags["seed"], flags["tasks"]) == ("toppo_mt50", 7, [*TASKS])
        return flags["commit"]

    if (ROOT / ".git").exists():
        assert re.search(r"[0-9a-f]{40}(-dirty)?$", written())
    with monkeypatch.context() as patch:
        patch.setattr(toppo, "__file__", str(tmp_path / SCRIPT))  # in no repository
        assert written() is None
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git
    assert written() is None


def test_track_mirrors_to_weights_and_biases(tmp_path, monkeypatch):
    said = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=said.update))
    args = toppo.Args(tasks=TASKS, run_dir=str(tmp_path), track=True)
    toppo.open_run(args, 0).close()
    assert said["sync_tensorboard"] and said["resume"] == "auto"
    assert said["config"]["tasks"] == TASKS

    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(SystemExit, match="^toppo_mt50: error: --track: .*wandb"):
        toppo.open_run(args, 0)


# --- Commands in the pages


def commands():
    """(page, words) of the commands in the pages' bash blocks."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S):
            for command in re.split(r"\n|&&", block.replace("\\\n", " ")):
                if words := shlex.split(command, comments=True):
                    yield page.name, words


def test_the_pages_commands_name_files_and_flags_that_exist():
    found = list(commands())
    assert ["python", SCRIPT, "--seed", "3"] in [words for _, words in found]
    for page, words in found:
        where = f"{page}: {' '.join(words)}"
        if words[:2] == ["python", "-m"]:
            continue
        files = [word for word in words if re.search(r"\.(py|txt|toml|ipynb)$", word)]
        assert all((ROOT / file).exists() for file in files), where
        if words[0] != "python":
            continue
        source = "".join((ROOT / file).read_text() for file in [*files, SCRIPT])
        for flag in (word.split("=")[0] for word in words if re.match(r"--\w", word)):
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            assert re.search(rf"\b{name}\b", source), where
