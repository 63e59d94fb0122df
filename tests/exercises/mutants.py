"""Automatic mistakes: every single change of an operator, a number or a call in an answer.

A mutant is the file of the reference answers with one node of one function exchanged.
"""

import ast
import copy
import inspect
from collections.abc import Iterator

from course_lib.checks import Check
from exercises.bank import HERE

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NAMES = {
    "sum": "mean", "mean": "sum", "max": "min", "min": "max", "amax": "amin", "argmax": "argmin",
    "maximum": "minimum", "sin": "cos", "cos": "sin", "tril": "triu", "eye": "ones",
    "scatter_add": "scatter", "repeat_interleave": "tile", "silu": "gelu",
    "expm1": "exp", "sort": "argsort", "rms_norm": "normalize", "zeros_like": "ones_like",
}  # fmt: skip


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """Everything a node may be exchanged for."""
    new = copy.deepcopy(node)
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
        yield new
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.MatMult):
        yield ast.BinOp(left=node.right, op=node.op, right=node.left)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        new.ops[0] = OPERATORS[type(node.ops[0])]()
        yield new
    if isinstance(node, ast.UnaryOp):
        yield node.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = node.value
        yield ast.Constant(not value if isinstance(value, bool) else value + 1)
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        new.attr = NAMES[node.attr]
        yield new
    if isinstance(node, ast.Name) and node.id in ("min", "max"):
        yield ast.Name(NAMES[node.id], ast.Load())
    if isinstance(node, ast.Call):
        yield from _changed_calls(node)
    if isinstance(node, ast.Expr | ast.AugAssign):
        yield ast.Pass()
    if isinstance(node, ast.comprehension) and node.ifs:
        new.ifs = []
        yield new
    if isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.ctx, ast.Load):
        new.elts.reverse()
        yield new


def _changed_calls(node: ast.Call) -> Iterator[ast.AST]:
    """Arguments swapped or left out, a method call dropped: `x.clone()` to `x`."""
    if len(node.args) >= 2 and not _symmetric(node.func):
        new = copy.deepcopy(node)
        new.args[:2] = reversed(new.args[:2])
        yield new
    for i, keyword in enumerate(node.keywords):
        if keyword.arg != "strict":  # guards against a bug, changes nothing
            new = copy.deepcopy(node)
            del new.keywords[i]
            yield new
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if not (isinstance(owner, ast.Name) and owner.id in ("torch", "F", "math")):
            yield owner


def _symmetric(function: ast.expr) -> bool:
    """May the first two arguments be swapped?"""
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in ("transpose", "min", "max", "maximum", "allclose")


def mutants(check: Check) -> Iterator[tuple[str, object]]:
    """A text that says what was changed, and the changed answer."""
    source = (HERE / "reference" / f"{check.lesson.lower()}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    function = next(n for n in tree.body if getattr(n, "name", "") == check.name)
    seen = {ast.unparse(function)}
    inside = [node for statement in function.body for node in ast.walk(statement)]
    for parent in [function, *inside]:
        for field, value in ast.iter_fields(parent):
            if parent is function and field != "body":
                continue  # the stub gives the signature
            many = isinstance(value, list)
            for i, node in enumerate(value if many else [value]):
                if not isinstance(node, ast.AST):
                    continue
                for new in _changes(node):
                    old_text, new_text = ast.unparse(node), ast.unparse(new)
                    _put(parent, field, i if many else None, new)
                    text = ast.unparse(ast.fix_missing_locations(function))
                    if text not in seen:
                        seen.add(text)
                        yield f"{old_text} -> {new_text} [{len(seen) - 1}]", _built(tree, check)
                    _put(parent, field, i if many else None, node)


def _put(parent, field, i, node) -> None:
    if i is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[i] = node


def _built(tree: ast.Module, check: Check):
    names: dict = {"__name__": "mutant"}
    try:
        exec(compile(ast.unparse(tree), "<mutant>", "exec"), names)
    except SyntaxError:
        return None
    assert inspect.isfunction(names[check.name])
    return names[check.name]
