"""Line searches, as declared."""

from quadscape.measures.columns import DIRECTION, IS_ZERO
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

TOLERANCE = 0.1
"""Departure from the quadratic, as a fraction of ½|λ|t², that defines its radius."""


HELD_OUT_ERROR = 0.01
"""Largest relative error on held-out points with which a form is accepted."""


PARAMETERS = {"quadratic": 3, "cubic": 4, "log": 4, "hyperbolic": 4, "quartic": 5}
"""The forms with their numbers of free parameters; every one has a free centre and offset.

quadratic, cubic, quartic: polynomials Σ cₖtᵏ. log: c + a·log(1 + (t − t₀)²/w²).
hyperbolic: c + a·(√(1 + (t − t₀)²/w²) − 1), quadratic near its centre and linear far away, as cross-entropy is in the
outputs of a confident network.
"""


EXAMPLES = "example_differences"
"""Kept beside the tables: ℓₙ(θ + tq) − ℓₙ(θ) of every training example, float32, by line and point."""


LINES = TableSchema(
    "line_search",
    "The loss of one data split at one point of the line θ + tq.",
    (
        Column("index", "1", "Index of the eigenvector q, in descending order of eigenvalue, from 0.", "int"),
        Column("split", "1", "`train` or `validation`.", "str"),
        Column("t", "parameter", "Distance along q; the sign is that of the stored eigenvector."),
        Column(
            "difference",
            "loss",
            "L(θ + tq) − L(θ): mean over the split of single examples' differences, added up in float64.",
            interval="95 %, normal, over examples",
        ),
        Column(
            "rounding",
            "loss",
            "Rounding floor of `difference`, measured; larger where float32 was enough.",
        ),
        Column("decayed", "loss", "The same with weight decay: difference + (δ/2)(|θ + tq|² − |θ|²)."),
        Column("quadratic", "loss", "Quadratic expectation gt + ½qᵀHq t² of the split's own slope and curvature."),
        Column("fitted", "loss", "The form chosen, where it was fitted; training only."),
    ),
)


def _radius_columns(suffix: str, curvature: str) -> tuple[Column, ...]:
    columns: list[Column] = []
    for side, sign in (("positive", "t > 0"), ("negative", "t < 0")):
        name = f"radius{suffix}_{side}"
        text = f"Quadratic radius at {sign}: smallest |t| where |ΔL − gt − ½λt²| = {TOLERANCE}·½|{curvature}|t²."
        states = (
            "`measured`; `censored`: not reached, the value is a lower bound; `bounded`: reached below what rounding "
        )
        states += "resolves, the value is an upper bound; `unresolved`: nothing can be said."
        columns.append(Column(name, "parameter", text, interval="neighbouring points of the grid"))
        columns.append(Column(f"{name}_status", "1", states, "str"))
    return tuple(columns)


FITS = TableSchema(
    "line_fit",
    "What one line says: its slope, curvature, form, minima and quadratic radius.",
    (
        *DIRECTION,
        IS_ZERO,
        Column("curvature", "loss / parameter²", "qᵀHq from one product with the Hessian."),
        Column("gradient", "loss / parameter", "Slope gᵀq of the training loss."),
        Column("gradient_decayed", "loss / parameter", "Slope g̃ᵀq = gᵀq + δθᵀq with weight decay."),
        Column("validation_gradient", "loss / parameter", "Slope of the validation loss."),
        Column("validation_curvature", "loss / parameter²", "qᵀHq of the validation loss."),
        Column("reach", "parameter", "Largest |t| of the grid."),
        Column("floor", "loss", "Rounding floor of a difference of training losses, measured."),
        Column(
            "curvature_ratio",
            "1",
            "f″(0)/λ with f″(0) from the losses alone (extrapolated second differences).",
            interval="estimated truncation and rounding error",
        ),
        Column(
            "form",
            "1",
            f"Simplest form with less than {HELD_OUT_ERROR:.0%} held-out error; `none`, `unresolved`.",
            "str",
        ),
        Column(
            "form_reach", "parameter", "Largest |t| of the fits: as far as |ΔL| is at most the attribute loss_rise."
        ),
        *(
            Column(f"error_{form}", "1", f"Held-out error of the {form} form: rms over standard deviation.")
            for form in PARAMETERS
        ),
        *(
            Column(
                f"coefficient_{k}",
                f"loss / parameter^{k}",
                f"Of t^{k} in the form chosen (k = 0: any form).",
            )
            for k in range(5)
        ),
        Column("amplitude", "loss", "a of the log or hyperbolic form chosen."),
        Column("centre", "parameter", "t₀ of the log or hyperbolic form chosen."),
        Column("width", "parameter", "w of the log or hyperbolic form chosen."),
        Column("minimum", "parameter", "Where L is least on the line; NaN if at its end.", interval="rounding floor"),
        Column("minimum_decayed", "parameter", "Where L̃ (with weight decay) is least.", interval="rounding floor"),
        Column("minimum_validation", "parameter", "Where the validation loss is least.", interval="rounding floor"),
        Column("newton", "parameter", "Minimum of the quadratic −gᵀq/qᵀHq; NaN unless the curvature is positive."),
        Column("newton_decayed", "parameter", "The same with weight decay, −g̃ᵀq/(qᵀHq + δ)."),
        Column("asymmetry", "1", "(D(T) − D(−T))/(|D(T)| + |D(−T)|) at the ends ±T, D = ΔL − gt; 0 if symmetric."),
        *_radius_columns("", "λ"),
        *_radius_columns("_decayed", "λ̃"),
    ),
)


SINGLE_SHARE = 0.75
"""Of losses for which float32 is enough (demo: three quarters)."""


def _cost(sizes: Sizes, options: Options) -> Cost:
    examples = sizes.training + sizes.validation
    # Images in float64 and in float32, and the losses of all examples along one line, in both.
    kept = 4 * options["points"] * sizes.training
    memory = sizes.torch_bytes + sizes.product_bytes + 2 * 48 * 8 * sizes.parameters + 3 * kept
    lines = options["directions"] * examples
    points = lines * options["points"]
    # As a rule float32 is enough for most of them.
    single = SINGLE_SHARE * points
    return Cost(
        memory,
        evaluations=points - single,
        single_evaluations=single,
        products=lines,
        kept_bytes=options["directions"] * kept,
    )


MEASURE = Measure(
    name="line_search",
    title="Loss along eigenvectors, L(θ + t qᵢ): its form, its minima and its quadratic radius.",
    chapter=3,
    of="checkpoint",
    reads=("data", "checkpoint", "eigenbasis"),
    tables=(LINES, FITS),
    cost=_cost,
    options=(
        Option(
            "directions",
            48,
            "Number of eigenvectors, on log-spaced ranks of both signs and of the bulk.",
            at_least=1,
            parameters_at_most=True,
        ),
        Option(
            "points",
            61,
            "Points t of one line, symmetric about 0 and dense near it; odd.",
            at_least=9,
            odd="so that t = 0 is one of them",
        ),
        Option(
            "loss_rise", 0.1, "The largest |t| is the one at which ½|λᵢ|t² reaches this rise of the loss …", above=0
        ),
        Option("reach", 0.5, "… or this fraction of |θ|, whichever is smaller.", above=0),
    ),
    evaluates=True,
    gpu=True,
    items=True,
    keeps=(EXAMPLES,),
)
