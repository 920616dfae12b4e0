"""Scores of ruggedness, as declared."""

from dataclasses import dataclass
from types import MappingProxyType

from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

ASCENTS = 6
"""Steps of each search for the worst rise in a ball."""

RATES = 9
"""Learning rates of the range test."""

RANGE = 0.3, 4.8
"""Their ends, in units of 2/λ̃₁. None is 1/λ̃₁, where nothing but rounding is left of a displacement."""

STEPS = 4
"""Steps of gradient descent at each of them."""

RAMP = 24
"""Steps of the exponential ramp, from a tenth to ten times 2/λ̃₁."""

BATCHES = 16
"""Most batches whose gradients are compared."""

KINDS = ("raw", "filter", "element")
"""Lengths that displacements are measured in: of θ, of each filter of θ, or of each parameter."""

SPECTRUM, SHARPNESS, DIRECTIONS, NOISE, RATE = (
    "spectrum",
    "sharpness",
    "random directions",
    "gradient noise",
    "learning rate",
)
GROUPS = (SPECTRUM, SHARPNESS, DIRECTIONS, NOISE, RATE)
"""What scores are of, in the order of the table."""

_CURVATURE = "loss / parameter²"


@dataclass(frozen=True)
class Score:
    """What a score is.

    Attributes:
        group: One of `GROUPS`.
        unit: Unit.
        description: Its definition.
        rugged: 1 where a larger value means a more rugged landscape, −1 where a smaller one does, 0 where neither.
    """

    group: str
    unit: str
    description: str
    rugged: int = 1


_SHARP = {
    "raw": "|d| no longer than `radius`",
    "filter": "d relative to the length of its filter, in all no longer than `radius`",
    "element": "d relative to the size of its parameter, in all no longer than `radius`",
}
_MEAN = {
    "raw": "in uniform directions d with |d| = `noise`·|θ|",
    "filter": "that shift each filter by `noise` times its length",
    "element": "that shift each parameter by `noise` times its size, normally",
}

SCORES = MappingProxyType(
    {
        "trace": Score(SPECTRUM, _CURVATURE, "tr H."),
        "mean_curvature": Score(SPECTRUM, _CURVATURE, "tr H / P, the mean of dᵀHd over random unit directions d."),
        "largest": Score(SPECTRUM, _CURVATURE, "Largest eigenvalue λ₁."),
        "smallest": Score(SPECTRUM, _CURVATURE, "Smallest eigenvalue λ_P.", -1),
        "spread": Score(SPECTRUM, _CURVATURE, "Standard deviation of the eigenvalues."),
        "trace_over_norm": Score(SPECTRUM, "1", "tr H / ‖H‖, positivity of the curvature.", 0),
        "negative_fraction_1e-2": Score(SPECTRUM, "1", "Share of the eigenvalues below −0.01 max|λ|."),
        "negative_fraction_1e-3": Score(SPECTRUM, "1", "Share of the eigenvalues below −0.001 max|λ|."),
        "negative_mass_1e-2": Score(SPECTRUM, "1", "Σ|λ| over λ < −0.01 max|λ|, over Σ|λ| over all."),
        "negative_mass": Score(SPECTRUM, "1", "Σ|λ| over λ < 0, over Σ|λ| over all."),
        "quantile_ratio": Score(SPECTRUM, "1", "90 % over 50 % quantile of the eigenvalues above 0.001 max|λ|."),
        "mass_ratio": Score(SPECTRUM, "1", "λ above which 10 % of the sum of positive eigenvalues lies, over 90 %."),
        **{
            f"worst_rise_{kind}": Score(SHARPNESS, "loss", f"Largest rise of the loss, {_SHARP[kind]}.")
            for kind in KINDS
        },
        **{
            f"mean_rise_{kind}": Score(SHARPNESS, "loss", f"Mean rise under pairs of displacements ±d {_MEAN[kind]}.")
            for kind in KINDS
        },
        "flat_width": Score(
            SHARPNESS, "filter lengths", "Median length on which the loss stays within 0.1 of its centre.", -1
        ),
        "gradient_variance": Score(DIRECTIONS, "loss² / filter length²", "Variance of the slope along a line."),
        "minima": Score(DIRECTIONS, "1 / filter length", "Local minima per length of a line."),
        "total_variation": Score(DIRECTIONS, "loss / filter length", "Σ|ΔL| per length of a line."),
        "excess_variation": Score(
            DIRECTIONS, "1", "Σ|ΔL| over what one descent from each end to the lowest point would take; 1 for one well."
        ),
        "cosine": Score(NOISE, "1", "Mean cosine of the gradients of two batches.", -1),
        "noise_scale": Score(NOISE, "examples", "tr C / |g|², C the covariance of single gradients."),
        "noise_scale_decayed": Score(NOISE, "examples", "The same for g̃ = g + δθ."),
        "curvature_noise_scale": Score(NOISE, "examples", "tr(HC) / gᵀHg; NaN where gᵀHg is not positive."),
        "curvature_noise_scale_decayed": Score(NOISE, "examples", "The same for g̃ and H + δ."),
        "norm_variation": Score(NOISE, "1", "Variance of the norms of batch gradients over their squared mean."),
        "limit": Score(RATE, "parameter² / loss", "Learning rate above which displacements along q₁ grow.", -1),
        "limit_ratio": Score(RATE, "1", "The same over 2/(λ₁ + δ).", 0),
        "ramp_limit": Score(RATE, "parameter² / loss", "Rate of a ramp at which they first grow.", -1),
    }
)
"""Every score by its name, in the order of the table."""

RUGGEDNESS = TableSchema(
    "ruggedness",
    "One score of the training loss (without weight decay) around a checkpoint.",
    (
        Column("group", "1", f"What it is of: {', '.join(GROUPS)}.", "str"),
        Column("score", "1", "Its name; docs/ruggedness.md defines each.", "str"),
        Column("unit", "1", "Its unit.", "str"),
        Column("value", "as `unit`", "Its value; NaN where there is none.", interval="95 %, as `over` says"),
        Column(
            "over", "1", "What the interval is over, so many `repeats`; or what it is instead of an interval.", "str"
        ),
        Column("repeats", "1", "Number of repeats that the interval is over; 0: none.", "int"),
        Column("ranked", "1", "Whether it may be compared: false where it is below its own error.", "bool"),
    ),
)

LINES = TableSchema(
    "ruggedness_lines",
    "The training loss at one point of one random filter-normalised line through θ.",
    (
        Column("line", "1", "Number of the line, from 0.", "int"),
        Column("t", "filter lengths", "Place: θ + t d, where each filter of d is as long as that of θ."),
        Column("rise", "loss", "L(θ + t d) − L(θ)."),
    ),
)

GROWTH = TableSchema(
    "ruggedness_growth",
    "Growth of displacements along q₁ under full-batch gradient descent at one learning rate.",
    (
        Column("test", "1", "`constant`: some steps at that rate; `ramp`: one step of a run whose rate rises.", "str"),
        Column("rate", "parameter² / loss", "Learning rate η."),
        Column("scaled", "1", "η (λ₁ + δ) / 2; 1 where the quadratic becomes unstable."),
        Column("growth", "1", "Factor by which the displacement's gradient along q₁ changes in a step."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    lines, kinds = options["directions"], len(KINDS)
    gradients = 2 * kinds * ASCENTS + BATCHES + 2 * RATES * (STEPS + 1) + 2 * RAMP + 4
    evaluations = lines * options["points"] + 2 * kinds * lines + 2 * kinds * ASCENTS + 10
    memory = sizes.torch_bytes + sizes.product_bytes + (BATCHES + 24) * 8 * sizes.parameters
    return Cost(
        memory,
        evaluations=evaluations * sizes.training,
        gradients=gradients * sizes.training,
        products=(BATCHES + 2) * sizes.training,
    )


MEASURE = Measure(
    name="ruggedness",
    title="How rugged is the loss, in numbers: spectrum, sharpness, random lines, gradient noise, learning-rate limit.",
    chapter=3,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(RUGGEDNESS, LINES, GROWTH),
    cost=_cost,
    options=(
        Option("directions", 8, "Random lines, and random displacements of each kind.", at_least=2),
        Option(
            "points",
            41,
            "Points of a line, evenly spaced; odd.",
            at_least=5,
            odd="so that t = 0 is one of them",
        ),
        Option("reach", 1.0, "The largest |t| of a line, in lengths of each filter.", above=0),
        Option("radius", 0.05, "Radius of the balls in which the worst rise is searched.", above=0),
        Option("noise", 0.05, "Relative size of random displacements.", above=0),
        Option("batch_size", 64, "Examples of the batches whose gradients are compared; at most N/4.", at_least=1),
    ),
    evaluates=True,
    gpu=True,
    items=True,
)
