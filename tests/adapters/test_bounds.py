"""The table of bounding functions: limits, derivatives, in-place use."""

import pytest
import torch

from reference.adapter_twins import FORMULAS
from stable_forgetting.adapters import BOUNDS, get_bound
from stable_forgetting.errors import ConfigError

POINTS = torch.linspace(-7.3, 7.1, 401, dtype=torch.float64)

every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)


@every_bound
def test_function_is_zero_at_zero_and_within_its_limit(bound):
    assert bound.function(torch.zeros(3)).abs().max() == 0
    largest = bound.function(POINTS * 50).abs().max()
    if bound.limit is None:
        assert largest > 100
    else:
        assert 0.9 * bound.limit < largest <= bound.limit


@every_bound
def test_function_agrees_with_its_formula(bound):
    torch.testing.assert_close(bound.function(POINTS), FORMULAS[bound.name](POINTS))


@every_bound
def test_derivative_agrees_with_autograd(bound):
    z = POINTS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(FORMULAS[bound.name](z).sum(), z)
    torch.testing.assert_close(bound.derivative(POINTS), expected)


@every_bound
@pytest.mark.parametrize("part", ["function", "derivative"])
def test_in_place_and_out_give_the_same_and_leave_the_argument_alone(bound, part):
    call = getattr(bound, part)
    argument = POINTS.clone()
    expected = call(argument)
    assert torch.equal(argument, POINTS)
    out = torch.empty_like(argument)
    assert call(argument, out=out) is out
    assert torch.equal(out, expected)
    assert torch.equal(argument, POINTS)
    assert call(argument, out=argument) is argument
    assert torch.equal(argument, expected)


def test_table_is_complete():
    assert set(BOUNDS) == {"sine", "tanh", "clip", "softsign", "identity"}
    assert all(name == bound.name and bound.formula and bound.description for name, bound in BOUNDS.items())


def test_unknown_bound_names_the_closest():
    with pytest.raises(ConfigError, match=r"Unknown bound 'sinus'\. Did you mean 'sine'\?"):
        get_bound("sinus")
