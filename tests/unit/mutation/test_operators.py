"""The mutation operators of our own make the changes that they name, and those cosmic-ray can find again by number."""

from __future__ import annotations

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator

from tests.mutation.operators import DropBound, DropOperand, DropStatement


def all_changes(operator: type[Operator], code: str) -> list[str]:
    changes: list[str] = []
    while (changed := mutate_code(code, operator(), len(changes))) is not None:
        changes.append(changed)
    return changes


@pytest.mark.parametrize("operator", [DropStatement, DropOperand, DropBound])
def test_examples_are_what_the_operator_does(operator: type[Operator]) -> None:
    for example in operator.examples():
        changed = mutate_code(example.pre_mutation_code, operator(), example.occurrence)
        assert changed is not None
        assert changed.replace(" ", "") == example.post_mutation_code.replace(" ", "")
        compile(changed, "changed", "exec")


def test_what_only_names_a_value_is_no_statement_to_drop() -> None:
    assert not all_changes(DropStatement, '"""Words."""\nx = f()\nx: int = 1\nreturn_value = x + 1\n')


def test_statements_with_an_effect_are_dropped_one_at_a_time() -> None:
    changes = all_changes(DropStatement, "x.y = 1\nx[0] += 1\nraise E\n")
    assert changes == ["pass\nx[0] += 1\nraise E\n", "x.y = 1\npass\nraise E\n", "x.y = 1\nx[0] += 1\npass\n"]


def test_every_operand_of_a_mixed_sum_is_dropped_once() -> None:
    changes = [change.replace(" ", "") for change in all_changes(DropOperand, "z = a + b * c - d")]
    assert changes == ["z=b*c-d", "z=a-d", "z=a+b*c", "z=a+c-d", "z=a+b-d"]


def test_bounds_in_a_collection_or_by_a_key_are_left_alone() -> None:
    assert not all_changes(DropBound, "x = max(values), min(a, b, key=f), max(*a, b), max(a, default=0)")
