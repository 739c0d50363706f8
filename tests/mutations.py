"""Which test catches which mistake: python tests/mutations.py [NAME ...].

Each mistake is made in a copy of the repository, in every script that has the line, so that the
ladder's comparison of scripts is no help. Prints the tests that then fail; a mistake that no test
catches makes the exit code 1. A mistake whose line is gone is an error: change it here too; so is a
test that fails without a mistake.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["plain_update", "ppo", "networks", "popart", "combiners", "environments"]
MEAN = "np.full(len(args.tasks), 1 / len(args.tasks))"

MISTAKES = {  # name: (what stands in the scripts, what the mistake puts there)
    "PCGrad for the actor replaced by the mean": (
        "actor_weights = pcgrad_weights(actor_gram, rng)",
        f"actor_weights = {MEAN}",
    ),
    "FairGrad for the actor replaced by the mean": (
        "actor_weights = actor_fairgrad.weights",
        f"actor_weights = {MEAN}",
    ),
    "CAGrad for the actor replaced by the mean": (
        "actor_weights = cagrad_weights(actor_gram, args.cagrad_c)",
        f"actor_weights = {MEAN}",
    ),
    "FairGrad for the critic replaced by the mean": (
        "critic_weights = fairgrad.weights",
        f"critic_weights = {MEAN}",
    ),
    "PCGrad for the critic replaced by the mean": (
        "critic_weights = pcgrad_weights(critic_gram, rng)",
        f"critic_weights = {MEAN}",
    ),
    "CAGrad for the critic replaced by the mean": (
        "critic_weights = cagrad_weights(critic_gram, args.cagrad_c)",
        f"critic_weights = {MEAN}",
    ),
    "PopArt updated in every repeat": (
        "            agent.popart.update(returns",
        "            pass\n        if True:\n            agent.popart.update(returns",
    ),
    "statistics not applied to old values": (
        "agent.popart.normalize(old_values)",
        "old_values",
    ),
    "advantages normalised over all tasks at once": (
        "            mb = {name: x[task, index] for name, x in samples.items()}  # [K, n, ...]\n",
        "            mb = {name: x[task, index] for name, x in samples.items()}  # [K, n, ...]\n"
        '            x = mb["advantages"]\n'
        '            mb["advantages"] = (x - x.mean()) / x.std(correction=0)\n',
        "    advantages = (advantages - advantages.mean())"
        " / (advantages.std(correction=0) + 1e-8)\n",
        "",
    ),
    "advantages not normalised": (
        "    advantages = (advantages - advantages.mean())"
        " / (advantages.std(correction=0) + 1e-8)\n",
        "",
    ),
    "values not recomputed in later repeats": (
        "        values = agent.values(obs)  # [K, E, 501], raw\n",
        "        values = agent.values(obs) if repeat == 0 else values\n",
    ),
    "old log-probs recomputed": (
        '            "old_log_probs": old_log_probs,',
        '            "old_log_probs": agent.log_probs(obs[:, :, :-1], actions),',
    ),
    "value clip around the targets": (
        'change = (values - mb["old_values"]).clamp',
        'change = (values - mb["returns"]).clamp',
    ),
    "clip over both nets at once": (
        "    clip_grad_norm_([*agent.critic.parameters(), *critic_rows.values()],"
        " args.max_grad_norm)\n"
        "    clip_grad_norm_([*agent.actor.parameters(), *actor_rows.values()],"
        " args.max_grad_norm)\n",
        "    clip_grad_norm_(list(agent.parameters()), args.max_grad_norm)\n",
    ),
    "own rows not scaled by the weight": (
        'parameter.grad = torch.einsum("k,k...->k...", weights, gradients.rows[name])',
        "parameter.grad = gradients.rows[name]",
    ),
    "LayerNorm after ReLU": (
        "        if layer_norm:\n            layers.append(nn.LayerNorm(n_out))\n"
        "        layers.append(nn.ReLU())\n",
        "        layers.append(nn.ReLU())\n"
        "        if layer_norm:\n            layers.append(nn.LayerNorm(n_out))\n",
    ),
    "evaluation with noise": (
        "episodes = envs.play(agent, np.full(len(args.tasks), goal))",
        "episodes = envs.play(agent, np.full(len(args.tasks), goal),"
        " np.random.standard_normal((len(args.tasks), 500, 4)).astype(np.float32))",
    ),
    "evaluation on 49 goals": (
        "for goal in bar(args.eval_episodes, ",
        "for goal in bar(args.eval_episodes - 1, ",
    ),
    "evaluation on the first goal again in place of the last": (
        "np.full(len(args.tasks), goal)",
        "np.full(len(args.tasks), goal % 49)",
    ),
    "lambda and gamma swapped": (
        "rewards + args.gamma * next_values",
        "rewards + args.gae_lambda * next_values",
    ),
    "explained variance of the new values": (
        "    num_updates = args.update_epochs",
        "    values = agent.values(obs)\n"
        "    unexplained = (returns - values[..., :-1]).var((1, 2)) / returns.var((1, 2))\n"
        "    num_updates = args.update_epochs",
    ),
}


def make(mistake, folder):
    """Makes the mistake in every script of the folder that has the first of its lines."""
    old, new, *more = mistake
    edited = 0
    for path in [*folder.glob("*.py"), *folder.glob("ablations/*.py")]:
        text = path.read_text()
        if old not in text:
            continue
        text = text.replace(old, new)
        for line, other in zip(more[::2], more[1::2]):
            assert line in text, f"{path.name} has no line {line!r}"
            text = text.replace(line, other)
        path.write_text(text)
        edited += 1
    return edited


def failing(mistake=None):
    """Makes the mistake in a copy. Returns how many scripts it is in, and the tests that fail."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "runs"))
        edited = make(mistake, folder) if mistake else 0
        files = [f"tests/test_{test}.py" for test in TESTS]
        command = [sys.executable, "-m", "pytest", "-n", "0", "-rf", "--tb=no", *files]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
    failed = [line.split()[1] for line in printed.splitlines() if line.startswith("FAILED")]
    return edited, sorted({test.split("[")[0].removeprefix("tests/") for test in failed})


def main():
    _, tests = failing()
    assert not tests, f"these fail without a mistake: {', '.join(tests)}"
    survivors = []
    for name in sys.argv[1:] or MISTAKES:
        edited, tests = failing(MISTAKES[name])
        assert edited, f"no script has the line of {name!r}; change tests/mutations.py"
        print(f"{name} ({edited} scripts): {', '.join(tests) or 'NOT CAUGHT'}", flush=True)
        if not tests:
            survivors.append(name)
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
