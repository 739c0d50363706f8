"""Bad input ends at once, before any environment starts: what is wrong on stderr, exit code 2.

Most tests call parse_args in this process, which is all that a script does before main.
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
from dataclasses import asdict, fields

import pytest
import torch
from scripts import MODULES, PATHS, ROOT, run

SCRIPT = "toppo_mt50.py"
BAD = {  # flags, and what the message says of them
    "unknown benchmark": ("--benchmark MT7", "'MT7' for argument '--benchmark'. Expected one"),
    "unknown task": ("--tasks reach-v3 reach-v9", "tasks: Meta-World has no reach-v9"),
    "duplicate task": ("--tasks reach-v3 push-v3 reach-v3", "tasks: expected each once"),
    "unknown reward version": ("--reward-version v3", "'v3' for argument '--reward-version'"),
    "zero steps": ("--num-steps 0", "num_steps: expected more than 0"),
    "negative steps": ("--num-steps -500", "num_steps = -500: expected 0 or more"),
    "part of an episode": ("--num-steps 750", "num_steps: expected a multiple of 500"),
    "zero epochs": ("--update-epochs 0", "update_epochs: expected more than 0"),
    "zero minibatches": ("--num-minibatches 0", "num_minibatches: expected more than 0"),
    "more minibatches than samples": (
        "--num-steps 500 --num-minibatches 501",
        "num_minibatches: at most num_steps",
    ),
    "negative budget": ("--total-timesteps -1", "total_timesteps = -1: expected 0 or more"),
    "zero evaluations": ("--eval-episodes 0", "eval_episodes: expected 1 to 50"),
    "more evaluations than goals": ("--eval-episodes 51", "eval_episodes: expected 1 to 50"),
    "zero interval": ("--eval-interval 0", "eval_interval: expected more than 0"),
    "negative checkpoints": ("--keep-checkpoints-every -1", "keep_checkpoints_every = -1"),
    "no layers": ("--hidden-sizes", "hidden_sizes: expected positive widths"),
    "empty layer": ("--hidden-sizes 400 0", "hidden_sizes: expected positive widths"),
    "negative layer": ("--hidden-sizes 400 -1", "hidden_sizes: expected positive widths"),
    "negative seed": ("--seed -1", "seed = -1: expected 0 or more"),
    "large seed": ("--seed 4294967296", "seed: expected less than 2^32"),
    "negative learning rate": ("--learning-rate -1", "learning_rate = -1.0: expected 0 or more"),
    "infinite learning rate": ("--learning-rate inf", "learning_rate = inf: expected 0 or more"),
    "nan": ("--gamma nan", "gamma = nan: expected 0 or more"),
    "gamma above 1": ("--gamma 1.01", "gamma, gae_lambda: expected 0 to 1"),
    "lambda above 1": ("--gae-lambda 1.01", "gamma, gae_lambda: expected 0 to 1"),
    "negative threads": ("--torch-threads -1", "torch_threads = -1: expected 0 or more"),
    "negative workers": ("--num-workers -1", "num_workers = -1: expected 0 or more"),
    "no number": ("--seed one", "--seed: invalid literal for int() with base 10: 'one'"),
    "no whole number": ("--num-steps 1e4", "--num-steps: invalid literal"),
    "no such flag": ("--sede 1", "Unrecognized options: --sede"),
    "no value": ("--seed", "Missing value for argument '--seed'"),
}
OWN_FLAGS = {
    "ablations/toppo_popart_ema.py": ("--popart-beta 0", "popart_beta: expected more than 0"),
    "ablations/ln_popart_cagrad_cagrad.py": ("--cagrad-c -1", "cagrad_c = -1.0: expected 0"),
}


def parse(path, flags, monkeypatch, capsys):
    """parse_args on a command line: its exit code, or what it returns, and what it said."""
    monkeypatch.setattr(sys, "argv", [path, *flags])
    try:
        outcome = MODULES[path].parse_args()
    except SystemExit as error:
        outcome = error.code
    out, err = capsys.readouterr()
    assert out == ""
    return outcome, err


def said_in_the_box(err):
    """What tyro says in the box that it draws around an error, on one line."""
    return " ".join(re.sub("[─-╿]", " ", err).split())  # Unicode's box drawings


@pytest.mark.parametrize("case", BAD)
def test_flags(case, monkeypatch, capsys):
    flags, message = BAD[case]
    code, err = parse(SCRIPT, flags.split(), monkeypatch, capsys)
    assert code == 2
    assert message in said_in_the_box(err)


@pytest.mark.parametrize("path", PATHS)
def test_every_script_checks(path, monkeypatch, capsys):
    for flags, message in [BAD["duplicate task"], BAD["nan"], *OWN_FLAGS.values()]:
        if (flags, message) in OWN_FLAGS.values() and OWN_FLAGS.get(path) != (flags, message):
            continue
        code, err = parse(path, flags.split(), monkeypatch, capsys)
        assert code == 2
        assert message in said_in_the_box(err)


def test_in_a_process_of_its_own():
    process = run(SCRIPT, "--sed", 3)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("╭─ Unrecognized options ──")
    said = said_in_the_box(process.stderr)
    assert "Unrecognized options: --sed, 3" in said
    assert "Perhaps you meant:" in said
    assert "--seed INT" in said


def test_the_first_lines_of_help_claim_nothing_about_checkpoints():
    """Also when head closes the pipe before all is printed."""
    shell = f"{sys.executable} {SCRIPT} --help | head"
    process = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert len(process.stdout.splitlines()) == 10
    assert process.stdout.startswith(f"usage: {SCRIPT} [-h] [OPTIONS]\n\nTOPPO on Meta-World")
    assert "checkpoint" not in process.stdout
    assert "checkpoint is good" not in process.stderr


# Continuing a run


def write_checkpoint(path, run_dir, **others):
    """A run directory as a script leaves it, as far as parse_args reads it."""
    flags = {"seed": 3, "tasks": ("reach-v3", "push-v3"), "total_timesteps": 80_000} | others
    args = asdict(MODULES[path].Args(**flags)) | {"run_dir": None}
    checkpoint = {"script": MODULES[path].SCRIPT, "args": args, "agent": {}}
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, run_dir / "checkpoint.pt")
    return checkpoint


CHANGED = {  # another value for each flag: those that change what is learned first
    "seed": "4",
    "benchmark": "MT10",
    "tasks": "reach-v3",
    "reward_version": "v1",
    "num_steps": "500",
    "update_epochs": "3",
    "num_minibatches": "8",
    "learning_rate": "1e-3",
    "adam_eps": "1e-8",
    "gamma": "0.98",
    "gae_lambda": "0.9",
    "bootstrap_truncation": False,
    "clip_coef": "0.1",
    "clip_vloss": False,
    "vf_coef": "0.5",
    "ent_coef": "0",
    "max_grad_norm": "0.5",
    "hidden_sizes": "64 64",
    "popart_beta": "0.2",
    "cagrad_c": "0.25",
}
FREE = {  # those that do not
    "total_timesteps": "100000",
    "eval_interval": "123",
    "eval_episodes": "7",
    "keep_checkpoints_every": "5",
    "cuda": False,
    "torch_threads": "1",
    "num_workers": "2",
    "track": True,
}


def flag_of(name, value):
    """As words of a command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *value.split()]


@pytest.mark.parametrize("path", PATHS)
def test_a_flag_that_changes_what_is_learned_contradicts_the_run(
    path, tmp_path, monkeypatch, capsys
):
    """Each alone, then all at once. One line names both values of each."""
    saved = write_checkpoint(path, tmp_path)["args"]
    names = [field.name for field in fields(MODULES[path].Args)]
    assert set(names) <= CHANGED.keys() | FREE.keys() | {"run_dir"}
    clip = names.index("clip_vloss")
    assert names.index("total_timesteps") > clip
    changed = {name: value for name, value in CHANGED.items() if name in names}

    def contradicted(*flags):
        words = ["--run-dir", str(tmp_path), *flags]
        code, err = parse(path, words, monkeypatch, capsys)
        assert code == 2
        begin = f"{MODULES[path].SCRIPT}: error: {tmp_path} has a run with other flags: "
        assert err.startswith(begin)
        assert err.count("\n") == 1
        return re.findall(r"(\w+) = (.+?) \(the run has (.+?)\)(?:, |\n)", err[len(begin) :])

    everything = []
    for name, value in changed.items():
        flags = flag_of(name, value)
        everything += flags
        ((said, new, old),) = contradicted(*flags)
        assert (said, old) == (name, str(saved[name]))
        assert new != old
    free = [word for name, value in FREE.items() for word in flag_of(name, value)]
    assert {said for said, _, _ in contradicted(*everything, *free)} == {*changed}


@pytest.mark.parametrize("path", PATHS)
def test_what_does_not_change_what_is_learned_may_change(path, tmp_path, monkeypatch, capsys):
    checkpoint = write_checkpoint(path, tmp_path)
    monkeypatch.setattr(MODULES[path], "find_spec", lambda name: True)

    def continued(*flags):
        words = ["--run-dir", f"{tmp_path}/", *flags]  # as the shell completes it
        (args, loaded), err = parse(path, words, monkeypatch, capsys)
        assert err == ""
        assert loaded == checkpoint
        return asdict(args)

    before = checkpoint["args"] | {"run_dir": f"{tmp_path}/"}
    assert continued() == before
    assert continued("--seed", "3", "--tasks", "reach-v3", "push-v3") == before
    for name, value in FREE.items():
        value_now = value if isinstance(value, bool) else int(value)
        assert continued(*flag_of(name, value)) == before | {name: value_now}


def damaged(good, path):
    """Files that are no checkpoint of TOPPO's: {what: bytes}."""

    def saved(x):
        torch.save(x, path)
        return path.read_bytes()

    checkpoint = torch.load(good, weights_only=True)
    content = good.read_bytes()
    unknown = checkpoint["args"] | {"num_envs_per_task": 1}
    impossible = checkpoint["args"] | {"num_steps": 750}
    return {
        "empty": b"",
        "text": b"hello\n",
        "truncated": content[: len(content) // 2],
        "a few bytes": content[:100],
        "weights": saved({"weights": torch.zeros(2)}),
        "a list": saved([1, 2]),
        "another script's": saved(checkpoint | {"script": "vanilla_mtppo"}),
        "unknown flags": saved(checkpoint | {"args": unknown}),
        "flags that cannot be": saved(checkpoint | {"args": impossible}),
        "no flags": saved({"script": "toppo_mt50"}),
        "an older release's": saved({"collect": 1, "global_step": 1000, "args": unknown}),
    }


def test_files_that_are_no_checkpoint_are_refused(tmp_path, monkeypatch, capsys, recwarn):
    write_checkpoint(SCRIPT, tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    for what, content in damaged(checkpoint, tmp_path / "other.pt").items():
        checkpoint.write_bytes(content)
        code, err = parse(SCRIPT, ["--run-dir", str(tmp_path)], monkeypatch, capsys)
        assert code == 2, what
        begin = f"toppo_mt50: error: {checkpoint} is not a whole checkpoint of toppo_mt50.py: "
        assert err.startswith(begin), (what, err)
        assert err.count("\n") == 1, (what, err)
        if what == "another script's":
            assert "continue it with vanilla_mtppo.py" in err
        if what == "unknown flags":
            assert "num_envs_per_task" in err
        assert checkpoint.read_bytes() == content
    assert [str(w.message) for w in recwarn.list] == []


def test_a_damaged_checkpoint_in_a_process_of_its_own(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 and what is left of a copy")
    process = run(SCRIPT, "--run-dir", tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.count("\n") == 1
    assert "is not a whole checkpoint of toppo_mt50.py" in process.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_without_run_dir_a_run_has_a_new_directory(monkeypatch, capsys):
    (args, checkpoint), _ = parse(
        SCRIPT, ["--benchmark", "MT10", "--seed", "5"], monkeypatch, capsys
    )
    assert re.fullmatch(r"runs/\d{8}-\d{6}__toppo_mt50__MT10__5", args.run_dir)
    assert checkpoint is None


@pytest.mark.parametrize("name", ["file/run", "a" * 300, "file"])
def test_a_directory_that_cannot_be_is_refused(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    run_dir = tmp_path / name
    (args, _), _ = parse(SCRIPT, ["--run-dir", str(run_dir)], monkeypatch, capsys)
    with pytest.raises(SystemExit) as end:
        MODULES[SCRIPT].open_run(args, 0)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"toppo_mt50: error: --run-dir {run_dir}: ")
    assert err.endswith("; expected a directory to write to\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("path", PATHS)
def test_a_tracked_run_goes_on_where_wandb_is_missing(path, tmp_path, monkeypatch, capsys):
    """With --no-track. Without it the run does not start, and says what to do."""
    write_checkpoint(path, tmp_path, track=True)
    words = ["--run-dir", str(tmp_path)]
    (args, _), _ = parse(path, words, monkeypatch, capsys)
    # From here on as where wandb is not installed
    monkeypatch.setattr(MODULES[path], "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        MODULES[path].open_run(args, 0)
    assert end.value.code == 2
    message = "--track: pip install wandb first, or go on with --no-track"
    assert capsys.readouterr().err == f"{MODULES[path].SCRIPT}: error: {message}\n"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]

    monkeypatch.undo()
    (args, _), _ = parse(path, [*words, "--no-track"], monkeypatch, capsys)
    MODULES[path].open_run(args, 0).close()
    assert not json.loads((tmp_path / "args.json").read_text())["track"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("path", PATHS)
def test_a_checkpoint_that_would_execute_code_is_refused(path, tmp_path, monkeypatch, capsys):
    checkpoint = write_checkpoint(path, tmp_path)
    done = tmp_path / "done"
    torch.save(checkpoint | {"agent": Payload(str(done))}, tmp_path / "checkpoint.pt")
    code, err = parse(path, ["--run-dir", str(tmp_path)], monkeypatch, capsys)
    assert code == 2
    assert "UnpicklingError" in err
    assert not done.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)  # it would have
    assert done.exists()


def test_nothing_unpickles_or_evaluates_what_it_reads():
    for folder in (".", "ablations", "paper", "benchmarks", "tools"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            for word in ("weights_only=False", "allow_pickle=True", "import pickle\n"):
                assert word not in text, path
            for word in (" eval(", " exec("):
                assert word not in text, path
            assert text.count("torch.load(") == text.count("weights_only=True"), path


# Random command lines

RIGHT = {
    "benchmark": ["MT10", "MT50"],
    "tasks": ["reach-v3 push-v3", "push-v3"],
    "reward_version": ["v1", "v2"],
    "num_steps": ["500", "10000"],
    "num_minibatches": ["1", "32"],
    "seed": ["3", "4"],
    "run_dir": ["new", "runs/é"],
}
WRONG = ["0", "-1", "3", "0.5", "1e400", "nan", "inf", "-inf", "1e-9", "2**5", "None", "True"]
WRONG += ["", " ", "é", "push-v3", "mt10", "/nowhere/run", "--", "-", "'", "[1]", "%s"]
WRONG += ["9" * 20, "-" + "9" * 30, "5" + "0" * 300, "9" * 5000, "a" * 300, "../" * 50, "\n", "{}"]
NO_FLAGS = ["--sed", "--no-seed", "--tasks=", "-x", "--resume", "stray", "--seed=1=2", "--cuda=no"]


def random_words(rng, names):
    words = []
    for name in rng.sample(names, rng.randint(1, 4)):
        flag = "--" + name.replace("_", "-")
        if name in ("bootstrap_truncation", "clip_vloss", "cuda", "track"):
            words.append(rng.choice([flag, flag.replace("--", "--no-")]))
            continue
        words.append(flag)
        if rng.random() < 0.7:
            words += rng.choice(RIGHT.get(name, ["1"])).split()
        else:
            words += rng.choices(WRONG, k=rng.choice([0, 1, 1, 1, 2]))
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(NO_FLAGS))
    return words


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_random_command_lines(seed, has_run, tmp_path, monkeypatch, capsys):
    """Fifty each: a message and exit code 2, or flags that a run can have."""
    rng = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODULES[SCRIPT], "find_spec", lambda name: None)
    if has_run:
        write_checkpoint(SCRIPT, tmp_path / "run")
    names = [field.name for field in fields(MODULES[SCRIPT].Args)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for _ in range(50):
        words = random_words(rng, names)
        if has_run and rng.random() < 0.9:
            words += ["--run-dir", "run"]
        outcome, err = parse(SCRIPT, words, monkeypatch, capsys)
        if outcome == 2:
            assert len(err) > 40, words
            assert "Traceback" not in err, (words, err)
            continue
        args, checkpoint = outcome
        accepted += 1
        assert err == ""
        assert args.tasks and args.num_collects >= 1 and args.collect_steps >= 500, words
        assert (checkpoint is not None) == (has_run and args.run_dir == "run"), words
    assert 5 <= accepted <= 45
    # Nothing has been allocated for numbers that are huge
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # KB
