"""The scripts as modules, the ladder's rungs first and in order, and how the tests start one as a person would."""

import importlib
import subprocess
import sys
from pathlib import Path

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
WITH_LAYER_NORM = [m for path, m in MODULES.items() if "ln" in m.SCRIPT.split("_") or "toppo" in path]


def scalars(run_dir):
    """What a run has logged, but for its speed: {tag: [(step, value)]}."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if "speed/" not in tag}


def run(path, *flags, timeout=300, env=None):
    """Runs a script from the repository root, without PYTHONPATH. Returns the finished process."""
    command = [sys.executable, path, "--no-cuda", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=env)
