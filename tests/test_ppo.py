"""PPO's pieces, the same in all scripts, against independent computations."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from scripts import MODULES
from torch import nn

every_script = pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.SCRIPT)

TASKS = ("reach-v3", "push-v3", "drawer-close-v3")


def rows_of(agent):
    """The parameters of which each task has a row of its own: the actor's and the critic's."""
    actor_rows = {"log_std": agent.log_std}
    critic_rows = dict(agent.popart.named_parameters()) if hasattr(agent, "popart") else {}
    return actor_rows, critic_rows


@every_script
def test_defaults_are_those_of_table_b1(module):
    args = module.Args()
    assert args.gamma == 0.99
    assert args.gae_lambda == 0.97
    assert args.num_steps == 10_000
    assert args.update_epochs == 16
    assert args.num_minibatches == 32
    assert args.learning_rate == 3e-4
    assert args.clip_coef == 0.2
    assert args.clip_vloss
    assert args.vf_coef == 0.001
    assert args.ent_coef == 0.005
    assert args.max_grad_norm == 1.0
    assert args.hidden_sizes == (400, 400, 400)
    assert args.eval_episodes == 50
    # Our choices, which the README lists
    assert args.bootstrap_truncation
    assert args.adam_eps == 1e-5


# --- Advantages


@functools.cache
def random_episodes():
    rng = np.random.default_rng(0)
    tasks, episodes, steps = 2, 3, 17
    rewards = rng.normal(size=(tasks, episodes, steps))
    values = rng.normal(size=(tasks, episodes, steps + 1))
    return rewards, values


@functools.cache
def advantages_by_definition(bootstrap, gamma, lam):
    """Lambda-weighted mixtures of n-step advantages, cut off at the episode's end."""
    rewards, values = random_episodes()
    advantages = np.zeros_like(rewards)
    steps = rewards.shape[-1]
    for k, e, t in np.ndindex(rewards.shape):
        r = rewards[k, e]
        v = values[k, e].copy()
        if not bootstrap:
            v[steps] = 0
        n_step = []
        for n in range(1, steps - t + 1):
            discounted = sum(gamma**i * r[t + i] for i in range(n))
            n_step.append(discounted + gamma**n * v[t + n] - v[t])
        shares = [(1 - lam) * lam**i for i in range(len(n_step))]
        shares[-1] = lam ** (len(n_step) - 1)
        advantages[k, e, t] = np.dot(shares, n_step)
    return advantages


@every_script
@pytest.mark.parametrize("bootstrap", [True, False])
def test_gae_with_truncation_against_a_double_loop(module, bootstrap):
    rewards, values = random_episodes()
    args = module.Args(gamma=0.95, gae_lambda=0.8, bootstrap_truncation=bootstrap)
    given = torch.from_numpy(values.copy())
    advantages, returns = module.gae(torch.from_numpy(rewards), given, args)
    expected = advantages_by_definition(bootstrap, 0.95, 0.8)
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(returns, expected + values[..., :-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(given, values)  # the caller still needs them


# --- Minibatches


@every_script
@pytest.mark.parametrize(
    ("num_tasks", "num_steps", "num_minibatches", "sizes"),
    [
        (10, 10_000, 32, {3_120, 3_130}),  # MT10: 312 or 313 of each task
        (50, 10_000, 32, {15_600, 15_650}),  # MT50
        (3, 500, 500, {3}),
        (1, 500, 7, {71, 72}),
        (7, 1_000, 33, {210, 217}),
        (4, 500, 1, {2_000}),
    ],
)
def test_stratified_minibatches(module, num_tasks, num_steps, num_minibatches, sizes):
    args = module.Args(num_steps=num_steps, num_minibatches=num_minibatches)
    minibatches = module.stratified_minibatches(num_tasks, args, np.random.default_rng(0), "cpu")
    assert len(minibatches) == num_minibatches
    assert all(len(index) == num_tasks for index in minibatches)  # as many of each task
    assert {index.numel() for index in minibatches} == sizes
    dealt = torch.cat(minibatches, dim=1)
    everyone = torch.arange(num_steps).expand(num_tasks, -1)
    assert torch.equal(dealt.sort(dim=1).values, everyone)  # each sample once

    assert not torch.equal(dealt, everyone)
    if num_tasks > 1:  # each task in an order of its own
        assert not torch.equal(dealt[0], dealt[1])
    again = module.stratified_minibatches(num_tasks, args, np.random.default_rng(1), "cpu")
    assert not torch.equal(dealt, torch.cat(again, dim=1))


# --- One task's losses

# A net whose outputs are its parameters: sample i is the i-th unit vector


def policy_by_hand(module, args, ratios, advantages, log_std):
    """policy_loss where sample i has the given ratio. Returns loss, metrics and gradients."""
    n = len(ratios)
    torch.manual_seed(0)
    mean = torch.randn(n, 4)
    actions = torch.randn(n, 4)
    log_probs = -(((actions - mean) / log_std.exp()) ** 2) / 2 - log_std
    log_probs = (log_probs - math.log(2 * math.pi) / 2).sum(1)
    mb = {
        "obs": torch.eye(n),
        "actions": actions,
        "old_log_probs": log_probs - torch.tensor(ratios).log(),
        "advantages": torch.tensor(advantages),
    }
    shared = mean.T.flatten().requires_grad_()  # the weights [4, n] of a layer without bias
    row = {"log_std": log_std.clone().requires_grad_()}
    net = nn.Linear(n, 4, bias=False)
    loss, metrics = module.policy_loss(shared, row, mb, net, args)
    d_shared, d_log_std = torch.autograd.grad(loss, [shared, row["log_std"]])
    slope = (actions - mean) / log_std.exp() ** 2  # of a log-probability in its mean
    return loss, metrics, d_shared.view(4, n).T / slope, d_log_std


@every_script
def test_ratio_clip_by_hand(module):
    """min(rho A, clip(rho, 0.8, 1.2) A): a clipped sample has no gradient, another rho A / n."""
    args = module.Args(clip_coef=0.2, ent_coef=0.0)
    loss, metrics, slopes, _ = policy_by_hand(
        module,
        args,
        ratios=[1.5, 0.5, 1.1, 1.5, 0.5, 0.9],
        advantages=[1.0, 1.0, 1.0, -1.0, -1.0, -1.0],  # normalised as they are
        log_std=torch.tensor([0.0, -0.5, 0.3, 0.1]),
    )
    surrogate = [1.2, 0.5, 1.1, -1.5, -0.8, -0.9]
    torch.testing.assert_close(loss, torch.tensor(-sum(surrogate) / 6))
    expected = -torch.tensor([0.0, 0.5, 1.1, -1.5, 0.0, -0.9]) / 6
    torch.testing.assert_close(slopes, expected[:, None].expand(6, 4), rtol=1e-4, atol=1e-5)
    assert metrics["losses/policy"] == loss
    assert metrics["losses/ratio_clip_fraction"] == pytest.approx(4 / 6)
    kl = np.mean([r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 1.5, 0.5, 0.9)])
    assert metrics["losses/approx_kl"].item() == pytest.approx(kl, rel=1e-4)


@every_script
def test_entropy_bonus_by_hand(module):
    """Of a diagonal Gaussian: sum of log(sigma sqrt(2 pi e)), with slope 1 in each log-std."""
    log_std = torch.tensor([0.0, -0.5, 0.3, 0.1])
    entropy = sum(log_std.tolist()) + 4 * math.log(math.sqrt(2 * math.pi * math.e))
    losses = []
    slopes = []
    for ent_coef in (0.0, 0.25):
        loss, metrics, _, d_log_std = policy_by_hand(
            module, module.Args(ent_coef=ent_coef), [1.0, 0.9], [1.0, -1.0], log_std
        )
        losses.append(loss)
        slopes.append(d_log_std)
    assert metrics["losses/entropy"].item() == pytest.approx(entropy, rel=1e-6)
    assert (losses[1] - losses[0]).item() == pytest.approx(-0.25 * entropy, rel=1e-5)
    torch.testing.assert_close(slopes[1] - slopes[0], torch.full((4,), -0.25))


@every_script
def test_advantages_are_normalised_within_the_tasks_slice(module):
    args = module.Args(ent_coef=0.0)
    ratios = [0.85, 0.9, 1.05, 1.15]
    advantages = np.array([3.0, -1.0, 0.0, 8.0])
    deviations = advantages - advantages.mean()
    normalised = deviations / math.sqrt((deviations**2).mean())  # variance 1: divided by n
    expected = -np.dot(ratios, normalised) / 4
    for scale, shift in ((1.0, 0.0), (1e3, -500.0), (1e-3, 0.25)):
        given = (scale * advantages + shift).tolist()
        loss = policy_by_hand(module, args, ratios, given, torch.zeros(4))[0]
        assert loss.item() == pytest.approx(expected, rel=1e-3)
    same = policy_by_hand(module, args, ratios, [2.0] * 4, torch.zeros(4))[0]
    assert same.item() == 0  # and not infinite


@every_script
@pytest.mark.parametrize("clip", [True, False])
def test_value_clip_by_hand(module, clip):
    """Old value 0: the clipped one is held to [-0.2, 0.2]; the larger squared error counts."""
    args = module.Args(clip_coef=0.2, clip_vloss=clip, vf_coef=0.1)
    mb = {
        "obs": torch.eye(4),
        "old_values": torch.zeros(4),
        "returns": torch.tensor([0.5, 2.0, 0.5, -3.0]),
    }
    shared = torch.tensor([0.1, 1.0, 1.0, -1.0], requires_grad=True)
    row = {"scale": torch.tensor(1.0), "bias": torch.tensor(0.0)}  # of PopArt, where there is one
    net = nn.Linear(4, 1, bias=False)
    loss, metrics = module.value_loss(shared, row, mb, net, args)
    loss.backward()
    # Unclipped 0.4, 1, 0.5, 2; clipped 0.4, 1.8, 0.3, 2.8, which stops the gradient
    errors = [0.4, 1.8, 0.5, 2.8] if clip else [0.4, 1.0, 0.5, 2.0]
    slopes = [-0.4, 0.0, 0.5, 0.0] if clip else [-0.4, -1.0, 0.5, 2.0]
    expected = 0.1 * 0.5 * sum(error**2 for error in errors) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(shared.grad, 0.1 * torch.tensor(slopes) / 4)
    assert metrics["losses/value"] == loss
    assert metrics["losses/value_clip_fraction"] == (0.5 if clip else 0.0)


# --- The update


def random_rollout(module, seed=0):
    """One episode of each task, of noise."""
    rng = np.random.default_rng(seed)
    num_tasks = len(TASKS)
    obs = rng.normal(size=(num_tasks, 1, 501, 39 + num_tasks)).astype(np.float32)
    obs[..., 39:] = np.eye(num_tasks)[:, None, None]
    return module.Episodes(
        obs=obs,
        actions=rng.normal(size=(num_tasks, 1, 500, 4)).astype(np.float32),
        rewards=rng.normal(size=(num_tasks, 1, 500)).astype(np.float32),
        success=np.zeros((num_tasks, 1), bool),
    )


@every_script
def test_explained_variance_is_that_of_the_values_before_the_update(module):
    torch.manual_seed(0)
    args = module.Args(
        tasks=TASKS,
        num_steps=500,
        num_minibatches=4,
        update_epochs=2,
        learning_rate=0.01,
        vf_coef=1.0,
        clip_vloss=False,
    )
    agent = module.Agent(len(TASKS), (16,))
    before = copy.deepcopy(agent)
    rollout = random_rollout(module)
    optimizer = torch.optim.Adam(agent.parameters(), args.learning_rate)
    metrics = module.update(agent, optimizer, rollout, np.random.default_rng(0), args)

    def explained(critic):
        with torch.no_grad():
            values = critic.values(torch.from_numpy(rollout.obs)).double().numpy()
        returns = np.zeros_like(rollout.rewards, float)
        later = values[..., -1]
        for t in reversed(range(500)):
            mixture = (1 - args.gae_lambda) * values[..., t + 1] + args.gae_lambda * later
            later = rollout.rewards[..., t] + args.gamma * mixture
            returns[..., t] = later
        return 1 - (returns - values[..., :-1]).var((1, 2)) / returns.var((1, 2))

    np.testing.assert_allclose(metrics["explained_variance"], explained(before), atol=1e-4)
    assert np.abs(explained(agent) - explained(before)).min() > 0.01  # the test tells them apart


def gradients_of_an_update(module, max_grad_norm):
    """What a minibatch leaves in .grad: of the actor's side and of the critic's, flat."""
    torch.manual_seed(0)
    num_tasks = len(TASKS)
    n = 20
    agent = module.Agent(num_tasks, (16, 16))
    mb = {
        "obs": torch.randn(num_tasks, n, 39 + num_tasks),
        "actions": torch.randn(num_tasks, n, 4),
        "old_log_probs": torch.full((num_tasks, n), -5.0),
        "advantages": torch.randn(num_tasks, n),
        "returns": 3 * torch.randn(num_tasks, n),
        "old_values": torch.randn(num_tasks, n),
    }
    args = module.Args(tasks=TASKS, max_grad_norm=max_grad_norm, vf_coef=1.0)
    optimizer = torch.optim.SGD(agent.parameters(), lr=1.0)
    before = copy.deepcopy(agent)
    module.update_minibatch(agent, optimizer, mb, np.random.default_rng(0), args)
    for old, new in zip(before.parameters(), agent.parameters()):
        torch.testing.assert_close(new, old - new.grad)  # the step is along these gradients
    actor_rows, critic_rows = rows_of(agent)
    actor = [*agent.actor.parameters(), *actor_rows.values()]
    critic = [*agent.critic.parameters(), *critic_rows.values()]
    assert len(actor) + len(critic) == len(list(agent.parameters()))
    return [torch.cat([p.grad.flatten() for p in side]) for side in (actor, critic)]


@every_script
def test_each_sides_gradient_is_clipped_on_its_own(module):
    unclipped = gradients_of_an_update(module, max_grad_norm=1e9)
    low, high = sorted(d.norm().item() for d in unclipped)
    assert high > 1.1 * low  # so that between them only one is clipped
    for limit in (0.5 * low, 0.5 * (low + high), 1.01 * high):
        clipped = gradients_of_an_update(module, limit)
        for d, whole in zip(clipped, unclipped):
            factor = min(1, limit / whole.norm().item())
            torch.testing.assert_close(d, factor * whole, rtol=1e-4, atol=1e-6)


# --- What is logged of an update


@every_script
def test_gradient_metrics_by_hand(module):
    gram = np.array([[4.0, 0.0, -2.0], [0.0, 1.0, 0.0], [-2.0, 0.0, 1e4]])
    weights = np.array([0.5, 0.25, 0.01])
    metrics = module.gradient_metrics("actor", gram, weights)
    np.testing.assert_allclose(metrics.pop("actor_gradient_norm"), [2.0, 1.0, 100.0])
    combined = 0.25 * 4 + 0.0625 + 1e-4 * 1e4 + 2 * 0.5 * 0.01 * -2
    expected = {
        "gradients/actor_log10_norm_spread": 2.0,
        "gradients/actor_mean_cosine": (0 - 0.01 + 0) / 3,
        "gradients/actor_top1_share": 1.0 / 2.25,
        "gradients/actor_combined_norm": math.sqrt(combined),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)

    gram[1, 1] = 0  # a task without a gradient does not count in the spread
    metrics = module.gradient_metrics("critic", gram, weights)
    spread = metrics["gradients/critic_log10_norm_spread"]
    assert spread == pytest.approx(math.log10(50), rel=1e-12)
    for nothing in (module.gradient_metrics("critic", 0 * gram, weights), metrics):
        assert all(np.isfinite(value).all() for value in nothing.values())
    alone = module.gradient_metrics("critic", np.array([[4.0]]), np.ones(1))
    assert alone["gradients/critic_mean_cosine"] == 0


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES.values() if hasattr(m, "fairgrad_metrics")],
    ids=lambda m: m.SCRIPT,
)
def test_fairgrad_metrics(module):
    J = np.random.default_rng(0).normal(size=(4, 30))
    solution = module.solve_fairgrad(J @ J.T, alpha=1.0)
    metrics = module.fairgrad_metrics(solution, J @ J.T)
    shares = solution.weights * (J @ (solution.weights @ J))  # w_k <g_k, d>
    np.testing.assert_allclose(metrics["fairgrad_contribution"], shares, rtol=1e-9)
    np.testing.assert_allclose(metrics["fairgrad_contribution"], 1, rtol=1e-6)
    np.testing.assert_array_equal(metrics["fairgrad_weight"], solution.weights)
    assert metrics["fairgrad/kkt_residual"] < 1e-6
    assert metrics["fairgrad/newton_iterations"] >= 1
    assert not metrics["fairgrad/used_scipy_fallback"]
    assert not metrics["fairgrad/solver_fallback"]


@every_script
def test_gradients_that_are_not_finite_end_the_run_with_the_tasks_names(module, capsys):
    module.stop_if_not_finite(np.eye(3), TASKS)
    gram = np.eye(3)
    gram[0, 0] = math.nan
    gram[2, 2] = math.inf
    with pytest.raises(SystemExit) as end:
        module.stop_if_not_finite(gram, TASKS)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{module.SCRIPT}: error: ")
    assert "reach-v3 drawer-close-v3;" in message
    assert "push-v3" not in message
