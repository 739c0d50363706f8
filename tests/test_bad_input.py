"""Bad input ends at once: one line on stderr, exit code 2, before any environment starts."""

import sys

import pytest
import torch
from scripts import MODULES, run

BAD = {
    "unknown benchmark": ("--benchmark MT7", "MT10, MT25 or MT50"),
    "unknown task": ("--tasks reach-v3 reach-v9", "not ['reach-v9']"),
    "duplicate task": ("--tasks reach-v3 push-v3 reach-v3", "each once"),
    "unknown reward version": ("--reward-version v3", "v1 or v2"),
    "zero steps": ("--num-steps 0", "500-step episodes"),
    "negative steps": ("--num-steps -500", "500-step episodes"),
    "part of an episode": ("--num-steps 750", "500-step episodes"),
    "zero epochs": ("--update-epochs 0", "> 0"),
    "zero minibatches": ("--num-minibatches 0", "1 to 10000"),
    "more minibatches than samples": ("--num-steps 500 --num-minibatches 501", "1 to 500"),
    "zero budget": ("--total-timesteps 0", "at least one collect"),
    "less than one collect": ("--benchmark MT10 --total-timesteps 99999", "at least one collect"),
    "zero evaluations": ("--eval-episodes 0", "1 to 50"),
    "more evaluations than goals": ("--eval-episodes 51", "1 to 50"),
    "zero interval": ("--eval-interval 0", "> 0"),
    "no layers": ("--hidden-sizes", "positive widths"),
    "empty layer": ("--hidden-sizes 400 0", "positive widths"),
    "negative seed": ("--seed -1", "0 to 2^32 - 1"),
    "negative learning rate": ("--learning-rate -1", "> 0"),
    "infinite learning rate": ("--learning-rate inf", "> 0"),
    "nan": ("--gamma nan", "0 to 1"),
    "more threads than cores": ("--torch-threads 1025", "CPU cores"),
    "no environments": ("--num-envs-per-task 0", "a divisor of 20"),
    "environments without an episode": ("--num-envs-per-task 3", "a divisor of 20"),
    "no number": ("--seed one", "--seed: invalid literal"),
    "no such flag": ("--sede 1", "Unrecognized options: --sede"),
    "no value": ("--seed", "Missing value"),
    "negative workers": ("--num-workers -1", "0 or more"),
    "tracking without wandb": ("--track", "pip install wandb"),
    "missing checkpoint": ("--resume nowhere", "FileNotFoundError"),
}


def error_of(module, flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module.__file__, *flags])
    with pytest.raises(SystemExit) as error:
        module.parse_args()
    assert error.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"{module.SCRIPT}: error: ")
    return err


@pytest.mark.parametrize("case", BAD)
def test_flags(case, monkeypatch, capsys):
    flags, part = BAD[case]
    monkeypatch.setattr(MODULES["toppo_mt50.py"], "find_spec", lambda name: None)  # as where wandb is not installed
    assert part in error_of(MODULES["toppo_mt50.py"], flags.split(), monkeypatch, capsys)


@pytest.mark.parametrize("path", MODULES)
def test_every_script_checks(path, monkeypatch, capsys):
    assert "each once" in error_of(MODULES[path], ["--tasks", "push-v3", "push-v3"], monkeypatch, capsys)


def test_in_a_process_of_its_own():
    process = run("toppo_mt50.py", "--tasks", "no-such-task-v3")
    assert (process.returncode, process.stdout) == (2, "")
    expected = "--tasks ('no-such-task-v3',): expected Meta-World's names, each once, not ['no-such-task-v3']"
    assert process.stderr == f"toppo_mt50: error: {expected}\n"


@pytest.fixture
def checkpoint(tmp_path):
    """A run directory as the scripts leave it, as far as parse_args reads it."""
    args = MODULES["toppo_mt50.py"].Args(tasks=("reach-v3", "push-v3"), seed=3, total_timesteps=80_000, eval_interval=40_000)
    torch.save({"script": "toppo_mt50", "args": vars(args), "tasks": list(args.tasks)}, tmp_path / "checkpoint.pt")
    return tmp_path


def test_resume_takes_the_checkpoints_flags(checkpoint, monkeypatch):
    for path in checkpoint, checkpoint / "checkpoint.pt":
        monkeypatch.setattr(sys, "argv", ["toppo_mt50.py", "--resume", str(path), "--total-timesteps", "100000", "--no-cuda"])
        args, names, loaded = MODULES["toppo_mt50.py"].parse_args()
        assert (args.seed, args.total_timesteps, args.cuda, args.run_dir) == (3, 100_000, False, str(checkpoint))
        assert names == ["reach-v3", "push-v3"] and loaded["script"] == "toppo_mt50"


@pytest.mark.parametrize(
    "flags",
    ["--seed 1", "--tasks reach-v3", "--benchmark MT10", "--num-steps 500", "--clip-coef 0.1", "--no-clip-vloss", "--run-dir x"],
)
def test_resume_refuses_contradicting_flags(flags, checkpoint, monkeypatch, capsys):
    err = error_of(MODULES["toppo_mt50.py"], ["--resume", str(checkpoint), *flags.split()], monkeypatch, capsys)
    assert "contradicts the checkpoint" in err


def test_resume_refuses_foreign_files(checkpoint, tmp_path, monkeypatch, capsys):
    err = error_of(MODULES["vanilla_mtppo.py"], ["--resume", str(checkpoint)], monkeypatch, capsys)
    assert "a run of toppo_mt50.py" in err
    foreign = tmp_path / "foreign.pt"
    for content in b"", b"hello", (checkpoint / "checkpoint.pt").read_bytes()[:100]:
        foreign.write_bytes(content)
        error_of(MODULES["toppo_mt50.py"], ["--resume", str(foreign)], monkeypatch, capsys)
    torch.save({"weights": torch.zeros(2)}, foreign)
    assert "KeyError" in error_of(MODULES["toppo_mt50.py"], ["--resume", str(foreign)], monkeypatch, capsys)
    torch.save(torch.zeros(2), foreign)
    error_of(MODULES["toppo_mt50.py"], ["--resume", str(foreign)], monkeypatch, capsys)


def test_a_directory_may_be_given_with_a_slash(checkpoint, monkeypatch):
    (checkpoint / "args.json").write_text("{}")
    for resume in f"{checkpoint}/", "auto":
        monkeypatch.setattr(sys, "argv", ["toppo_mt50.py", "--resume", resume, "--run-dir", f"{checkpoint}/"])
        args, _, loaded = MODULES["toppo_mt50.py"].parse_args()
        assert args.seed == 3 and loaded


def test_a_used_run_directory_is_refused(checkpoint, monkeypatch, capsys):
    assert "a directory without a run" in error_of(MODULES["toppo_mt50.py"], ["--run-dir", str(checkpoint)], monkeypatch, capsys)
