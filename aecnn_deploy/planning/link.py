"""A link in numbers: how many bytes a message is on it, and how long they take (AECNN, eq. 2)."""

from dataclasses import dataclass
from math import ceil, isfinite

from aecnn_deploy.errors import SettingsError

WEBSOCKET_BYTES = 8  # header, mask and length of a client's binary message of 126 to 65,535 bytes
HTTP_BYTES = 180  # request line and headers of POST /v1/classify
RESULT_LINK_BYTES = 435  # a RESULT with five classes, with all its headers
RESPONSE_LINK_BYTES = 650  # the same of an answer to POST /v1/classify
_MTU = 1500
_IN_PACKET = 52  # of it: IPv4 20, TCP 20 and its timestamps 12
_ETHERNET = 14


def bytes_on_link(message_bytes: float, around: int = WEBSOCKET_BYTES) -> float:
    """Bytes that a message is with all its headers: ``around`` it, and of every packet of TCP over Ethernet."""
    sent = message_bytes + around
    return sent + ceil(sent / (_MTU - _IN_PACKET)) * (_IN_PACKET + _ETHERNET)


@dataclass(frozen=True, slots=True)
class Link:
    """``rate_bps``: of the uplink, bits a second with packet headers. ``fixed_ms``: an empty request there and back.

    ``downlink_bps``: its rate, where the answers' bytes are to be counted, too; None: they take what they took when
    ``fixed_ms`` was measured. Raises SettingsError: a rate is not positive, or the time negative.
    """

    rate_bps: float
    fixed_ms: float
    downlink_bps: float | None = None

    def __post_init__(self) -> None:
        for name, rate_bps in (("link", self.rate_bps), ("downlink", self.downlink_bps)):
            if rate_bps is not None and not (rate_bps > 0 and isfinite(rate_bps)):
                raise SettingsError(f"the {name}'s rate is {rate_bps:g} bit/s, expected a positive number")
        if not (self.fixed_ms >= 0 and isfinite(self.fixed_ms)):
            raise SettingsError(f"the link's round trip is {self.fixed_ms:g} ms, expected 0 or more")

    def send_ms(self, message_bytes: float, around: int = WEBSOCKET_BYTES) -> float:
        """Milliseconds that a message's bytes take, without ``fixed_ms`` (eq. 2 with what is really sent)."""
        return bytes_on_link(message_bytes, around) * 8e3 / self.rate_bps

    def answer_ms(self, link_bytes: float) -> float:
        """Milliseconds of an answer's bytes, headers included; 0 where the downlink is not given."""
        return 0.0 if self.downlink_bps is None else link_bytes * 8e3 / self.downlink_bps
