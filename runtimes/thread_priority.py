"""The priority of a thread that computes."""

import os
import sys
import threading
from contextlib import suppress

_COMPUTE_NICE = 5


def let_others_first() -> None:
    """Threads that compute, those of a runtime that this one starts included, yield to those that answer."""
    if sys.platform == "linux":  # elsewhere it is the whole process that this would slow down
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _COMPUTE_NICE)
