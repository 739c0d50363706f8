"""The ladder is a lesson: neighbouring scripts are one text except for what the paper changes."""

import ast
import difflib
import subprocess

import pytest
from scripts import MODULES, PATHS, ROOT

# From one rung to the next: budget of changed lines, and the only places that may differ.
EDGES = {
    ("vanilla_mtppo.py", "ablations/ln.py"): (15, {"docstring", "mlp", "Agent.__init__", "per_task_gradients"}),
    ("ablations/ln.py", "ablations/ln_popart.py"): (
        60,
        {"docstring", "SIGMA_FLOOR", "Agent", "Agent.__init__", "Agent.values", "Agent.normalize", "Agent.update_popart", "main"},
    ),
    ("ablations/ln.py", "ablations/ln_fairgrad.py"): (60, {"docstring", "import fairgrad_solver", "main"}),
    ("ablations/ln_popart.py", "ablations/ln_popart_fairgrad.py"): (60, {"docstring", "import fairgrad_solver", "main"}),
    ("ablations/ln_popart_fairgrad.py", "toppo_mt50.py"): (60, {"docstring", "pcgrad_weights", "main"}),
}


def changed_lines(a, b):
    output = subprocess.run(["diff", ROOT / a, ROOT / b], capture_output=True, text=True).stdout
    return [line for line in output.splitlines() if line[0] in "<>"]


def parts(path):
    """The script's text, cut into functions, methods and top-level statements by name."""
    source, result = (ROOT / path).read_text(), {}
    lines = source.splitlines()

    def add(node, name):
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        result[name] = lines[start - 1 : node.end_lineno]

    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            add(node, "docstring")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            add(node, f"import {getattr(node, 'module', None) or node.names[0].name}")
        elif isinstance(node, ast.FunctionDef):
            add(node, node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
            for method in methods:
                add(method, f"{node.name}.{method.name}")
            end = min((min([m.lineno, *(d.lineno for d in m.decorator_list)]) for m in methods), default=node.end_lineno + 1)
            result[node.name] = lines[node.lineno - 1 : end - 1]
        else:
            add(node, ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ast.unparse(node).splitlines()[0])
    return result


@pytest.mark.parametrize("edge", EDGES, ids=" to ".join)
def test_a_rung_changes_only_what_the_paper_changes(edge):
    budget, places = EDGES[edge]
    before, after = (parts(path) for path in edge)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == places
    assert len(changed_lines(*edge)) <= budget
    main = changed_lines_in(before["main"], after["main"])
    assert sum(line[0] == "-" for line in main) <= 2, main  # main loses at most the lines that a module replaces


def changed_lines_in(a, b):
    return [line for line in difflib.unified_diff(a, b, n=0, lineterm="") if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_a_module_is_the_same_text_in_every_rung_that_has_it():
    for a, b, places in [
        ("ablations/ln.py", "toppo_mt50.py", ["mlp", "per_task_gradients"]),
        ("ablations/ln_popart.py", "toppo_mt50.py", [name for name in parts("toppo_mt50.py") if name.startswith("Agent")]),
    ]:
        for name in places:
            assert parts(a)[name] == parts(b)[name], (a, b, name)
    # what FairGrad adds to ln.py is what it adds to ln_popart.py
    with_and_without = [
        changed_lines_in(parts(a)["main"], parts(b)["main"])
        for a, b in EDGES
        if b in ("ablations/ln_fairgrad.py", "ablations/ln_popart_fairgrad.py")
    ]
    assert with_and_without[0] == with_and_without[1]


@pytest.mark.parametrize("path", PATHS)
def test_scripts_are_short_and_self_contained(path):
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= (450 if path == "vanilla_mtppo.py" else 550)
    local = {p.stem for p in ROOT.rglob("*.py") if ".venv" not in p.parts}
    imported = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in ast.walk(ast.parse(source))
                if isinstance(n, ast.Import | ast.ImportFrom)}
    assert imported & local <= {"fairgrad_solver"}


def test_flags_are_the_same_and_documented():
    flags = """seed benchmark tasks reward_version total_timesteps num_steps update_epochs num_minibatches learning_rate gamma
        gae_lambda clip_coef clip_vloss vf_coef ent_coef max_grad_norm hidden_sizes eval_interval eval_episodes run_dir resume
        cuda torch_threads track""".split()
    source = "\n".join(parts("toppo_mt50.py")["Args"])
    body = ast.parse(source).body[0].body
    names = [node.target.id for node in body if isinstance(node, ast.AnnAssign)]
    assert set(flags) <= set(names)
    for field, docstring in zip(body[::2], body[1::2]):
        assert isinstance(field, ast.AnnAssign) and isinstance(docstring, ast.Expr) and len(docstring.value.value) > 20
    for module in MODULES.values():
        assert list(vars(module.Args())) == names
