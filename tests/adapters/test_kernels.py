"""Both ways to compute a bounded change, torch code and Triton kernels, against the slow twins, by the same tests.

With a card the kernels run on it. Without one, the last test runs this file again in a new process in which Triton
interprets its kernels on the CPU; the switch must be there before Triton is imported.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from reference.adapter_twins import naive_effective_weight, naive_linear
from stable_forgetting.adapters import BOUNDS, LowRankChange, bounded_linear, effective_weight, get_bound, kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
PATHS = ["torch", "triton"] if kernels.available(DEVICE) else ["torch"]
LOW = [torch.bfloat16, torch.float16]
every_bound = pytest.mark.parametrize("bound", BOUNDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)

if INTERPRETS:  # it cuts bfloat16 off where cards round, and multiplies matrices of bfloat16 as if they were integers
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_like_a_card(values, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(values, source, target, mode)

    def dot_like_a_card(self, a, b, *rest):
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *rest)

    interpreter._convert_float = convert_like_a_card
    interpreter.InterpreterBuilder.create_dot = dot_like_a_card


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """One of the two ways; fails if the other one was taken."""
    launches = []
    for name in ("add_changes", "pass_changes"):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, _original=original: (launches.append(1), _original(*args)))
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda device: False)
    yield request.param
    assert bool(launches) == (request.param == "triton")


def draw_case(seed, dtype, bounds, *, max_side=140):
    """Weight, changes and their description for the twin, of random shapes around multiples of the tile."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width = number(1, max_side), number(1, max_side)
    weight, adapters = draw(height, width).to(DEVICE, dtype), []
    for bound in bounds:
        rank = number(1, 33)
        a, b = draw(rank, width) / rank**0.5, draw(height, rank)
        adapters.append((a.to(DEVICE), b.to(DEVICE), bound, 1.7, 0.3))
    return weight, adapters, draw


def as_changes(adapters):
    return [LowRankChange(a, b, get_bound(bound), omega, scale) for a, b, bound, omega, scale in adapters]


@every_bound
@every_dtype
@pytest.mark.parametrize("seed", range(2))
def test_effective_weight_is_rounded_once(path, bound, dtype, seed):
    bounds = [bound, "sine", "tanh"][: 1 + 2 * seed]
    weight, adapters, _ = draw_case(seed, dtype, bounds)
    for base, transposed in ((weight, False), (weight.t().contiguous().t(), False), (weight.t().contiguous(), True)):
        result = effective_weight(base, as_changes(adapters), transposed=transposed)
        exact = naive_effective_weight(base, adapters, transposed=transposed)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=0.501 * torch.finfo(dtype).eps, atol=1e-5)


def test_adapters_and_results_may_have_types_of_their_own(path):
    weight, [(a, b, *rest)], _ = draw_case(5, torch.float32, ["sine"])
    adapter = (a.bfloat16(), b.bfloat16(), *rest)
    result = effective_weight(weight, as_changes([adapter]), dtype=torch.bfloat16)
    torch.testing.assert_close(result.double(), naive_effective_weight(weight, [adapter]), rtol=0.004, atol=1e-5)


def change_of(bound, z, leaf):
    """A change whose argument is z: B is the identity."""
    return LowRankChange(leaf, torch.eye(len(z), device=DEVICE), get_bound(bound), 1.0, 1.0)


def values_of(bound, z):
    """The bound as the path computes it, without a base weight."""
    return effective_weight(torch.zeros_like(z), [change_of(bound, z, z)])


def slopes_of(bound, z):
    """The derivative as the path computes it: the gradient of A."""
    a = z.clone().requires_grad_()
    x = torch.ones(1, z.shape[1], device=DEVICE)
    bounded_linear(x, torch.zeros_like(z), None, [change_of(bound, z, a)]).sum().backward()
    return a.grad


def test_sine_and_cosine_of_thousands_are_accurate(path):
    generator = torch.Generator().manual_seed(0)
    multiples = torch.arange(-6400, 6400) * (torch.pi / 2)
    z = torch.cat([(torch.rand(12_800, generator=generator) - 0.5) * 2e4, multiples, torch.linspace(-4, 4, 6400)])
    z = z.float().view(32, -1).to(DEVICE)
    assert (values_of("sine", z).double() - z.double().sin()).abs().max() <= 3e-7
    assert (slopes_of("sine", z).double() - z.double().cos()).abs().max() <= 4e-7


@every_bound
def test_small_arguments_keep_their_digits(path, bound):
    z = torch.logspace(-30, 1, 400).view(8, 50).to(DEVICE)
    exact = BOUNDS[bound].function(z.double())
    torch.testing.assert_close(values_of(bound, z).double(), exact, rtol=2e-6, atol=0)
    torch.testing.assert_close(slopes_of(bound, z).double(), BOUNDS[bound].derivative(z.double()), rtol=1e-5, atol=4e-7)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the interpreter, in branches not taken
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bound", [name for name, bound in BOUNDS.items() if bound.limit is not None])
def test_no_argument_breaks_the_limit(path, bound):
    z = torch.tensor([[1e5, -1e6, 1e7, 3e8, -1e15, 1e30]]).to(DEVICE)
    assert values_of(bound, z).abs().max() <= 1.0
    assert torch.isnan(values_of(bound, torch.tensor([[float("nan"), 1.0]]).to(DEVICE))).tolist() == [[True, False]]


@every_bound
@every_dtype
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_agree_with_the_slow_twin(path, bound, dtype, transposed):
    bounds = [bound] if transposed else [bound, "softsign"]
    weight, adapters, draw = draw_case(len(bounds), dtype, bounds, max_side=100)
    adapters = [(a.requires_grad_(), b.requires_grad_(), *rest) for a, b, *rest in adapters]
    height, width = weight.shape
    x, dy = draw(2, 9, width).to(DEVICE, dtype).requires_grad_(), draw(2, 9, height).to(DEVICE, dtype)
    base = (weight.t().contiguous() if transposed else weight).requires_grad_()
    factors = [factor for a, b, *_ in adapters for factor in (a, b)]
    exact = [leaf.detach().double().requires_grad_() for leaf in (x, base, *factors)]
    pairs = zip(exact[2::2], exact[3::2], adapters, strict=True)
    slow = naive_linear(
        exact[0], exact[1], None, [(a, b, *rest) for a, b, (_, _, *rest) in pairs], transposed=transposed
    )
    expected = torch.autograd.grad(slow, exact, dy.double())

    for max_block_bytes in (None, 70_000):
        options = {"transposed": transposed, "max_block_bytes": max_block_bytes}
        fast = bounded_linear(x, base, None, as_changes(adapters), **options)
        actual = torch.autograd.grad(fast, [x, base, *factors], dy)
        tolerance = 8 * torch.finfo(dtype).eps
        for got, want in zip([fast, *actual], [slow, *expected], strict=True):
            assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize(("rank", "programs"), [(1, 1024), (16, 1024), (17, 2), (33, 2)])
def test_every_rank_gets_its_gradient(path, rank, programs, monkeypatch):
    """Ranks are taken in portions, and a program may have one tile or several."""
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    generator = torch.Generator().manual_seed(rank)
    shapes = ((rank, 200), (130, rank), (7, 200), (7, 130))
    a, b, x, dy = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in shapes)
    weight, leaves = torch.zeros(130, 200, device=DEVICE), [a.requires_grad_(), b.requires_grad_()]
    fast = bounded_linear(x, weight, None, as_changes([(a, b, "tanh", 0.2, 2.0)]))
    twins = [leaf.detach().double().requires_grad_() for leaf in leaves]
    slow = naive_linear(x.double(), weight.double(), None, [(*twins, "tanh", 0.2, 2.0)])
    expected = torch.autograd.grad(slow, twins, dy.double())
    for got, want in zip(torch.autograd.grad(fast, leaves, dy), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("needed", ["x", "a", "b", "weight"])
def test_only_what_is_asked_for_is_computed(path, needed):
    weight, adapters, draw = draw_case(3, torch.float32, ["sine", "tanh"])
    (a, b, *rest), second = adapters
    leaves = {"x": draw(4, weight.shape[1]).to(DEVICE), "a": a, "b": b, "weight": weight}
    leaves[needed].requires_grad_()
    arguments = (leaves["x"], leaves["weight"], None)
    output = bounded_linear(*arguments, as_changes([(a, b, *rest), second]))
    slow = naive_linear(*arguments, [(a, b, *rest), second])
    dy = draw(*output.shape).to(DEVICE)
    (got,), (want,) = (torch.autograd.grad(y, leaves[needed], dy) for y in (output, slow))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_both_passes_use_the_same_weight_and_runs_repeat_bit_by_bit(path):
    weight, adapters, draw = draw_case(11, torch.float32, ["sine", "sine"])
    a = adapters[0][0].requires_grad_()
    x = draw(3, weight.shape[1]).to(DEVICE).requires_grad_()
    effective = effective_weight(weight, as_changes(adapters))
    results = []
    for _ in range(2):
        output = bounded_linear(x.expand(len(weight), 3, -1), weight, None, as_changes(adapters))
        dy = torch.eye(len(weight), device=DEVICE)[:, None].expand(-1, 3, -1)
        results.append(torch.autograd.grad(output, [x, a], dy))
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    torch.testing.assert_close(results[0][0][0], effective.sum(0), rtol=1e-5, atol=1e-4)


def test_a_fresh_change_keeps_every_bit(path):
    weight = torch.randn(70, 90).to(DEVICE, torch.bfloat16)
    change = LowRankChange(
        torch.randn(4, 90).to(DEVICE), torch.zeros(70, 4, device=DEVICE), get_bound("sine"), 1e3, 1.0
    )
    assert torch.equal(effective_weight(weight, [change]), weight)


def test_kernels_exist_for_every_bound_and_not_for_float64():
    assert set(BOUNDS) == kernels.KERNEL_BOUNDS
    _, adapters, _ = draw_case(0, torch.float32, ["sine"])
    assert kernels.usable(DEVICE, torch.float32, as_changes(adapters)) == kernels.available(DEVICE)
    assert not kernels.usable(DEVICE, torch.float64, as_changes(adapters))
    doubled = [(a.double(), b.double(), *rest) for a, b, *rest in adapters]
    assert not kernels.usable(DEVICE, torch.float32, as_changes(doubled))


def test_kernels_are_not_for_every_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.available(torch.device("cpu"))
    assert not kernels.available(torch.device("meta"))
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert not kernels.available(DEVICE)


if PATHS == ["torch"]:

    @pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
    @pytest.mark.parametrize(
        ("selection", "fewest"),
        [("triton and gradients and float32 and sine", 2), pytest.param("triton", 50, marks=pytest.mark.slow)],
    )
    def test_the_kernels_through_the_interpreter(selection, fewest):
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", __file__, "-k", selection, "-p", "no:cacheprovider"],
            env={**surroundings, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= fewest
