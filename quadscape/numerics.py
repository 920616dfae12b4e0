"""Device, threads and determinism: what must be equal for two runs to agree bit by bit."""

import os

import torch

from quadscape.errors import StageError

# cuBLAS is deterministic only with a fixed workspace, and reads this when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_GPU_JOB_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE")


def resolve_device(requested: str) -> torch.device:
    """The device to compute on.

    Args:
        requested: `auto`, `cpu` or `cuda`, as in the experiment file.

    Returns:
        The device.

    Raises:
        StageError: `cuda` was asked for, or `auto` inside a job that was given a GPU, and CUDA is not usable.
    """
    if requested == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if requested == "cuda":
        raise StageError(
            "device is 'cuda', but no CUDA device is usable here; valid on this machine are 'cpu' and 'auto'."
        )
    given = [name for name in _GPU_JOB_VARIABLES if os.environ.get(name, "0") not in {"", "0"}]
    if given:
        raise StageError(
            f"This job was given a GPU ({given[0]}={os.environ[given[0]]}), but CUDA is not usable, and a slow run on "
            "its CPU is refused; load the driver and a CUDA build of torch, or set device to 'cpu'."
        )
    return torch.device("cpu")


def apply_numerics(threads: int) -> None:
    """Makes torch deterministic with a fixed number of CPU threads.

    Args:
        threads: Threads of CPU kernels; sums differ between 1 and 2.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def current_threads() -> int:
    """CPU threads that torch is set to use: the job's, or all that the process may use."""
    return torch.get_num_threads()
