"""Dumps what a run's per-task gradients were, for the figures of grams.py.

    python toppo_mt50.py --benchmark MT10 --keep-checkpoints-every 3 --run-dir runs/NAME
    python paper/dump_gradients.py runs/NAME

A run that keeps checkpoints has a checkpoint_00003.pt for what it had learned after three collects.
For each of them this plays the collect that comes next, by the run's own script, and writes what
the collect's first minibatch gave to runs/NAME/gradients/collect_00003.npz:

    tasks [K], collect, global_step       names, and where in the run this is
    actor_gram, critic_gram [K, K]        inner products of the tasks' gradients
    actor_weights, critic_weights [K]     of the script's own combiners
    popart_mu, popart_sigma [K]           PopArt's statistics, if the script has it

A collect's randomness comes from the seed and its number, so these are the gradients that the run
itself followed: to the bit on the same machine, elsewhere but for rounding.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {file.stem for folder in (ROOT, ROOT / "ablations") for file in folder.glob("*.py")}
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, of runs with --keep-checkpoints-every"""


class Stop(Exception):
    """Ends an update where both sides' gradients are known."""


def fail(message):
    sys.exit(f"dump_gradients: error: {message}")


def first_minibatch(script, agent, rollout, rng, args):
    """Follows the script's update to its first step. Returns the dump's arrays of both sides."""
    found = {}

    def set_gradients(net, task_params, J, task_gradients, weights):
        side = "actor" if net is agent.actor else "critic"
        found[f"{side}_gram"] = script.gram(J).cpu().numpy()
        found[f"{side}_weights"] = weights
        if {"actor_gram", "critic_gram"} <= set(found):
            raise Stop

    # The script comes to set_gradients with all that is wanted, from its own losses and combiners
    with mock.patch.object(script, "set_gradients", set_gradients), suppress(Stop):
        script.update(agent, None, rollout, rng, args)
    return found


def dump(script, workers, args, collect, weights):
    """Plays the collect that comes after so many collects. Returns the dump's arrays.

    weights: the agent's state_dict, as the checkpoint has it.
    """
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    agent = script.Agent(len(args.tasks), args.hidden_sizes).to(device)
    agent.load_state_dict(weights)

    rng = np.random.default_rng([args.seed, collect])  # as in the script's main
    rollout = script.collect_rollout(workers, agent, rng, args)
    arrays = first_minibatch(script, agent, rollout, rng, args)
    if hasattr(agent, "popart"):
        arrays["popart_mu"] = agent.popart.mu.cpu().numpy()
        arrays["popart_sigma"] = agent.popart.sigma.cpu().numpy()
    step = collect * args.collect_steps
    return {"tasks": args.tasks, "collect": collect, "global_step": step, **arrays}


def dump_run(run):
    """Writes a dump for each kept checkpoint of the run that has none yet."""
    try:
        script = json.loads((run / "args.json").read_text())["script"]
    except (OSError, ValueError, KeyError) as error:
        fail(f"{run} is no run directory: args.json: {error!r}")
    if script not in SCRIPTS:
        fail(f"{run} is a run of {script}.py, which is none of the repository's scripts")
    files = sorted(run.glob("checkpoint_*.pt"))
    if not files:
        fail(f"{run} has no kept checkpoints; a run with --keep-checkpoints-every 3 has them")

    script = import_module(script)
    (run / "gradients").mkdir(exist_ok=True)
    workers = None
    for file in files:
        target = run / "gradients" / f"{file.stem.replace('checkpoint', 'collect')}.npz"
        if target.exists():
            print(f"{target} is there already", flush=True)
            continue
        try:
            checkpoint = torch.load(file, "cpu", weights_only=True)
            collect = checkpoint["collects"]
            args = script.Args(**checkpoint["args"])
        except Exception as error:  # torch.load raises many kinds
            fail(f"{file} is damaged, or not of today's {script.SCRIPT}.py: {error!r}")
        if workers is None:
            torch.set_num_threads(args.torch_threads or torch.get_num_threads())
            workers = script.start_workers(args)
        arrays = dump(script, workers, args, collect, checkpoint["agent"])
        np.savez_compressed(run / "gradients/new.npz", **arrays)
        os.replace(run / "gradients/new.npz", target)  # whole or not at all
        print(f"wrote {target}", flush=True)


if __name__ == "__main__":
    chosen = tyro.cli(Args, description=__doc__)
    if not chosen.runs:
        fail("expected run directories: python paper/dump_gradients.py runs/NAME")
    for directory in chosen.runs:
        dump_run(directory)
