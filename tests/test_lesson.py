"""docs/lesson.ipynb: it says today what its outputs say, and its answers hold.

After an edit of the lesson `python tests/test_lesson.py` runs it and writes its outputs.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

LESSON = Path(__file__).parents[1] / "docs/lesson.ipynb"


def read():
    return nbformat.read(LESSON, as_version=4)


def execute(notebook):
    """Runs the notebook's cells in docs/. An error in one raises."""
    os.environ.pop("MPLBACKEND", None)  # EnvPool sets it when it is loaded: no pictures then
    NotebookClient(
        notebook,
        timeout=300,
        iopub_timeout=60,  # the default, 4 s, drops what a busy machine sends later
        kernel_name="python3",
        resources={"metadata": {"path": str(LESSON.parent)}},
        record_timing=False,  # would be new in every run
    ).execute()
    return notebook


def outputs(notebook):
    """{cell: (its text, its number of pictures)}"""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(x.text for x in cell.outputs if x.output_type == "stream")
            pictures = sum("image/png" in x.get("data", {}) for x in cell.outputs)
            found[cell.id] = text, pictures
    return found


@pytest.fixture(scope="module")
def executed():
    """The outputs of today, with the answers of the exercises as cells at the end."""
    notebook = read()
    answers = re.findall(r"```python\n(.*?)```", notebook.cells[-1].source, re.S)
    assert len(answers) == 3
    notebook.cells += [
        nbformat.v4.new_code_cell(answer, id=f"answer-{i}") for i, answer in enumerate(answers)
    ]
    return outputs(execute(notebook))


def test_it_says_what_is_stored(executed):
    for name, stored in outputs(read()).items():
        assert executed[name] == stored, "the outputs are old: python tests/test_lesson.py"


def test_key_numbers(executed):
    """By hand: tan = sin 60° / (10 + cos 60°) of the mean; FairGrad halves the angle of 60°."""
    text, pictures = executed["two-drawn"]
    assert "mean: angles of d with the gradients [55.285  4.715]" in text and pictures == 1
    assert "FairGrad: angles of d with the gradients [30. 30.], w_k (g_k · d) = [1. 1.]" in text
    # The square root of K = 6 tasks
    assert executed["theorem-shown"][0].count("length of d 2.449490, change 0.000000") == 3
    text, _ = executed["popart-shown"]
    assert "loop: True" in text and text.endswith("FairGrad's step by 0.0°\n")
    assert executed["dumps-drawn"][1] == 1


if __name__ == "__main__":
    lesson = read()
    metadata = lesson.metadata.copy()
    execute(lesson)
    lesson.metadata = metadata  # without the version of Python, which is another one elsewhere
    nbformat.write(lesson, LESSON)
