"""Device, threads and determinism: what must be equal for two runs to agree bit by bit."""

import contextlib
import ctypes
import gc
import os
import warnings
from collections.abc import Generator

import torch

from quadscape.errors import DeviceMemoryError, StageError

# cuBLAS is deterministic only with a fixed workspace, and reads this when CUDA starts.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
# What a user may have set for other programs, and would round the products of these.
for _name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"):
    os.environ.pop(_name, None)
# torch warns of its own forward-mode rules when they are first used; no line in a job's log is worth that.
warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)

# Options of glibc's mallopt (malloc.h); the threshold is the largest that it accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
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


def check_gpu_is_there(requested: str) -> None:
    """Refuses weeks on a CPU that nobody has asked for: called in SLURM jobs of stages that ask for a GPU.

    Args:
        requested: As for `resolve_device`.

    Raises:
        StageError: `auto` would fall back to the CPU.
    """
    if requested == "auto" and resolve_device(requested).type == "cpu":
        raise StageError(
            "This SLURM job was given no GPU, though its stage asks for one, and a slow run on its CPU is refused; see "
            "that the profile gives it one (gpu: 1, and a partition that has them), or set device to 'cpu'."
        )


def apply_numerics(threads: int, tf32: bool = False) -> None:
    """Makes torch deterministic with a fixed number of CPU threads.

    Args:
        threads: Threads of CPU kernels; sums differ between 1 and 2.
        tf32: Whether products of float32 may round their factors to TF32 on a GPU.
    """
    torch.set_num_threads(threads)
    # The module of a user's factory may have set others when it was imported.
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    _keep_freed_memory()
    # As use_deterministic_algorithms(True), which also imports torch's compiler, for a second of every job.
    torch.set_deterministic_debug_mode("error")
    # Every buffer is written before it is read; filling each with NaN first would cost a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _keep_freed_memory() -> None:
    """Lets the C library reuse freed memory, where it is glibc, instead of giving it back to the system.

    By default every tensor of a megabyte or more is mapped afresh, and its first use costs a page fault per 4 KiB: ten
    times the arithmetic of an element-wise operation (measured).
    """
    _mallopt({_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30})


def keep_large_freed_memory() -> None:
    """The same for tensors of any size: for work that allocates the same large tensors again and again.

    What is freed between two others is then never given back, only reused, which work on few matrices of the size of
    the machine could not afford.
    """
    _mallopt({_M_MMAP_MAX: 0})


def give_freed_memory_back() -> None:
    """Gives what was freed between two others back to the system after all, where the C library is glibc.

    For work whose memory must stay near that of the one matrix that it holds.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def device_memory_explained(what: str, remedy: str = "use a device with more memory") -> Generator[None, None, None]:
    """Turns a device's out-of-memory error into a sentence, and frees what the failed work left on the device.

    Args:
        what: What did not fit, for example `a training step with batch_size 512`.
        remedy: What the user can do.

    Raises:
        DeviceMemoryError: The device's memory did not hold it.
        RuntimeError: Something else went wrong.
    """
    try:
        yield
    except RuntimeError as error:
        # Libraries on the device report it in their own words.
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        message = str(error).partition(". ")[0]
        # The frames that failed hold their tensors as long as the traceback lives.
        error.__traceback__ = None
    else:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise DeviceMemoryError(f"The device's memory does not hold {what} ({message}); {remedy}.")


def halved(sizes: dict[str, int]) -> dict[str, int] | None:
    """Block sizes for a device whose memory did not hold the present ones.

    Args:
        sizes: Each at least 1.

    Returns:
        Half of each, at least 1; None when all of them are 1 already.
    """
    smaller = {name: max(1, size // 2) for name, size in sizes.items()}
    return None if smaller == sizes else smaller


def _mallopt(options: dict[int, int]) -> None:
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)


def current_threads() -> int:
    """CPU threads that torch is set to use: the job's, or all that the process may use."""
    return torch.get_num_threads()
