"""The commands in README, CONTRIBUTING.md and docs/: each names a program and flags that exist.

The README's quick tour is run whole, with smaller numbers. results/README.md has the commands of
runs that earlier commits made, and is not held to today's flags.
"""

import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache

import pytest
import tyro
from scripts import MODULES, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text):
    """Commands that start Python: in bash blocks, and in code spans."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S):
        found += [line.split("  #")[0] for line in block.splitlines()]
    spans = re.sub(r"```.*?```", "", text, flags=re.S)
    found += re.findall(r"(?<!`)`([^`]+)`(?!`)", spans)
    parts = [part.strip() for command in found for part in command.split("&&")]
    return [" ".join(x.split()) for x in parts if re.match(r"python [\w/]+(\.py|\b)", x)]


WRITTEN = sorted({command for page in PAGES for command in commands(page.read_text())})


@cache
def help_of(program):
    if program in MODULES:
        text = io.StringIO()
        with redirect_stdout(text), pytest.raises(SystemExit):
            tyro.cli(MODULES[program].Args, args=["--help"])
        return text.getvalue()
    process = subprocess.run(
        [sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def has_flag(text, flag):
    """Whether a --help text offers the flag, as a word of its own."""
    return re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text) is not None


def test_there_are_commands():
    assert len(WRITTEN) > 15
    assert not has_flag("--seed INT", "--see")


@pytest.mark.parametrize("command", WRITTEN)
def test_the_program_and_its_flags_exist(command):
    _, program, *words = shlex.split(command)
    if program == "-m":
        assert words[0] == "pytest" and set(words[1:]) <= {"--long"}
        return
    program = "toppo_mt50.py" if program == "SCRIPT" else program
    assert (ROOT / program).exists()
    flags = [word for word in words if re.match(r"--\w", word)]
    for flag in flags:
        if flag.startswith("--tyro-"):  # tyro's own, of every program
            continue
        # sweep.py hands what follows -- to the scripts
        handed_on = "--" in words and words.index(flag) > words.index("--")
        offered = help_of("toppo_mt50.py" if handed_on else program)
        assert has_flag(offered, flag), f"{program} has no {flag}"


SMALLER = {
    "5000": "500",
    "120000": "3000",
    "30000": "1000",
    "window-close-v3": "",
    "--episodes 2": "--episodes 1",
}


def test_the_quick_tour(tmp_path):
    """The README's first block of commands, and its curves, with smaller numbers elsewhere."""
    install = (ROOT / "README.md").read_text().split("## Install")[1]
    ran = commands(re.search(r"```bash\n.*?```", install, flags=re.S)[0])
    assert [command.split()[1] for command in ran] == ["toppo_mt50.py", "enjoy.py"]
    ran.append("python paper/learning_curves.py runs/tour --out runs/tour/curves")
    for command in ran:
        for old, new in SMALLER.items():
            command = re.sub(rf"(?<!\S){old}(?![\w-])", new, command)
        words = shlex.split(command.replace("runs/tour", str(tmp_path / "tour")))
        if "--num-steps" in words:
            words += "--update-epochs 1 --eval-episodes 2 --torch-threads 1".split()
        if "enjoy.py" in words:
            words += ["--size", "64"]
        process = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == 0, (command, process.stderr)

    folders = [tmp_path / "tour", tmp_path / "tour/curves"]
    files = {path.name for folder in folders for path in folder.iterdir()}
    assert files > {"evals.csv", "checkpoint.pt", "policy.gif", "curves.png"}
    table = (tmp_path / "tour/curves/toppo_mt50_evals.csv").read_text().splitlines()
    steps = [line.split(",")[0] for line in table[1::2]]
    assert steps == ["0", "1000", "2000", "3000"]


def test_figure_d5(tmp_path):
    """Theorem 1: at every range of scales the norm is sqrt(K) for alpha = 1, and for no other."""
    flags = ["--grams", "3", "--dimensions", "50", "--output", str(tmp_path / "figure")]
    command = [sys.executable, "paper/figure_d5_theorem1.py", *flags]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    table = (tmp_path / "figure.md").read_text().splitlines()
    lines = [line for line in table if line.startswith("| 1e")]
    rows = [[float(x) for x in re.findall(r"-?[\d.]+(?:e[+-]\d+)?", line)] for line in lines]
    assert rows and len(rows) % 13 == 0
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    # norms, of alpha = 1 as 1 + difference, and errors
    for scale, _, half, one, difference, error, _, two, _, five in rows:
        assert one == 1 and abs(difference) < 1e-9 and error < 1e-9
        assert scale == 1 or min(half, two, five) > 0.01
