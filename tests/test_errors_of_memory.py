"""By which errors memory is known to be short: types, numbers and texts of PyTorch and of what is
below it.
"""

import errno

import pytest
import torch

from fewstep.cli.main import code_of, lines_of
from fewstep.errors import connection_lost, out_of_memory

# As they come, with what stands around the words.
TEXTS = [
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 8388608 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:79] data. DefaultCPUAllocator: not enough memory: you tried to "
    "allocate 100 bytes.",
    "std::bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
    "unable to mmap 48000088 bytes from file </x.safetensors>: Cannot allocate memory (12)",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "MPS backend out of memory (MPS allocated: 8.90 GB, other allocations: 1 MB)",
    "XPU out of memory. Tried to allocate 4.00 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "miopenStatusAllocFailed",
    "NCCL error in: x.cpp:1, unhandled cuda error. Last error: Failed to CUDA calloc async 4 bytes",
    "NCCL error in: x.cpp:1, unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
    "Failed to allocate memory for requested buffer of size 12",
]
OTHERS = [
    RuntimeError("could not create a primitive descriptor for a matmul primitive"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("Expected all tensors to be on the same device"),
    ValueError("no such option: out of memory"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "out of memory.yaml"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("bad_alloc"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_a_shortage(text):
    error = RuntimeError(text)
    assert out_of_memory(error)
    assert code_of(error) == 5
    assert not connection_lost(error)
    assert lines_of(error)[0].startswith("out of memory")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 229. MiB for an array with shape (30000000,)"),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_types_and_numbers_of_a_shortage(error):
    assert out_of_memory(error)
    assert code_of(error) == 5


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_none(error):
    assert not out_of_memory(error)
    assert code_of(error) != 5


def test_what_a_library_says_for_real():
    with pytest.raises((RuntimeError, MemoryError)) as error:
        torch.empty(1 << 50)
    assert out_of_memory(error.value)
