"""Networks of strangers, by the kind of fault that they once met: wrong without a word, or a traceback after hours.

`MEMBERS` maps a kind to its members. A member is a module class without arguments that takes images (n, 1, 6, 6) to
scores of three classes, and what is expected of it: `RIGHT`, `ALMOST` (right, almost everywhere), or words of the
sentence that refuses it.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # ruff: ignore[lowercase-imported-as-non-lowercase]
from torch.utils.checkpoint import checkpoint

RIGHT, ALMOST = "exact", "almost everywhere"
SHAPE, CLASSES = (1, 6, 6), 3
MEMBERS: dict[str, dict[str, tuple[Callable[[], nn.Module], str]]] = {}


def member(kind: str, expected: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(network: type[nn.Module]) -> type[nn.Module]:
        MEMBERS.setdefault(kind, {})[network.__name__] = (network, expected)
        return network

    return register


class Framed(nn.Module):
    """Six features of a row of pixels, something in between, and a linear layer."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(self.width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.between(torch.tanh(self.first(x.flatten(1, 2).mean(1)))))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------------------------------
# A1: casts


def _turns(count: int) -> torch.Tensor:
    return torch.polar(torch.ones(count), torch.arange(count, dtype=torch.float32))


@member("A1", RIGHT)
class ComplexBuffer(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", _turns(3))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(1, (3, 2)).contiguous()) * self.turn).flatten(1)


@member("A1", RIGHT)
class ComplexBufferInside(Framed):
    """Not persistent, in a child, and only its imaginary part matters."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.child.register_buffer("turn", 1j * torch.arange(1.0, 7.0), persistent=False)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.child.turn).imag


@member("A1", "float16")
class HalfInside(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.half().square().to(x.dtype)


@member("A1", "float32")
class SingleInside(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-5)).to(x.dtype)


@member("A1", "bfloat16")
class Autocast(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, torch.eye(6, dtype=x.dtype)).to(x.dtype)


@member("A1", RIGHT)
class MixedPrecision(Framed):
    """A parameter in half precision, which is converted with the others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, dtype=torch.float16))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.to(x.dtype)


@member("A1", "not the same function in both")
class BranchOnDtype(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() if x.dtype == torch.float64 else x


@member("A1", "is complex")
class ComplexParameter(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(_turns(6))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.turn).real


@member("A1", "returns outputs in float32")
class SingleOutputs(Framed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).float()

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ---------------------------------------------------------------------------------------------------------------------
# A2: state that outlives a call


class _Weighted(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 6))


@member("A2", "parameter 'w' has no effect")
class Kept(_Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.kept = None

    def between(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x * self.w.exp()
        if self.kept is None:
            self.kept = self.w.exp()
        return x * self.kept


@member("A2", "parameter 'w' has no effect")
class KeptByACache(_Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.scale = functools.lru_cache(lambda: self.w.exp())

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.w.exp() if self.training else self.scale())


@member("A2", "parameter 'first.weight' has no effect")
class KeptByAHook(Framed):
    """The weight of the layer is replaced, once, by its standardised form."""

    def __init__(self) -> None:
        super().__init__()
        self.standard = None
        self.first.register_forward_hook(self.replace)

    def replace(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if self.standard is None:
            self.standard = layer.weight / layer.weight.norm()
        return inputs[0] @ self.standard.T + layer.bias

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


@member("A2", "another way than its attribute")
class ReachedThroughAList(_Weighted):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [self.w]

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.parts[0].exp()


@member("A2", "another way than its attribute")
class KeptByVersion(_Weighted):
    """Made anew when the parameter is changed in place, but not when another tensor is given."""

    def __init__(self) -> None:
        super().__init__()
        self.kept, self.version = None, None

    def between(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x * self.w.exp()
        if self.version != self.w._version:
            self.kept, self.version = self.w.exp(), self.w._version
        return x * self.kept


# ---------------------------------------------------------------------------------------------------------------------
# A5: gradients that are not those of the loss


@member("A5", "hidden from differentiation")
class WithoutGradient(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            spread = x.std(1, keepdim=True)
        return x / (spread + 0.1)


@member("A5", "hidden from differentiation")
class Detached(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.detach().mean(1, keepdim=True)


@member("A5", "hidden from differentiation")
class ReadAsData(_Weighted):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w / self.w.data.norm()


@member("A5", "hidden from differentiation")
class StraightThrough(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x + (torch.round(4 * x) / 4 - x).detach()


@member("A5", "hidden from differentiation")
class PaddedEmbedding(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6, padding_idx=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.table((x.flatten(1) > 0).long()).mean(1)) + self.first(x[:, 0, 0]))


class _Wrong(torch.autograd.Function):
    """sin, with twice its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient * context.saved_tensors[0].cos()

    @staticmethod
    def jvp(context, tangent):
        return 2 * tangent * context.saved_tensors[0].cos()


@member("A5", "is not its slope")
class WrongDerivative(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return _Wrong.apply(x)


@member("A5", "is not its slope")
class ScaledGradient(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * x + (0.7 * x).detach()


@member("A5", "is not finite")
class RootOfZero(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x - x).sum(1, keepdim=True).sqrt()


@member("A5", RIGHT)
class ConstantsWithoutGradient(Framed):
    """What is hidden does not depend on parameters."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            places = torch.arange(6, dtype=x.dtype).cos()
        return x * places


# ---------------------------------------------------------------------------------------------------------------------
# A6: kinks


def _function(kind: str, name: str, expected: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Between(Framed):
        def between(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    MEMBERS.setdefault(kind, {})[name] = (Between, expected)


def _sampled(x: torch.Tensor) -> torch.Tensor:
    grid = torch.stack([x, x.flip(1)], dim=-1)[:, None]
    return F.grid_sample(x.reshape(-1, 1, 2, 3), grid, align_corners=False).flatten(1)


KINKED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "grid_sample": _sampled,
    "times comparison": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0.1, 0.0),
    "round": lambda x: x + x.round(),
    "quantile": lambda x: x - x.quantile(0.4, dim=1, keepdim=True),
    "one-hot argmax": lambda x: x * F.one_hot(x.argmax(1), 6),
    "where": lambda x: torch.where(x > 0.1, x.sin(), x),
    "integers": lambda x: x + (3 * x).long(),
    "sort": lambda x: x.sort(1)[0],
    "elu": F.elu,
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x),
    "first norm": lambda x: x / (1 + torch.linalg.vector_norm(x, 1, 1, keepdim=True)),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "divided and rounded": lambda x: x + torch.div(x, 0.3, rounding_mode="floor"),
    "cummax": lambda x: x.cummax(1)[0],
    "gather at indices": lambda x: x.gather(1, x.argsort(1)),
}
SMOOTH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mish": F.mish,
    "softplus": F.softplus,
    "softmax": lambda x: x.softmax(1) * x,
    "norm": lambda x: x / (1 + torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "cumulated": lambda x: x.cumsum(1).cumprod(1),
    "logarithm": lambda x: torch.log(1 + x.square()),
    "constant mask": lambda x: torch.where(torch.arange(6) > 2, x, x.exp()),
    "zeros of its shape": lambda x: torch.zeros_like(x) + x * (torch.ones_like(x) > 0),
    "sampled at constants": lambda x: F.grid_sample(
        x.reshape(-1, 1, 2, 3), torch.linspace(-0.7, 0.7, 12, dtype=x.dtype).reshape(1, 1, 6, 2).expand(len(x), 1, 6, 2)
    ).flatten(1),
}
for _name, _between in KINKED.items():
    _function("A6", _name, ALMOST, _between)
for _name, _between in SMOOTH.items():
    _function("A6", _name, RIGHT, _between)


# ---------------------------------------------------------------------------------------------------------------------
# B1: expanded adjoints; B2: values without a derivative; B4: complex values; B5: derivatives that torch lacks

_function("B1", "sum of squares", RIGHT, lambda x: torch.tanh((x * x).sum(1, keepdim=True)).expand(-1, 6) * x)
_function(
    "B1", "attention pooling", RIGHT, lambda x: (x.softmax(1)[:, None] @ x.unflatten(1, (6, 1)) * x[:, None])[:, 0]
)
_function(
    "B1", "interpolation", RIGHT, lambda x: F.interpolate(x.square()[:, None], 12, mode="linear").sum(2).expand(-1, 6)
)
_function("B1", "context", RIGHT, lambda x: x * x.square().mean(1, keepdim=True).expand_as(x).sigmoid())
_function("B1", "einsum", RIGHT, lambda x: torch.einsum("ni,nj,nj->ni", x, x, x))
_function("B1", "cumulated products", RIGHT, lambda x: (x * x.cumsum(1)).sum(-1, keepdim=True) + x)

_function("B2", "zeros", RIGHT, lambda x: torch.tanh(torch.zeros_like(x) + x))
_function("B2", "comparison", ALMOST, lambda x: x * (x > x.mean(1, keepdim=True)).to(x.dtype))
_function("B2", "top-k", ALMOST, lambda x: x.scatter(1, x.topk(2, 1)[1], 0.5) * x)
_function("B2", "new zeros", RIGHT, lambda x: torch.cat([x.new_zeros(len(x), 2), x[:, 2:].square()], 1))
_function("B2", "floor", ALMOST, lambda x: x.gather(1, (2 * x.abs()).floor().long()) * x)
_function(
    "B2",
    "nearest code",
    ALMOST,
    lambda x: x * F.one_hot((x[..., None] - torch.tensor([-0.5, 0.5])).abs().argmin(2), 2)[..., 0],
)

_function("B4", "spectrum", ALMOST, lambda x: torch.fft.rfft2(x.reshape(-1, 2, 3)).abs().flatten(1).repeat(1, 2)[:, :6])
_function("B4", "convolution by spectra", RIGHT, lambda x: torch.fft.irfft(torch.fft.rfft(x).square(), n=6))
_function(
    "B4",
    "power",
    RIGHT,
    lambda x: torch.view_as_real(torch.fft.fft(x)[:, :3] * torch.fft.fft(x)[:, :3].conj()).flatten(1),
)
_function("B4", "polar", RIGHT, lambda x: torch.polar(1 + x.square(), x).imag)
_function("B4", "phases", RIGHT, lambda x: torch.complex(1 + x.square(), x).angle())
_function(
    "B4",
    "linear in complex",
    RIGHT,
    lambda x: (torch.complex(x, x.sin()) @ torch.full((6, 6), 0.1 + 0.2j, dtype=x.dtype.to_complex())).real,
)

_function("B5", "hardsigmoid", ALMOST, lambda x: x * F.hardsigmoid(x))
_function("B5", "hardsigmoid in place", ALMOST, lambda x: x * F.hardsigmoid(2 * x, inplace=True))
_function(
    "B5", "distances", RIGHT, lambda x: torch.cdist(x.unflatten(1, (3, 2)), torch.eye(2, dtype=x.dtype)).flatten(1)
)
_function(
    "B5",
    "distances to itself",
    RIGHT,
    lambda x: torch.cdist(x.unflatten(1, (3, 2)), 2 + x.unflatten(1, (3, 2)).tanh())[:, :2].flatten(1),
)
_function(
    "B5",
    "distances of order 3",
    ALMOST,
    lambda x: torch.cdist(x.unflatten(1, (3, 2)), torch.eye(2, dtype=x.dtype), p=3.0).flatten(1),
)
_function(
    "B5", "products at places", "differs by", lambda x: x.scatter_reduce(1, torch.zeros_like(x).long(), x, "prod")
)
_function("B5", "huber", ALMOST, lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none", delta=0.2))


@member("B5", "differentiated")
class BagOfPixels(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.table((x.flatten(1) > 0).long())) + self.first(x[:, 0, 0]))


# ---------------------------------------------------------------------------------------------------------------------
# B3: parameters without a part


@member("B3", RIGHT)
class UnusedLast(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(3, 4)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


@member("B3", RIGHT)
class UnusedFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(1, 2, 3)
        self.used = nn.Linear(36, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


@member("B3", RIGHT)
class OnlyComputed(_Weighted):
    """A tensor that is used, for something that the outputs do not depend on."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        _ = (x * self.w).sum()
        return x


@member("B3", "'empty.weight' has no elements")
class Empty(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Linear(4, 0)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


# ---------------------------------------------------------------------------------------------------------------------
# B6: what torch.func cannot look into; B9: modules without sizes


class _OldSine(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0].cos()


class _Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _OldSine.apply(x)


@member("B6", "Layer 'sine'")
class OldStyleFunction(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.sine = _Sine()

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return self.sine(x)


@member("B6", "checkpointing")
class Checkpointed(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(torch.sin, x, use_reentrant=True)


@member("B6", "hooks")
class HookedBackwards(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.last.register_full_backward_hook(lambda module, inputs, outputs: None)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


@member("B6", "cannot be")
class Numpy(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.from_numpy(x.detach().numpy()).mean(1, keepdim=True)


@member("B6", "must not branch")
class Branching(Framed):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() if x.sum() > 100 else x


@member("B9", "lazy")
class LazyLinear(Framed):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.LazyLinear(CLASSES)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


@member("B9", "lazy")
class LazyConvolution(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LazyConv2d(2, 3), nn.Flatten(), nn.LazyLinear(CLASSES))


@member("B9", "lazy")
class LazyNormalisation(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.Linear(32, CLASSES))
