"""The GPU."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util

from cli.checks.findings import Findings, error, ok
from cli.tables import count
from jobs.settings import Settings


def check(settings: Settings) -> Findings:
    """Whether there is a driver, and a PyTorch for it, if a GPU is configured."""
    if settings.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        yield error(
            "HELIXQ_QUANTIZATION=4bit needs bitsandbytes: pip install 'helixq[quantization]'"
        )
    if not settings.device.startswith("cuda"):
        yield ok(f"HELIXQ_DEVICE is {settings.device}: no GPU is required")
        return
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield error("PyTorch is not installed: pip install 'helixq[worker]'")
        return
    if torch.endswith("+cpu"):
        yield error(
            f"PyTorch {torch} has no CUDA: install a build with CUDA, or set HELIXQ_DEVICE=cpu"
        )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield error(
            f"HELIXQ_DEVICE is {settings.device}, and there is no NVIDIA driver: install it, or set HELIXQ_DEVICE=cpu"
        )
        return
    version, num_gpus = ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuInit(0)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGetCount(ctypes.byref(num_gpus))
    ):
        yield error("the NVIDIA driver sees no GPU: look at `nvidia-smi`")
        return
    index = int(settings.device.partition(":")[2] or 0)
    gpus = count(num_gpus.value, "GPU")
    if index >= num_gpus.value:
        yield error(
            f"HELIXQ_DEVICE is {settings.device}, and this machine has {gpus}: lower the number"
        )
    else:
        yield ok(
            f"{gpus}, with a driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        )
