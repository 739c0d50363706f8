"""Keeps the ladder's scripts one text: python tools/ladder.py tree | check | carry SCRIPT | docs.

Each script is its parent plus one change, and RUNGS says which change that is and where it may show. A line belongs to the rung
that brought it in. `carry` takes an edit of a line to every script that has the line, leaves the others alone, and reports a
conflict where a script below that rung has put something else in the line's place.
"""

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple, NoReturn

import tyro

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ladder.md"
ROOT_SCRIPT = "vanilla_mtppo.py"
POPART_PLACES = "SIGMA_FLOOR Agent Agent.__init__ Agent.values Agent.normalize Agent.update_popart main"
ENVPOOL_PLACES = "Args.reward_version parse_args envpool_episodes environment_worker TaskEnvs.__init__ main"
FAIRGRAD, FAIRGRAD_PLACES = "FairGrad (α = 1) for the critic", "fairgrad_solver main"
POPART_MATH = (r"V_k(s) = \sigma_k (w_k h(s) + b_k) + \mu_k \qquad g_k' = \frac{g_k}{\sigma_k^2} \qquad G' = S G S, \quad "
               r"S = \mathrm{diag}(1 / \sigma_k^2)")
FAIRGRAD_MATH = (r"G w = \frac{1}{w}, \quad w \gt 0 \qquad d = \sum_k w_k g_k \qquad \Vert d \Vert^2 = w^\top G w = K",
                 r"\tilde{G} = \mathrm{diag}(s) G \mathrm{diag}(s) \Rightarrow \tilde{w} = \frac{w}{s}, \quad \tilde{d} = d "
                 r"\qquad \text{for every } s \gt 0")
PCGRAD_MATH = (r"c_i = e_i, \text{ then for } j \neq i \text{ in random order: } \quad c_{ij} \leftarrow c_{ij} - "
               r"\frac{\min(0, (G c_i)_j)}{G_{jj}} \qquad w = \frac{1}{K} \sum_i c_i")


class Rung(NamedTuple):
    parent: str | None
    adds: str  # rungs that add the same have the same changed lines outside the docstring
    section: str
    places: str  # the parts that must differ from the parent's beside the docstring, and no others may
    math: tuple[str, ...]
    lesson: str  # what the rung changes in per-task gradients, Gram and weights
    budget: int = 60  # changed lines, as diff counts them


RUNGS = {
    ROOT_SCRIPT: Rung(None, "the baseline: mean of the per-task gradients", "Eq. (1), Algorithm C.1", "", (
        r"d = \frac{1}{K} \sum_{k=1}^K g_k, \quad g_k = \nabla L_k \qquad G = J J^\top \qquad \Vert d \Vert^2 = w^\top G w, "
        r"\quad w_k = \frac{1}{K}",),
        "Row k of J is g_k, task k's gradient of the shared parameters, on the actor's and on the critic's side. A gradient"
        " that is s times as long has an s² times as large entry on the diagonal of G, and the mean lets it weigh s times"
        " as much in d."),
    "ablations/ln.py": Rung(ROOT_SCRIPT, "LN-c", "4.2, B.2", "mlp Agent.__init__ per_task_gradients", (
        r"h = \mathrm{ReLU}\left(\gamma \odot \frac{z - \mathrm{mean}(z)}{\sqrt{\mathrm{var}(z) + \epsilon}} + \beta\right), "
        r"\quad z = W x",),
        "Mean and variance are those of one sample's units, so every sample of every task has hidden units of one scale"
        " before γ, β and the ReLU. A layer's part of g_k is a sum of δ xᵀ over task k's samples: LN-c acts on x, and on δ"
        " through the layers above; the scale that the returns give to δ at the critic's output stays. γ and β join the"
        " shared parameters, the hidden biases leave them, because subtracting the mean would cancel them. The weights stay"
        " 1/K.", 15),
    "ablations/ln_popart.py": Rung("ablations/ln.py", "PopArt", "4.1, B.5", POPART_PLACES, (
        POPART_MATH,
        r"\mu' = \mu + \delta \frac{m}{n + m} \qquad M' = M + M_b + \delta^2 \frac{n m}{n + m} \qquad "
        r"\sigma'^2 = \frac{M'}{n + m} \qquad \delta = \mu_b - \mu",
        r"w_k \leftarrow \frac{\sigma_k}{\sigma_k'} w_k \qquad b_k \leftarrow \frac{\sigma_k b_k + \mu_k - \mu_k'}{\sigma_k'}"),
        "h is the shared critic's output, and u = w_k h + b_k learns (R - μ_k) / σ_k. n returns so far have the mean μ and"
        " the sum of squared deviations M; m, μ_b and M_b are the collect's. With the statistics held fixed and the value"
        " clip off, the loss of u has the raw loss's gradient divided by σ_k² (Equation (2)): G is rescaled from"
        " both sides, its cosines stay. The head's w_k and b_k are task k's own and no part of G; they move with the"
        " statistics so that V does not."),
    "ablations/ln_popart_fairgrad.py": Rung("ablations/ln_popart.py", FAIRGRAD, "4.3, C.2, C.5", FAIRGRAD_PLACES,
        FAIRGRAD_MATH,
        "Each task contributes the same, w_k (G w)_k = 1, so the combined critic gradient has length √K on every minibatch"
        " and does not depend on the lengths of the g_k (Theorem 1, for linearly independent g_k). With s_k = 1/σ_k² that"
        " absorbs PopArt's rescaling (Corollary 1), on this minibatch and at the aggregator only: PopArt's targets,"
        " statistics and heads still act."),
    "toppo_mt50.py": Rung("ablations/ln_popart_fairgrad.py", "PCGrad for the actor: TOPPO", "4, C.3, Table 2",
        "pcgrad_weights main", (PCGRAD_MATH,),
        "This is the actor's G; the critic's side is as before. Row c_i holds the projected g_i in terms of all gradients;"
        " its entries never fall below 0, so d lies in the cone of the g_k (Theorem C.1). Where no two gradients have a"
        " negative inner product, w_k = 1/K exactly."),
    "ablations/toppo_popart_ema.py": Rung("toppo_mt50.py", "PopArt by moving averages", "B.5",
        "Args.popart_beta parse_args Agent.__init__ Agent.update_popart main", (
        r"\mu' = (1 - \beta_t) \mu + \beta_t \mu_b \qquad \nu' = (1 - \beta_t) \nu + \beta_t \nu_b \qquad "
        r"\sigma'^2 = \nu' - \mu'^2 \qquad \beta_t = \frac{\beta}{1 - (1 - \beta)^t}",),
        "ν is the second moment. Welford's rate m / (n + m) decays as 1/t over the collects t = 1, 2, ...; this rate starts"
        " at 1 and settles at β, so old returns are forgotten. G is rescaled by other σ_k, and FairGrad's d on a given"
        " minibatch is the same for any of them (Theorem 1)."),
    "ablations/ln_popart_fairgrad_fairgrad.py": Rung("ablations/ln_popart_fairgrad.py", "FairGrad for the actor as well",
        "Tables B.1 and D.2", "main", (
        r"G^{\mathrm{actor}} w = \frac{1}{w} \qquad \Vert d^{\mathrm{actor}} \Vert = "
        r"\Vert d^{\mathrm{critic}} \Vert = \sqrt{K}",),
        "Now a short actor gradient gets a large weight too: with orthogonal gradients, w_k = 1 / ‖g_k‖. Both combined"
        " gradients have length √K (Theorem 1) before they are clipped to norm 1."),
    "ablations/ln_popart_pcgrad_pcgrad.py": Rung("ablations/ln_popart.py", "PCGrad for actor and critic", "C.3, Table D.2",
        "pcgrad_weights main", (PCGRAD_MATH,),
        "The same rule on both Grams. Multiplying g_k by s_k > 0 multiplies the projected g_k by s_k and leaves the others'"
        " as they are: PCGrad looks at directions only and keeps the spread in length."),
    "ablations/ln_popart_cagrad_cagrad.py": Rung("ablations/ln_popart.py", "CAGrad for actor and critic", "C.3, Table D.2",
        "scipy.optimize Args.cagrad_c parse_args cagrad_weights main", (
        r"\min_{x \geq 0, \sum_k x_k = 1} \frac{1}{K} x^\top G 1 + c \Vert g_0 \Vert \sqrt{x^\top G x} \qquad "
        r"d = \frac{1}{1 + c^2} \left( g_0 + c \Vert g_0 \Vert \frac{J^\top x}{\Vert J^\top x \Vert} \right), \quad "
        r"g_0 = \frac{1}{K} \sum_k g_k",),
        "Before the division by 1 + c², as in its authors' code, d lies in a ball of radius c ‖g_0‖ around the mean"
        " gradient and there does the most for the task that it helps least. G decides x alone; at c = 0 the weights are"
        " 1/K."),
    "ablations/symmetric_ln_popart.py": Rung("ablations/ln_popart.py", "LayerNorm in the actor as well", "B.2, D.1",
        "Agent.__init__", (
        r"h = \mathrm{ReLU}\left(\gamma \odot \frac{W x - \mathrm{mean}(W x)}{\sqrt{\mathrm{var}(W x) + \epsilon}} + \beta\right)"
        r" \quad \text{in both networks}",),
        "The actor's per-task gradients are now those of a network with normalised hidden units, as the critic's were. The"
        " critic's side and the weights 1/K stay."),
    "ablations/ln_fairgrad.py": Rung("ablations/ln.py", FAIRGRAD, "4.3, C.2, C.5", FAIRGRAD_PLACES, FAIRGRAD_MATH,
        "FairGrad without PopArt: d does not depend on the lengths of the g_k, but the critic's loss still is that of raw"
        " returns."),
    "ablations/popart.py": Rung(ROOT_SCRIPT, "PopArt", "4.1, B.5", POPART_PLACES, (POPART_MATH,),
        "PopArt without LN-c: G is rescaled by 1/σ_k² from both sides, and its cosines stay those of the plain critic."),
    "ablations/popart_fairgrad.py": Rung("ablations/popart.py", FAIRGRAD, "4.3, C.2, C.5", FAIRGRAD_PLACES,
        FAIRGRAD_MATH, "PopArt and FairGrad without LN-c. Corollary 1 holds here too: it asks nothing of the network."),
    "ablations/vanilla_envpool.py": Rung(ROOT_SCRIPT, "EnvPool's environments", "5.1", ENVPOOL_PLACES, (),
        "The algorithm is the same, and so is the evaluation; training episodes come from EnvPool's C++ Meta-World, with a"
        " fresh goal each."),
    "ablations/toppo_envpool.py": Rung("toppo_mt50.py", "EnvPool's environments", "5.1", ENVPOOL_PLACES, (),
        "The same for TOPPO."),
    "ablations/fairgrad.py": Rung(ROOT_SCRIPT, FAIRGRAD, "4.3, C.2, C.5", FAIRGRAD_PLACES, FAIRGRAD_MATH,
        "FairGrad alone: the critic's plain Gram, with the weights that Theorem 1 speaks of."),
}


def fail(message: str) -> NoReturn:
    sys.exit(f"ladder: error: {message}")


def scripts() -> list[str]:
    """The scripts of RUNGS that there are, in its order."""
    for script in RUNGS:
        if not (ROOT / script).exists():
            print(f"note: {script} is in RUNGS but not there yet; skipped", file=sys.stderr)
    return [script for script in RUNGS if (ROOT / script).exists()]


def edges() -> list[tuple[str, str, Rung]]:
    there = scripts()
    return [(rung.parent, script, rung) for script, rung in RUNGS.items() if rung.parent in there and script in there]


def lines_of(script: str) -> list[str]:
    return (ROOT / script).read_text().splitlines()


def tree() -> None:
    """Prints which script is which other one plus what."""
    print("\n".join(family(ROOT_SCRIPT)))


def family(script: str, indent: str = "") -> Iterator[str]:
    yield f"{indent + script:46} {'' if RUNGS[script].parent is None else '+ '}{RUNGS[script].adds}  [{RUNGS[script].section}]"
    for child in (c for c, rung in RUNGS.items() if rung.parent == script):
        yield from family(child, indent + "  ")


def parts(lines: list[str]) -> dict[str, list[str]]:
    """Cuts a script into functions, methods, fields and top-level statements by name. Every line is in one of them, comments and
    blank lines in the part that they stand before. Returns {name: lines}."""
    result: dict[str, list[str]] = {}
    start = 0

    def cut(name: str, end: int) -> None:
        nonlocal start
        result[name] = result.get(name, []) + lines[start:end]
        start = end

    def name_of(node: ast.stmt, documented: str) -> str:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return documented
        if isinstance(node, ast.Import | ast.ImportFrom):
            return getattr(node, "module", None) or node.names[0].name
        if isinstance(node, ast.Assign | ast.AnnAssign):
            return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        return getattr(node, "name", None) or ast.unparse(node).splitlines()[0]

    for node in ast.parse("\n".join(lines)).body:
        name = name_of(node, "docstring")
        if isinstance(node, ast.ClassDef):
            cut(name, node.lineno)
            member = name
            for child in node.body:
                named = name_of(child, "")
                member = f"{name}.{named}" if named else member
                cut(member, child.end_lineno or child.lineno)
        cut(name, node.end_lineno or node.lineno)
    return result


def changed_lines(a: list[str], b: list[str]) -> tuple[list[str], int]:
    """Of two lists of lines. Returns the changed lines as diff prints them, and the number of hunks."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in ("a", a), ("b", b):
            Path(folder, name).write_text("\n".join(lines) + "\n")
        printed = subprocess.run(["diff", "a", "b"], cwd=folder, capture_output=True, text=True).stdout.splitlines()
    return [line for line in printed if line[0] in "<>"], sum(line[0].isdigit() for line in printed)


def check() -> None:
    """Compares every script with its parent: budget of changed lines, places that differ, the same change wherever it is made."""
    violations: list[str] = []
    changes: dict[str, tuple[str, list[str]]] = {}
    print(f"{'script':46} {'parent':32} hunks  changed lines  budget")
    for parent, script, rung in edges():
        before, after = parts(lines_of(parent)), parts(lines_of(script))
        changed, hunks = changed_lines(lines_of(parent), lines_of(script))
        print(f"{script:46} {parent:32} {hunks:5}  {len(changed):13}  {rung.budget:6}")
        if len(changed) > rung.budget:
            violations.append(f"{script}: {len(changed)} changed lines, at most {rung.budget} expected: carry shared edits, or "
                              "shorten the rung")
        differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        places = {"docstring", *rung.places.split()}
        violations += [f"{script}: {name} differs from {parent}'s, expected the same: carry the edit, or allow it in RUNGS"
                       for name in sorted(differ - places)]
        violations += [f"{script}: {name} is {parent}'s, expected to differ: edit the script, or take it out of RUNGS"
                       for name in sorted(places - differ)]
        old, new = ([line for name, x in p.items() if name != "docstring" for line in x] for p in (before, after))
        first, lines = changes.setdefault(rung.adds, (script, changed_lines(old, new)[0]))
        if lines != changed_lines(old, new)[0]:
            violations.append(f"{script}: {rung.adds} changes other lines than in {first}, expected the same: carry the edit")
    for line in violations:
        print(f"ladder: {line}", file=sys.stderr)
    sys.exit(1 if violations else 0)


Edit = tuple[int, int, tuple[str, ...]]  # start, end, new lines


def edits(a: list[str], b: list[str]) -> list[Edit]:
    """Turns lines a into b. A run of lines that each only changed a little is taken line by line."""
    result: list[Edit] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "replace" and i2 - i1 == j2 - j1 and all(
            SequenceMatcher(None, x, y, autojunk=False).ratio() > 0.5 for x, y in zip(a[i1:i2], b[j1:j2])
        ):
            result += [(i1 + n, i1 + n + 1, (b[j1 + n],)) for n in range(i2 - i1)]
        elif kind != "equal":
            result.append((i1, i2, tuple(b[j1:j2])))
    return result


def apply(lines: list[str], changes: Iterable[Edit]) -> list[str]:
    lines = list(lines)
    for start, end, new in sorted(changes, reverse=True):
        lines[start:end] = new
    return lines


def settle(ours: list[str], base: list[str], theirs: list[str]) -> list[str] | None:
    """A conflict of git's in which neither side changes a line that the other changes. Returns the lines, or None."""
    both = sorted({*edits(base, ours), *edits(base, theirs)})
    for (a1, a2, _), (b1, b2, _) in zip(both, both[1:]):
        if b1 < a2 or b1 == a2 and (a1 == a2 or b1 == b2):
            return None
    return apply(base, both)


CONFLICT = re.compile(r"^<{7} [^\n]*\n(.*?)^\|{7} [^\n]*\n(.*?)^={7}\n(.*?)^>{7} [^\n]*\n", re.M | re.S)


def merge(script: str, ours: list[str], source: str, base: list[str], theirs: list[str]) -> list[str]:
    """git merge-file, with the conflicts settled that are only neighbours. Arguments and result are lists of lines."""
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in ("ours", ours), ("base", base), ("theirs", theirs):
            Path(folder, name).write_text("".join(line + "\n" for line in lines))
        labels = ["-L", script, "-L", f"{source} at HEAD", "-L", source]
        command = ["git", "merge-file", "-p", "-q", "--diff3", *labels, "ours", "base", "theirs"]
        merged = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if merged.returncode > 127:
        fail(f"git merge-file: {merged.stderr.strip()}")

    def settled(conflict: re.Match[str]) -> str:
        lines = settle(*(side.splitlines() for side in conflict.groups()))
        return conflict[0] if lines is None else "".join(line + "\n" for line in lines)

    return CONFLICT.sub(settled, merged.stdout).splitlines()


def git(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)


def carry(script: str, /) -> None:
    """Carries the uncommitted edit of one script to all others; can be repeated after more edits. Exits with 1 on a conflict.

    An edit of lines that a script does not have stays out of it; so does one of a docstring's lines where docstrings differ.
    Lines added next to such a place count as part of it: to add a shared line there, add it in a script that lacks the place.
    Fix a conflict in one script and carry that one: this settles it in the scripts that have the same text. To take a carry
    back, undo the edit and carry again. Uncommitted changes elsewhere are kept, and where they are in the way nothing is
    written.

    Args:
        script: the script that was edited, such as vanilla_mtppo.py
    """
    there = scripts()
    source = next((s for s in there if Path(s).stem == Path(script).stem), None) or fail(
        f"{script}: expected one of the ladder's scripts: {', '.join(there)}")
    committed = {s: shown.stdout.splitlines() for s in there if (shown := git("show", f"HEAD:./{s}")).returncode == 0}
    if source not in committed:
        fail(f"{source}: not committed yet, so there is nothing to compare it with: commit it before you edit and carry")
    texts = {s: lines_of(s) for s in there}
    base, new = committed[source], texts[source]
    if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in new):
        fail(f"{source}: has conflict markers: resolve them, then carry")

    # What the last carry found and left, so that it can be repeated or followed by one from another script.
    record_path = ROOT / git("rev-parse", "--git-path", "ladder-carry.json").stdout.strip()
    head, record = git("rev-parse", "HEAD").stdout.strip(), {}
    if record_path.exists():
        record = json.loads(record_path.read_text())
        record = record if record["head"] == head else {}
    start, in_the_way = {}, []
    for s in texts.keys() - {source}:
        before, left = record.get("files", {}).get(s, (None, None))
        if digest(texts[s]) == left:  # as that carry left it: begin where it began, or with the script's own side of conflicts
            text = "\n".join(texts[s]) + "\n"
            start[s] = before if record["source"] == source else CONFLICT.sub(lambda c: c[1], text).splitlines()
        else:
            start[s] = texts[s]
            in_the_way += [s] if start[s] != committed.get(s, start[s]) else []

    old = {s: committed.get(s, texts[s]) for s in there}
    has = {}  # the lines of the source that a script has as well
    for s in there:
        blocks = SequenceMatcher(None, base, old[s], autojunk=False).get_matching_blocks()
        has[s] = {i for block in blocks for i in range(block.a, block.a + block.size)}
    docstring = ast.parse("\n".join(base)).body[0]
    docstring_end = docstring.end_lineno or docstring.lineno

    def stays(change: Edit, s: str) -> bool:
        i1, i2, _ = change
        touched = set(range(i1, i2)) or {i for i in (i1 - 1, i1) if 0 <= i < len(base)}
        if i2 <= docstring_end:
            return not touched <= has[s]
        if any(a1 <= i1 and i2 <= a2 and not put for a1, a2, put in edits(base, old[s])):
            return True  # it lacks the whole place
        if touched & has[s]:
            return False
        above: list[str] = []
        parent = RUNGS[s].parent
        while parent:
            above, parent = above + [parent], RUNGS[parent].parent
        return not any(touched <= has[a] for a in above if a in has)

    results, report, files = {}, [], {}
    for s in (s for s in there if s != source):
        changes = edits(base, new)
        kept = [change for change in changes if stays(change, s)]
        wanted = apply(base, [change for change in changes if change not in kept])
        results[s] = merge(s, start[s], source, base, wanted)
        marked = [i + 1 for i, line in enumerate(results[s]) if line.startswith("<<<<<<< ")]
        if any(line.startswith("<<<<<<< ") for line in start[s]):
            fail(f"{s}: has conflict markers: resolve them, then carry (no file was written)")
        if marked and s in in_the_way:
            fail(f"{s}: its own uncommitted changes are where the edit of {source} goes: commit or undo them, then carry "
                 "(no file was written)")
        verdict = "conflict" if marked else "unchanged" if results[s] == texts[s] else "carried"
        where = ", ".join(f"{i1 + 1}" if i2 <= i1 + 1 else f"{i1 + 1}-{i2}" for i1, i2, _ in kept)
        report.append(f"{verdict:10} {s}" + (f": resolve at line {', '.join(map(str, marked))}" if marked else "")
                      + (f" (not its lines: {where} of {source} at HEAD)" if kept else ""))
        files[s] = start[s], digest(results[s])
    for s, lines in results.items():
        if lines != texts[s]:
            (ROOT / s).write_text("".join(line + "\n" for line in lines))
    record_path.write_text(json.dumps({"head": head, "source": source, "files": files}))
    print("\n".join(report))
    conflicts = sum(line.startswith("conflict") for line in report)
    print("\nnext: python tools/ladder.py check, python tools/ladder.py docs" if not conflicts else
          f"\nconflicts: {conflicts}; resolve one and carry that script to resolve its like, then look at git diff")
    sys.exit(1 if conflicts else 0)


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def page() -> str:
    """The text of docs/ladder.md."""
    numbers = {s: (len(c), h) for p, s, _ in edges() for c, h in [changed_lines(lines_of(p), lines_of(s))]}
    first: dict[str, str] = {}
    text = [
        "# The ladder, rung by rung", "",
        "Written by `python tools/ladder.py docs`; edit the scripts or the table in that tool instead. Per task k, g_k is the",
        "gradient of its loss on a network's shared parameters, J has the rows g_k, G = J Jᵀ is their K × K Gram matrix, and",
        "every rung combines them as d = Σ w_k g_k. 1 / w and w / s are elementwise. Sections and equations are the paper's.", "",
        "```text", *(line.rstrip() for line in family(ROOT_SCRIPT)), "```",
    ]
    for script in scripts():
        rung = RUNGS[script]
        if rung.parent is not None and script not in numbers:
            continue
        text += ["", f"## `{script}`", ""]
        if rung.parent:
            lines, hunks = numbers[script]
            text += [f"[`{script}`](../{script}) is [`{rung.parent}`](../{rung.parent}) plus {rung.adds} ({rung.section}): "
                     f"{lines} changed lines in {hunks} hunks.", ""]
        else:
            text += [f"[`{script}`](../{script}) is {rung.adds} ({rung.section}).", ""]
        for formula in rung.math:
            text += ["$$", formula, "$$", ""]
        text.append(rung.lesson)
        if rung.parent:
            same = first.setdefault(rung.adds, script)
            block = ["", "```diff", *diff_block(rung.parent, script), "```"]
            summary = f"<summary>the diff: outside the docstring, the lines of {same} above</summary>"
            text += block if same == script else ["", "<details>", summary, *block, "", "</details>"]
    return "\n".join(text) + "\n"


def diff_block(a: str, b: str) -> Iterator[str]:
    """git's diff; where it has line numbers, which would change with every edit above them, the name of the part changed."""
    options = ["--no-index", "--no-color", "--no-ext-diff", "--diff-algorithm=myers", "--inter-hunk-context=0", "-U1"]
    printed, names = git("diff", *options, "--", a, b).stdout.splitlines(), []
    for name, lines in parts(lines_of(b)).items():
        names += [name] * len(lines)
    for line in printed[next(i for i, line in enumerate(printed) if line.startswith("@@")):]:
        hunk = re.match(r"@@ -\d+(?:,\d+)? \+(\d+)", line)
        yield f"@@ {names[int(hunk[1])]} @@" if hunk else line if line.strip() else ""  # behind one line of context


def docs() -> None:
    """Writes docs/ladder.md: per script the equation, the diff against its parent and what changes in the Gram."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    commands: dict[str, Callable[..., None]] = {"tree": tree, "check": check, "carry": carry, "docs": docs}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
