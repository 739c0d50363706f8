"""Dumps the per-task gradients of a run, for the figures that need them whole.

    python toppo_mt50.py --benchmark MT10 --keep-checkpoints-every 10 --run-dir runs/NAME
    python paper/dump_gradients.py runs/NAME

A run that keeps checkpoints has a checkpoint_00010.pt for what it had learned after ten collects.
For each of them this plays the collect that comes next, by the run's own script, and writes the
gradients of that collect's first minibatch to runs/NAME/gradients/collect_00010.npz:

    tasks [K], collect, global_step             names, and where in the run this is
    actor_gradients, critic_gradients [K, D]    of each task's loss, by the shared parameters
    actor_weights, critic_weights [K]           those of the script's own combiners
    popart_mu, popart_sigma [K]                 PopArt's statistics, if the script has it: of the
                                                critic's targets, which are discounted returns

A collect's randomness comes from the seed and its number, so these are the gradients that the run
itself followed: to the bit on the same machine, elsewhere but for rounding. A dump that is there
already is left as it is.
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, of runs with --keep-checkpoints-every"""
    collects: tuple[int, ...] = ()
    """numbers of the kept checkpoints, such as 0 10 for 00000 and 00010; none: all of them"""


class Stop(Exception):
    """Ends an update where both sides' gradients are known."""


def fail(message):
    print(f"dump_gradients.py: error: {message}", file=sys.stderr)
    sys.exit(2)


def load_script(run):
    """The training script that made the run, as a module."""
    try:
        name = json.loads((run / "args.json").read_text())["script"]
    except (OSError, ValueError, KeyError) as error:
        fail(f"{run}: no run directory (args.json: {error!r})")
    if not any((folder / f"{name}.py").exists() for folder in (ROOT, ROOT / "ablations")):
        fail(f"{run}: a run of {name}.py, which is none of the repository's scripts")
    return import_module(name)


def kept_checkpoints(run, collects):
    """{number of collects: file} of the run's kept checkpoints, of all or of those in collects."""
    files = sorted(run.glob("checkpoint_*.pt"))
    found = {int(file.stem.removeprefix("checkpoint_")): file for file in files}
    if not found:
        fail(f"{run}: no kept checkpoints; a run with --keep-checkpoints-every 10 has them")
    absent = sorted(set(collects) - set(found))
    if absent:
        kept = " ".join(map(str, found))
        fail(f"{run}: no checkpoint_{absent[0]:05}.pt; expected --collects among {kept}")
    return {n: file for n, file in found.items() if n in (collects or found)}


def first_minibatch(script, agent, rollout, rng, args):
    """Follows the script's update to its first step. Returns both sides' gradients and weights."""
    found = {}

    def keep(net, rows, gradients, weights):
        side = "actor" if net is agent.actor else "critic"
        found[f"{side}_gradients"] = gradients.shared.cpu().numpy()
        found[f"{side}_weights"] = weights
        if len(found) == 4:
            raise Stop

    # The script comes to set_gradients with all that is wanted, from its own losses and combiners
    with mock.patch.object(script, "set_gradients", keep), suppress(Stop):
        script.update(agent, None, rollout, rng, args)
    return found


def dump(script, envs, args, checkpoint):
    """Plays the collect that comes after the checkpoint. Returns the dump's arrays."""
    collect = checkpoint["progress"]["collects"]
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    agent = script.Agent(len(args.tasks), args.hidden_sizes).to(device)
    agent.load_state_dict(checkpoint["agent"])
    rng = np.random.default_rng([args.seed, collect])  # as in the script's main
    rollout, _ = script.collect_episodes(envs, agent, rng, args)
    arrays = first_minibatch(script, agent, rollout, rng, args)
    if hasattr(agent, "popart"):
        arrays["popart_mu"] = agent.popart.mu.cpu().numpy()
        arrays["popart_sigma"] = agent.popart.sigma.cpu().numpy()
    step = collect * args.collect_steps
    return {"tasks": args.tasks, "collect": collect, "global_step": step, **arrays}


def dump_run(run, collects):
    script = load_script(run)
    envs = None
    for number, file in kept_checkpoints(run, collects).items():
        target = run / f"gradients/collect_{number:05}.npz"
        if target.exists():
            print(f"{target} is there already", flush=True)
            continue
        args, checkpoint = script.load_checkpoint(file)
        if envs is None:
            torch.set_num_threads(args.torch_threads or torch.get_num_threads())
            envs = script.Envs(args)
        print(f"{file}: playing the next {args.collect_steps:,} steps", flush=True)
        began = time.time()
        buffer = BytesIO()
        np.savez_compressed(buffer, **dump(script, envs, args, checkpoint))
        target.parent.mkdir(exist_ok=True)
        script.write_file(target, buffer.getbuffer())  # whole or not at all
        print(f"wrote {target}, {time.time() - began:.0f} s", flush=True)


def main():
    args = tyro.cli(Args, description=__doc__)
    if not args.runs:
        fail("no runs given; expected run directories: python paper/dump_gradients.py runs/NAME")
    for run in args.runs:
        dump_run(run, args.collects)


if __name__ == "__main__":
    main()
