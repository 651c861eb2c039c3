"""Mutation operators that cosmic-ray lacks: each leaves out something that the code computes or does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword, Name
from parso.tree import BaseNode, NodeOrLeaf

Positions: TypeAlias = Iterator[tuple[tuple[int, int], tuple[int, int]]]

_CHAINS = {"arith_expr": ("+", "-"), "term": ("*", "/", "//"), "and_test": ("and",), "or_test": ("or",)}
"""The operators whose operands `DropOperand` leaves out, by parso's name of the expression."""


def _children(node: NodeOrLeaf, kind: str) -> list[NodeOrLeaf]:
    return node.children if isinstance(node, BaseNode) and node.type == kind else []


def _has_effect(statement: NodeOrLeaf) -> bool:
    """Tell whether a statement acts, rather than only names a value: without a name, everything would fail at once."""
    if statement.type in {"atom_expr", "await_expr"}:
        return True
    if statement.type != "expr_stmt" or not isinstance(statement, BaseNode):
        return False
    target, operator = statement.children[:2]
    return bool(operator.type == "operator" and (operator.get_code().strip() != "=" or target.type == "atom_expr"))


class DropStatement(Operator):
    """Replace a call, an augmented assignment, an assignment to an attribute or an item, or a `raise` by `pass`."""

    def mutation_positions(self, node: NodeOrLeaf) -> Positions:
        children = _children(node, "simple_stmt")
        if children and (_has_effect(children[0]) or children[0].type == "raise_stmt"):
            yield children[0].start_pos, children[0].end_pos

    def mutate(self, node: BaseNode, _index: int) -> BaseNode:
        first = node.children[0]
        nothing = Keyword("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        node.children = [nothing, *node.children[1:]]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("n = 1\nn += f()\n", "n = 1\npass\n"), Example("x.f()\n", "pass\n"))


class DropOperand(Operator):
    """Leave out one operand of a sum, a product, or a chain of `and` or `or`."""

    def mutation_positions(self, node: NodeOrLeaf) -> Positions:
        operators = _CHAINS.get(node.type, ())
        children = _children(node, node.type)
        if operators and all(operator.get_code().strip() in operators for operator in children[1::2]):
            for operand in children[::2]:
                yield operand.start_pos, operand.end_pos

    def mutate(self, node: BaseNode, index: int) -> BaseNode:
        at = 2 * index
        # The first operand goes with the operator behind it, any other with the one before.
        node.children = node.children[2:] if at == 0 else node.children[: at - 1] + node.children[at + 1 :]
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x = a + b", "x = b"), Example("x = a and b and c", "x = a and c", occurrence=1))


class DropBound(Operator):
    """Leave out one argument of `min` or `max`, which stands for the rest where only one is left."""

    def mutation_positions(self, node: NodeOrLeaf) -> Positions:
        for argument in self._arguments(node)[::2]:
            yield argument.start_pos, argument.end_pos

    def mutate(self, node: BaseNode, index: int) -> BaseNode:
        function, call = node.children[:2]
        assert isinstance(function, Name)
        assert isinstance(call, BaseNode)
        arguments = call.children[1]
        assert isinstance(arguments, BaseNode)
        kept = [argument for at, argument in enumerate(arguments.children[::2]) if at != index]
        if len(kept) == 1:
            function.value = ""
            arguments.children = kept
        else:
            del arguments.children[2 * index : 2 * index + 2]
        return node

    @staticmethod
    def _arguments(node: NodeOrLeaf) -> list[NodeOrLeaf]:
        children = _children(node, "atom_expr")
        if len(children) != 2 or children[0].get_code().strip() not in {"min", "max"}:
            return []
        arguments = _children(_children(children[1], "trailer")[1], "arglist")
        # A keyword or a starred argument says that the bounds are those in a collection.
        return [] if any(argument.type == "argument" for argument in arguments) else arguments

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("x = max(a, b)", "x =(b)"), Example("x = min(a, b, c)", "x = min(a, c)", occurrence=1))


class Operators:
    """The provider through which cosmic-ray finds these operators, by the name `PROVIDER`."""

    def __iter__(self) -> Iterator[str]:
        return iter(_OPERATORS)

    def __getitem__(self, name: str) -> type[Operator]:
        return _OPERATORS[name]


PROVIDER = "slos-serve"
_OPERATORS: dict[str, type[Operator]] = {kind.__name__: kind for kind in (DropStatement, DropOperand, DropBound)}
