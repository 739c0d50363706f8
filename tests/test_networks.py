"""Networks with the paper's parameter counts, and the gradients along which they are trained."""

from functools import partial

import numpy as np
import pytest
import toppo_mt50 as toppo
import torch
import vanilla_mtppo as vanilla
from scripts import MODULES, every_script
from torch import nn

TASKS = ("reach-v3", "push-v3", "door-open-v3")


LN_ACTOR = [m for m in MODULES.values() if "symmetric" in m.SCRIPT]
LN_CRITIC = [m for m in MODULES.values() if {"ln", "toppo"} & set(m.SCRIPT.split("_"))]


def count(net):
    return sum(p.numel() for p in net.parameters())


@every_script
@pytest.mark.parametrize(("num_tasks", "vanilla_total"), [(10, 683_645), (50, 715_805)])
def test_parameter_counts(module, num_tasks, vanilla_total):
    """Table B.2's, exact by Section B.3's convention; a LayerNorm takes a layer's 400 biases."""
    agent = module.Agent(num_tasks, module.Args().hidden_sizes)
    actor = {10: 342_404, 50: 358_404}[num_tasks] + 1_200 * (module in LN_ACTOR)
    layer_norms = (module in LN_CRITIC) + (module in LN_ACTOR)
    assert count(agent.actor) == actor
    heads = 2 * num_tasks * hasattr(module, "PopArt")
    assert count(agent) == vanilla_total + 1_200 * layer_norms + heads
    assert torch.equal(agent.log_std, torch.zeros(num_tasks, 4))


def test_sizes_and_budget_follow_from_the_tasks(monkeypatch):
    for flags, num_tasks in (("", 50), ("--benchmark MT25", 25), ("--tasks push-v3 reach-v3", 2)):
        monkeypatch.setattr("sys.argv", ["toppo_mt50.py", *flags.split()])
        args = toppo.parse_args()
        assert len(args.tasks) == num_tasks
        assert args.total_timesteps == 2_000_000 * num_tasks
        assert args.collect_steps == 10_000 * num_tasks
        assert args.eval_interval == 40_000 * num_tasks


@every_script
def test_layers_and_their_start(module):
    """LayerNorm before the ReLU, of the critic (LN-c) or of both; orthogonal weights."""
    agent = module.Agent(3, (32, 16))
    for net, output_gain, layer_norm in (
        (agent.actor, 0.01, module in LN_ACTOR),
        (agent.critic, 1.0, module in LN_CRITIC),
    ):
        hidden = ["Linear", "LayerNorm", "ReLU"] if layer_norm else ["Linear", "ReLU"]
        assert [type(layer).__name__ for layer in net] == [*hidden, *hidden, "Linear"]
        linears = [layer for layer in net if isinstance(layer, nn.Linear)]
        assert [layer.bias is None for layer in linears] == [layer_norm, layer_norm, False]
        for layer, gain in zip(linears, [2**0.5, 2**0.5, output_gain]):
            singular_values = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
            assert layer.bias is None or (layer.bias == 0).all()


# --- Per-task gradients


def agent_and_minibatch(module, changed=False):
    """In fp64, away from the special values 0 and 1 of the start, with some samples clipped."""
    torch.manual_seed(0)
    K, n = 3, 9
    agent = module.Agent(K, (16, 16))
    if changed:  # as a researcher might: another activation, and layers with the same weights
        a, b = nn.Linear(16, 16), nn.Linear(16, 16)
        b.weight = a.weight
        agent.critic = nn.Sequential(
            nn.Linear(42, 16), nn.Tanh(), a, nn.Tanh(), b, nn.Linear(16, 1)
        )
    agent = agent.double()
    for p in agent.parameters():
        p.data += 0.1 * torch.randn_like(p)
    obs = torch.randn(K, n, 39 + K).double()
    actions = torch.randn(K, n, 4).double()
    values = agent.critic(obs)[..., 0].detach()
    log_probs = agent.log_probs(obs[:, None], actions[:, None])[:, 0].detach()
    return agent, {
        "obs": obs,
        "actions": actions,
        "old_log_probs": log_probs + 0.3 * torch.randn(K, n),
        "advantages": torch.randn(K, n).double(),
        "returns": values + torch.randn(K, n),
        "old_values": values + 0.3 * torch.randn(K, n),
    }


@pytest.mark.parametrize("module", [vanilla, toppo])  # without and with PopArt
@pytest.mark.parametrize("changed", [False, True])
@torch.no_grad()  # as in update
def test_per_task_gradients_against_finite_differences(module, changed):
    """Along random directions through the shared parameters and the tasks' own."""
    agent, mb = agent_and_minibatch(module, changed)
    args = module.Args(vf_coef=0.5, ent_coef=0.1)
    heads = dict(agent.popart.named_parameters()) if hasattr(agent, "popart") else {}
    for loss, tag, net, own in (
        (module.policy_loss, "losses/policy", agent.actor, {"log_std": agent.log_std}),
        (module.value_loss, "losses/value", agent.critic, heads),
    ):
        all_gradients = partial(module.per_task_gradients, loss, net, own, mb, args)
        J, own_gradients, metrics = all_gradients()
        clipped = [x.mean() for name, x in metrics.items() if "clip_fraction" in name]
        assert 0.1 < clipped[0] < 0.9
        parameters = [*net.parameters(), *own.values()]
        for _ in range(5):
            directions = [torch.randn_like(p) for p in parameters]
            losses = []  # [K] each
            for step in (1e-6, -2e-6, 1e-6):  # to one side, to the other, and back
                for p, direction in zip(parameters, directions):
                    p += step * direction
                losses.append(all_gradients()[2][tag])

            split = len(parameters) - len(own)
            expected = J @ torch.cat([x.flatten() for x in directions[:split]])
            for name, x in zip(own, directions[split:]):
                expected += (own_gradients[name] * x).view(3, -1).sum(1)
            slopes = (losses[0] - losses[1]) / 2e-6
            torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-7)


@every_script
@torch.no_grad()
def test_frozen_parameters_stay_and_the_others_train(module, monkeypatch):
    agent, mb = agent_and_minibatch(module)
    frozen = [*agent.critic[0].parameters(), *agent.actor[-1].parameters(), agent.log_std]
    if hasattr(agent, "popart"):
        frozen.append(agent.popart.bias)
    for p in frozen:
        p.requires_grad_(False)
    args = module.Args(tasks=TASKS, vf_coef=1.0)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate)
    before = [p.clone() for p in agent.parameters()]
    widths = []
    gram = module.gram
    monkeypatch.setattr(module, "gram", lambda J: widths.append(J.shape[1]) or gram(J))
    module.update_minibatch(agent, optimizer, mb, np.random.default_rng(0), args)

    for p, old in zip(agent.parameters(), before):
        assert torch.equal(p, old) != p.requires_grad
    for width, net in zip(widths, (agent.actor, agent.critic)):  # the Grams have what is trained
        assert width == sum(p.numel() for p in net.parameters() if p.requires_grad)


@every_script
def test_actor_and_critic_that_share_a_layer_are_refused(module, monkeypatch):
    shared = nn.Linear(42, 1)
    monkeypatch.setattr(module, "mlp", lambda *_, **__: nn.Sequential(shared))
    with pytest.raises(ValueError, match="actor and critic share a layer"):
        module.Agent(3, (16,))


def test_gram_is_summed_in_fp64():
    """Of gradients of very different lengths, and of more columns than one block has."""
    torch.manual_seed(1)
    J = torch.randn(3, 70_000) * 10.0 ** torch.tensor([[-8.0], [0.0], [3.0]])
    G = vanilla.gram(J)
    exact = J.double().numpy()
    assert G.dtype == torch.float64
    np.testing.assert_allclose(G, exact @ exact.T, rtol=1e-12, atol=0)
