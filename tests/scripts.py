"""The training scripts as modules, and how tests start one as a person would."""

import importlib.util
import io
import os
import pty
import select
import subprocess
import sys
import termios
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
PATHS = ["vanilla_mtppo.py", "toppo_mt50.py"]
PATHS += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("ablations/*.py"))
if not importlib.util.find_spec("envpool"):  # has no wheel for some machines
    PATHS = [path for path in PATHS if "envpool" not in path]
MODULES = {path: importlib.import_module(Path(path).stem) for path in PATHS}
every_script = pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.SCRIPT)

# Flags of a run that takes seconds, most of them to start its process with environments
SMALL = "--tasks reach-v3 push-v3 --num-steps 500 --update-epochs 2 --num-minibatches 4".split()
SMALL += "--hidden-sizes 16 --eval-episodes 1 --torch-threads 1 --num-workers 1".split()


def scalars(run_dir):
    """What a run has logged, but for its speed: {tag: [(step, value)]}."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if "speed/" not in tag
    }


def result(run_dir):
    """All that two runs with the same flags have in common, to the last bit."""
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    learned = {name: x.tolist() for name, x in checkpoint["agent"].items()}
    for i, state in checkpoint["optimizer"]["state"].items():
        learned |= {f"optimizer.{i}.{name}": x.tolist() for name, x in state.items()}
    return learned, checkpoint["evals"], (run_dir / "evals.csv").read_text(), scalars(run_dir)


def command(path, flags):
    return [sys.executable, path, "--no-cuda", *map(str, flags)]


def run(path, *flags, timeout=300, env=None, cwd=ROOT):
    """Runs a script to its end, from the repository root."""
    return subprocess.run(
        command(path, flags), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )


def run_here(path, *flags):
    """Runs a script in this process, but for its workers. Returns what run returns."""
    argv, stdout, stderr = command(path, flags)[1:], io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", argv), redirect_stdout(stdout), redirect_stderr(stderr):
        MODULES[path].main(MODULES[path].parse_args())
    return subprocess.CompletedProcess(argv, 0, stdout.getvalue(), stderr.getvalue())


def start(path, *flags):
    """Starts a script in a session of its own, with pipes for what it says."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(path, flags), cwd=ROOT, start_new_session=True, **pipes)


class Terminal:
    """A pseudo-terminal in which a script runs: its keyboard's Ctrl-C is the script's."""

    def __init__(self, path, *flags):
        self.screen = ""
        self.pid, self.master = pty.fork()
        if self.pid == 0:  # the child, whose terminal it is
            termios.tcsetwinsize(0, (24, 80))
            os.chdir(ROOT)
            os.execv(sys.executable, command(path, flags))

    def read_until(self, text):
        """Reads until text is on the screen."""
        while text not in self.screen:
            assert self._read(), f"{text} has not come: {self.screen}"

    def read_to_the_end(self):
        """Reads until the script and its workers are gone. Returns the exit code."""
        while self._read():
            pass
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def press_ctrl_c(self):
        os.write(self.master, b"\x03")

    def _read(self):
        assert select.select([self.master], [], [], 300)[0], f"nothing comes after {self.screen}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)
