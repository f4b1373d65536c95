"""Whether the edge in this container lives: exit status 0 or 1, for HEALTHCHECK. Only the standard library.

AECNN_HEALTH_URL: what to ask, ``/healthz`` with the scheme and the port that serve-edge has here.
AECNN_HEALTH_CERT, AECNN_HEALTH_KEY: PEM files to show, where serve-edge has --client-ca.
"""

import http.client
import os
import ssl
import sys
import urllib.request

DEFAULT_URL = "http://127.0.0.1:8765/healthz"
TIMEOUT_S = 4.0  # below HEALTHCHECK's own, which would say nothing


def why_not(url: str, cert: str | None, key: str | None) -> str | None:
    """One line, why the edge at ``url`` is not well; None if it is."""
    try:
        if not url.startswith(("http://", "https://")):
            return "AECNN_HEALTH_URL is neither http:// nor https://"
        # The edge asks itself, over loopback, and its certificate is for another name: nothing is verified.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if cert:
            context.load_cert_chain(cert, key)
        handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        with urllib.request.build_opener(*handlers).open(url, timeout=TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError, http.client.HTTPException) as exc:  # URLError and HTTPError are OSErrors
        return f"{type(exc).__name__}: {exc}"


def main() -> int:
    """The exit status."""
    url = os.environ.get("AECNN_HEALTH_URL", DEFAULT_URL)
    why = why_not(url, os.environ.get("AECNN_HEALTH_CERT"), os.environ.get("AECNN_HEALTH_KEY"))
    if why is not None:
        print(f"{url}: {why}")
    return int(why is not None)


if __name__ == "__main__":
    sys.exit(main())
