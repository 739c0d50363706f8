"""Runs docs/lesson.ipynb from top to bottom and writes its outputs into it.

    python tools/lesson.py

Needed after an edit of the lesson, and after new gradient dumps in results/mt10, of which its last
section is. tests/test_lesson.py holds the outputs to what the cells say today.
"""

import time
from pathlib import Path

import nbformat
import tyro
from nbclient import NotebookClient

LESSON = Path(__file__).resolve().parent.parent / "docs/lesson.ipynb"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs the notebook's cells with folder as the working directory. An error raises."""
    client = NotebookClient(
        notebook,
        timeout=300,
        iopub_timeout=60,  # the default, 4 s, drops what a busy machine sends later
        raise_on_iopub_timeout=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,  # would be new in every run
    )
    return client.execute()


def main() -> None:
    """Run docs/lesson.ipynb and write its outputs into it."""
    notebook = nbformat.read(LESSON, as_version=4)
    metadata = notebook.metadata.copy()
    began = time.monotonic()
    execute(notebook, LESSON.parent)
    notebook.metadata = metadata  # without Python's version, which is another one elsewhere
    nbformat.write(notebook, LESSON)
    print(f"wrote docs/lesson.ipynb, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
