"""Device, threads and determinism: what must be equal for two runs to agree bit by bit."""

import contextlib
import ctypes
import gc
import os
import re
import warnings
from collections.abc import Generator
from typing import Any

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
# What torch and the libraries below it say when a device or its memory fails; nothing else does.
_FAILURES = re.compile(
    r"CUDA (error|driver error|kernel)|cuda runtime error|cuDNN|CUDNN|CUBLAS|cublasLt|CUSOLVER|CUSPARSE|CUFFT|cuFFT"
    r"|NVRTC|nvrtc|unable to find an engine|out of memory|can't allocate memory"
)
_LARGEST_SHARE = 16 << 30
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
    # The older switch first, which would else contradict the newer ones; alone it leaves convolutions to others.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    on_gpu, on_cpu = _products()
    for kind in on_gpu:
        kind.fp32_precision = "tf32" if tf32 else "ieee"
    for kind in on_cpu:
        kind.fp32_precision = "ieee"


def _products() -> tuple[list[Any], list[Any]]:
    """Where torch keeps how products of float32 may be rounded.

    What is not set of one kind follows what is set for all, as by `torch.backends.fp32_precision = "tf32"`.

    Returns:
        Objects with an attribute `fp32_precision`: those of GPUs, and those of CPUs.
    """
    matmul, cudnn, onednn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    return [matmul, cudnn.conv, cudnn.rnn], [onednn.matmul, onednn.conv, onednn.rnn]  # type: ignore[attr-defined]


@contextlib.contextmanager
def precision_kept() -> Generator[None, None, None]:
    """Puts the precision of products of float32 back to what it is now, whatever is set meanwhile."""
    kinds, older = [kind for kinds in _products() for kind in kinds], torch.backends
    before, switches = [kind.fp32_precision for kind in kinds], None
    with contextlib.suppress(RuntimeError):  # torch refuses to tell, where both interfaces have been used
        switches = older.cuda.matmul.allow_tf32, older.cudnn.allow_tf32
    try:
        yield
    finally:
        if switches is not None:
            older.cuda.matmul.allow_tf32, older.cudnn.allow_tf32 = switches
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = "none"
            if kind.fp32_precision != precision:  # what follows another setting goes on doing so
                kind.fp32_precision = precision


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


def memory_share(device: torch.device) -> int:
    """What work on a GPU may take of its memory for each of the things that it holds at once.

    Results depend on sizes that follow from this, so it is the same for GPUs that are alike: 16 GiB from 64 GiB of
    memory on.

    Args:
        device: A GPU.

    Returns:
        A power of two, at most a quarter of the memory.
    """
    quarter = torch.cuda.get_device_properties(device).total_memory // 4
    return min(_LARGEST_SHARE, 1 << (int(quarter).bit_length() - 1))


def is_failure(error: RuntimeError) -> bool:
    """Whether an error of batched work (`torch.func.vmap`) says nothing of whether that can be batched.

    Where it cannot, a loop takes its place, which may take hours for what takes seconds: not for a device that failed,
    or for memory that was short once.

    Args:
        error: The error.

    Returns:
        Whether a device, one of its libraries or memory failed.
    """
    failed = (torch.OutOfMemoryError, torch.AcceleratorError)
    return isinstance(error, failed) or _FAILURES.search(str(error)) is not None


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
