"""Parameter counts of the paper, and per-task gradients against K separate backward passes."""

import pytest
import torch
from scripts import MODULES, WITH_LAYER_NORM

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
    "ablations/symmetric_ln_popart.py": (686_065, 718_305),  # 1,200 more in the actor, as in the critic
    "ablations/toppo_popart_ema.py": (684_865, 717_105),
}


@pytest.mark.parametrize("path", COUNTS)
def test_parameter_counts(path):
    for num_tasks, expected in zip((10, 50), COUNTS[path]):
        agent = MODULES[path].Agent(num_tasks, MODULES[path].Args().hidden_sizes)
        assert sum(p.numel() for p in agent.parameters()) == expected
        if "symmetric" not in path:
            assert sum(p.numel() for p in agent.actor.parameters()) == {10: 342_404, 50: 358_404}[num_tasks]
        assert agent.log_std.shape == (num_tasks, 4)
        assert (agent.log_std == 0).all()


@pytest.mark.parametrize("path", MODULES)
def test_layer_norm_sits_where_the_script_says(path):
    """In the hidden layers, before the ReLU; of the critic (LN-c), or of both networks."""
    agent = MODULES[path].Agent(3, (32, 16))
    for net, expected in (agent.critic, MODULES[path] in WITH_LAYER_NORM), (agent.actor, "symmetric" in path):
        hidden = ["Linear", "LayerNorm", "ReLU"] if expected else ["Linear", "ReLU"]
        assert [type(layer).__name__ for layer in net] == [*hidden, *hidden, "Linear"]
        assert [layer.bias is None for layer in net if isinstance(layer, torch.nn.Linear)] == [expected, expected, False]


def test_initialisation_is_orthogonal_with_the_stated_gains():
    agent = MODULES["vanilla_mtppo.py"].Agent(3, (64, 64))
    for net, output_gain in (agent.actor, 0.01), (agent.critic, 1.0):
        linears = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        for layer, gain in zip(linears, [2**0.5, 2**0.5, output_gain]):
            torch.testing.assert_close(torch.linalg.svdvals(layer.weight), torch.full((min(layer.weight.shape),), gain))
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("path", MODULES)
def test_per_task_gradients_equal_k_backward_passes(path):
    module, num_tasks, n = MODULES[path], 4, 9
    torch.manual_seed(0)
    agent = module.Agent(num_tasks, (24, 16, 8)).double()
    for p in agent.parameters():  # away from the special values 0 and 1 of the start
        p.data += 0.1 * torch.randn_like(p)
    obs = torch.randn(num_tasks, n, 39 + num_tasks).double()
    target, weight = torch.randn(num_tasks, n).double(), torch.rand(num_tasks, n).double()

    def critic_loss(output, k):  # own parameters enter as they do in the scripts
        if hasattr(agent, "head_weight"):
            output = agent.head_weight[k, None] * output + agent.head_bias[k, None]
        return (weight[k] * (output - target[k]) ** 2).sum(-1)

    def actor_loss(mean, k):
        return (weight[k][..., None] * (mean - target[k][..., None]) ** 2 * agent.log_std[k].exp().unsqueeze(-2)).sum((-1, -2))

    everyone = torch.arange(num_tasks)
    for net, own, loss in (
        (agent.critic, [agent.head_weight, agent.head_bias] if hasattr(agent, "head_weight") else [], critic_loss),
        (agent.actor, [agent.log_std], actor_loss),
    ):
        squeeze = (lambda x: x.squeeze(-1)) if net is agent.critic else (lambda x: x)
        output, tape = module.forward_with_tape(net, obs)
        torch.testing.assert_close(output, net(obs))
        grads, own_grads = module.per_task_gradients(loss(squeeze(output), everyone), tape, own)
        assert [g.shape for g in grads] == [(num_tasks, *p.shape) for p in net.parameters()]
        for k in range(num_tasks):
            expected = torch.autograd.grad(loss(squeeze(net(obs[k])), k), [*net.parameters(), *own])
            for g, whole in zip(grads, expected):
                torch.testing.assert_close(g[k], whole, rtol=1e-12, atol=1e-12)
            for row, whole in zip(own_grads, expected[len(expected) - len(own) :]):
                torch.testing.assert_close(row[k], whole[k], rtol=1e-12, atol=1e-12)
                assert (whole[everyone != k] == 0).all()


def test_gram_and_combined_gradient():
    module = MODULES["vanilla_mtppo.py"]
    torch.manual_seed(1)
    num_tasks, agent = 3, module.Agent(3, (300, 300))  # more than one block of columns
    shared, own = list(agent.actor.parameters()), [agent.log_std, torch.nn.Parameter(torch.zeros(num_tasks))]
    J = torch.randn(num_tasks, sum(p.numel() for p in shared)) * 10.0 ** torch.tensor([[-8.0], [0.0], [3.0]])
    grads = [g.view(num_tasks, *p.shape) for p, g in zip(shared, J.split([p.numel() for p in shared], dim=1))]
    own_grads, weights = [torch.randn(num_tasks, 4), torch.randn(num_tasks)], torch.tensor([1e8, 0.5, 1e-3], dtype=torch.float64)
    J = J.double().numpy()
    torch.testing.assert_close(module.gram(grads), torch.from_numpy(J @ J.T), rtol=1e-12, atol=0)
    module.set_combined_gradient(shared, grads, own, own_grads, weights)
    combined = torch.cat([p.grad.flatten() for p in shared])
    torch.testing.assert_close(combined, torch.from_numpy(weights.numpy() @ J).float())
    for k in range(num_tasks):  # a weight scales the task's own row and nothing else
        torch.testing.assert_close(own[0].grad[k], weights[k].float() * own_grads[0][k])
        torch.testing.assert_close(own[1].grad[k], weights[k].float() * own_grads[1][k])


@pytest.mark.parametrize(
    ("flags", "num_tasks"),
    [("--benchmark MT25", 25), ("--tasks push-v3 door-open-v3 reach-v3", 3), ("", 50), ("--benchmark MT10", 10)],
)
def test_sizes_and_budget_follow_from_the_tasks(flags, num_tasks, monkeypatch):
    module = MODULES["toppo_mt50.py"]
    monkeypatch.setattr("sys.argv", ["toppo_mt50.py", *flags.split()])
    args, names, _ = module.parse_args()
    assert len(names) == num_tasks and args.total_timesteps == 2_000_000 * num_tasks
    assert args.eval_interval == {10: 400_000, 50: 1_000_000}.get(num_tasks, 20_000 * num_tasks)
    shared = 400 * (39 + num_tasks) + 2 * 400 * 400  # weights of three hidden layers
    actor, critic = shared + 3 * 400 + 4 * 401 + 4 * num_tasks, shared + 3 * 800 + 401 + 2 * num_tasks
    agent = module.Agent(num_tasks, args.hidden_sizes)
    assert sum(p.numel() for p in agent.parameters()) == actor + critic
    assert agent.actor[0].in_features == agent.critic[0].in_features == 39 + num_tasks
