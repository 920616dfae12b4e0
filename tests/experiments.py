"""The small experiments that tests are about, as experiment files say them."""

from typing import Any


def on_digits(held_out: float, model: dict[str, Any], checkpoints: list[int], **training: Any) -> dict[str, Any]:
    """One run on the digits of scikit-learn, with its checkpoints."""
    return {
        "data": {"source": "digits", "held_out": held_out},
        "model": model,
        "training": training,
        "runs": [{"name": "a", "checkpoints": checkpoints}],
    }


def steps(value: float, milestone: int) -> dict[str, Any]:
    """A learning rate that falls once."""
    return {"schedule": "steps", "value": value, "milestones": [milestone]}


_MLP = on_digits(
    0.8,
    {"factory": "mlp", "hidden": [3]},
    [0, 40],
    iterations=40,
    batch_size=32,
    learning_rate={"schedule": "constant", "value": 0.1},
    trajectory={"stride": 5, "dense": 2},
    evaluate_every=10,
)
# 235 parameters.
SMALL = {"name": "small", **_MLP, "curvature": {"dtype": "float64"}}
# The same in float32, with less to measure.
TINY = {
    "name": "tiny",
    **_MLP,
    "training": {**_MLP["training"], "learning_rate": steps(0.1, 30)},
    "measures": {
        "line_search": {"directions": 6, "points": 21},
        "overlap": {"bands": 8},
        "density": {"vectors": 2, "steps": 8},
        # What takes long, and goes the same ways as what is left: the tiny gallery has them.
        "batch_hessians": False,
        "embedding": False,
        "evolution": False,
        "example_curvature": False,
        "fractal": False,
        "independence": False,
        "noise_memory": False,
        "posterior": False,
        "ruggedness": False,
        "sharpness": False,
        "surface": False,
    },
}
