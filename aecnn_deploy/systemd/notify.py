"""What a service manager wants to hear: sd_notify(3), the few lines of it that are needed."""

import logging
import os
import socket

logger = logging.getLogger("aecnn_deploy.service")
logger.addHandler(logging.NullHandler())

READY = "READY=1"
RELOADING = "RELOADING=1"


def notify(*states: str) -> bool:
    """Tell systemd ``states`` (``READY``, ``STATUS=...``) in one message; False: nobody asked, or it failed.

    A failure is logged and raises nothing: a service serves whether its manager hears it or not.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    address = address.replace("@", "\0", 1) if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto("\n".join(states).encode(), address)
    except OSError as exc:
        logger.warning("the service manager cannot be told %s: %s", ", ".join(states), exc.strerror)
        return False
    return True
