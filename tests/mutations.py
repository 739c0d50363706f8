"""Which test catches which mistake: python tests/mutations.py [NAME ...].

Each mistake is made in a copy of the repository, in every script that has the line, so that the
ladder's comparison of scripts is no help. Prints the first test that fails; a mistake that no test
catches makes the exit code 1. A mistake whose line is gone is an error: change it here too; so is a
test that fails without a mistake.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINIBATCH = (
    "            mb = {name: x[task, index] for name, x in samples.items()}  # [K, n, ...]\n"
)
NORMALISED = (
    "    advantages = differ * (advantages - advantages.mean())"
    " / (advantages.std(correction=0) + 1e-8)\n"
)
CRITIC_CLIP = "clip_grad_norm_([*agent.critic.parameters(), *head.values()], args.max_grad_norm)"
ACTOR_CLIP = "clip_grad_norm_([*agent.actor.parameters(), *log_std.values()], args.max_grad_norm)"
BOTH_CLIP = "clip_grad_norm_(list(agent.parameters()), args.max_grad_norm)"
EPISODES = "episodes = play(workers, agent.actor, np.full(len(args.tasks), goal)"
COMBINED = [
    "actor_weights = pcgrad_weights(actor_gram, rng)",
    "actor_weights = actor_fairgrad.weights",
    "actor_weights = cagrad_weights(actor_gram, args.cagrad_c)",
    "critic_weights = fairgrad.weights",
    "critic_weights = pcgrad_weights(critic_gram, rng)",
    "critic_weights = cagrad_weights(critic_gram, args.cagrad_c)",
]

MISTAKES = {  # test file: {name: (what stands in the scripts, what the mistake puts there, ...)}
    "plain_update": {
        f"the mean in place of {line}": (
            line,
            f"{line.split()[0]} = np.full(len(args.tasks), 1 / len(args.tasks))",
        )
        for line in COMBINED
    }
    | {
        "PopArt updated in every repeat": (
            "            agent.popart.update(returns",
            "            pass\n        if True:\n            agent.popart.update(returns",
        ),
        "old values not normalised": ("agent.popart.normalize(old_values)", "old_values"),
        "advantages normalised over all tasks at once": (
            MINIBATCH,
            f'{MINIBATCH}            x = mb["advantages"]\n'
            '            mb["advantages"] = (x - x.mean()) / x.std(correction=0)\n',
            NORMALISED,
            "",
        ),
        "advantages not normalised": (NORMALISED, ""),
        "values not recomputed in later repeats": (
            "        values = agent.values(obs)  # [K, E, 501], raw\n",
            "        values = agent.values(obs) if repeat == 0 else values\n",
        ),
        "old log-probs recomputed": (
            '            "old_log_probs": old_log_probs,',
            '            "old_log_probs": agent.log_probs(obs[:, :, :-1], actions),',
        ),
        "value clip around targets": ('(values - mb["old_values"])', '(values - mb["returns"])'),
        "clip over both nets at once": (CRITIC_CLIP, BOTH_CLIP, ACTOR_CLIP, "pass"),
        "own parameters not scaled by the weight": (
            'parameter.grad = torch.einsum("k,k...->k...", weights, task_gradients[name])',
            "parameter.grad = task_gradients[name]",
        ),
        "lambda for gamma": ("+ args.gamma * next_values", "+ args.gae_lambda * next_values"),
        "explained variance of the new values": (
            "    num_updates = args.update_epochs",
            "    values = agent.values(obs)\n"
            "    explained = 1 - (returns - values[..., :-1]).var((1, 2)) / returns.var((1, 2))\n"
            "    num_updates = args.update_epochs",
        ),
    },
    "networks": {
        "LayerNorm after ReLU": (
            "        if layer_norm:\n            layers.append(nn.LayerNorm(n_out))\n"
            "        layers.append(nn.ReLU())\n",
            "        layers.append(nn.ReLU())\n"
            "        if layer_norm:\n            layers.append(nn.LayerNorm(n_out))\n",
        ),
        "frozen parameters trained": (" if p.requires_grad}", "}"),
    },
    "environments": {
        "evaluation with noise": (
            f"{EPISODES})",
            f"{EPISODES}, np.ones((len(args.tasks), 500, 4), np.float32))",
        ),
        "evaluation on 49 goals": ("bar(args.eval_episodes, ", "bar(args.eval_episodes - 1, "),
        "evaluation on the first goal again in place of the last": (
            f"{EPISODES})",
            f"{EPISODES} % 49)",
        ),
        "a collect's randomness from a constant": ("default_rng([args.seed, ", "default_rng([1, "),
        "--adam-eps ignored": ("args.learning_rate, eps=args.adam_eps)", "args.learning_rate)"),
    },
    "device": {
        "a number read in each minibatch": (
            "optimizer.step()",
            "optimizer.step(); actor_J.max().item()",
        ),
    },
}


def first_failure(files, mistake=()):
    """Makes the mistake in a copy. Returns how many scripts it is in, and the test that fails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "runs", "results"))
        edited = 0
        for path in [*folder.glob("*.py"), *folder.glob("ablations/*.py")]:
            text = path.read_text()
            if mistake and mistake[0] in text:
                for old, new in zip(mistake[::2], mistake[1::2]):
                    assert old in text, f"{path.name} has no line {old!r}"
                    text = text.replace(old, new)
                path.write_text(text)
                edited += 1
        files = [f"tests/test_{name}.py" for name in files]
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-rfE", "--tb=no", *files]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout
    failed = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert failed or " passed" in printed, printed
    return edited, failed[0].split(" - ")[0] if failed else None


def main():
    _, failure = first_failure(MISTAKES)
    assert not failure, f"without a mistake: {failure}"
    survivors = 0
    for file, mistakes in MISTAKES.items():
        for name, mistake in mistakes.items():
            if sys.argv[1:] and name not in sys.argv[1:]:
                continue
            edited, failure = first_failure([file], mistake)
            assert edited, f"no script has the line of {name!r}; change tests/mutations.py"
            print(f"{name} ({edited} scripts): {failure or 'NOT CAUGHT'}", flush=True)
            survivors += not failure
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
