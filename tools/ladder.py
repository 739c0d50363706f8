"""Keeps the ladder's scripts one text: python tools/ladder.py tree | check | carry SCRIPT | docs.

Each script is its parent plus one change, and RUNGS says which change that is and where it may
show. A line belongs to the rung that brought it in. `carry` takes an edit of a line to every
script that has the line, leaves the others alone, and reports a conflict where a script below
that rung has put something else in the line's place.
"""

import ast
import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import NamedTuple, NoReturn

import tyro

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ladder.md"
ROOT_SCRIPT = "vanilla_mtppo.py"

# What a script may be at most, so that it stays easy to read. Budgets of tokens only shrink.
COLUMNS = 100
TOKENS_A_LINE = 10.6  # of code
FUNCTION_LINES = 60
TOKENS = {ROOT_SCRIPT: 5_450, "toppo_mt50.py": 6_100}
GOALS = {ROOT_SCRIPT: 4_900, "toppo_mt50.py": 5_700}  # where the budgets are to end


# --- The ladder


class Rung(NamedTuple):
    """A script, and what it changes in its parent."""

    parent: str | None
    adds: str  # rungs that add the same have the same changed lines
    section: str  # of the paper
    budget: int  # changed lines outside the docstring
    places: str  # the parts of the parent that must differ, beside the docstring; no others may
    lesson: str  # what the rung changes in the per-task gradients, their Gram and the weights
    math: tuple[str, ...] = ()
    figure: str = ""  # of paper/mechanisms.py, that shows it


FAIRGRAD = "FairGrad (α = 1) for the critic"
FAIRGRAD_SECTIONS = "4.3, C.2, C.5"
FAIRGRAD_PLACES = "fairgrad_solver fairgrad_metrics update_minibatch"
POPART_PLACES = (
    "SIGMA_FLOOR PopArt PopArt.__init__ PopArt.raw_values PopArt.normalize PopArt.update "
    "Agent.__init__ Agent.values value_loss update_minibatch update"
)
ENVPOOL_PLACES = (
    "Args.reward_version Args.__post_init__ make_pool play_pools "
    "environment_worker collect_episodes"
)
PCGRAD_MATH = (
    r"a_i = e_i, \text{ then for } j \neq i \text{ in random order: } \quad "
    r"a_{ij} \leftarrow a_{ij} - \frac{\min(0, (G a_i)_j)}{G_{jj}} "
    r"\qquad w = \frac{1}{K} \sum_i a_i"
)
LAYER_NORM_MATH = (
    r"h = \mathrm{ReLU}\left(\gamma \odot "
    r"\frac{z - \mathrm{mean}(z)}{\sqrt{\mathrm{var}(z) + \epsilon}} + \beta\right), \quad z = W x"
)

RUNGS = {
    ROOT_SCRIPT: Rung(
        parent=None,
        adds="the baseline: mean of the per-task gradients",
        section="Eq. (1), Algorithm C.1",
        budget=0,
        places="",
        math=(
            r"d = \frac{1}{K} \sum_{k=1}^K g_k, \quad g_k = \nabla L_k \qquad G = J J^\top "
            r"\qquad \Vert d \Vert^2 = w^\top G w, \quad w_k = \frac{1}{K}",
        ),
        lesson="Row k of J is g_k, task k's gradient of the shared parameters, on the actor's and"
        " on the critic's side. A gradient that is s times as long has an s² times as large entry"
        " on the diagonal of G, and the mean lets it weigh s times as much in d.",
    ),
    "ablations/ln.py": Rung(
        parent=ROOT_SCRIPT,
        adds="LN-c",
        section="4.2, B.2",
        budget=15,
        places="mlp Agent.__init__",
        math=(LAYER_NORM_MATH,),
        lesson="Mean and variance are those of one sample's units, so every sample of every task"
        " has hidden units of one scale before γ, β and the ReLU. A layer's part of g_k is a sum"
        " of δ xᵀ over task k's samples, x the layer's input and δ the loss's gradient at its"
        " output: LN-c acts on x, and on δ through the layers above; the scale that the returns"
        " give to δ at the critic's output stays. γ and β join the shared parameters, and the"
        " hidden biases leave them, as in B.2: LayerNorm has a bias of its own, β. The weights"
        " stay 1/K.",
        figure="mechanism_ln",
    ),
    "ablations/ln_popart.py": Rung(
        parent="ablations/ln.py",
        adds="PopArt",
        section="4.1, B.5",
        budget=70,
        places=POPART_PLACES,
        math=(
            r"V_k(s) = \sigma_k (c_k h(s) + b_k) + \mu_k \qquad g_k' = \frac{g_k}{\sigma_k^2} "
            r"\qquad G' = S G S, \quad S = \mathrm{diag}(1 / \sigma_k^2)",
            r"\mu' = \mu + \delta \frac{m}{n + m} \qquad M' = M + M_b + \delta^2 \frac{n m}{n + m} "
            r"\qquad \sigma'^2 = \frac{M'}{n + m} \qquad \delta = \mu_b - \mu",
            r"c_k \leftarrow \frac{\sigma_k}{\sigma_k'} c_k \qquad "
            r"b_k \leftarrow \frac{\sigma_k b_k + \mu_k - \mu_k'}{\sigma_k'}",
        ),
        lesson="h is the shared critic's output, and u = c_k h + b_k learns (R - μ_k) / σ_k. The n"
        " returns so far have the mean μ and the sum of squared deviations M; m, μ_b and M_b are"
        " the collect's. With the statistics held fixed and the value clip off, the loss of u has"
        " the raw loss's gradient divided by σ_k² (Equation (2)): G is rescaled from both sides,"
        " and its cosines stay. The head's c_k and b_k are task k's own and no part of G; they move"
        " with the statistics so that V does not.\n\nThe value clip changes its unit here."
        " Up to now a sample gives no more gradient once V has moved by 0.2 raw units of return"
        " towards its R, which is little where returns are several hundred. From here on it is u"
        " that may move by 0.2, which is 0.2 σ_k of return. What PopArt gains on a rung without it"
        " may therefore be in part that clip's: compare both with `--no-clip-vloss` too.",
        figure="mechanism_popart",
    ),
    "ablations/ln_popart_fairgrad.py": Rung(
        parent="ablations/ln_popart.py",
        adds=FAIRGRAD,
        section=FAIRGRAD_SECTIONS,
        budget=25,
        places=FAIRGRAD_PLACES,
        math=(
            r"G w = \frac{1}{w}, \quad w \gt 0 \qquad d = \sum_k w_k g_k "
            r"\qquad \Vert d \Vert^2 = w^\top G w = K",
            r"\tilde{G} = \mathrm{diag}(s) G \mathrm{diag}(s) \Rightarrow \tilde{w} = \frac{w}{s}, "
            r"\quad \tilde{d} = d \qquad \text{for every } s \gt 0",
        ),
        lesson="Each task contributes the same, w_k (G w)_k = 1, so the combined critic gradient"
        " has length √K on every minibatch and does not depend on the lengths of the g_k (Theorem"
        " 1, for linearly independent g_k). With s_k = 1/σ_k² that absorbs PopArt's rescaling"
        " (Corollary 1), on this minibatch and at the aggregator only: PopArt's targets, statistics"
        " and heads still act.\n\n‖d‖ = √K is above the gradient clip of 1 as soon as there are"
        " two tasks, so the clip always acts. It gives d, together with the gradients of PopArt's"
        " heads, the norm 1: what is left of d is its direction, on every minibatch alike.",
        figure="mechanism_fairgrad",
    ),
    "toppo_mt50.py": Rung(
        parent="ablations/ln_popart_fairgrad.py",
        adds="PCGrad for the actor: TOPPO",
        section="4, C.3, Table 2",
        budget=25,
        places="pcgrad_weights update_minibatch",
        math=(PCGRAD_MATH,),
        lesson="This is the actor's G; the critic's side is as before. Row a_i holds the projected"
        " g_i in terms of all gradients; its entries never fall below 0, so d lies in the cone of"
        " the g_k (Theorem C.1). Where no two gradients have a negative inner product, w_k = 1/K"
        " exactly.",
        figure="mechanism_pcgrad",
    ),
    "ablations/toppo_popart_ema.py": Rung(
        parent="toppo_mt50.py",
        adds="PopArt by moving averages",
        section="B.5",
        budget=30,
        places="Args.popart_beta Args.__post_init__ PopArt.__init__ PopArt.update update",
        math=(
            r"\mu' = (1 - \beta_t) \mu + \beta_t \mu_b \qquad "
            r"\nu' = (1 - \beta_t) \nu + \beta_t \nu_b \qquad "
            r"\sigma'^2 = \nu' - \mu'^2 \qquad \beta_t = \frac{\beta}{1 - (1 - \beta)^t}",
        ),
        lesson="ν is the second moment. Welford's rate m / (n + m) decays as 1/t over the collects"
        " t = 1, 2, ...; this rate starts at 1 and settles at β, so old returns are forgotten. G is"
        " rescaled by other σ_k, and FairGrad's d on a given minibatch is the same for any of them"
        " (Theorem 1).",
    ),
    "ablations/ln_popart_fairgrad_fairgrad.py": Rung(
        parent="ablations/ln_popart_fairgrad.py",
        adds="FairGrad for the actor as well",
        section="Tables B.1 and D.2",
        budget=10,
        places="update_minibatch",
        math=(
            r"G^{\mathrm{actor}} w = \frac{1}{w} \qquad \Vert d^{\mathrm{actor}} \Vert = "
            r"\Vert d^{\mathrm{critic}} \Vert = \sqrt{K}",
        ),
        lesson="Now a short actor gradient gets a large weight too: with orthogonal gradients,"
        " w_k = 1 / ‖g_k‖. Both combined gradients have length √K (Theorem 1) before they are"
        " clipped to norm 1.",
    ),
    "ablations/ln_popart_pcgrad_pcgrad.py": Rung(
        parent="ablations/ln_popart.py",
        adds="PCGrad for actor and critic",
        section="C.3, Table D.2",
        budget=30,
        places="pcgrad_weights update_minibatch",
        math=(PCGRAD_MATH,),
        lesson="The same rule on both Grams. Multiplying g_k by s_k > 0 multiplies the projected"
        " g_k by s_k and leaves the others' as they are: PCGrad looks at directions only and keeps"
        " the spread in length.",
    ),
    "ablations/ln_popart_cagrad_cagrad.py": Rung(
        parent="ablations/ln_popart.py",
        adds="CAGrad for actor and critic",
        section="C.3, Table D.2",
        budget=45,
        places="scipy.optimize Args.cagrad_c cagrad_weights update_minibatch",
        math=(
            r"\min_{x \geq 0, \sum_k x_k = 1} \frac{1}{K} x^\top G 1 + "
            r"c \Vert g_0 \Vert \sqrt{x^\top G x} \qquad d = \frac{1}{1 + c^2} "
            r"\left( g_0 + c \Vert g_0 \Vert \frac{J^\top x}{\Vert J^\top x \Vert} \right), \quad "
            r"g_0 = \frac{1}{K} \sum_k g_k",
        ),
        lesson="Before the division by 1 + c², as in its authors' code, d lies in a ball of radius"
        " c ‖g_0‖ around the mean gradient and there does the most for the task that it helps"
        " least. G decides x alone; at c = 0 the weights are 1/K.",
    ),
    "ablations/symmetric_ln_popart.py": Rung(
        parent="ablations/ln_popart.py",
        adds="LayerNorm in the actor as well",
        section="B.2, D.1",
        budget=5,
        places="Agent.__init__",
        math=(LAYER_NORM_MATH + r" \quad \text{in both networks}",),
        lesson="The actor's per-task gradients are now those of a network with normalised hidden"
        " units, as the critic's were. The critic's side and the weights 1/K stay.",
    ),
    "ablations/ln_fairgrad.py": Rung(
        parent="ablations/ln.py",
        adds=FAIRGRAD,
        section=FAIRGRAD_SECTIONS,
        budget=25,
        places=FAIRGRAD_PLACES,
        lesson="FairGrad without PopArt: d does not depend on the lengths of the g_k, but the"
        " critic's loss still is that of raw returns, and its value clip that of raw units.",
    ),
    "ablations/popart.py": Rung(
        parent=ROOT_SCRIPT,
        adds="PopArt",
        section="4.1, B.5",
        budget=70,
        places=POPART_PLACES,
        lesson="PopArt without LN-c: G is rescaled by 1/σ_k² from both sides, and its cosines stay"
        " those of the plain critic.",
    ),
    "ablations/popart_fairgrad.py": Rung(
        parent="ablations/popart.py",
        adds=FAIRGRAD,
        section=FAIRGRAD_SECTIONS,
        budget=25,
        places=FAIRGRAD_PLACES,
        lesson="PopArt and FairGrad without LN-c. Corollary 1 holds here too: it asks nothing of"
        " the network.",
    ),
    "ablations/vanilla_envpool.py": Rung(
        parent=ROOT_SCRIPT,
        adds="EnvPool's environments",
        section="5.1",
        budget=60,
        places=ENVPOOL_PLACES,
        lesson="The algorithm is the same, and so is the evaluation; training episodes come from"
        " EnvPool's C++ Meta-World, with a fresh goal each.",
    ),
    "ablations/toppo_envpool.py": Rung(
        parent="toppo_mt50.py",
        adds="EnvPool's environments",
        section="5.1",
        budget=60,
        places=ENVPOOL_PLACES,
        lesson="The same for TOPPO.",
    ),
    "ablations/fairgrad.py": Rung(
        parent=ROOT_SCRIPT,
        adds=FAIRGRAD,
        section=FAIRGRAD_SECTIONS,
        budget=25,
        places=FAIRGRAD_PLACES,
        lesson="FairGrad alone: the critic's plain Gram, with the weights that Theorem 1 speaks"
        " of.",
    ),
}

# Algorithm C.1 in the baseline: a line's number where the paper's text gives it, what happens, and
# the parts of the script in which it does.
TOUR = [
    ("", "T steps of each task with the policy as it is", "collect_episodes Envs.play play_round"),
    ("", "the rollout's log-probabilities, for all repeats", "update Agent.log_probs"),
    ("", "in each repeat: values of the critic as it is now, A and R = A + V", "update gae"),
    ("3", "nothing yet: here PopArt's rung updates its statistics, in the first repeat", "update"),
    ("6", "minibatches with equal shares of all tasks, each sample once", "stratified_minibatches"),
    ("", "advantages normalised within the task", "policy_loss"),
    ("9 to 12", "the losses of each task", "policy_loss value_loss"),
    ("9 to 12", "their gradients g_k, all tasks at once", "per_task_gradients"),
    ("", "the Gram matrices: all that a combiner needs to know of the gradients", "gram"),
    ("13", "the critic's weights w_k", "update_minibatch"),
    ("14", "the actor's weights w_k", "update_minibatch"),
    ("", "d = Σ w_k g_k, and w_k times what belongs to task k alone", "set_gradients"),
    ("", "gradient clip, each side on its own, and Adam's step", "update_minibatch"),
]


def fail(message: str) -> NoReturn:
    sys.exit(f"ladder: error: {message}")


def scripts() -> list[str]:
    """The scripts of RUNGS that there are, in its order."""
    there = []
    for script in RUNGS:
        if (ROOT / script).exists():
            there.append(script)
        else:
            print(f"note: {script} is in RUNGS but not there yet; skipped", file=sys.stderr)
    return there


def edges() -> list[tuple[str, str]]:
    """(parent, script) of all rungs that are there with their parent."""
    there = scripts()
    return [(RUNGS[s].parent or "", s) for s in there if RUNGS[s].parent in there]


def source_of(script: str) -> str:
    return (ROOT / script).read_text()


def lines_of(script: str) -> list[str]:
    return source_of(script).splitlines()


def tree() -> None:
    """Prints which script is which other one plus what."""
    print("\n".join(family(ROOT_SCRIPT)))


def family(script: str, indent: str = "") -> Iterator[str]:
    rung = RUNGS[script]
    plus = "+ " if rung.parent else ""
    yield f"{indent + script:46} {plus}{rung.adds}  [{rung.section}]"
    for child in RUNGS:
        if RUNGS[child].parent == script:
            yield from family(child, indent + "  ")


def git(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)


# --- How dense a script is


class Density(NamedTuple):
    """What `check` holds against the limits."""

    tokens: int  # of code: no comments, no docstrings, no line ends
    tokens_a_line: float
    wide: list[int]  # code lines of more than COLUMNS
    packed: list[int]  # lines with more than one thought: see PACKED
    longest: tuple[int, str]  # lines and name of the longest function


NO_CODE = (
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
# From Python 3.12 on an f-string is many tokens; it counts as one, as before
F_STRING_START = getattr(tokenize, "FSTRING_START", None)
F_STRING_END = getattr(tokenize, "FSTRING_END", None)


PACKED = "a tuple as a statement, a walrus or two assignments in one"


@cache
def density(source: str) -> Density:
    in_docstrings: set[int] = set()
    functions = [(0, "")]
    packed: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if is_docstring(node):
            in_docstrings.update(line_numbers(node))
        elif isinstance(node, ast.FunctionDef):
            functions.append((len(line_numbers(node)), node.name))
        elif is_packed(node):
            packed.append(line_numbers(node)[0])

    num_tokens = 0
    in_f_string = 0
    code: set[int] = set()  # numbers of the lines that have a token
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        first = token.start[0]
        if token.type in NO_CODE or first in in_docstrings:
            continue
        code.update(range(first, token.end[0] + 1))
        in_f_string -= token.type == F_STRING_END
        num_tokens += not in_f_string and token.type != F_STRING_END
        in_f_string += token.type == F_STRING_START

    lines = source.splitlines()
    return Density(
        tokens=num_tokens,
        tokens_a_line=num_tokens / max(len(code), 1),
        wide=[i for i in sorted(code) if len(lines[i - 1]) > COLUMNS],
        packed=sorted(packed),
        longest=max(functions),
    )


def line_numbers(node: ast.AST) -> range:
    first = getattr(node, "lineno", 1)
    return range(first, getattr(node, "end_lineno", first) + 1)


def is_docstring(node: ast.AST) -> bool:
    """Whether it is a statement that is a string, as those below the fields of Args are too."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def is_packed(node: ast.AST) -> bool:
    """`f(), g()` as a statement, `a = b = c`, `a, b = x, y` or `(a := b)`."""
    if isinstance(node, ast.Assign):
        chained = len(node.targets) > 1
        in_pairs = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
        return chained or in_pairs
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Tuple)
    return isinstance(node, ast.NamedExpr)


def check_density() -> list[str]:
    """Prints every script's density beside the limits. Returns what is over them."""
    print(f"{'script':40} tokens budget   goal  a code line  longest function  wide  packed")
    limits = f"<= {TOKENS_A_LINE}", f"<= {FUNCTION_LINES} lines"
    print(f"{'':61} {limits[0]:>12}  {limits[1]:>16}     0       0")
    violations = []
    for script in scripts():
        found = density(source_of(script))
        length, function = found.longest
        budget = f"{TOKENS[script]:,}" if script in TOKENS else ""
        goal = f"{GOALS[script]:,}" if script in GOALS else ""
        print(
            f"{script:40} {found.tokens:6,} {budget:>6} {goal:>6}  {found.tokens_a_line:11.1f}"
            f"  {function:>13} {length:2}  {len(found.wide):4}  {len(found.packed):6}"
        )
        if script in TOKENS and found.tokens > TOKENS[script]:
            violations.append(f"{script}: {found.tokens:,} tokens, at most {budget} expected")
        if found.tokens_a_line > TOKENS_A_LINE:
            violations.append(
                f"{script}: {found.tokens_a_line:.2f} tokens a code line, "
                f"at most {TOKENS_A_LINE} expected: say less in a line"
            )
        if length > FUNCTION_LINES:
            violations.append(
                f"{script}: {function} has {length} lines, at most {FUNCTION_LINES} expected"
            )
        violations += [f"{script}:{i}: more than {COLUMNS} columns" for i in found.wide]
        violations += [f"{script}:{i}: {PACKED}: write a line for each" for i in found.packed]
    return violations


# --- What differs between a script and its parent

DOCSTRING = "docstring"


@cache
def named_lines(source: str) -> list[tuple[str, str]]:
    """Every line of a script with the part that it is in: function, method, field or statement.

    Comments and blank lines are of the part that they stand before.
    """
    lines = source.splitlines()
    named: list[tuple[str, str]] = []

    def up_to(line: int, part: str) -> None:
        named.extend((part, text) for text in lines[len(named) : line])

    for node in ast.parse(source).body:
        name = DOCSTRING if is_docstring(node) else name_of(node)
        if isinstance(node, ast.ClassDef):
            up_to(node.lineno, name)
            part = name
            for child in node.body:
                if not is_docstring(child):  # those are of the class, or of the field above
                    part = f"{name}.{name_of(child)}"
                up_to(line_numbers(child)[-1], part)
        up_to(line_numbers(node)[-1], name)
    return named


def name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.ImportFrom):
        return node.module or ""
    if isinstance(node, ast.Import):
        return node.names[0].name
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return ast.unparse(node).splitlines()[0]


def parts(script: str) -> dict[str, list[str]]:
    """The lines of each part of a script: {name: lines}."""
    result: dict[str, list[str]] = {}
    for part, line in named_lines(source_of(script)):
        result.setdefault(part, []).append(line)
    return result


class Hunk(NamedTuple):
    """A change in one place."""

    part: str  # in which its first line is
    lines: list[str]  # as git's diff prints them, with a line of context above and below

    def changed(self) -> tuple[str, ...]:
        return tuple(line for line in self.lines if line[:1] in ("+", "-"))


def diff(old: list[str], new: list[str]) -> list[str]:
    """What git's diff prints below its header."""
    options = ["--no-index", "--no-color", "--no-ext-diff", "--diff-algorithm=myers"]
    options += ["--inter-hunk-context=0", "-U1"]
    with tempfile.TemporaryDirectory() as folder:
        old_file = Path(folder, "old")
        new_file = Path(folder, "new")
        old_file.write_text("".join(line + "\n" for line in old))
        new_file.write_text("".join(line + "\n" for line in new))
        printed = git("diff", *options, "--", str(old_file), str(new_file)).stdout.splitlines()
    header = next((i for i, line in enumerate(printed) if line.startswith("@@")), len(printed))
    return printed[header:]


def hunks(parent: str, script: str) -> list[Hunk]:
    """The changes that make a script of its parent, but for those of the docstring."""
    return hunks_between(source_of(parent), source_of(script))


@cache
def hunks_between(old_source: str, new_source: str) -> list[Hunk]:
    old = [line for part, line in named_lines(old_source) if part != DOCSTRING]
    new = [(part, line) for part, line in named_lines(new_source) if part != DOCSTRING]
    result: list[Hunk] = []
    for line in diff(old, [line for _, line in new]):
        start = re.match(r"@@ -\d+(?:,\d+)? \+(\d+)", line)
        if start:
            first_changed = min(int(start[1]), len(new) - 1)  # from 0: behind a line of context
            result.append(Hunk(new[first_changed][0], []))
        else:
            result[-1].lines.append(line.rstrip())
    for hunk in result:
        hunk.lines[:] = "\n".join(hunk.lines).strip("\n").split("\n")  # no blank context
    return result


def num_changed(changes: list[Hunk]) -> int:
    return sum(len(hunk.changed()) for hunk in changes)


def check_rungs() -> list[str]:
    """Prints the size of every rung. Returns where scripts differ that should not, or not enough.

    A rung's changes are in the parts that RUNGS names, and the same wherever that rung is made.
    """
    print(f"\n{'script':41} {'parent':31} hunks  changed lines  budget  in the docstring")
    violations = []
    first: dict[str, tuple[str, list]] = {}
    for parent, script in edges():
        rung = RUNGS[script]
        before = parts(parent)
        after = parts(script)
        changes = hunks(parent, script)
        size = num_changed(changes)
        in_docstring = diff(before[DOCSTRING], after[DOCSTRING])
        title = sum(line[:1] in ("+", "-") for line in in_docstring)
        print(f"{script:41} {parent:31} {len(changes):5}  {size:13}  {rung.budget:6}  {title:16}")
        if size > rung.budget:
            violations.append(
                f"{script}: {size} changed lines, at most {rung.budget} expected: "
                "carry shared edits, or shorten the rung"
            )

        differ = {name for name in before | after if before.get(name) != after.get(name)}
        places = {DOCSTRING, *rung.places.split()}
        violations += [
            f"{script}: {name} differs from {parent}'s, expected the same: "
            "carry the edit, or allow it in RUNGS"
            for name in sorted(differ - places)
        ]
        violations += [
            f"{script}: {name} is {parent}'s, expected to differ: "
            "edit the script, or take it out of RUNGS"
            for name in sorted(places - differ)
        ]

        lines = [(hunk.part, hunk.changed()) for hunk in changes]
        like, expected = first.setdefault(rung.adds, (script, lines))
        if lines != expected:
            violations.append(
                f"{script}: {rung.adds} changes other lines than in {like}, expected the same: "
                "carry the edit"
            )
    return violations


def check_tour() -> list[str]:
    there = parts(ROOT_SCRIPT)
    named = {name for _, _, names in TOUR for name in names.split()}
    return [
        f"{ROOT_SCRIPT}: {name} is gone, which TOUR shows on docs/ladder.md: name what does it now"
        for name in sorted(named - there.keys())
    ]


def check() -> None:
    """Holds every script to its limits and to its parent's text; prints sizes and budgets.

    Tokens are those of Python's tokenizer without comments and docstrings. Wide lines have more
    than 100 columns; packed ones a tuple as a statement, a walrus or two assignments in one.
    """
    violations = check_density() + check_rungs() + check_tour()
    for line in violations:
        print(f"ladder: {line}", file=sys.stderr)
    sys.exit(1 if violations else 0)


# --- Carrying an edit to the other scripts

Edit = tuple[int, int, tuple[str, ...]]  # start, end, new lines


def matcher(a: Sequence[str], b: Sequence[str]) -> SequenceMatcher[str]:
    return SequenceMatcher(None, a, b, autojunk=False)  # blank lines are many and count


def edits(a: list[str], b: list[str]) -> list[Edit]:
    """Turns lines a into b. A run of lines that each changed only a little is taken one by one."""
    result: list[Edit] = []
    for kind, i1, i2, j1, j2 in matcher(a, b).get_opcodes():
        if kind == "equal":
            continue
        if kind == "replace" and are_alike(a[i1:i2], b[j1:j2]):
            result += [(i1 + n, i1 + n + 1, (b[j1 + n],)) for n in range(i2 - i1)]
        else:
            result.append((i1, i2, tuple(b[j1:j2])))
    return result


def are_alike(old: list[str], new: list[str]) -> bool:
    if len(old) != len(new):
        return False
    return all(matcher(x, y).ratio() > 0.5 for x, y in zip(old, new))


def apply(lines: list[str], changes: Iterable[Edit]) -> list[str]:
    lines = list(lines)
    for start, end, new in sorted(changes, reverse=True):
        lines[start:end] = new
    return lines


def settle(ours: list[str], base: list[str], theirs: list[str]) -> list[str] | None:
    """The lines if neither side changes what the other one changes, which git calls a conflict."""
    both = sorted({*edits(base, ours), *edits(base, theirs)})
    for (a1, a2, _), (b1, b2, _) in zip(both, both[1:]):
        if b1 < a2 or (b1 == a2 and (a1 == a2 or b1 == b2)):
            return None
    return apply(base, both)


CONFLICT = re.compile(
    r"^<{7} [^\n]*\n(.*?)^\|{7} [^\n]*\n(.*?)^={7}\n(.*?)^>{7} [^\n]*\n", re.M | re.S
)


def has_markers(lines: list[str]) -> bool:
    return any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in lines)


def merge(
    script: str, ours: list[str], source: str, base: list[str], theirs: list[str]
) -> list[str]:
    """git merge-file, with the conflicts settled that are only neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in {"ours": ours, "base": base, "theirs": theirs}.items():
            Path(folder, name).write_text("".join(line + "\n" for line in lines))
        labels = ["-L", script, "-L", f"{source} at HEAD", "-L", source]
        merged = subprocess.run(
            ["git", "merge-file", "-p", "-q", "--diff3", *labels, "ours", "base", "theirs"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if merged.returncode > 127:
        fail(f"git merge-file: {merged.stderr.strip()}")

    def settled(conflict: re.Match[str]) -> str:
        lines = settle(*(side.splitlines() for side in conflict.groups()))
        return conflict[0] if lines is None else "".join(line + "\n" for line in lines)

    return CONFLICT.sub(settled, merged.stdout).splitlines()


class Edited:
    """One script's uncommitted edit, and where it belongs."""

    def __init__(self, source: str, committed: dict[str, list[str]], new: list[str]) -> None:
        self.base = committed[source]
        self.changes = edits(self.base, new)
        self.docstring_end = line_numbers(ast.parse("\n".join(self.base)).body[0])[-1]
        self.has: dict[str, set[int]] = {}  # the source's lines that a script has as well
        self.lacks: dict[str, list[tuple[int, int]]] = {}  # runs in whose place it has nothing
        for script, lines in committed.items():
            has: set[int] = set()
            lacks = []
            for kind, start, end, _, _ in matcher(self.base, lines).get_opcodes():
                if kind == "equal":
                    has.update(range(start, end))
                elif kind == "delete":
                    lacks.append((start, end))
            self.has[script] = has
            self.lacks[script] = lacks

    def foreign_to(self, script: str) -> list[Edit]:
        """The changes that are of lines which the script does not have."""
        return [change for change in self.changes if self.is_foreign(change, script)]

    def is_foreign(self, change: Edit, script: str) -> bool:
        start, end, _ = change
        touched = set(range(start, end))
        if not touched:  # lines are added: between these
            touched = {i for i in (start - 1, start) if 0 <= i < len(self.base)}
        if end <= self.docstring_end:
            return not touched <= self.has[script]
        if any(first <= start and end <= last for first, last in self.lacks[script]):
            return True
        if touched & self.has[script]:
            return False

        # It has something else there: its own rung's, if a script above has the lines
        above = RUNGS[script].parent
        while above:
            if above in self.has and touched <= self.has[above]:
                return False
            above = RUNGS[above].parent
        return True


class LastCarry:
    """What the last carry found and left, to repeat it or to follow it from another script."""

    def __init__(self) -> None:
        git_path = git("rev-parse", "--git-path", "ladder-carry.json").stdout.strip()
        self.path = ROOT / git_path
        self.head = git("rev-parse", "HEAD").stdout.strip()
        self.source = ""
        self.files: dict[str, tuple[list[str], str]] = {}  # where it began, digest of its result
        if self.path.exists():
            record = json.loads(self.path.read_text())
            if record["head"] == self.head:
                self.source = record["source"]
                self.files = record["files"]

    def left(self, script: str, lines: list[str]) -> bool:
        return script in self.files and self.files[script][1] == digest(lines)

    def start(self, script: str, source: str, lines: list[str]) -> list[str]:
        """The lines to begin from: where that carry began, or this side of its conflicts."""
        if not self.left(script, lines):
            return lines
        if self.source == source:
            return self.files[script][0]
        text = "".join(line + "\n" for line in lines)
        return CONFLICT.sub(lambda conflict: conflict[1], text).splitlines()

    def write(self, source: str, files: dict[str, tuple[list[str], str]]) -> None:
        record = {"head": self.head, "source": source, "files": files}
        self.path.write_text(json.dumps(record))


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find(script: str) -> str:
    there = scripts()
    for known in there:
        if Path(known).stem == Path(script).stem:
            return known
    fail(f"{script}: expected one of the ladder's scripts: {', '.join(there)}")


def at_head() -> dict[str, list[str]]:
    """The scripts as they are committed; a new one as it is."""
    committed = {}
    for script in scripts():
        shown = git("show", f"HEAD:./{script}")
        committed[script] = lines_of(script)
        if shown.returncode == 0:
            committed[script] = shown.stdout.splitlines()
    return committed


def carry(script: str, /) -> None:
    """Carries the uncommitted edit of one script to all others. Exits with 1 on a conflict.

    It can be repeated after more edits. An edit of lines that a script does not have stays out of
    it; so does one of a docstring's lines where docstrings differ. Lines added next to such a place
    count as part of it: to add a shared line there, add it in a script that lacks the place. Fix a
    conflict in one script and carry that one: this settles it in the scripts that have the same
    text. To take a carry back, undo the edit and carry again. Uncommitted changes elsewhere are
    kept, and where they are in the way nothing is written.

    Args:
        script: the script that was edited, such as vanilla_mtppo.py
    """
    source = find(script)
    if git("cat-file", "-e", f"HEAD:./{source}").returncode:
        fail(f"{source}: not committed yet, so nothing to compare it with: commit, edit, carry")
    committed = at_head()
    texts = {s: lines_of(s) for s in committed}
    if has_markers(texts[source]):
        fail(f"{source}: has conflict markers: resolve them, then carry")
    edited = Edited(source, committed, texts[source])
    last = LastCarry()

    results = {}
    report = []
    files = {}
    for s in committed:
        if s == source:
            continue
        start = last.start(s, source, texts[s])
        foreign = edited.foreign_to(s)
        mine = [change for change in edited.changes if change not in foreign]
        results[s] = merge(s, start, source, edited.base, apply(edited.base, mine))
        files[s] = (start, digest(results[s]))
        if has_markers(start):
            fail(f"{s}: has conflict markers: resolve them, then carry (no file was written)")
        changed_by_hand = texts[s] != committed[s] and not last.left(s, texts[s])
        if has_markers(results[s]) and changed_by_hand:
            fail(
                f"{s}: its own uncommitted changes are where the edit of {source} goes: "
                "commit or undo them, then carry (no file was written)"
            )
        report.append(verdict(s, texts[s], results[s], foreign, source))

    for s, lines in results.items():
        if lines != texts[s]:
            (ROOT / s).write_text("".join(line + "\n" for line in lines))
    last.write(source, files)
    print("\n".join(report))
    conflicts = sum(line.startswith("conflict") for line in report)
    if conflicts:
        print(
            f"\nconflicts: {conflicts}; resolve one and carry that script to resolve its like, "
            "then look at git diff"
        )
    else:
        print("\nnext: python tools/ladder.py check, python tools/ladder.py docs")
    sys.exit(1 if conflicts else 0)


def verdict(script: str, old: list[str], new: list[str], foreign: list[Edit], source: str) -> str:
    """A line of carry's report."""
    marked = [str(i) for i, line in enumerate(new, 1) if line.startswith("<<<<<<< ")]
    if marked:
        line = f"{'conflict':10} {script}: resolve at line {', '.join(marked)}"
    elif new == old:
        line = f"{'unchanged':10} {script}"
    else:
        line = f"{'carried':10} {script}"
    if foreign:
        places = [f"{i + 1}" if j <= i + 1 else f"{i + 1}-{j}" for i, j, _ in foreign]
        line += f" (not its lines: {', '.join(places)} of {source} at HEAD)"
    return line


# --- docs/ladder.md

INTRODUCTION = """# The ladder, rung by rung

Written by `python tools/ladder.py docs`; edit the scripts or the table in that tool instead. Per
task k, g_k is the gradient of its loss on a network's shared parameters, J has the rows g_k,
G = J Jᵀ is their K × K Gram matrix, and every rung combines them as d = Σ w_k g_k: w_k is always
the combiner's weight on task k. 1 / w and w / s are elementwise. Sections and equations are the
paper's. Diffs name the function or class that a change is in and leave out the title in the
docstring.
"""

TOUR_INTRODUCTION = f"""### A tour of the baseline

Algorithm C.1, in its order, and the functions of [`{ROOT_SCRIPT}`](../{ROOT_SCRIPT}) that do it.
The paper's text gives the numbers of lines 3, 6 and 9 to 14.

| line | what happens | where |
|---|---|---|"""

TOUR_END = """
`main` does this once a collect; in between it evaluates, logs and saves. The ladder changes the
critic's network (LN-c: `mlp`), what the critic learns (PopArt: a module of its own, `value_loss`
and line 3) and the weights w_k (FairGrad: line 13; PCGrad: line 14)."""


def page() -> str:
    """The text of docs/ladder.md."""
    text = [INTRODUCTION, "```text"]
    text += [line.rstrip() for line in family(ROOT_SCRIPT)]
    text.append("```")
    parents = {script: parent for parent, script in edges()}
    shown: dict[tuple, str] = {}  # a hunk, and the script under which it is shown
    for script in scripts():
        if script == ROOT_SCRIPT:
            text += baseline()
        elif script in parents:
            text += section(parents[script], script, shown)
    return "\n".join(text) + "\n"


def link(script: str) -> str:
    return f"[`{script}`](../{script})"


def link_to_section(script: str) -> str:
    anchor = re.sub(r"[^\w]", "", script)  # as GitHub makes them of headings
    return f"[`{script}`](#{anchor})"


def formulas(rung: Rung) -> list[str]:
    return [line for formula in rung.math for line in ("$$", formula, "$$", "")]


def baseline() -> list[str]:
    rung = RUNGS[ROOT_SCRIPT]
    text = ["", f"## `{ROOT_SCRIPT}`", ""]
    text += [f"{link(ROOT_SCRIPT)} is {rung.adds} ({rung.section}).", ""]
    text += [*formulas(rung), rung.lesson, "", TOUR_INTRODUCTION]
    for number, what, names in TOUR:
        text.append(f"| {number} | {what} | {', '.join(f'`{name}`' for name in names.split())} |")
    return [*text, TOUR_END]


def section(parent: str, script: str, shown: dict[tuple, str]) -> list[str]:
    """A rung's part of the page. Hunks that are shown above become links to there."""
    rung = RUNGS[script]
    changes = hunks(parent, script)
    text = ["", f"## `{script}`", ""]
    text += [
        f"{link(script)} is {link(parent)} plus {rung.adds} ({rung.section}): "
        f"{num_changed(changes)} changed lines in {len(changes)} "
        f"{'hunk' if len(changes) == 1 else 'hunks'}.",
        "",
    ]
    text += [*formulas(rung), rung.lesson]
    if rung.figure:
        text += ["", f"![{rung.adds}, before and after](figures/{rung.figure}.png)"]

    new = []
    repeated: dict[str, list[str]] = {}  # the script under which it is shown: parts
    for hunk in changes:
        where = shown.setdefault((hunk.part, hunk.changed()), script)
        if where == script:
            new += [f"@@ {hunk.part} @@", *hunk.lines]
        else:
            repeated.setdefault(where, []).append(hunk.part)
    for where, names in repeated.items():
        if new:
            names = [f"`{name}`" for name in dict.fromkeys(names)]
            text += ["", f"The change of {', '.join(names)} is that of {link_to_section(where)}."]
        else:
            same = "Equations and lines" if RUNGS[where].math else "Its lines"
            text += ["", f"{same} are those of {link_to_section(where)}."]
    if new:
        text += ["", "```diff", *new, "```"]
    return text


def docs() -> None:
    """Writes docs/ladder.md: the equations, the change and what it does to the Gram, per script."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {
        "tree": tree,
        "check": check,
        "carry": carry,
        "docs": docs,
    }
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
