"""Variants of gradient descent compared, as declared."""

from quadscape.measures.columns import DIVERGED, MEMBER, SETTINGS
from quadscape.measures.declaration import Cost, Measure, Option, Options, Sizes
from quadscape.tables import Column, TableSchema

COURSE = TableSchema(
    "descent_course",
    "Loss and accuracy of one member of a family over whole splits at one iteration, before it diverged.",
    (
        *MEMBER,
        Column("iteration", "1", "Steps taken.", "int"),
        Column("examples_seen", "1", "Examples whose gradients these steps used: steps times batch size.", "int"),
        Column("training_loss", "loss", "Mean loss over the training split (without weight decay)."),
        Column("validation_loss", "loss", "Mean loss over the validation split."),
        Column("training_accuracy", "1", "Share of the training examples classified correctly."),
        Column("validation_accuracy", "1", "Share of the validation examples classified correctly."),
    ),
)

MEMBERS = TableSchema(
    "descent_members",
    "One member of a family: how it ends, how fast, and how noisy its steps are.",
    (
        *MEMBER,
        *SETTINGS,
        DIVERGED,
        Column("training_loss", "loss", "Loss over the training split at the end; NaN if it diverged."),
        Column("validation_loss", "loss", "Loss over the validation split at the end; NaN if it diverged."),
        Column("validation_accuracy", "1", "Accuracy on the validation split at the end; NaN if it diverged."),
        Column("gap", "loss", "Validation minus training loss at the end."),
        Column(
            "steps_to_target",
            "1",
            "Steps taken at the first evaluation at which the training loss is at most the table's attribute "
            "target_loss; −1 if that is never seen.",
            "int",
        ),
        Column("examples_to_target", "1", "These steps times batch size; −1 if never.", "int"),
        Column(
            "gradient_variance",
            "1",
            "Variance of the norm of the batch gradient over the last quarter of the run, about a straight line and "
            "over its squared mean; NaN if it diverged.",
        ),
        Column(
            "step_variance",
            "1",
            "The same of the length of a step |θ(t+1) − θ(t)|, where both iterates were kept (at most 512 steps); NaN "
            "where fewer than 8 pairs were.",
        ),
    ),
)

COST = TableSchema(
    "descent_cost",
    "What one step takes at the settings of a cell, on the machine that measured it; seconds are not reproducible.",
    (
        Column("cell", "1", "Labels on all axes that do more than change the seed.", "str"),
        *SETTINGS,
        Column("at_once", "1", "Examples that go through the network at once.", "int"),
        Column("seconds_per_step", "s", "Seconds of one step: the least over repetitions, without evaluations."),
        Column("counted_bytes", "byte", "Peak memory of a step by the formula of `quadscape.measures.descent.cost`."),
        Column("measured_bytes", "byte", "Peak of tensors alive during a step (on a GPU: of its allocator), data not."),
    ),
)


def _cost(sizes: Sizes, options: Options) -> Cost:
    steps = (options["repetitions"] + 2) * sizes.members
    memory = sizes.torch_bytes + 1.5 * sizes.images_bytes + sizes.gradient_bytes + 64 * 8 * sizes.parameters
    # Of a full batch; that of others is smaller.
    return Cost(memory, gradients=float(steps * sizes.training))


MEASURE = Measure(
    name="descent",
    title="Variants of gradient descent compared: loss by steps, examples and seconds, noise of steps, memory, gap.",
    chapter=8,
    of="family",
    reads=("data", "trajectory"),
    tables=(COURSE, MEMBERS, COST),
    cost=_cost,
    options=(
        Option(
            "target",
            0.0,
            "Training loss whose first reach is timed; 0: the median of the final training losses of the members.",
            at_least=0,
        ),
        Option("repetitions", 5, "Steps that are timed; the least counts.", at_least=1),
    ),
    gpu=True,
)
