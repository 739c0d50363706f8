"""docs/results.md, docs/choices.md and results/paper are what their programs write today.

Each page names the command that made it. It is run again into another folder, with the notes that
were written by hand, and every Markdown file has to come out the same. Figures are drawn, but not
compared: their pixels depend on the fonts.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

from scripts import ROOT


def made_again(page, folder):
    """Runs a page's own command, with its files under folder. Returns the files' texts by path."""
    command = re.search(r"Made by `python (paper/\w+\.py .+?)`", (ROOT / page).read_text())[1]
    words = [
        str(folder / word) if before in ("--out", "--page", "--choices") else word
        for before, word in zip(["", *shlex.split(command)], shlex.split(command))
    ]
    process = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""

    # What names the folder or leads out of it
    here = f"{os.path.relpath(ROOT, folder / 'docs')}/"
    return {
        str(path.relative_to(folder)): path.read_text()
        .replace(f"{folder}/", "")
        .replace(here, "../")
        for path in folder.glob("**/*.md")
    }


def test_results(tmp_path):
    kept = ROOT / "results/paper"
    (tmp_path / "results/paper").mkdir(parents=True)
    for note in kept.glob("*_note.md"):
        shutil.copy(note, tmp_path / "results/paper")
    texts = made_again("docs/results.md", tmp_path)
    of_another_program = {"results/paper/overview.md"}
    committed = {f"results/paper/{path.name}" for path in kept.glob("*.md")} - of_another_program
    assert texts.keys() == committed | {"docs/results.md"}
    for path, text in texts.items():
        assert text == (ROOT / path).read_text(), path
    drawn = {path.name for path in (tmp_path / "results/paper").glob("*.png")}
    assert drawn | {"overview.png"} == {path.name for path in kept.glob("*.png")}


def test_choices(tmp_path):
    shutil.copytree(ROOT / "results/choices", tmp_path / "results/choices")
    texts = made_again("docs/choices.md", tmp_path)
    assert texts["docs/choices.md"] == (ROOT / "docs/choices.md").read_text()
