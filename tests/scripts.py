"""The scripts as modules, the ladder's rungs first, and how tests start one as a person would."""

import fcntl
import importlib
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

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
PATHS = [
    "vanilla_mtppo.py",
    "ablations/ln.py",
    "ablations/ln_popart.py",
    "ablations/ln_fairgrad.py",
    "ablations/ln_popart_fairgrad.py",
    "toppo_mt50.py",
    "ablations/popart.py",
    "ablations/fairgrad.py",
    "ablations/popart_fairgrad.py",
    "ablations/ln_popart_fairgrad_fairgrad.py",
    "ablations/ln_popart_pcgrad_pcgrad.py",
    "ablations/ln_popart_cagrad_cagrad.py",
    "ablations/symmetric_ln_popart.py",
    "ablations/toppo_popart_ema.py",
]
MODULES = {path: importlib.import_module(Path(path).stem) for path in PATHS}
WITH_POPART = [m for path, m in MODULES.items() if "popart" in path or "toppo" in path]
WITH_LAYER_NORM = [
    m for path, m in MODULES.items() if "ln" in m.SCRIPT.split("_") or "toppo" in path
]

# A run of two tasks that takes seconds, most of them to start two processes
TASKS = ["reach-v3", "push-v3"]
SMALL = ["--tasks", *TASKS, "--num-steps", "500", "--update-epochs", "2", "--num-minibatches", "4"]
SMALL += ["--hidden-sizes", "16", "--eval-episodes", "1", "--torch-threads", "1"]
SMALL += ["--num-workers", "1"]


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
    tensors = {f"agent.{name}": x for name, x in checkpoint["agent"].items()}
    for i, state in checkpoint["optimizer"]["state"].items():
        tensors |= {f"optimizer.{i}.{name}": x for name, x in state.items()}
    tables = (run_dir / "evals.csv").read_text(), checkpoint["progress"]["evals"]
    return {name: x.tolist() for name, x in tensors.items()}, tables, scalars(run_dir)


def command(path, flags):
    return [sys.executable, path, "--no-cuda", *map(str, flags)]


def run(path, *flags, timeout=600, env=None, cwd=ROOT):
    """Runs a script, from the repository root without PYTHONPATH. Returns the ended process."""
    return subprocess.run(
        command(path, flags), cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env
    )


def run_here(path, *flags):
    """Runs a script in this process, but for its workers. Returns what run returns."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", command(path, flags)[1:]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        MODULES[path].main(*MODULES[path].parse_args())
    return subprocess.CompletedProcess(sys.argv, 0, stdout.getvalue(), stderr.getvalue())


def start(path, *flags):
    """Starts a script in a session of its own, with pipes for what it says."""
    return subprocess.Popen(
        command(path, flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Terminal:
    """A pseudo-terminal in which a script runs: its keyboard's Ctrl-C is the script's."""

    def __init__(self, path, *flags):
        self.screen = ""
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        self.process = subprocess.Popen(
            command(path, flags),
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
        )
        os.close(slave)

    def read_until(self, text):
        """Reads until text is on the screen."""
        while text not in self.screen:
            assert self._read(), f"{text} has not come: {self.screen}"

    def read_to_the_end(self):
        """Reads all that comes until the script and its workers are gone."""
        while self._read():
            pass
        os.close(self.master)
        return self.process.wait(timeout=600)

    def press_ctrl_c(self):
        os.write(self.master, b"\x03")

    def _read(self):
        assert select.select([self.master], [], [], 600)[0], f"nothing comes after {self.screen}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.screen += data.decode()
        return bool(data)
