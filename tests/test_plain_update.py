"""A whole collect's update of every script against plain_update.py, in fp64 on random data.

plain_update.py was written from the method's description and not from the scripts. The two share
only what is drawn at random: minibatches and PCGrad's orders are recorded from the script.
"""

import copy

import numpy as np
import pytest
import torch
from plain_update import Variant, plain_update
from scripts import MODULES

VARIANTS = {
    "vanilla_mtppo.py": Variant(False, False, "none", "mean", "mean"),
    "ablations/ln.py": Variant(False, True, "none", "mean", "mean"),
    "ablations/ln_popart.py": Variant(False, True, "welford", "mean", "mean"),
    "ablations/ln_fairgrad.py": Variant(False, True, "none", "mean", "fairgrad"),
    "ablations/ln_popart_fairgrad.py": Variant(False, True, "welford", "mean", "fairgrad"),
    "toppo_mt50.py": Variant(False, True, "welford", "pcgrad", "fairgrad"),
    "ablations/popart.py": Variant(False, False, "welford", "mean", "mean"),
    "ablations/fairgrad.py": Variant(False, False, "none", "mean", "fairgrad"),
    "ablations/popart_fairgrad.py": Variant(False, False, "welford", "mean", "fairgrad"),
    "ablations/ln_popart_fairgrad_fairgrad.py": Variant(
        False, True, "welford", "fairgrad", "fairgrad"
    ),
    "ablations/ln_popart_pcgrad_pcgrad.py": Variant(False, True, "welford", "pcgrad", "pcgrad"),
    "ablations/ln_popart_cagrad_cagrad.py": Variant(False, True, "welford", "cagrad", "cagrad"),
    "ablations/symmetric_ln_popart.py": Variant(True, True, "welford", "mean", "mean"),
    "ablations/toppo_popart_ema.py": Variant(False, True, "ema", "pcgrad", "fairgrad"),
}
TASKS = ("reach-v3", "push-v3", "door-open-v3", "drawer-close-v3")
EPISODES = 2
STEPS = 9

SETTINGS = {
    "the paper's": {},
    "value clip and bootstrap off": {"clip_vloss": False, "bootstrap_truncation": False},
    "other numbers": {
        "gamma": 0.9,
        "gae_lambda": 0.5,
        "clip_coef": 0.3,
        "vf_coef": 1.0,
        "ent_coef": 0.1,
        "max_grad_norm": 0.1,
        "adam_eps": 1e-3,
    },
}


def make_args(module, settings):
    args = module.Args(
        tasks=TASKS,
        hidden_sizes=(8, 6),
        update_epochs=3,
        num_minibatches=3,
        learning_rate=0.01,
        **settings,
    )
    args.num_steps = EPISODES * STEPS  # the update does not care how long an episode is
    return args


def make_rollout(module, rng):
    """Random numbers, with returns that differ from task to task by orders of magnitude."""
    K = len(TASKS)
    obs = rng.normal(size=(K, EPISODES, STEPS + 1, 39 + K))
    actions = rng.normal(size=(K, EPISODES, STEPS, 4))
    rewards = rng.normal(size=(K, EPISODES, STEPS)) + 0.5
    rewards *= np.array([0.1, 1.0, 5.0, 30.0])[:, None, None]
    return module.Episodes(obs, actions, rewards, np.zeros((K, EPISODES), bool))


def make_agent(module, args):
    torch.manual_seed(0)
    agent = module.Agent(len(TASKS), args.hidden_sizes).double()
    with torch.no_grad():
        for p in agent.parameters():  # away from the special values 0 and 1 of the start
            p.add_(0.1 * torch.randn_like(p))
    return agent


class Recorder:
    """Notes what a script draws at random and which weights it combines with."""

    def __init__(self, module, monkeypatch):
        self.minibatches = []  # one list a repeat
        self.orders = []  # of PCGrad, one {side: K orders} a minibatch
        self.weights = []  # critic's and actor's in turn

        deal = module.stratified_minibatches
        set_gradients = module.set_gradients

        def recorded_deal(*args):
            dealt = deal(*args)
            self.minibatches.append([index.numpy() for index in dealt])
            return dealt

        def recorded_set_gradients(net, rows, gradients, weights):
            self.weights.append(weights)
            set_gradients(net, rows, gradients, weights)

        monkeypatch.setattr(module, "stratified_minibatches", recorded_deal)
        monkeypatch.setattr(module, "set_gradients", recorded_set_gradients)
        if hasattr(module, "pcgrad_weights"):
            pcgrad_weights = module.pcgrad_weights

            def recorded_pcgrad(gram, rng):
                same = copy.deepcopy(rng)
                self.orders.append([same.permutation(len(gram)) for _ in range(len(gram))])
                return pcgrad_weights(gram, rng)

            monkeypatch.setattr(module, "pcgrad_weights", recorded_pcgrad)

    def orders_of(self, variant):
        """PCGrad's orders as plain_update takes them. The scripts do the critic's side first."""
        sides = [side for side in ("critic", "actor") if getattr(variant, side) == "pcgrad"]
        drawn = iter(self.orders)
        result = [
            [{side: next(drawn) for side in sides} for _ in repeat] for repeat in self.minibatches
        ]
        assert next(drawn, None) is None
        return result


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("path", VARIANTS)
def test_update_of_two_collects(path, settings, monkeypatch):
    module = MODULES[path]
    variant = VARIANTS[path]
    args = make_args(module, SETTINGS[settings])
    agent = make_agent(module, args)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate, eps=args.adam_eps)
    # SLSQP ends where its objective is flat, and short gradients beside long ones make it flatter
    tolerance = 1e-3 if variant.actor == "cagrad" else 1e-8
    state = {name: x.clone() for name, x in agent.state_dict().items()} | {"adam_step": 0}
    data = np.random.default_rng(1)

    for collect in range(2):
        rollout = make_rollout(module, data)
        with monkeypatch.context() as patches:
            recorder = Recorder(module, patches)
            rng = np.random.default_rng([1, collect])
            metrics = module.update(agent, optimizer, rollout, rng, args)

        assert len(recorder.minibatches) == args.update_epochs
        tensors = {
            "obs": torch.from_numpy(rollout.obs),
            "actions": torch.from_numpy(rollout.actions),
            "rewards": torch.from_numpy(rollout.rewards),
        }
        orders = recorder.orders_of(variant)
        state, log = plain_update(variant, args, state, tensors, recorder.minibatches, orders)

        np.testing.assert_allclose(recorder.weights[0::2], log["critic_weights"], rtol=tolerance)
        np.testing.assert_allclose(
            recorder.weights[1::2], log["actor_weights"], rtol=tolerance, atol=tolerance
        )
        np.testing.assert_allclose(
            metrics["explained_variance"], log["explained_variance"], rtol=tolerance
        )
        for name, x in agent.state_dict().items():
            torch.testing.assert_close(x, state[name], rtol=tolerance, atol=tolerance, msg=name)
