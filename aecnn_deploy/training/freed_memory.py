"""Memory that a training step has freed is kept for the next one.

glibc gives large blocks back to the system as soon as they are freed and asks for new ones, which the system fills with
zeros page by page. Every step of training frees and asks for the same tensors of tens of megabytes: where the whole
network is trained that is a tenth of the time on a CPU, and more (benchmarks/training_speed.py).
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """From now on this process keeps what it has freed, to its end; False: its C library is not glibc.

    For a process that does nothing but train: its memory never shrinks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))
