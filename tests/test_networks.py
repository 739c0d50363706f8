"""Networks with the paper's parameter counts, and the per-task gradients of their losses."""

import math

import numpy as np
import pytest
import torch
from scripts import MODULES, WITH_LAYER_NORM
from torch import nn

every_script = pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.SCRIPT)

COUNTS = {  # MT10, MT50: paper, Table B.2; exact by Section B.3's convention
    "vanilla_mtppo.py": (683_645, 715_805),
    "ablations/ln.py": (684_845, 717_005),
    "ablations/ln_popart.py": (684_865, 717_105),
    "ablations/ln_fairgrad.py": (684_845, 717_005),
    "ablations/ln_popart_fairgrad.py": (684_865, 717_105),
    "toppo_mt50.py": (684_865, 717_105),
    "ablations/popart.py": (683_665, 715_905),
    "ablations/fairgrad.py": (683_645, 715_805),
    "ablations/popart_fairgrad.py": (683_665, 715_905),
    "ablations/ln_popart_fairgrad_fairgrad.py": (684_865, 717_105),
    "ablations/ln_popart_pcgrad_pcgrad.py": (684_865, 717_105),
    "ablations/ln_popart_cagrad_cagrad.py": (684_865, 717_105),
    # 1,200 more in the actor, as in the critic
    "ablations/symmetric_ln_popart.py": (686_065, 718_305),
    "ablations/toppo_popart_ema.py": (684_865, 717_105),
}


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("path", MODULES)
def test_parameter_counts(path):
    for num_tasks, expected in zip((10, 50), COUNTS[path]):
        agent = MODULES[path].Agent(num_tasks, MODULES[path].Args().hidden_sizes)
        assert count(agent) == expected
        if "symmetric" not in path:
            assert count(agent.actor) == {10: 342_404, 50: 358_404}[num_tasks]
        assert agent.log_std.shape == (num_tasks, 4)
        assert (agent.log_std == 0).all()


@pytest.mark.parametrize(
    ("flags", "num_tasks"),
    [
        ("--benchmark MT25", 25),
        ("--tasks push-v3 door-open-v3 reach-v3", 3),
        ("", 50),
        ("--benchmark MT10", 10),
    ],
)
def test_sizes_and_budget_follow_from_the_tasks(flags, num_tasks, monkeypatch):
    module = MODULES["toppo_mt50.py"]
    monkeypatch.setattr("sys.argv", ["toppo_mt50.py", *flags.split()])
    args, checkpoint = module.parse_args()
    assert checkpoint is None
    assert len(args.tasks) == num_tasks
    assert args.total_timesteps == 2_000_000 * num_tasks
    assert args.collect_steps == 10_000 * num_tasks
    assert args.num_collects == 200
    assert args.eval_interval == 40_000 * num_tasks

    agent = module.Agent(num_tasks, args.hidden_sizes)
    hidden_weights = 400 * (39 + num_tasks) + 2 * 400 * 400
    actor = hidden_weights + 3 * 400 + 4 * 401 + 4 * num_tasks
    critic = hidden_weights + 3 * 800 + 401 + 2 * num_tasks
    assert count(agent) == actor + critic
    assert agent.actor[0].in_features == agent.critic[0].in_features == 39 + num_tasks


@pytest.mark.parametrize("path", MODULES)
def test_layer_norm_sits_where_the_script_says(path):
    """In the hidden layers, before the ReLU; of the critic (LN-c), or of both networks."""
    agent = MODULES[path].Agent(3, (32, 16))
    has_layer_norm = {"critic": MODULES[path] in WITH_LAYER_NORM, "actor": "symmetric" in path}
    for side, expected in has_layer_norm.items():
        net = getattr(agent, side)
        hidden = ["Linear", "LayerNorm", "ReLU"] if expected else ["Linear", "ReLU"]
        assert [type(layer).__name__ for layer in net] == [*hidden, *hidden, "Linear"]
        without_bias = [layer.bias is None for layer in net if isinstance(layer, nn.Linear)]
        assert without_bias == [expected, expected, False]


@every_script
def test_initialisation_is_orthogonal_with_the_stated_gains(module):
    agent = module.Agent(3, (64, 48))
    for net, output_gain in ((agent.actor, 0.01), (agent.critic, 1.0)):
        linears = [layer for layer in net if isinstance(layer, nn.Linear)]
        for layer, gain in zip(linears, [2**0.5, 2**0.5, output_gain], strict=True):
            singular_values = torch.linalg.svdvals(layer.weight)
            torch.testing.assert_close(singular_values, torch.full_like(singular_values, gain))
            assert layer.bias is None or (layer.bias == 0).all()


@every_script
def test_log_probabilities_are_those_of_the_unclipped_actions(module):
    torch.manual_seed(0)
    agent = module.Agent(3, (16,)).double()
    agent.log_std.data = torch.randn(3, 4).double()
    obs = torch.randn(3, 2, 5, 42).double()
    actions = 3 * torch.randn(3, 2, 5, 4).double()  # many are outside [-1, 1]
    expected = torch.zeros(3, 2, 5).double()
    for k, e, t in np.ndindex(3, 2, 5):
        z = (actions[k, e, t] - agent.actor(obs[k, e, t])) / agent.log_std[k].exp()
        log_densities = -(z**2) / 2 - agent.log_std[k] - math.log(2 * math.pi) / 2
        expected[k, e, t] = log_densities.sum()
    torch.testing.assert_close(agent.log_probs(obs, actions), expected)


# --- Per-task gradients


def plain_policy_loss(agent, mb, k, args):
    """Eq. (1) for the actor, of task k alone."""
    advantages = mb["advantages"][k]
    deviations = advantages - advantages.mean()
    advantages = deviations / ((deviations**2).mean().sqrt() + 1e-8)
    log_std = agent.log_std[k]
    z = (mb["actions"][k] - agent.actor(mb["obs"][k])) / log_std.exp()
    log_probs = (-(z**2) / 2 - log_std - math.log(2 * math.pi) / 2).sum(1)
    ratio = (log_probs - mb["old_log_probs"][k]).exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages).mean()
    entropy = (log_std + math.log(2 * math.pi * math.e) / 2).sum()
    return -surrogate - args.ent_coef * entropy


def plain_value_loss(agent, mb, k, args):
    """Eq. (1) for the critic, of task k alone."""
    values = agent.critic(mb["obs"][k])[:, 0]
    if hasattr(agent, "popart"):
        values = agent.popart.scale[k] * values + agent.popart.bias[k]
    old_values = mb["old_values"][k]
    returns = mb["returns"][k]
    clipped = old_values + (values - old_values).clamp(-args.clip_coef, args.clip_coef)
    errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return args.vf_coef * errors.mean() / 2


def agent_and_minibatch(module, activation):
    """Of four tasks, in fp64, away from the special values 0 and 1 of the start."""
    torch.manual_seed(0)
    num_tasks = 4
    n = 9
    agent = module.Agent(num_tasks, (24, 16, 8))
    for net in (agent.actor, agent.critic):
        for i, layer in enumerate(net):
            if isinstance(layer, nn.ReLU):
                net[i] = activation()
    agent = agent.double()
    for p in agent.parameters():
        p.data += 0.1 * torch.randn_like(p)
    obs = torch.randn(num_tasks, n, 39 + num_tasks).double()
    actions = torch.randn(num_tasks, n, 4).double()
    values = agent.critic(obs)[..., 0].detach()
    log_probs = agent.log_probs(obs[:, None], actions[:, None])[:, 0].detach()
    mb = {
        "obs": obs,
        "actions": actions,
        "old_log_probs": log_probs + 0.3 * torch.randn(num_tasks, n),
        "advantages": torch.randn(num_tasks, n) * 10.0 ** torch.arange(-2, 2)[:, None],
        "returns": values + torch.randn(num_tasks, n),
        "old_values": values + 0.3 * torch.randn(num_tasks, n),
    }
    return agent, {name: x.double() for name, x in mb.items()}


@every_script
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_per_task_gradients_equal_k_backward_passes(module, activation):
    """Also of networks that a researcher has changed."""
    agent, mb = agent_and_minibatch(module, activation)
    args = module.Args(clip_coef=0.2, vf_coef=0.5, ent_coef=0.1)
    critic_rows = dict(agent.popart.named_parameters()) if hasattr(agent, "popart") else {}
    sides = [
        (module.policy_loss, plain_policy_loss, agent.actor, {"log_std": agent.log_std}),
        (module.value_loss, plain_value_loss, agent.critic, critic_rows),
    ]
    for loss, plain_loss, net, rows in sides:
        with torch.no_grad():  # as in update
            gradients, metrics = module.per_task_gradients(loss, net, rows, mb, args)
        assert gradients.shared.shape == (4, count(net))
        assert gradients.rows.keys() == rows.keys()
        for k in range(4):
            expected_loss = plain_loss(agent, mb, k, args)
            expected = torch.autograd.grad(expected_loss, [*net.parameters(), *rows.values()])
            own = expected[len(expected) - len(rows) :]
            g_k = torch.cat([g.flatten() for g in expected[: len(expected) - len(rows)]])
            torch.testing.assert_close(gradients.shared[k], g_k, rtol=1e-12, atol=1e-12)
            for name, whole in zip(rows, own):
                torch.testing.assert_close(
                    gradients.rows[name][k], whole[k], rtol=1e-12, atol=1e-12
                )
                assert whole.count_nonzero() == whole[k].count_nonzero()  # of no other task
            name = "losses/policy" if loss is module.policy_loss else "losses/value"
            torch.testing.assert_close(metrics[name][k], expected_loss)


@every_script
def test_both_clips_act_on_some_samples_of_this_minibatch(module):
    agent, mb = agent_and_minibatch(module, nn.ReLU)
    args = module.Args()
    rows = dict(agent.popart.named_parameters()) if hasattr(agent, "popart") else {}
    critic = module.per_task_gradients(module.value_loss, agent.critic, rows, mb, args)[1]
    rows = {"log_std": agent.log_std}
    actor = module.per_task_gradients(module.policy_loss, agent.actor, rows, mb, args)[1]
    assert 0.1 < critic["losses/value_clip_fraction"].mean() < 0.9
    assert 0.1 < actor["losses/ratio_clip_fraction"].mean() < 0.9


def jacobian(num_tasks, agent):
    """Gradients of very different lengths, and of more columns than one block of gram."""
    torch.manual_seed(1)
    J = torch.randn(num_tasks, count(agent.actor)) * 10.0 ** torch.tensor([[-8.0], [0.0], [3.0]])
    assert J.shape[1] > 65_536
    return J


@every_script
def test_gram_is_summed_in_fp64(module):
    J = jacobian(3, module.Agent(3, (300, 300)))
    G = module.gram(J)
    assert G.dtype == torch.float64
    exact = J.double().numpy()
    np.testing.assert_allclose(G, exact @ exact.T, rtol=1e-12, atol=0)


@every_script
def test_weights_scale_the_tasks_gradients_and_their_own_rows_only(module):
    agent = module.Agent(3, (300, 300))
    J = jacobian(3, agent)
    weights = np.array([1e8, 0.5, 1e-3])
    rows = {"log_std": agent.log_std, "bias": nn.Parameter(torch.zeros(3))}
    gradients = module.Gradients(J, {"log_std": torch.randn(3, 4), "bias": torch.randn(3)})
    with torch.no_grad():
        module.set_gradients(agent.actor, rows, gradients, weights)
    d = torch.cat([p.grad.flatten() for p in agent.actor.parameters()])
    torch.testing.assert_close(d, torch.from_numpy(weights @ J.double().numpy()).float())
    for p in agent.actor.parameters():
        assert p.grad.shape == p.shape
    for name, parameter in rows.items():
        for k in range(3):
            expected = float(weights[k]) * gradients.rows[name][k]
            torch.testing.assert_close(parameter.grad[k], expected)
    assert all(p.grad is None for p in agent.critic.parameters())
