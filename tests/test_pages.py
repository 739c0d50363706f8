"""The pages of results and choices, and the tables beside them, are what their programs write.

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

import pytest
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
    to_root = re.escape(os.path.relpath(ROOT, (folder / page).parent))

    def from_the_page(link):
        return os.path.relpath(ROOT / link[1], (ROOT / page).parent)

    return {
        str(path.relative_to(folder)): re.sub(
            rf"{to_root}/([^)]*)", from_the_page, path.read_text().replace(f"{folder}/", "")
        )
        for path in folder.glob("**/*.md")
    }


@pytest.mark.parametrize(
    "page, out",
    [
        ("docs/results.md", "results/paper"),
        ("results/mt10/full/README.md", "results/mt10/full/paper"),
    ],
)
def test_results(page, out, tmp_path):
    kept = ROOT / out
    (tmp_path / out).mkdir(parents=True)
    for note in kept.glob("*_note.md"):
        shutil.copy(note, tmp_path / out)
    texts = made_again(page, tmp_path)
    committed = {f"{out}/{path.name}" for path in kept.glob("*.md")}
    of_another_program = {"results/paper/overview.md"}
    assert texts.keys() == committed - of_another_program | {page}
    for path, text in texts.items():
        assert text == (ROOT / path).read_text(), path
    drawn = {path.name for path in (tmp_path / out).glob("*.png")}
    assert drawn == {path.name for path in kept.glob("*.png")} - {"overview.png"}


def test_choices(tmp_path):
    shutil.copytree(ROOT / "results/choices", tmp_path / "results/choices")
    texts = made_again("docs/choices.md", tmp_path)
    assert texts["docs/choices.md"] == (ROOT / "docs/choices.md").read_text()
