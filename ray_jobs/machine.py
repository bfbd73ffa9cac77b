"""The machine under a training process: what it is, and what the process uses of it."""

from __future__ import annotations

import platform
import resource
import time
from pathlib import Path

MEGABYTE = 1024**2


def processor(device_type: str) -> str:
    """What computes, as far as the last digit of a result hangs on it: processor, instruction set, threads; the GPU."""
    import torch

    if device_type == "cuda":
        return torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_processor_name()}, {capability}, {torch.get_num_threads()} threads"


class Usage:
    """What this process uses, from one ``measure`` to the next, under names that MLflow shows as system metrics."""

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._time, self._cpu = time.perf_counter(), _cpu_seconds()

    def measure(self) -> dict[str, float]:
        """Peak memory so far in MB (2^20 bytes), and since the last call CPU seconds and cores in use on average."""
        now, cpu = time.perf_counter(), _cpu_seconds()
        used, self._cpu = cpu - self._cpu, cpu
        elapsed, self._time = now - self._time, now
        metrics = {
            "system/peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "system/cpu_seconds": used,
            "system/cpu_cores": used / max(elapsed, 1e-9),
        }
        if self._device_type == "cuda":
            import torch

            metrics["system/gpu_peak_memory_mb"] = torch.cuda.max_memory_allocated() / MEGABYTE
        return metrics


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
