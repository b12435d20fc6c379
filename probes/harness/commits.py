"""Which commit the rules of a probe were last changed in."""

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

UNCOMMITTED = "(uncommitted)"
_LABELS = ("claim", "source", "group", "sentence", "unit", "headline")  # of a rule
_MEETING = ("slack", "meets", "_clears")  # of the harness: when a setting meets a rule


def rules_commit(probe: ModuleType) -> str:
    """Git's short hash of the commit that last changed the probe's rules, or when a setting meets one.

    What else is in those files does not count: how a page shows its numbers may change when they are known, the rules
    may not.

    Args:
        probe: The module.

    Returns:
        The hash, or `(uncommitted)` where the rules are not those of a commit, or there is no repository.
    """
    probe_file = Path(str(probe.__file__)).resolve()
    rules = _history(probe_file, _rules)
    judging = _history(Path(__file__).resolve().with_name("rules.py"), _judging)
    if rules is None or judging is None:
        return UNCOMMITTED
    # The later of the two has the other among its ancestors.
    older = _git(probe_file.parent, "merge-base", rules, judging)
    return judging if older and older.startswith(rules) else rules


def _history(file: Path, part: Callable[[str], str]) -> str | None:
    """The commit since which a part of a file is as it is now."""
    if not file.is_file():
        return None
    now = part(file.read_text(encoding="utf-8"))
    told = _git(file.parent, "log", "--follow", "--format=commit %h", "--name-only", "--", str(file))
    since = None
    for entry in (told or "").split("commit ")[1:]:
        commit, *names = entry.split()
        source = _git(file.parent, "show", f"{commit}:{names[-1]}") if names else None
        try:
            if source is None or part(source) != now:
                break
        except SyntaxError:
            break
        since = commit
    return since


def _rules(source: str) -> str:
    """What `RULES` measures and asks for, with all the module-level names that it uses; not how it is laid out."""
    assignments = {
        target.id: node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    wanted, found = ["RULES"], dict[str, str]()
    labels = _WithoutLabels()
    while wanted:
        one = wanted.pop()
        if one in found or one not in assignments:
            continue
        node = labels.visit(assignments[one])
        found[one] = "" if node.value is None else ast.unparse(node.value)
        wanted += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return "\n".join(f"{one} = {value}" for one, value in sorted(found.items()))


class _WithoutLabels(ast.NodeTransformer):
    """Rules without what only names them: a quotation may be translated better, a minimum may not be moved."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _LABELS]
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        kept = [
            (key, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if not (isinstance(key, ast.Constant) and key.value in _LABELS)
        ]
        node.keys, node.values = [key for key, _ in kept], [value for _, value in kept]
        return self.generic_visit(node)


def _judging(source: str) -> str:
    """The methods that say when a setting meets a rule."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return "\n".join(ast.unparse(node) for node in functions if node.name in _MEETING)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None where it cannot."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
