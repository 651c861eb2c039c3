"""Which of the changes that cosmic-ray can make are worth trying, and which of those a sample tries."""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from cosmic_ray.work_item import MutationSpec, WorkItem

_TRIED = re.compile(
    r"slos-serve/.*"
    r"|core/(AddNot|Replace(TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd|BreakWithContinue|ContinueWithBreak)"
    r"|ExceptionReplacer|NumberReplacer|ZeroIterationForLoop|ReplaceUnaryOperator_Delete_.*"
    r"|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_FloorDiv|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|Gt_LtE|GtE_Gt|GtE_Lt"
    r"|Is_IsNot|IsNot_Is))"
)
"""Operators of cosmic-ray that make a mistake a person could make. The others (`a + b` as `a >> b`) mostly fail at once
with an error of types and would only raise the share that is noticed."""

Position = tuple[int, int]
_Range = tuple[Position, Position]


def _range(node: ast.expr | ast.stmt) -> _Range:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _logs(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id in {"log", "_log", "logger"}
    )


def _undecided(node: ast.AST) -> Iterator[_Range]:
    """Yield the parts of a node that decide nothing at run time: types, decorators, words for people, assertions."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield from (_range(part) for part in (*node.decorator_list, node.returns) if part)
    elif isinstance(node, ast.ClassDef):
        yield from map(_range, node.decorator_list)
    elif isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation:
        yield _range(node.annotation)
    elif isinstance(node, (ast.JoinedStr, ast.Assert)) or (isinstance(node, ast.stmt) and _logs(node)):
        yield _range(node)


@cache
def undecided_ranges(file: Path) -> tuple[_Range, ...]:
    """Return the ranges of a source file in which a change is no mistake that tests should notice."""
    return tuple(part for node in ast.walk(ast.parse(file.read_text())) for part in _undecided(node))


@cache
def _arithmetic(file: Path) -> tuple[_Range, ...]:
    return tuple(_range(node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.BinOp))


def is_tried(tree: Path, mutation: MutationSpec) -> bool:
    """Tell whether a mutation is worth trying."""
    start, end = tuple(mutation.start_pos), tuple(mutation.end_pos)
    file = tree / mutation.module_path

    def within(ranges: tuple[_Range, ...]) -> bool:
        return any(from_ <= start and end <= to for from_, to in ranges)

    if not _TRIED.fullmatch(mutation.operator_name) or within(undecided_ranges(file)):
        return False
    # cosmic-ray takes the star before keyword-only parameters for a product.
    return "ReplaceBinaryOperator" not in mutation.operator_name or within(_arithmetic(file))


def choose(tree: Path, items: Iterable[WorkItem], seed: int, sample: int | None) -> set[str]:
    """Return the jobs to run: one change for each place in the code, and of those at most `sample`.

    The same seed chooses the same jobs from the same code.
    """
    places: dict[tuple[object, ...], list[tuple[str, int, str]]] = defaultdict(list)
    for item in items:
        mutation = item.mutations[0]
        if is_tried(tree, mutation):
            place = (str(mutation.module_path), tuple(mutation.start_pos), tuple(mutation.end_pos))
            places[place].append((mutation.operator_name, mutation.occurrence, item.job_id))
    draw = random.Random(seed)
    jobs = [draw.choice(sorted(places[place]))[2] for place in sorted(places)]
    return set(jobs if sample is None else draw.sample(jobs, min(sample, len(jobs))))
