"""The stage of training: plan, units, and what is stored of each step."""

import contextlib
import math
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadscape.config.sections import Model, Run, Table, Training
from quadscape.config.values import finite, resolved
from quadscape.data.info import data_info
from quadscape.data.sources import SPLITS
from quadscape.errors import StageError
from quadscape.network.checkpoint import batch_norms
from quadscape.network.models import build_model, derive_seed, factory_code, initial_vector
from quadscape.network.parameters import ParameterLayout
from quadscape.numerics import apply_numerics, current_threads, device_memory_explained, resolve_device
from quadscape.provenance.versions import STAGE_VERSIONS
from quadscape.stage.protocol import Arrays, Needs, StageStore
from quadscape.store import ArraySpec
from quadscape.training.batches import Batches
from quadscape.training.continued import Earlier
from quadscape.training.costs import (
    EVALUATION_CHUNK,
    FULL_CHUNK,
    step_threads,
    training_bytes,
    training_disk,
    unit_steps,
)
from quadscape.training.optimizers import clip, make_optimizer, state_names
from quadscape.training.rate_tables import filled, rates_of
from quadscape.training.start import StartPoint, stream_of
from quadscape.training.step_rules import StepRule
from quadscape.training.steps import DTYPES, State, Trainer, as_real, enter_buffers, flat_state, learning_rate
from quadscape.training.trajectory import METRICS, STAGE

_NOISE_STREAM = 0xD201


class TrainingTask:
    """One training run, as a task for `run_stage`.

    Attributes:
        run: The run, or its parameters alone; a run's name appears in messages only.
        seed: Seed of initial parameters and batch order.
        model: The `model` section.
        loss: `cross_entropy` or `squared_error`.
        data: The data store.
        start_point: The state that the run starts from; None: initial parameters.
        step: What is done with the gradient before the optimizer steps; None: nothing.
        may_diverge: Whether a run that diverges is a result, with nothing stored from there on, or an error, as it is
            where nobody says otherwise.
        stream: Where batches, noise and optimizer begin.
    """

    name = STAGE
    version = STAGE_VERSIONS["training"]

    def __init__(
        self,
        run: Training,
        seed: int,
        model: Model,
        loss: str,
        data: str | Path,
        device: str = "auto",
        start_point: StartPoint | None = None,
        step: StepRule | None = None,
    ) -> None:
        self.run, self.seed, self.model, self.loss, self.data = filled(run), seed, model, loss, Path(data)
        self.start_point, self.step, self.may_diverge = start_point, step, False
        self.stream = stream_of(None if start_point is None else start_point.parameters, seed)
        self._requested = device
        self._trainer: Trainer | None = None
        self._step_seconds: float | None = None
        self._rates: np.ndarray | None = None
        self._earlier: Earlier | None = None
        self._info = data_info(self.data)
        count = self._info.counts["train"]
        self._batch_size = run.batch_of(count)
        self._batches = Batches(count, self._batch_size, run.remainder, self.stream.seed, run.sampling)

    @cached_property
    def _layout(self) -> ParameterLayout:
        return ParameterLayout.of(build_model(self.model, self._info.shape, len(self._info.classes)))

    @cached_property
    def _buffer_size(self) -> int:
        model = build_model(self.model, self._info.shape, len(self._info.classes))
        return sum(as_real(buffer).numel() for buffer in model.buffers())

    def _start_theta(self) -> torch.Tensor:
        return initial_vector(self.model, self._info.shape, len(self._info.classes), self.seed)

    def parameters(self) -> dict[str, Any]:
        """What determines the trajectory, as JSON values."""
        training = resolved(self.run.training() if isinstance(self.run, Run) else self.run)
        # The seed in use stands beside; whether the run or the experiment gave it makes no difference.
        del training["seed"]
        return {
            "training": training,
            "seed": self.seed,
            "model": resolved(self.model),
            "model_code": factory_code(self.model),
            "loss": self.loss,
            "data": self._info.digest,
            "parameters": self._layout.size,
            **({} if self.start_point is None else {"start": dict(self.start_point.parameters)}),
            **({} if self.step is None else {"step": dict(self.step.parameters)}),
        }

    def plan(self) -> dict[str, Any]:
        """Device, threads, steps of a unit and chunk of evaluations.

        All follow from counted operations, not from timed steps: a busy machine must not change the plan, and with it
        the layout of the store and the manifest.

        Returns:
            The plan.
        """
        device, allowed = resolve_device(self._requested), current_threads()
        # Checks the network before it is measured.
        self.start({"device": device.type, "threads": 1})
        forward = self._operations()
        threads = step_threads(self._batch_size, forward, allowed)
        plan = {
            "device": device.type,
            "threads": threads,
            "evaluation_chunk": EVALUATION_CHUNK[device.type],
            "steps": unit_steps(self.run, self._layout.size, self._batch_size, forward, device.type, threads),
        }
        if self.run.batch_size == "full":
            plan["gradient_chunk"] = FULL_CHUNK[device.type]
        self.start(plan)
        self._step_seconds = self._time_step(plan)
        return plan

    def _operations(self) -> int:
        """Floating-point operations of the forward pass of one image (convolutions and matrix products)."""
        # Here, since whoever only reads a trajectory need not load it.
        from torch.utils.flop_counter import FlopCounterMode

        model = build_model(self.model, self._info.shape, len(self._info.classes)).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *self._info.shape))
        return int(counter.get_total_flops())

    def _time_step(self, plan: dict[str, Any]) -> float:
        """Seconds of one step now, for the announcement; the first of two also warms up."""
        best, state = math.inf, self._start_state()
        for _ in range(2):
            began = time.perf_counter()
            with self._memory_explained(), torch.random.fork_rng(devices=self._devices()):
                loss, _ = self._gradient(state, self._indices(0), plan)
            float(loss)
            best = min(best, time.perf_counter() - began)
        return best

    def _devices(self) -> list[torch.device]:
        device = self._ready().device
        return [device] if device.type == "cuda" else []

    def arrays(self, plan: dict[str, Any]) -> list[ArraySpec]:
        """Layout of the arrays; every one that has an iteration axis is full-length in it."""
        total, size, steps = self.run.iterations + 1, self._layout.size, plan["steps"]
        layers = self.layers
        per_step = (steps,)
        specs = [
            ArraySpec(
                "theta",
                (total, size),
                "float64",
                ("iteration", "parameter"),
                (1, size),
                shards=(steps, size),
                attributes={"description": "Parameters after so many steps; NaN where not kept."},
            ),
            ArraySpec(
                "loss",
                (total,),
                "float64",
                ("iteration",),
                per_step,
                attributes={"description": "Loss of the batch before the step, without weight decay.", "unit": "nat"},
            ),
            ArraySpec(
                "learning_rate",
                (total,),
                "float64",
                ("iteration",),
                per_step,
                attributes={"description": "Learning rate of the step."},
            ),
            ArraySpec(
                "gradient_norm",
                (total, len(layers)),
                "float64",
                ("iteration", "layer"),
                (steps, len(layers)),
                attributes={
                    "description": "Norm of the batch gradient by layer, without weight decay.",
                    "layers": layers,
                },
            ),
            ArraySpec(
                "batch",
                (total, self._slots),
                "int64",
                ("iteration", "slot"),
                (steps, self._slots),
                compress=True,
                attributes={"description": "Training examples of the step's batch; -1 where there is none."},
            ),
            ArraySpec(
                "evaluation",
                (total, len(SPLITS), len(METRICS)),
                "float64",
                ("iteration", "split", "measure"),
                (steps, len(SPLITS), len(METRICS)),
                attributes={
                    "description": "Mean loss and accuracy over whole splits; NaN where not evaluated.",
                    "splits": list(SPLITS),
                    "measures": list(METRICS),
                },
            ),
        ]
        states = self.units(plan) + 1
        lengths = {"theta": size, **dict.fromkeys(state_names(self.run), size), "buffers": self._buffer_size}
        specs += [
            ArraySpec(
                f"resume/{name}",
                (states, length),
                "float64",
                ("unit", f"{name}_element"),
                (1, length),
                attributes={"description": "State at the start of a unit; the last row is the state at the end."},
            )
            for name, length in lengths.items()
            if length
        ]
        return specs

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in θ's order."""
        return list(dict.fromkeys(block.layer for block in self._layout.blocks))

    def units(self, plan: dict[str, Any]) -> int:
        """Number of units."""
        return -(-self.run.iterations // plan["steps"])

    def estimate(self, plan: dict[str, Any]) -> Needs:
        """Memory, disk and, at the first start, time."""
        size, units = self._layout.size, self.units(plan)
        numbers = math.prod(self._info.shape) * sum(self._info.counts.values())
        examples = max(self._largest(plan), plan["evaluation_chunk"])
        memory = training_bytes(self.run, size, numbers, self._activations(), examples, plan["steps"], plan["device"])
        memory += 0 if self.step is None else self.step.memory_bytes(size, plan["device"])
        disk = training_disk(self.run, size, len(state_names(self.run)), self._slots, units)
        seconds = None if self._step_seconds is None else self._step_seconds * self.run.iterations
        return Needs(memory, disk, seconds)

    def _activations(self) -> int:
        """Numbers that the forward pass of one image makes."""
        # Here, since whoever only reads a trajectory need not load it.
        from quadscape.network.counting import module_outputs

        model = build_model(self.model, self._info.shape, len(self._info.classes)).eval()
        return module_outputs(model, torch.zeros(1, *self._info.shape))

    def start(self, plan: dict[str, Any]) -> None:
        """Sets threads, and puts network and data on the device.

        Args:
            plan: The numerics plan.

        Raises:
            StageError: The plan's device is not here, or BatchNorm cannot train with the smallest batch.
        """
        # Also where the problem is ready: something else in this process may have set other numbers of threads.
        apply_numerics(plan["threads"])
        if self._trainer is not None:
            return
        if plan["device"] == "cuda" and not torch.cuda.is_available():
            raise StageError(
                "This training was begun on a CUDA device, and none is usable here; continue it where there is one, or "
                "remove its directory to start afresh."
            )
        self._trainer = Trainer(self.model, self.loss, self.data, DTYPES[self.run.dtype], torch.device(plan["device"]))
        if self.run.batch_size == "full" and batch_norms(self._trainer.model):
            raise StageError(
                "batch_size is full, whose gradient is summed over chunks of examples, but the network has BatchNorm, "
                "whose statistics are those of a whole batch; choose a number of examples, or another normalisation."
            )
        try:
            with self._memory_explained(), torch.random.fork_rng(devices=self._devices()):
                smallest = min(self._batches.smallest, self._largest(plan))
                self._trainer.gradient(self._start_state(), self._batches.batch(0)[:smallest])
        except ValueError as error:
            raise StageError(
                f"The network cannot be trained on a batch of {self._batches.smallest} "
                f"({' '.join(str(error).split())}); choose another batch_size, or remainder 'wrap' or 'drop'."
            ) from error

    def _ready(self) -> Trainer:
        assert self._trainer is not None, "start() comes first"
        return self._trainer

    def _start_state(self) -> State:
        return self._ready().start_state(self._start_theta(), state_names(self.run))

    @property
    def _slots(self) -> int:
        """Width of the record of batches; of full batches there is nothing to record."""
        return 1 if self.run.batch_size == "full" else self._batch_size

    def _largest(self, plan: dict[str, Any]) -> int:
        """Examples that go through the network at once in a step."""
        if self.run.batch_size == "full":
            return min(self._batch_size, plan.get("gradient_chunk", FULL_CHUNK["cpu"]))
        return self._batch_size

    def _gradient(self, state: State, indices: np.ndarray, plan: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient of the batch of a step."""
        if self.run.batch_size == "full":
            return self._ready().full_gradient(state, plan["gradient_chunk"])
        return self._ready().gradient(state, indices)

    def _memory_explained(self) -> contextlib.AbstractContextManager[None]:
        return device_memory_explained(
            f"a training step with batch_size {self._batch_size}", "lower it, or use a device with more memory"
        )

    def _state(self, unit: int, store: StageStore, *, recorded: bool = False) -> State:
        """The state at the start of a unit: the one that the unit before it left, or the first one."""
        trainer, state = self._ready(), self._start_state()
        if unit == 0 and not recorded:
            if self.start_point is not None:
                self.start_point.enter(state)
            return state
        state.theta = torch.from_numpy(store.read("resume/theta", unit)).to(trainer.device)
        for name in state.moments:
            state.moments[name] = torch.from_numpy(store.read(f"resume/{name}", unit)).to(trainer.device)
        if state.buffers:
            enter_buffers(state, torch.from_numpy(store.read("resume/buffers", unit)).to(trainer.device))
        return state

    def compute(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays:
        """Takes the steps of one unit.

        Args:
            unit: Number of the unit.
            plan: The numerics plan.
            store: What the units before have written.

        Returns:
            Values by array.
        """
        if (taken := self._taken(unit, plan, store)) is not None:
            return taken
        trainer, run = self._ready(), self.run
        first = unit * plan["steps"]
        stop = min(first + plan["steps"], run.iterations)
        rows = stop - first + (stop == run.iterations)
        state = self._state(unit, store)
        before = flat_state(state)
        values: dict[str, np.ndarray] = {
            "theta": np.full((rows, trainer.layout.size), np.nan),
            "loss": np.full(rows, np.nan),
            "learning_rate": np.full(rows, np.nan),
            "gradient_norm": np.full((rows, len(self.layers)), np.nan),
            "batch": np.full((rows, self._slots), -1, dtype=np.int64),
            "evaluation": np.full((rows, len(SPLITS), len(METRICS)), np.nan),
        }
        losses, norms = [], []
        theta, optimizer = self._optimizer(state, first)
        lost = self.may_diverge and not bool(torch.isfinite(theta).all())
        with self._memory_explained(), torch.random.fork_rng(devices=self._devices()):
            for row in range(0 if lost else rows):
                iteration = first + row
                if run.is_saved(iteration):
                    values["theta"][row] = theta.detach().cpu().numpy()
                if iteration % run.evaluate_every == 0 or iteration == run.iterations:
                    values["evaluation"][row] = trainer.evaluate(state, plan["evaluation_chunk"])
                if iteration == run.iterations:
                    break
                indices = self._indices(iteration)
                values["batch"][row, : len(indices)] = indices
                loss, gradient_norms = self._step(state, theta, optimizer, iteration, indices, plan)
                losses.append(loss)
                norms.append(gradient_norms)
                values["learning_rate"][row] = optimizer.param_groups[0]["lr"]
        if losses:
            values["loss"][: len(losses)] = torch.stack(losses).to(torch.float64).cpu().numpy()
            values["gradient_norm"][: len(norms)] = torch.stack(norms).cpu().numpy()
        self._censor(first, stop - first, values, state)
        written: dict[str, tuple[tuple[slice | int, ...], np.ndarray]] = {
            name: _rows(first, array) for name, array in values.items()
        }
        after = flat_state(state)
        for name, vector in after.items():
            # Row u + 1 is where unit u + 1 starts; the first unit also records its own start.
            states = np.stack([before[name], vector]) if unit == 0 else vector[None]
            written[f"resume/{name}"] = _rows(unit + 2 - len(states), states)
        return written

    def _taken(self, unit: int, plan: dict[str, Any], store: StageStore) -> Arrays | None:
        """A unit of a run of another length, or schedule, that was here before, where it is the same."""
        if self._earlier is None:
            self._earlier = Earlier(store.directory, self.run, self.parameters(), plan)
        return self._earlier.unit(unit, store)

    def _optimizer(self, state: State, steps: int) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        """θ as a parameter that shares the state's memory, and the optimizer where it stands after some steps."""
        if self.step is not None:
            # Not in start(), which the plan calls with another number of threads: rounding depends on it.
            self.step.prepare(self._layout.size, self._ready().device)
        theta = torch.nn.Parameter(state.theta)
        state.theta = theta.data
        return theta, make_optimizer(self.run, theta, state.moments, self.stream.steps + steps)

    def _rate(self, iteration: int) -> float:
        """Learning rate of a step."""
        schedule = self.run.learning_rate
        if self._rates is None and isinstance(schedule, Table):
            self._rates = rates_of(schedule, self.run.iterations)
        return learning_rate(schedule, iteration, self.run.iterations, self._rates)

    def _indices(self, iteration: int) -> np.ndarray:
        """Examples of a step's batch; none where it holds all, in their order."""
        if self.run.batch_size == "full":
            return np.zeros(0, np.int64)
        return self._batches.batch(self.stream.position + iteration)

    def _step(
        self,
        state: State,
        theta: torch.nn.Parameter,
        optimizer: torch.optim.Optimizer,
        iteration: int,
        indices: np.ndarray,
        plan: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes one step; returns the loss of its batch before it, and the norm of its gradient by layer."""
        trainer = self._ready()
        # Dropout and the like: a step's noise depends on seed and step, not on where a unit began.
        torch.manual_seed(derive_seed(_NOISE_STREAM, self.stream.seed, self.stream.position + iteration))
        loss, gradient = self._gradient(state, indices, plan)
        norms = trainer.layer_norms(gradient)
        optimizer.param_groups[0]["lr"] = self._rate(iteration)
        theta.grad = gradient
        clip(self.run, theta)
        if self.step is not None:
            theta.grad = self.step.direction(theta.grad)
        optimizer.step()
        return loss, norms

    def states(self, first: int, stop: int, plan: dict[str, Any], store: StageStore) -> Iterator[State]:
        """The state after every number of steps in a range, trained again from the resume point before it, bit by bit.

        Args:
            first: First number of steps.
            stop: Last number of steps, at most the run's iterations.
            plan: The plan under which the run was trained.
            store: What it has written.

        Yields:
            The state, which the next step changes.
        """
        self.start(plan)
        if isinstance(self.run.learning_rate, Table):
            self._rates = store.read("learning_rate")  # the file may be gone
        unit = min(first // plan["steps"], self.units(plan) - 1)
        begin = unit * plan["steps"]
        state = self._state(unit, store, recorded=True)
        theta, optimizer = self._optimizer(state, begin)
        for iteration in range(begin, stop + 1):
            if iteration >= first:
                yield state
            if iteration < stop:
                with self._memory_explained(), torch.random.fork_rng(devices=self._devices()):
                    self._step(state, theta, optimizer, iteration, self._indices(iteration), plan)

    def _censor(self, first: int, steps: int, values: dict[str, np.ndarray], state: State) -> None:
        """Of a run that has diverged, leaves nothing from the first loss on that is not finite.

        Args:
            first: Iteration of the first row.
            steps: Number of steps.
            values: What is stored of the unit, by row; changed.
            state: The state after it; changed.

        Raises:
            StageError: It has diverged, and that is no result.
        """
        bad = np.flatnonzero(~np.isfinite(values["loss"][:steps]))
        if bad.size == 0 and bool(torch.isfinite(state.theta).all()):
            return
        row = int(bad[0]) if bad.size else steps
        if not self.may_diverge:
            rate = self._rate(max(0, first + row - 1))
            who = f"Training of run '{self.run.name}'" if isinstance(self.run, Run) else "Training"
            remedy = "lower learning_rate.value, or lengthen learning_rate.warmup"
            if isinstance(self.run.learning_rate, Table):
                remedy = "lower the rates of learning_rate.path"
            raise StageError(
                f"{who} diverged: the loss is not finite at iteration {first + row} (learning rate {rate:g}); {remedy}."
            )
        for name, rows in values.items():
            rows[row:] = -1 if name == "batch" else np.nan
        # Whatever is left of a state is of no use, and which of its numbers are finite depends on where a unit ends.
        for vector in (state.theta, *state.moments.values(), *(as_real(buffer) for buffer in state.buffers.values())):
            if vector.is_floating_point():
                vector.fill_(torch.nan)

    def smaller(self, plan: dict[str, Any]) -> None:
        """Nothing: a batch is what the experiment says."""

    def results(self, plan: dict[str, Any], store: StageStore) -> dict[str, Any]:
        """Names of layers, layout of θ, sizes of the splits, the final losses and accuracies, and where it diverged."""
        final = store.read("evaluation", self.run.iterations)
        lost = np.flatnonzero(~np.isfinite(store.read("loss")[: self.run.iterations]))
        diverged = {"diverged": int(lost[0])} if lost.size else self._diverged_last(store)
        return {
            **diverged,
            "iterations": self.run.iterations,
            "layout": self._layout.to_json(),
            "layers": self.layers,
            "counts": self._info.counts,
            "final": {
                split: {measure: finite(float(final[i, j])) for j, measure in enumerate(METRICS)}
                for i, split in enumerate(SPLITS)
            },
        }

    def _diverged_last(self, store: StageStore) -> dict[str, int]:
        """Where only the last step left parameters that are not finite."""
        theta = store.read("resume/theta", -1)
        return {} if np.isfinite(theta).all() else {"diverged": self.run.iterations}


def _rows(first: int, values: np.ndarray) -> tuple[tuple[slice | int, ...], np.ndarray]:
    """Values as consecutive whole rows of an array, beginning with a given one."""
    return (slice(first, first + len(values)), *(slice(0, length) for length in values.shape[1:])), values
