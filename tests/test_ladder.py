"""Scripts are short, stand alone and have the same flags. tools/ladder.py holds their texts together (test_ladder_tool.py)."""

import ast

import pytest
from scripts import MODULES, PATHS, ROOT

LADDER = PATHS[:6]
FLAGS = """seed benchmark tasks reward_version total_timesteps num_steps update_epochs num_minibatches learning_rate gamma
    gae_lambda clip_coef clip_vloss vf_coef ent_coef max_grad_norm hidden_sizes eval_interval eval_episodes run_dir resume
    dump_gradients_every cuda torch_threads num_envs_per_task num_workers track""".split()


@pytest.mark.parametrize("path", [*PATHS, "ablations/vanilla_envpool.py", "ablations/toppo_envpool.py"])
def test_scripts_are_short_and_self_contained(path):
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= (500 if path == "vanilla_mtppo.py" else 600)
    folders = ".", "ablations", "tools", "tests", "paper", "benchmarks"
    local = {p.stem for folder in folders for p in (ROOT / folder).glob("*.py")}
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports} & local <= {"fairgrad_solver"}


def test_flags_are_the_same_and_documented():
    tree = ast.parse((ROOT / "toppo_mt50.py").read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Args")
    names = [node.target.id for node in body[::2]]
    assert set(FLAGS) <= set(names)
    assert all(isinstance(docstring, ast.Expr) and len(docstring.value.value) > 20 for docstring in body[1::2])
    assert all(list(vars(MODULES[path].Args())) == names for path in LADDER)
    own = {path: set(vars(module.Args())) ^ set(names) for path, module in MODULES.items()}
    assert {path: flags for path, flags in own.items() if flags} == {
        "ablations/ln_popart_cagrad_cagrad.py": {"cagrad_c"},
        "ablations/toppo_popart_ema.py": {"popart_beta"},
    }
