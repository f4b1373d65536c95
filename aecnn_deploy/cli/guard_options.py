"""Options of ``serve-edge`` that say who may speak to it and how much, and those of ``run-device`` that answer them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aecnn_deploy.runtimes.edge_gate import GuardSettings

_FILE = "FILE"

TlsCertOption = Annotated[
    Path | None, typer.Option(metavar=_FILE, help="The edge's certificate in PEM form: serve wss:// and https://.")
]
TlsKeyOption = Annotated[Path | None, typer.Option(metavar=_FILE, help="The private key of --tls-cert, not encrypted.")]
ClientCaOption = Annotated[
    Path | None, typer.Option(metavar=_FILE, help="Take only clients with a certificate of a CA in this file.")
]
TokenFileOption = Annotated[
    Path | None, typer.Option(metavar=_FILE, help="Take only who shows a token of this file: 'name token' a line.")
]
OpenStatusOption = Annotated[bool, typer.Option("--open-status", help="Show status page and metrics without a token.")]
PeerConnectionsOption = Annotated[int, typer.Option(help="Connections that one peer may have.")]
PeerBytesOption = Annotated[
    int, typer.Option("--peer-bytes-per-s", help="Bytes a second that one peer is read with at most; 0: any.")
]
PeerBurstOption = Annotated[int, typer.Option(help="Bytes that one peer may send at once before it is slowed.")]
PeerInFlightOption = Annotated[int, typer.Option(help="Requests of one peer that may wait for an answer.")]
IdleOption = Annotated[float, typer.Option("--idle-s", help="Seconds without a message after which a stream ends.")]
HandshakeOption = Annotated[
    float, typer.Option("--handshake-s", help="Seconds for TLS and the head of a request to come.")
]
MessageOption = Annotated[float, typer.Option("--message-s", help="Seconds for one message to come.")]
UnreadOption = Annotated[float, typer.Option("--unread-s", help="Seconds that a peer may leave an answer unread.")]

CaOption = Annotated[
    Path | None, typer.Option(metavar=_FILE, help="Trust the edge by this CA's certificate (PEM), not the system's.")
]
CertOption = Annotated[
    Path | None, typer.Option(metavar=_FILE, help="This device's certificate (PEM), where the edge wants one.")
]
KeyOption = Annotated[Path | None, typer.Option(metavar=_FILE, help="The private key of --cert, not encrypted.")]
DeviceTokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar=_FILE, help="This device's token; else AECNN_TOKEN of the environment."),
]


def guard_settings(
    files: tuple[Path | None, Path | None, Path | None, Path | None],
    peer: tuple[int, int, int, int],
    seconds: tuple[float, float, float, float],
    *,
    open_status: bool,
) -> "GuardSettings":
    """``files``: certificate, key, CA, tokens. ``peer``: connections, bytes a second, burst, requests in flight.

    ``seconds``: idle, handshake, message, unread. Raises SettingsError: a value, or what does not go together.
    """
    from aecnn_deploy.runtimes.edge_gate import GuardSettings
    from aecnn_deploy.runtimes.peer_limits import PeerLimits

    return GuardSettings(*files, open_status=open_status, limits=PeerLimits(*peer, *seconds))
