"""Steps by curvature: gradients projected onto subspaces, or scaled along every eigenvector of a stored eigenbasis.

Each is a linear map of gradients that stays as it is throughout a run; training applies it to the gradient of a batch
before its optimizer does anything with it.

Of a projection only the k vectors of its subspace are loaded. They are made orthonormal again in float64, since a basis
in float32 is orthonormal to 1e-7 only: what is removed then stays where it was to the rounding of float64. A scaling
needs the whole basis, twice for each gradient. It goes through it in blocks of columns of a width that follows from P
alone. They are kept as they are stored, where there is room for them once, on the device or else in the host's memory,
and are otherwise read anew for each gradient: in each case the same products are made in the same order, bit by bit.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from quadscape.curvature.stored_basis import Eigenbasis
from quadscape.errors import ConfigError, StoreError
from quadscape.memory_limits import memory_available

_SUBSPACE_STREAM = 0x5B5
_BLOCK_BYTES = 64 << 20
_ALIGNMENT = 16
"""Eigenvectors that a store decodes together."""
_SHARE = 0.5
"""Of what is left of a memory, the part that a kept basis may take."""


class Basis(Protocol):
    """An eigenbasis; see `quadscape.curvature.stored_basis.Eigenbasis`."""

    digest: str

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues in descending order, float64, shape (P,)."""

    def vectors(self, start: int, stop: int, /) -> np.ndarray:
        """Eigenvectors start … stop − 1 as columns, shape (P, stop − start)."""


class SubspaceStep:
    """g ← UUᵀg or g ← g − UUᵀg, where the columns of U are orthonormal.

    U are eigenvectors of consecutive ranks, or span a random subspace: that of Gaussian vectors from a seed.

    Attributes:
        parameters: What determines it, as JSON values: the rule, and the digest of the eigenbasis.
    """

    def __init__(self, rule: Mapping[str, Any], basis: Basis | None) -> None:
        """Loads nothing yet.

        Args:
            rule: `part` (`keep` or `remove`), and either `first` and `last`, ranks from 1, or `dimension` and `seed`.
            basis: The eigenbasis; None for a random subspace.
        """
        self.parameters = {**rule, **({} if basis is None else {"digest": basis.digest})}
        self._basis, self._keep = basis, rule["part"] == "keep"
        self._count = rule["dimension"] if basis is None else rule["last"] - rule["first"] + 1
        self._directions: torch.Tensor | None = None

    def memory_bytes(self, size: int, _: str) -> int:
        """Of the host: U, and twice that while it is made.

        Args:
            size: P.

        Returns:
            Bytes.
        """
        return 3 * 8 * size * self._count

    def prepare(self, size: int, device: torch.device) -> None:
        """Makes U; the threads of the run must be set, since rounding depends on them.

        Args:
            size: P.
            device: Where gradients are.

        Raises:
            StoreError: The basis, or its number of vectors, does not fit the parameters.
        """
        if self._directions is not None:
            return
        if self._basis is None:
            if self._count > size:
                raise StoreError(f"A subspace of {self._count} dimensions was asked for, among {size} parameters.")
            sequence = np.random.SeedSequence([_SUBSPACE_STREAM, self.parameters["seed"]])
            raw = np.random.Generator(np.random.PCG64(sequence)).standard_normal((size, self._count))
        else:
            _check_size(self._basis, size, self.parameters["last"])
            raw = self._basis.vectors(self.parameters["first"] - 1, self.parameters["last"]).astype(np.float64)
        self._directions = torch.linalg.qr(torch.from_numpy(raw)).Q.contiguous().to(device)

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """The projection of a gradient.

        Args:
            gradient: float64, shape (P,); stays as it is.

        Returns:
            float64, shape (P,).
        """
        assert self._directions is not None, "prepare() comes first"
        along = self._directions @ (self._directions.T @ gradient)
        return along if self._keep else gradient - along


class SpectralStep:
    """g ← Q diag(f) Qᵀg with a factor for every eigenvector, over the whole basis.

    Attributes:
        parameters: What determines it, as JSON values: the rule, and the digest of the eigenbasis.
        factors: f, float64, shape (P,), in the order of the eigenvalues.
    """

    def __init__(self, rule: Mapping[str, Any], basis: Basis, factors: np.ndarray) -> None:
        """Loads no vector yet.

        Args:
            rule: What the factors follow from.
            basis: The eigenbasis.
            factors: Positive numbers, shape (P,); under the rule's `normalized` they are divided by the largest.
        """
        self.parameters = {**rule, "digest": basis.digest}
        self.factors = factors / factors.max() if rule["normalized"] else factors
        self._basis = basis
        self._bytes = len(factors) ** 2 * basis.vectors(0, 0).dtype.itemsize
        self._width = block_width(len(factors))
        self._scales: torch.Tensor | None = None
        self._kept: list[torch.Tensor] = []

    def memory_bytes(self, size: int, device: str) -> int:
        """Of the host: what is kept of the basis there, and some blocks.

        Args:
            size: P.
            device: `cpu` or `cuda`.

        Returns:
            Bytes.
        """
        place = self._place(torch.device(device))
        kept = self._bytes if place is not None and place.type == "cpu" else 0
        return kept + 4 * 8 * size * min(size, self._width)

    def prepare(self, size: int, device: torch.device) -> None:
        """Loads the basis, where there is room for it.

        Args:
            size: P.
            device: Where gradients are.
        """
        if self._scales is not None:
            return
        _check_size(self._basis, size, size)
        place = self._place(device)
        if place is not None:
            self._kept = [block.to(place) for block in self._read()]
        self._scales = torch.from_numpy(self.factors).to(device)

    def _place(self, device: torch.device) -> torch.device | None:
        """Where there is room for the whole basis; None: nowhere."""
        for place in (device, torch.device("cpu")):
            if place.type == "cuda":
                left = torch.cuda.mem_get_info(place)[0] if torch.cuda.is_available() else 0
            else:
                left = memory_available()
            if self._bytes <= _SHARE * left:
                return place
        return None

    def _read(self) -> Iterator[torch.Tensor]:
        """Blocks of columns as they are stored, shape (P, width)."""
        size = len(self.factors)
        for start in range(0, size, self._width):
            yield torch.from_numpy(np.ascontiguousarray(self._basis.vectors(start, min(size, start + self._width))))

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient, scaled along every eigenvector.

        Args:
            gradient: float64, shape (P,); stays as it is.

        Returns:
            float64, shape (P,).
        """
        assert self._scales is not None, "prepare() comes first"
        found = torch.zeros_like(gradient)
        parts = self._scales.split(self._width)
        for part, stored in zip(parts, self._kept or self._read(), strict=True):
            block = stored.to(gradient.device, torch.float64)
            found += block @ (part * (block.T @ gradient))
        return found


def block_width(size: int) -> int:
    """Columns of a block, from P alone: kept or read, the same sums are made.

    Args:
        size: P.

    Returns:
        A multiple of the number of columns that a store decodes together.
    """
    return max(1, _BLOCK_BYTES // (8 * size) // _ALIGNMENT) * _ALIGNMENT


def preconditioning(eigenvalues: np.ndarray, power: float, floor: float) -> np.ndarray:
    """1/max(|λ|, floor)^power.

    Args:
        eigenvalues: λ, shape (P,).
        power: Above 0, at most 1; 1 is Newton's step where all |λ| are above the floor.
        floor: Above 0.

    Returns:
        Factors, float64, shape (P,).
    """
    return np.maximum(np.abs(eigenvalues), floor) ** -power


def posterior_variance(eigenvalues: np.ndarray, weight_decay: float, examples: int, floor: float) -> np.ndarray:
    """1/(N max(λ + δ, floor)): the variance of the Gaussian posterior N(θ, (N(H + δ))⁻¹) along every eigenvector.

    It is that of Laplace's approximation to exp(−N(L(θ) + (δ/2)|θ|²)).

    Args:
        eigenvalues: λ, shape (P,).
        weight_decay: δ.
        examples: N.
        floor: Above 0; directions of smaller or negative λ + δ are as wide as one of this curvature.

    Returns:
        Factors, float64, shape (P,).
    """
    return 1.0 / (examples * np.maximum(eigenvalues + weight_decay, floor))


def make_step(
    rule: Mapping[str, Any], eigenbasis: str | Path | Basis | None, weight_decay: float, examples: int
) -> SubspaceStep | SpectralStep:
    """The step that a rule describes.

    Args:
        rule: What `rule` of a run's `step` section gives, as JSON values.
        eigenbasis: The basis, or the directory or manifest of its stage; unused for a random subspace.
        weight_decay: δ of the loss that is minimised.
        examples: N, the number of training examples.

    Returns:
        The step.

    Raises:
        ConfigError: An eigenbasis is needed and not given.
    """
    if rule["method"] == "random":
        return SubspaceStep(rule, None)
    if eigenbasis is None:
        raise ConfigError(
            f"step.method is {rule['method']}, whose steps go by an eigenbasis, and none is given; valid is the "
            "directory of the one that the run was trained with."
        )
    basis = Eigenbasis(eigenbasis) if isinstance(eigenbasis, str | Path) else eigenbasis
    if rule["method"] == "projected":
        return SubspaceStep(rule, basis)
    if rule["method"] == "preconditioned":
        return SpectralStep(rule, basis, preconditioning(basis.eigenvalues, rule["power"], rule["floor"]))
    factors = posterior_variance(basis.eigenvalues, weight_decay, examples, rule["floor"])
    return SpectralStep(rule, basis, factors)


def _check_size(basis: Basis, size: int, last: int) -> None:
    count = len(basis.eigenvalues)
    if count != size or last > count:
        raise StoreError(
            f"The eigenbasis by which a run steps has {count} eigenvectors, of which the first {last} are asked for, "
            f"but its network has {size} parameters; run the workflow again."
        )
