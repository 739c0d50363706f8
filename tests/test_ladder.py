"""Scripts stand alone and have the same flags, each explained.

tools/ladder.py holds their texts together and within their limits (test_ladder_tool.py).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABLATIONS = [f"ablations/{path.name}" for path in sorted((ROOT / "ablations").glob("*.py"))]
SCRIPTS = ["vanilla_mtppo.py", "toppo_mt50.py", *ABLATIONS]
FLAGS = """seed benchmark tasks reward_version num_steps update_epochs num_minibatches learning_rate
    adam_eps gamma gae_lambda bootstrap_truncation clip_coef clip_vloss vf_coef ent_coef
    max_grad_norm hidden_sizes total_timesteps eval_interval eval_episodes keep_checkpoints_every
    run_dir cuda torch_threads num_workers track""".split()
OWN_FLAGS = {  # the flag before, and the script's own
    "ablations/ln_popart_cagrad_cagrad.py": ("hidden_sizes", "cagrad_c"),
    "ablations/toppo_popart_ema.py": ("hidden_sizes", "popart_beta"),
}


def parse(script):
    return ast.parse((ROOT / script).read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stand_alone(script):
    folders = [".", "ablations", "tools", "tests", "paper", "benchmarks"]
    local = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")}
    imported = set()
    for node in ast.walk(parse(script)):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported.update(name.name for name in node.names)
    assert imported & local <= {"fairgrad_solver"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_the_same_and_documented(script):
    (args,) = (
        node
        for node in parse(script).body
        if isinstance(node, ast.ClassDef) and node.name == "Args"
    )
    fields = [node for node in args.body if isinstance(node, ast.AnnAssign)]
    names = [field.target.id for field in fields]
    expected = FLAGS.copy()
    if script in OWN_FLAGS:
        before, own = OWN_FLAGS[script]
        expected.insert(expected.index(before) + 1, own)
    assert names == expected

    for field in fields:
        explanation = args.body[args.body.index(field) + 1]
        assert isinstance(explanation, ast.Expr), field.target.id
        assert len(explanation.value.value) > 20, field.target.id
