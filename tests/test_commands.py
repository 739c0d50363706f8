"""Every command in the README, CONTRIBUTING.md and docs/: docs/commands.md says which test runs it, or why none does."""

import re
import shlex
import subprocess
import sys

import pytest
from scripts import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md"]
LIST = ROOT / "docs" / "commands.md"
PROGRAMS = r"(python|pip|diff|ruff|mypy|tensorboard|docker|\.ci/run)\b"


def commands(text):
    """The commands of a page: lines of bash blocks and of indented blocks, and code spans that begin with a program."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.S) + re.findall(r"(?:\n    [^\n]+)+", text):
        found += [line.split("  #")[0].strip() for line in block.splitlines()]
    spans = re.sub(r"```.*?```", "", text, flags=re.S)
    found += [re.sub(r"\s+", " ", span).strip() for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", spans)]
    return [c for c in found if re.match(PROGRAMS, c) and len(c.split()) > 1 or c == ".ci/run"]


def listed():
    """{command: what docs/commands.md says of it}."""
    return dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", LIST.read_text(), flags=re.M))


def test_the_list_is_complete():
    written = {c for page in PAGES if page != LIST for c in commands(page.read_text())}
    assert written == listed().keys(), (sorted(written - listed().keys()), sorted(listed().keys() - written))


@pytest.mark.parametrize("command", listed())
def test_each_is_run_by_the_test_that_is_named_or_has_a_reason(command):
    where = listed()[command]
    if where == "here":
        arguments = shlex.split(command.replace("python ", f"{sys.executable} ", 1))
        process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == (1 if command.startswith("diff") else 0), process.stderr
        return
    if where.startswith("not run: "):
        return
    path, name = re.fullmatch(r"`(tests/\w+\.py)::(\w+)`.*", where).groups()
    text = (ROOT / path).read_text()
    assert f"def {name}(" in text, f"{path} has no {name}"
    program = re.search(r"(?:\w+/)*(\w+)\.py|(script)\b", command, flags=re.I)  # which the test's file must start
    assert program and (program[1] or program[2]).lower() in text.lower(), f"{path} does not mention {command}"


def test_the_quick_tour(tmp_path):
    """The README's commands one after the other, with smaller numbers and another folder."""
    smaller = {"5000": "500", "120000": "3000", "30000": "1000", "300000": "4000", "window-close-v3": "",
               "--episodes 2": "--episodes 1", "runs/tour": str(tmp_path / "tour")}  # fmt: skip
    tour = (ROOT / "README.md").read_text().split("## Quick tour")[1].split("\n## ")[0]
    ran = [c for c in commands(tour) if c.startswith("python ")]
    assert [c.split()[1] for c in ran] == ["toppo_mt50.py", "toppo_mt50.py", "enjoy.py", "paper/learning_curves.py"]
    for command in ran:
        for old, new in smaller.items():
            command = re.sub(rf"(?<!\S){old}(?![\w-])", new, command)
        words = shlex.split(command)
        words += ["--update-epochs", "1", "--eval-episodes", "2", "--torch-threads", "1"] if "--num-steps" in words else []
        words += ["--size", "64"] if "enjoy.py" in words else []
        process = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 0, (command, process.stderr)
    files = {path.name for path in [*(tmp_path / "tour").iterdir(), *(tmp_path / "tour/curves").iterdir()]}
    assert files > {"evals.csv", "checkpoint.pt", "policy.gif", "curves.png", "toppo_mt50_evals.csv", "toppo_mt50_scalars.csv"}
    steps = [line.split(",")[0] for line in (tmp_path / "tour/curves/toppo_mt50_evals.csv").read_text().splitlines()[1::2]]
    assert steps == ["0", "1000", "2000", "3000", "4000"]


def test_figure_d5(tmp_path):
    """Theorem 1: at every range of scales the norm is sqrt(K) for alpha = 1, and for no other."""
    flags = ["--grams", "3", "--dimensions", "50", "--output", str(tmp_path / "figure")]
    process = subprocess.run([sys.executable, "paper/figure_d5_theorem1.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    lines = [line for line in (tmp_path / "figure.md").read_text().splitlines() if line.startswith("| 1e")]
    rows = [[float(x) for x in re.findall(r"-?[\d.]+(?:e[+-]\d+)?", line)] for line in lines]
    assert rows and len(rows) % 13 == 0 and (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    for scale, _, half, one, difference, error, _, two, _, five in rows:  # norms, of alpha = 1 as 1 + difference; errors
        assert one == 1 and abs(difference) < 1e-9 and error < 1e-9
        assert scale == 1 or min(half, two, five) > 0.01
