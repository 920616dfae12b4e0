"""Sections of the experiment file that say what is trained and how curvature is computed."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    field_validator,
    model_validator,
)

from quadscape.config.values import (
    Count,
    FloatType,
    Index,
    Name,
    NonNegative,
    NotEmpty,
    Positive,
    Real,
    Section,
    resolved,
)


def _as_text(value: Any) -> Any:
    """Classes may be called by numbers."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Data(Section):
    """The data set and its split into training, validation and test images."""

    source: Literal["cifar10", "image_folder", "digits"] = "cifar10"
    """`cifar10` (through torchvision), `image_folder` (a folder of one sub-folder per class, or one with `train/` and
    `test/` of that kind), or `digits` (1,797 images of 8×8 that scikit-learn ships)."""
    path: str = "data"
    """Folder of the image folder, or the place to which torchvision downloads CIFAR-10; unused for digits."""
    held_out: Annotated[Real, Field(gt=0, lt=1)] = 0.3
    """Fraction of each class that is held out from training, for a source without test images of its own."""
    validation: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """Fraction of each class's held-out images that becomes the validation set; the rest is the test set."""


class Subset(Section):
    """Part of the data, or an order of it; what is given is applied from top to bottom."""

    name: Name
    """Name of the subset."""
    classes: Annotated[tuple[Annotated[str, BeforeValidator(_as_text)], ...], NotEmpty] | None = None
    """Names of the classes that stay, in all splits; none: all of them. The network keeps an output for every class."""
    per_class: Count | None = None
    """Training examples that are drawn of each class; none: all of them."""
    half: Literal[0, 1] | None = None
    """One half of the training examples, drawn at random; the other number is the other half. None: both."""
    shuffled: bool = False
    """Whether the training examples come in a random order: the same loss, summed otherwise."""
    seed: Index = 0
    """Seed of what is drawn."""

    @model_validator(mode="after")
    def _is_something(self) -> Self:
        if self.classes is None and self.per_class is None and self.half is None and not self.shuffled:
            raise ValueError("at least one of classes, per_class, half and shuffled is needed")
        return self

    def described(self) -> dict[str, Any]:
        """What it is, whatever it is called, as JSON values."""
        return {key: value for key, value in resolved(self).items() if key != "name"}

    def at_most(self, count: int, classes: int) -> int:
        """Number of training examples, of which classes may have fewer.

        Args:
            count: Those of the whole data set.
            classes: Number of classes of it.

        Returns:
            The number, or more.
        """
        if self.per_class is not None:
            count = min(count, self.per_class * (classes if self.classes is None else len(self.classes)))
        return count if self.half is None else (count + self.half) // 2


Loss = Literal["cross_entropy", "squared_error"]
Activation = Literal["gelu", "relu", "tanh", "sigmoid"]


class Normalized(Section):
    """What every network with normalisation layers shares."""

    normalization: Literal["group", "none", "batch"] = "group"
    """`group`: the loss that is trained is the loss that is analysed; `none`; `batch`: trained with batch statistics,
    analysed with statistics recomputed over the whole training set and frozen."""
    channels_per_group: Count = 4
    """Channels of one group under `group` (the number of groups is channels divided by this)."""
    activation: Activation = "gelu"
    """Element-wise non-linearity. With `relu` the Hessian is the almost-everywhere one, and the stores say so."""


class ResNet9(Normalized):
    """The reference network: ResNet9 with widths 4w, 8w, 16w, 32w (w=1: 26,490 parameters, w=2: 104,234)."""

    factory: Literal["resnet9"] = "resnet9"
    """The built-in factory."""
    width: Count = 2
    """The multiplier w."""
    skip: bool = True
    """Whether the two pairs of convolutions are residual: x + f(x), or f(x) alone."""

    later: ClassVar[tuple[str, ...]] = ("skip",)


class Linear(Section):
    """One affine map from pixels to class scores: every quantity has a closed form."""

    factory: Literal["linear"]
    """The built-in factory."""
    bias: bool = True
    """Whether the map has a bias."""


class MLP(Section):
    """Fully connected layers, each but the last followed by normalisation, if any, and activation."""

    factory: Literal["mlp"]
    """The built-in factory."""
    hidden: Annotated[tuple[Count, ...], NotEmpty] = (32,)
    """Widths of the hidden layers."""
    activation: Activation = "gelu"
    """Element-wise non-linearity."""
    normalization: Literal["none", "layer"] = "none"
    """`layer`: each hidden layer's numbers are normalised within each example."""
    skip: bool = False
    """Whether a hidden layer that keeps the width adds its input to its output."""

    later: ClassVar[tuple[str, ...]] = ("normalization", "skip")


class CNN(Normalized):
    """3×3 convolutions in stages that end in 2×2 average pooling, then a linear layer.

    Each convolution is followed by normalisation and activation.
    """

    factory: Literal["cnn"]
    """The built-in factory."""
    channels: Annotated[tuple[Count, ...], NotEmpty] = (8, 16)
    """Output channels of the convolutions, one number for each stage."""
    depth: Count = 1
    """Convolutions of a stage: the first takes the number of channels to the stage's, the others keep it."""
    skip: bool = False
    """Whether a convolution that keeps the number of channels adds its input to its output."""

    later: ClassVar[tuple[str, ...]] = ("depth", "skip")


class Custom(Section):
    """A network of the user's own."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`package.module:function`; called as `function(input_shape, classes, **arguments)`, returns a
    `torch.nn.Module`."""
    arguments: dict[str, Any] = {}  # ruff: ignore[mutable-class-default]: pydantic copies it
    """Keyword arguments of the factory."""


BUILT_IN: dict[str, type[Section]] = {"resnet9": ResNet9, "linear": Linear, "mlp": MLP, "cnn": CNN}


def _model_tag(value: Any) -> str | None:
    name = value.get("factory", "resnet9") if isinstance(value, dict) else getattr(value, "factory", None)
    return name if isinstance(name, str) and name in BUILT_IN else "custom"


Model = Annotated[
    Annotated[ResNet9, Tag("resnet9")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[MLP, Tag("mlp")]
    | Annotated[CNN, Tag("cnn")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(_model_tag),
]


class Schedule(Section):
    """What every learning-rate schedule of a formula shares."""

    value: Positive = 0.1
    """Learning rate η at the start (after the warm-up)."""
    warmup: Index = 0
    """Iterations over which η rises linearly from `value / warmup`; 0 for none."""


class Constant(Schedule):
    """The same learning rate throughout."""

    schedule: Literal["constant"]
    """The kind of schedule."""


class Steps(Schedule):
    """A learning rate multiplied by a factor at given iterations."""

    schedule: Literal["steps"] = "steps"
    """The kind of schedule."""
    milestones: tuple[Count, ...] = (10000, 20000, 30000, 40000)
    """Iterations from which the next, lower learning rate holds; strictly increasing."""
    factor: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by at each milestone."""

    @field_validator("milestones")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(b <= a for a, b in pairwise(value)):
            raise ValueError("milestones must be strictly increasing")
        return value


class Cosine(Schedule):
    """A half cosine from the initial to the final learning rate."""

    schedule: Literal["cosine"]
    """The kind of schedule."""
    final: NonNegative = 0.0
    """Learning rate at the last iteration."""


class Exponential(Schedule):
    """A learning rate that changes by the same factor at every iteration: a ramp for range tests, or a decay."""

    schedule: Literal["exponential"]
    """The kind of schedule."""
    final: Positive
    """Learning rate of the last step."""


class Table(Section):
    """Learning rates from a file, one for each iteration: a number per line, in iterations' order, from 0 on.

    Blank lines and lines that begin with # do not count, and `learning_rate` may head the column. Rates are rounded to
    six significant digits. What a run follows from is the digest of those that it uses, not the path: a file that was
    moved, or has more rates after them, trains nothing again.
    """

    schedule: Literal["table"]
    """The kind of schedule."""
    path: str | None = None
    """The file, needed in an experiment file; relative to the folder in which the workflow runs."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the rounded rates that the run uses. None: whatever the file holds; given, other rates are refused."""

    def without_meaning(self) -> set[str]:
        """The path: rates are known by their digest."""
        return super().without_meaning() | {"path"}


SCHEDULES: dict[str, type[Section]] = {
    "constant": Constant,
    "steps": Steps,
    "cosine": Cosine,
    "exponential": Exponential,
    "table": Table,
}
LearningRate = Annotated[Constant | Steps | Cosine | Exponential | Table, Field(discriminator="schedule")]


class SGD(Section):
    """Stochastic gradient descent, with `momentum` and `nesterov` as `training` says."""

    method: Literal["sgd"] = "sgd"
    """The method."""


class RMSProp(Section):
    """RMSProp in PyTorch's convention: s ← αs + (1−α)g², θ ← θ − ηg/(√s + ε), where g contains δθ."""

    method: Literal["rmsprop"]
    """The method."""
    smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0.99
    """α, the weight of the past in the mean of squares."""
    epsilon: Positive = 1e-8
    """ε."""


class Adam(Section):
    """Adam in PyTorch's convention.

    m ← β₁m + (1−β₁)g, s ← β₂s + (1−β₂)g², θ ← θ − η m̂/(√ŝ + ε), where m̂ = m/(1−β₁ᵗ), ŝ = s/(1−β₂ᵗ), and g contains δθ.
    """

    method: Literal["adam"]
    """The method."""
    beta1: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """β₁, the weight of the past in the mean of gradients."""
    beta2: Annotated[Real, Field(ge=0, lt=1)] = 0.999
    """β₂, the weight of the past in the mean of squares."""
    epsilon: Positive = 1e-8
    """ε."""


class AdamW(Adam):
    """Adam with decoupled weight decay: θ ← (1−ηδ)θ before each step, and no δθ in g.

    What is minimised is then no loss with a decay term, so that the decay enters no curvature (δ counts as 0 there).
    """

    method: Literal["adamw"]  # type: ignore[assignment]
    """The method."""


OPTIONS_OF_SGD = {"momentum", "nesterov"}
METHODS: dict[str, type[Section]] = {"sgd": SGD, "rmsprop": RMSProp, "adam": Adam, "adamw": AdamW}


def _named_method(value: Any) -> Any:
    """`optimizer: adam` is short for `optimizer: {method: adam}`."""
    return {"method": value} if isinstance(value, str) else value


Optimizer = Annotated[
    Annotated[SGD | RMSProp | Adam | AdamW, Field(discriminator="method")], BeforeValidator(_named_method)
]


def _checked_batch_size(value: Any) -> Any:
    if value == "full" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("valid are a number of examples, at least 1, or 'full'")


# By hand: a union of types would name its branch in every message.
BatchSize = Annotated[int | Literal["full"], PlainValidator(_checked_batch_size)]


class KeptIterates(Section):
    """Which iterations' parameters are kept."""

    stride: Count = 4
    """Every how many iterations θ is kept; 1 is needed to see oscillations. The last iterate is always kept."""
    dense: Index = 200
    """Iterations on each side of every milestone of the learning rate that are kept with stride 1."""


class Training(Section):
    """What is trained, and how.

    SGD in PyTorch's convention: v ← μv + g + δθ, θ ← θ − ηv (Nesterov: θ ← θ − η(g + δθ + μv)); or another optimizer.
    """

    later: ClassVar[tuple[str, ...]] = ("optimizer", "clip_norm", "clip_value", "sampling")

    iterations: Count = 48800
    """Number of steps."""
    batch_size: BatchSize = 512
    """Examples of one step, B; `full` for all of them, whose gradient is summed over chunks."""
    remainder: Literal["wrap", "keep", "drop"] = "wrap"
    """What happens to the N mod B examples left at an epoch's end: the batch is filled from the next epoch's shuffle,
    kept as a smaller batch, or dropped."""
    learning_rate: LearningRate = Steps()
    """The schedule of η."""
    momentum: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Momentum μ."""
    nesterov: bool = False
    """Nesterov's momentum instead of heavy-ball."""
    weight_decay: NonNegative = 1e-3
    """Weight decay δ: what is minimised is L + (δ/2)|θ|² over all parameters."""
    dtype: FloatType = "float32"
    """Precision of the forward and backward pass; θ and the momentum are float64 always, so that late small steps
    survive."""
    seed: Index | None = None
    """Seed of initial parameters and batch order; none: the experiment's, so that runs share both."""
    trajectory: KeptIterates = KeptIterates()
    """Which iterates are kept."""
    evaluate_every: Count = 200
    """Every how many iterations full loss and accuracy on all three splits are computed (and at the last one)."""
    optimizer: Optimizer = SGD()
    """The optimizer: `sgd`, `rmsprop`, `adam` or `adamw`, or a section with its options."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient (of the batch loss, without weight decay): a longer one is shortened to it."""
    clip_value: Positive | None = None
    """Largest absolute value of an entry of a step's gradient: larger ones are cut."""
    sampling: Literal["reshuffled", "independent"] = "reshuffled"
    """How batches are drawn: from a permutation of all examples in every epoch, or each anew, independently of all
    others (within a batch no example twice)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if not isinstance(self.optimizer, SGD):
            for key in self.model_fields_set & OPTIONS_OF_SGD:
                raise ValueError(f"{key} is an option of optimizer sgd, but the optimizer is {self.optimizer.method}")
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("clip_norm and clip_value are both given; valid is one of them")
        warmup = self.learning_rate.warmup if isinstance(self.learning_rate, Schedule) else 0
        if warmup > self.iterations:
            raise ValueError(f"learning_rate.warmup is {warmup}, more than the {self.iterations} iterations")
        return self

    def without_meaning(self) -> set[str]:
        """Keys added later, and of other optimizers the options of SGD."""
        return super().without_meaning() | (set() if isinstance(self.optimizer, SGD) else OPTIONS_OF_SGD)

    def batch_of(self, count: int) -> int:
        """Examples of one step.

        Args:
            count: N, the number of training examples.

        Returns:
            B.
        """
        return count if self.batch_size == "full" else self.batch_size

    def rule(self) -> dict[str, Any]:
        """What of the rule of a step enters stability and stationary states.

        Returns:
            weight_decay, δ as far as it belongs to the loss that is minimised; momentum, μ of SGD, None for others.
        """
        sgd, decoupled = isinstance(self.optimizer, SGD), isinstance(self.optimizer, AdamW)
        return {
            "weight_decay": 0.0 if decoupled else self.weight_decay,
            "momentum": self.momentum if sgd else None,
        }

    def dense_windows(self) -> list[range]:
        """The ranges of iterations kept with stride 1: around every milestone within the run."""
        # Of a table there are none: what is kept must be told from the section alone, without the file.
        if not isinstance(self.learning_rate, Steps):
            return []
        width = self.trajectory.dense
        return [
            range(max(0, m - width), min(self.iterations, m + width) + 1)
            for m in self.learning_rate.milestones
            if m <= self.iterations
        ]

    def is_saved(self, iteration: int) -> bool:
        """Whether θ of this iteration is kept.

        Args:
            iteration: Number of steps taken, 0 for the initial parameters.

        Returns:
            True for multiples of the stride, dense windows, and the last iterate.
        """
        if not 0 <= iteration <= self.iterations:
            return False
        on_stride = iteration % self.trajectory.stride == 0 or iteration == self.iterations
        return on_stride or any(iteration in window for window in self.dense_windows())


class Start(Section):
    """From where a run goes on instead of starting by itself; its own schedule begins with its own first step."""

    run: Name
    """The run whose state after some steps is taken: θ, buffers, and what follows."""
    iteration: Index
    """How many steps."""
    optimizer: Literal["kept", "fresh"] = "kept"
    """Whether what the optimizer knows of the past is taken too, or starts as at the start of any run."""
    batches: Literal["kept", "fresh"] = "kept"
    """Whether batches and noise go on as those of the other run would have, with its seed, or start anew from this
    run's."""

    def kept(self) -> dict[str, str]:
        """What is kept and what is fresh."""
        return {"optimizer": self.optimizer, "batches": self.batches}


class Chosen(Section):
    """What a run takes from a family, once that is trained."""

    family: Name
    """Name of the family."""
    by: Literal["validation", "limit"] = "validation"
    """`validation`: the levels of all axes that the run does not share with the family, from its best cell: the
    smallest loss on validation data at the end, in the mean over seeds. `limit`: the learning rate alone, `fraction` of
    the least limit of the range tests at the checkpoints of those members that have the run's network."""
    fraction: Positive | None = None
    """Learning rate over that limit; by `limit` only."""

    later: ClassVar[tuple[str, ...]] = ("fraction",)

    @model_validator(mode="after")
    def _fraction_goes_with_limit(self) -> Self:
        if self.by == "limit" and self.fraction is None:
            raise ValueError("by is 'limit', which needs a fraction above 0 of it")
        if self.by != "limit" and self.fraction is not None:
            raise ValueError(f"fraction is {self.fraction:g}, but by is '{self.by}'; valid with it is by: limit")
        return self


class Step(Section):
    """What stands between the gradient of a batch and the optimizer: a linear map that stays the same throughout."""

    def rule(self) -> dict[str, Any]:
        """What it does, as JSON values, without the names by which its eigenbasis is found."""
        return {key: value for key, value in resolved(self).items() if key not in {"run", "iteration"}}

    def vectors(self, parameters: int) -> int:
        """Number of vectors of the size of θ that it needs, of a network of so many parameters."""
        return parameters


class ByEigenbasis(Step):
    """What every step by the eigenbasis of a checkpoint shares."""

    run: Name
    """The run whose checkpoint it is; its network must be this run's."""
    iteration: Index
    """Which of that run's `checkpoints`."""


class Projected(ByEigenbasis):
    """g ← QₖQₖᵀg, or g ← g − QₖQₖᵀg, with the k eigenvectors of consecutive ranks (1: the largest eigenvalue)."""

    method: Literal["projected"]
    """The method."""
    first: Count = 1
    """First rank."""
    last: Count
    """Last rank."""
    part: Literal["keep", "remove"] = "keep"
    """Whether the gradient's components along these eigenvectors are kept, and no others, or removed."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last is {self.last}, below first, which is {self.first}")
        return self

    def vectors(self, parameters: int) -> int:
        """The eigenvectors of these ranks."""
        return min(parameters, self.last - self.first + 1)


class RandomSubspace(Step):
    """The same with a random subspace, as a control: UUᵀg or g − UUᵀg, U an orthonormal basis of Gaussian vectors."""

    method: Literal["random"]
    """The method."""
    dimension: Count
    """Dimension of the subspace, k."""
    seed: Index = 0
    """Seed of the subspace."""
    part: Literal["keep", "remove"] = "keep"
    """Whether the gradient's components in the subspace are kept, and no others, or removed."""

    def vectors(self, parameters: int) -> int:
        """A basis of the subspace."""
        return min(parameters, self.dimension)


class Preconditioned(ByEigenbasis):
    """g ← Q diag(1/max(|λ|, floor)^power) Qᵀg, over the whole eigenbasis."""

    method: Literal["preconditioned"]
    """The method."""
    power: Annotated[Real, Field(gt=0, le=1)] = 1.0
    """1 is Newton's step with |λ| in place of λ, 0.5 half of it on a logarithmic scale."""
    floor: Positive
    """Directions of smaller |λ| are treated as if it were this."""
    normalized: bool = False
    """Whether all factors are divided by the largest, so that no component grows; otherwise they are as they stand."""


class Posterior(ByEigenbasis):
    """g ← Q diag(1/(N max(λ + δ, floor))) Qᵀg: every direction times the variance of the Gaussian posterior along it.

    N is the number of training examples and δ the run's weight decay (of `adamw` 0): the covariance of Laplace's
    approximation to exp(−N(L + (δ/2)|θ|²)). A learning rate of N makes Newton's step of it.
    """

    method: Literal["posterior"]
    """The method."""
    floor: Positive
    """Directions of smaller λ + δ, negative ones too, are treated as if it were this."""
    normalized: bool = False
    """Whether all factors are divided by the largest, so that no component grows; otherwise they are as they stand."""


STEP_METHODS: dict[str, type[Section]] = {
    "projected": Projected,
    "random": RandomSubspace,
    "preconditioned": Preconditioned,
    "posterior": Posterior,
}
AnyStep = Annotated[Projected | RandomSubspace | Preconditioned | Posterior, Field(discriminator="method")]


class Run(Training):
    """One training run, or parameters from elsewhere. Any key of `training` can be given, to override it here."""

    name: Name
    """Name of the run; the folder of its results."""
    checkpoints: tuple[Index, ...] = ()
    """Iterations at which Hessian, eigenbasis and measures are computed."""
    path: str | None = None
    """Parameters trained elsewhere: a file saved with `torch.save(model.state_dict(), …)`, with `{iteration}` in the
    path where there are several checkpoints. Such a run is not trained."""
    model: Model | None = None
    """The network of this run; none: the experiment's."""
    loss: Loss | None = None
    """The loss of this run; none: the experiment's."""
    start: Start | None = None
    """From where it goes on; none: it starts by itself, from initial parameters."""
    examples: Name | None = None
    """Subset of the data on which it is trained and analysed; none: all of it."""
    curvature_on: dict[Name, tuple[Index, ...]] = {}  # ruff: ignore[mutable-class-default]: pydantic copies it
    """Subsets on which the curvature is computed too, each with those of the run's checkpoints at which it is."""
    chosen: Chosen | None = None
    """A family from whose best cell keys are taken, once its members are trained; none: all is given here."""
    step: AnyStep | None = None
    """What is done with the gradient before the optimizer steps; none: nothing."""

    later: ClassVar[tuple[str, ...]] = (*Training.later, "step")

    @field_validator("checkpoints")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an iteration is listed twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _checkpoints_exist(self) -> Self:
        for key in ("start", "step", "chosen"):
            if self.path is not None and getattr(self, key) is not None:
                raise ValueError(f"path and {key} are both given, but a run with a path is not trained")
        if self.path is not None:
            if len(self.checkpoints) > 1 and "{iteration}" not in self.path:
                raise ValueError("path needs {iteration} in it where there are several checkpoints")
            if not self.checkpoints:
                raise ValueError("a run with a path needs at least one entry in checkpoints")
            return self
        for iteration in self.checkpoints:
            if iteration > self.iterations:
                raise ValueError(f"checkpoint {iteration} is beyond the run, which ends at iteration {self.iterations}")
            if not self.is_saved(iteration):
                below = next(i for i in range(iteration, -1, -1) if self.is_saved(i))
                above = next(i for i in range(iteration, self.iterations + 1) if self.is_saved(i))
                raise ValueError(
                    f"checkpoint {iteration} is never saved; the nearest saved iterations are {below} and {above}"
                )
        return self

    def subsets_at(self, iteration: int) -> list[str]:
        """Subsets on which the curvature of a checkpoint is computed, in their order."""
        return [subset for subset, iterations in self.curvature_on.items() if iteration in iterations]

    def training(self) -> Training:
        """The training parameters alone: what the trajectory depends on, without name and checkpoint list."""
        return Training.model_construct(**{key: getattr(self, key) for key in Training.model_fields})

    def rule(self) -> dict[str, Any]:
        """As that of `Training`, but no formula of SGD holds where a step is not along the gradient."""
        return super().rule() | ({} if self.step is None else {"momentum": None})

    def basis(self) -> tuple[str, int] | None:
        """Run and iteration of the checkpoint by whose eigenbasis it steps; None where it steps by none."""
        return (self.step.run, self.step.iteration) if isinstance(self.step, ByEigenbasis) else None


class Curvature(Section):
    """The exact Hessian, its eigenbasis and its parts."""

    dtype: FloatType = "float32"
    """Precision in which curvature is computed and stored; sums over data chunks are float64 always."""
    tf32: bool = False
    """Whether the products of a float32 Hessian may round their factors to TF32 (10 bits) on a GPU that can: several
    times faster, and a thousand times less exact. The Hessian is held to the same verification all the same."""
    shards: Count = 1
    """Jobs over which the columns of one Hessian are spread, of about equal cost. The result is the same; on a cluster
    each is a job of its own, with its own GPU, unless there is only one."""
    gauss_newton: bool = False
    """Whether to compute also the Gauss–Newton part G of every Hessian, with spectra of G and of R = H − G and the
    figure that shows which of the two makes the outliers and the negative eigenvalues."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tf32 and self.dtype != "float32":
            raise ValueError(f"tf32 needs dtype float32, which is {self.dtype}")
        return self
