"""sweep.py: its commands, its table, and jobs that are killed, requeued and stopped in real runs."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import sweep
import torch
from scripts import MODULES, PATHS, ROOT

pytest.importorskip("submitit", reason="needs submitit: pip install -r requirements-sweep.txt")
FLAGS = ["--tasks", "reach-v3", "--num-steps", "500", "--update-epochs", "1", "--num-minibatches", "2", "--eval-episodes", "1",
         "--eval-interval", "2000", "--total-timesteps", "8000", "--torch-threads", "1", "--num-workers", "1"]  # fmt: skip


def start(*words, **options):
    command = [sys.executable, ROOT / "sweep.py", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(*words, **options):
    """Returns exit code, lines of stdout, stderr."""
    process = start(*words, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err


def wait_until(condition, process=None, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def processes(text):
    """Of the processes with text in their command lines: {pid: parent's pid}."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    return {int(pid): int(parent) for pid, parent, line in (x.split(None, 2) for x in listed[1:]) if text in line}


def programs(folder, monkeypatch, **scripts):
    """Shell scripts that stand before the machine's own programs in PATH."""
    folder.mkdir()
    for name, text in scripts.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name.replace("_", "-")).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# Commands


def test_dry_run_prints_the_papers_grid(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, lines, err = finish("--dry-run", "--dir", tmp_path / "runs", "--jobs", 1)
    assert (code, err) == (0, "") and not (tmp_path / "runs").exists()
    settings, found = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")], set()
    for words in map(shlex.split, lines):
        assert words[0] == sys.executable and words[1] in PATHS[:6]
        monkeypatch.setattr(sys, "argv", words[1:])
        args, names, checkpoint = MODULES[words[1]].parse_args()  # refuses what it does not know
        assert checkpoint is None and len(names) == int(args.benchmark[2:])
        name = f"{args.benchmark}__{args.reward_version}__{Path(words[1]).stem}__seed{args.seed:02}"
        assert args.run_dir == str(tmp_path / "runs" / name)
        assert args.torch_threads == args.num_workers == len(os.sched_getaffinity(0))
        found.add((words[1], (args.benchmark, args.reward_version), args.seed))
    assert len(lines) == 180 and found == {*product(PATHS[:6], settings, range(1, 11))}


def test_dry_run_of_ones_own_grid(tmp_path, monkeypatch):
    """Scripts by name and by path, flags for them, and two GPUs for four runs at a time."""
    programs(tmp_path / "bin", monkeypatch, nvidia_smi="echo 'GPU 0: A (UUID: GPU-a)'; echo '  MIG x'; echo 'GPU 1: A (UUID: b)'")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    scripts = "ln", "ablations/popart.py", ROOT / "vanilla_mtppo.py"
    words = ["--dry-run", "--dir", tmp_path / "a b", "--jobs", 4, "--seeds", 7, 100, "--scripts", *scripts,
             "--reward-versions", "v1", "v2", "--benchmarks", "MT25", "--", "--num-workers=3"]  # fmt: skip
    code, lines, err = finish(*words, "--gamma", "0.9")
    assert code == 0, err
    cores = max(1, len(os.sched_getaffinity(0)) // 4)
    expected = []
    for seed, reward, script in product((7, 100), ("v1", "v2"), ("ablations/ln.py", "ablations/popart.py", "vanilla_mtppo.py")):
        folder = shlex.quote(f"{tmp_path}/a b/MT25__{reward}__{Path(script).stem}__seed{seed:02}")
        expected.append(f"env CUDA_VISIBLE_DEVICES={len(expected) % 4 % 2} {sys.executable} {script} --benchmark MT25 "
                        f"--reward-version {reward} --seed {seed} --run-dir {folder} --resume auto --torch-threads {cores} "
                        "--num-workers=3 --gamma 0.9")  # fmt: skip
    assert lines == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    code, lines, _ = finish(*words, "--tasks", "reach-v3", "push-v3")
    assert len(lines) == 12 and all(line.startswith("env CUDA_VISIBLE_DEVICES=5 ") for line in lines)
    assert all("/MT2__v" in line and "--benchmark" not in line for line in lines)


BAD = {
    "--scripts nothing": "--scripts nothing: expected a training script",
    "--scripts ln ablations/ln.py": "--scripts ablations/ln.py: another one has that name",
    "--scripts toppo_envpool": "--reward-versions v2 only",
    "--seeds 1 1": "one or more, each once",
    "--seeds one": "parsing --seeds",
    "--benchmarks MT11": "MT10, MT25 or MT50",
    "--reward-versions v3": "v1, v2 or both",
    "--jobs -1": "0 or more",
    "--sede 1": "Unrecognized options: --sede",
    "--engine ray": "local or slurm",
    "--engine slurm": "a machine with sbatch",
    "--slurm-options mem": "NAME=VALUE",
    "--dir README.md": "a folder",
    "--dir README.md/x": "Not a directory",
    "-- --seed 1": "--seed after `--`: sweep.py sets it",
    "-- --run_dir=x": "--run-dir after `--`: sweep.py sets it",
    "-- --total-timesteps many": "a number of steps",
}


@pytest.mark.parametrize("words", BAD)
def test_errors_are_one_line(words):
    code, lines, err = finish(*words.split())
    assert (code, lines) == (2, []) and err.startswith("sweep: error: ") and err.count("\n") == 1
    assert BAD[words] in err


# The table


def write(path, steps, rates, log, total=40_000, num_steps=1000):
    """A run directory on two tasks, as far as the table reads it. rates: {step: rates}."""
    path.mkdir()
    (path / "args.json").write_text(json.dumps({"script": "toppo_mt50", "total_timesteps": total, "num_steps": num_steps}))
    rows = [f"{step},{task},50,{rate},1.0\n" for step, both in rates.items() for task, rate in zip("ab", both)]
    (path / "evals.csv").write_text("step,task,episodes,success_rate,mean_return\n" + "".join(rows))
    evals = [("step", "task", "episodes", "success_rate", "mean_return"), *(tuple(row.split(",")) for row in rows)]
    state = dict(script="toppo_mt50", args={"seed": 1}, tasks=["a", "b"], collect=steps // 2000, global_step=steps, evals=evals)
    torch.save({**state, "agent": {"x": torch.zeros(9)}}, path / "checkpoint.pt")
    Path(f"{path}.log").write_text(log)


def line(steps, rate):
    return f"|###                 | collect {steps // 2000}/20, {steps:,} steps, {rate:,} steps/s, ETA 0.10 h, success 0.500\n"


def test_table_of_all_states(tmp_path, monkeypatch, capsys):
    words = "sweep.py --status --scripts toppo_mt50 --benchmarks MT10 --jobs 2".split()
    monkeypatch.setattr(sys, "argv", [*words, "--dir", str(tmp_path), "--", "--tasks", "a", "b"])
    paths = [tmp_path / f"MT2__v2__toppo_mt50__seed{seed:02}" for seed in range(1, 11)]
    write(paths[0], 40_000, {0: (0, 0), 40_000: (1, 0.9)}, line(40_000, 10))
    write(paths[1], 36_000, {0: (0, 0), 36_000: (1, 0.9)}, "")
    write(paths[2], 4000, {0: (0.5, 0)}, line(0, 9999) + line(4000, 2000))
    write(paths[3], 262_144, {0: (0, 0.25), 9000: (1,)}, line(262_144, 4000), total=300_000)  # half an evaluation is written
    write(paths[4], 6000, {0: (0, 0)}, line(6000, 10) + "toppo_mt50: error: process of a died\n\n")
    write(paths[5], 0, {0: (0, 0)}, line(0, 10) + "\nstopped; continue with: python x\n")
    (tmp_path / "MT2__v2__toppo_mt50__seed07.log").write_text("toppo_mt50: error: --gamma\n")
    write(paths[7], 80_000, {0: (0, 0)}, "x")
    os.replace(paths[7] / "checkpoint.pt", paths[7] / "checkpoint.previous.pt")
    (paths[7] / "checkpoint.pt").write_bytes(b"damaged")
    os.utime(f"{paths[3]}.log", (time.time() - 2, time.time() - 2))
    locks = [os.open(path, os.O_RDONLY) for path in (paths[2], f"{paths[3]}.log")]  # a script's lock, and a job's
    for fd in locks:
        fcntl.flock(fd, fcntl.LOCK_EX)
    sweep.main()
    rows = [row.split(None, 6) for row in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[1:-1]] == [path.name for path in paths]
    assert rows[1][1:] == ["done", "40,000/40,000", "0.950", "10", "–"]
    assert rows[2][1:] == ["failed", "36,000/40,000", "0.950", "–", "–"]
    assert rows[3][1:6] == ["running", "4,000/40,000", "0.250", "2,000", "0.3"]  # minutes
    assert rows[4][1:5] == ["running", "262,144/300,000", "0.125", "4,000"] and rows[4][5] == "0.1"
    assert rows[5][1:] == ["failed", "6,000/40,000", "0.000", "10", "–", "toppo_mt50: error: process of a died"]
    assert rows[6][1:] == ["stopped", "0/40,000", "0.000", "–", "–"]
    assert rows[7][1:] == ["failed", "0/4,000,000", "–", "–", "–", "toppo_mt50: error: --gamma"]
    assert rows[8][1:] == ["done", "80,000/40,000", "0.000", "–", "–"]
    assert rows[9][1:] == rows[10][1:] == ["waiting", "0/4,000,000", "–", "–", "–"]
    # left: 36,000 and 37,856 of the runs that run, 40,000 and twice 4,000,000; two at a time with 3,000 steps/s each
    hours = (36_000 + 37_856 + 40_000 + 8_000_000) / 6000 / 60
    assert " ".join(rows[11]) == f"10 runs: 2 done, 2 running, 1 stopped, 3 failed, 2 waiting; ETA {hours:.1f} min"
    sys.argv += ["--total-timesteps", "41999"]  # a budget that has grown by less than a collect
    for fd in locks:
        os.close(fd)
    sweep.main()
    rows = [row.split(None, 6) for row in capsys.readouterr().out.splitlines()]
    assert rows[1][1:3] == ["done", "40,000/40,000"] and rows[3][1] == "failed" and rows[9][2] == "0/40,000"
    assert " ".join(rows[11]) == "10 runs: 3 done, 1 stopped, 4 failed, 2 waiting; ETA –"


# Jobs


def result(run_dir):
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    weights = torch.cat([x.flatten() for x in checkpoint["agent"].values()])
    return (run_dir / "evals.csv").read_text(), checkpoint["global_step"], weights.tolist()


def said(log, text):
    return log.read_text().count(text) if log.exists() else 0


def test_killed_and_stopped_runs_continue(tmp_path):
    """Two runs side by side, of which one's script is killed by SIGKILL and goes on; then Ctrl-C ends both, and the same command
    goes on with them. In the end that one is the uninterrupted run, which runs beside them."""
    straight = [sys.executable, "toppo_mt50.py", "--no-cuda", *FLAGS, "--seed", "1", "--run-dir", tmp_path / "straight"]
    straight = subprocess.Popen(straight, cwd=ROOT, stdout=subprocess.DEVNULL)
    words = ["--scripts", "toppo_mt50", "--seeds", 1, 2, "--jobs", 2, "--dir", tmp_path / "sweep", "--", *FLAGS, "--no-cuda"]
    one, two = (tmp_path / "sweep" / f"MT1__v2__toppo_mt50__seed0{seed}" for seed in (1, 2))
    logs = [Path(f"{path}.log") for path in (one, two)]
    process = start(*words, start_new_session=True)
    wait_until(lambda: said(logs[0], "collect 2/"), process)
    [script] = processes(f"--run-dir {one} ")
    os.kill(script, signal.SIGKILL)
    wait_until(lambda: said(logs[0], "$ ") == 2, process)
    _, table, _ = finish("--status", *words)
    assert [row.split()[1] for row in table[1:3]] == ["running", "done" if said(logs[1], "collect 16/") else "running"]
    wait_until(lambda: said(logs[0], "collect 5/"), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and not processes(str(tmp_path / "sweep"))
    assert err.startswith("\nstopped; continue with: python ") and err.count("\n") == 2
    assert out.count(" has failed") == 1 and f"{one.name} has failed: ended by SIGKILL" in out and "already" not in out
    _, table, _ = finish("--status", *words)
    assert table[1].split()[1] == "stopped"
    code, out, err = finish(*words)
    assert (code, err) == (0, "") and out[-1] == "2 runs: 2 done; ETA –", out
    assert said(logs[0], "$ ") == 3 and said(logs[0], "continuing from") == 2 and not said(logs[0], "Traceback")
    assert straight.wait(timeout=60) == 0
    assert result(one) == result(tmp_path / "straight")
    code, out, err = finish(*words)  # nothing is left to do
    assert code == 0 and not any("started" in row for row in out)


SCRIPT = """import signal, sys, time
def stop(*_):
    print("stopped")
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
print(sys.argv[2:], flush=True)
time.sleep({})
sys.exit(3)
"""


def test_a_job_that_has_to_go_is_requeued(tmp_path):
    """The signal by which a cluster says so; submitit's local mode then does as the cluster would, and starts the job again."""
    (tmp_path / "script.py").write_text(SCRIPT.format(100))
    words = ["--scripts", tmp_path / "script.py", "--seeds", 1, "--benchmarks", "MT10", "--dir", tmp_path / "runs"]
    process, log = start(*words), tmp_path / "runs/MT10__v2__script__seed01.log"
    wait_until(lambda: said(log, "['MT10'"), process)
    [(script, job)] = processes(f"{sys.executable} {tmp_path}/script.py ").items()
    os.kill(job, signal.SIGUSR2)
    wait_until(lambda: said(log, "['MT10'") == 2, process)
    assert script not in processes("script.py") and said(log, "stopped") == 1
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out.count("\n") == 1 and "stopped; continue with" in err
    assert said(log, "stopped") == 2 and not processes(str(tmp_path))


def test_a_run_that_someone_else_has_started_is_left_alone(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(0))
    path = tmp_path / "MT10__v2__script__seed01"
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    process = start("--scripts", tmp_path / "script.py", "--seeds", 1, "--benchmarks", "MT10", "--dir", tmp_path)
    assert "is running already" in process.stdout.readline()
    time.sleep(1.5)
    assert process.poll() is None and not Path(f"{path}.log").exists()
    os.close(fd)
    out, _ = process.communicate(timeout=60)
    assert out.count("is started") == 2 and process.returncode == 1  # with one retry


def test_failed_runs_are_shown_with_their_last_line(tmp_path):
    words = ["--scripts", "vanilla_mtppo", "--seeds", 1, "--retries", 0, "--dir", tmp_path]
    code, out, err = finish(*words, "--", "--gamma", "2", "--tasks", "reach-v3")
    assert (code, err) == (1, "")
    said = "vanilla_mtppo: error: --gamma 2.0: expected 0 to 1"
    assert out[1].startswith(f"{out[1][:8]} MT1__v2__vanilla_mtppo__seed01 has failed: {said}")
    assert out[-2].split(None, 6)[1:] == ["failed", "0/2,000,000", "–", "–", "–", said]
    assert out[-1] == "1 runs: 1 failed; ETA –"


# SLURM, as far as it goes without a cluster: programs of the same names that only record


def test_slurm_job_array(tmp_path, monkeypatch):
    programs(tmp_path / "bin", monkeypatch, srun="", sbatch=f"cp $1 {tmp_path}/batch; echo Submitted batch job 77",
             squeue="echo 77_0 RUNNING; echo 77_1 PENDING")  # fmt: skip
    words = ["--engine", "slurm", "--scripts", "toppo_mt50", "--seeds", 1, 2, 3, "--benchmarks", "MT10", "--jobs", 2, "--dir",
             tmp_path / "runs", "--slurm-cpus", 8, "--slurm-options", "partition=gpu", "gpus=1"]  # fmt: skip
    code, out, err = finish(*words)
    assert code == 0 and out[0].startswith("submitted 3 runs as job 77;"), err
    batch = (tmp_path / "batch").read_text()
    for option in "array=0-2%2", "cpus-per-task=8", "partition=gpu", "gpus=1", "time=1440", "signal=USR2@90":
        assert f"#SBATCH --{option}\n" in batch
    code, out, _ = finish("--status", *words)
    assert [row.split()[1] for row in out[1:-1]] == ["running", "queued", "waiting"]  # as if one had been cancelled
    code, out, _ = finish("--dry-run", *words)
    [command] = out
    assert "--seed 3" in command and "--torch-threads 8 --num-workers 8" in command
    code, out, _ = finish(*words)
    assert out[0].startswith("submitted 1 runs as job 77;")
    code, _, err = finish("--engine", "local", *words[2:])
    assert code == 2 and "queued on SLURM" in err
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition >&2; echo no >&2; exit 1\n")
    code, out, err = finish(*words, "--seeds", 4)
    assert (code, out, err) == (2, [], "sbatch: error: invalid partition\nno\nsweep: error: sbatch has refused the jobs\n")
    (tmp_path / "bin/squeue").write_text("#!/bin/sh\necho squeue: unable to contact >&2; exit 1\n")
    code, out, err = finish(*words)
    assert (code, out, err) == (2, [], "sweep: error: squeue: unable to contact\n")
