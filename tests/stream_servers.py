"""Cameras on the network, made by hand: an HTTP server and an RTSP server whose handlers play any part."""

import base64
import http.server
import io
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import av
from PIL import Image

from tests.clips import SIZE, picture

BOUNDARY = "frame"


def jpeg(number: int) -> bytes:
    """``picture(number)`` as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(picture(number)).save(out, "JPEG", quality=95)
    return out.getvalue()


def number_of_jpeg(content: object) -> int:
    """Which ``jpeg`` it was."""
    assert isinstance(content, bytes)
    with Image.open(io.BytesIO(content)) as image:
        below = image.convert("L").crop((image.width // 2, image.height // 2, image.width, image.height))
        return round((float(below.getextrema()[0]) - 10) / 3)


class Request(http.server.BaseHTTPRequestHandler):
    """One HTTP request, answered by the server's script."""

    script: Callable[["Request"], None]

    def do_GET(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            type(self).script(self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, content: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def begin_mjpeg(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f'multipart/x-mixed-replace; boundary="{BOUNDARY}"')
        self.end_headers()

    def part(self, content: bytes) -> None:
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
        self.wfile.write(head.encode() + content + b"\r\n")

    def wait_until_gone(self) -> None:
        """Send nothing until the peer has closed the connection."""
        self.connection.settimeout(20)
        with suppress(OSError):
            self.connection.recv(1)


@contextmanager
def http_server(script: Callable[[Request], None], port: int = 0) -> Iterator[str]:
    """An HTTP server on loopback that runs ``script`` for each request; its URL."""
    handler = type("Handler", (Request,), {"script": staticmethod(script)})
    with _serving(http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)) as port:
        yield f"http://127.0.0.1:{port}"


class RtspCamera(socketserver.StreamRequestHandler):
    """One RTSP connection: H.264 over the same TCP connection (RFC 2326 section 10.12, RFC 6184)."""

    frames: int
    ending: str  # "close", or "silence": the connection stays open
    login: str | None  # "user:password" that is asked for
    connections: list[str]  # the URLs of what was played

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            while (request := self._request()) is not None:
                method, url, sequence, headers = request
                if not self._may(headers):
                    self._reply(401, sequence, 'WWW-Authenticate: Basic realm="camera"')
                elif url.rstrip("/").endswith("/absent"):
                    self._reply(404, sequence)
                elif method == "DESCRIBE":
                    self._describe(url, sequence)
                elif method == "SETUP":
                    self._reply(200, sequence, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1")
                elif method == "PLAY":
                    self.connections.append(url)
                    self._reply(200, sequence, "Session: 1", "Range: npt=0.000-")
                    self._play()
                    return
                else:
                    self._reply(200, sequence, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN", "Session: 1")

    def _request(self) -> tuple[str, str, str, str] | None:
        lines = []
        while (line := self.rfile.readline().decode()).strip():
            lines.append(line)
        if not lines:
            return None
        method, url, _ = lines[0].split()
        headers = "".join(lines[1:])
        sequence = re.search(r"CSeq: (\d+)", headers)
        assert sequence is not None
        return method, url, sequence.group(1), headers

    def _may(self, headers: str) -> bool:
        return self.login is None or f"Basic {base64.b64encode(self.login.encode()).decode()}" in headers

    def _reply(self, status: int, sequence: str, *headers: str, body: str = "") -> None:
        head = [f"RTSP/1.0 {status} {'OK' if status == 200 else 'No'}", f"CSeq: {sequence}", *headers]
        if body:
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        self.wfile.write(("\r\n".join(head) + "\r\n\r\n" + body).encode())

    def _describe(self, url: str, sequence: str) -> None:
        lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 127.0.0.1", "t=0 0", "m=video 0 RTP/AVP 96"]
        lines += ["a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1", f"a=control:{url}/track1"]
        self._reply(200, sequence, body="\r\n".join(lines) + "\r\n")

    def _play(self) -> None:
        number = 0
        for frame, units in enumerate(h264(self.frames)):
            for index, unit in enumerate(units):
                last = index == len(units) - 1
                rtp = struct.pack(">BBHII", 0x80, 96 | (0x80 if last else 0), number, frame * 9000, 7) + unit
                self.wfile.write(struct.pack(">BBH", 0x24, 0, len(rtp)) + rtp)
                number += 1
        if self.ending == "silence":
            self.connection.settimeout(20)
            with suppress(OSError):
                while self.connection.recv(1 << 12):
                    pass


def h264(frames: int) -> list[list[bytes]]:
    """Pictures 0 to ``frames`` as H.264: the NAL units of each."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = SIZE
    encoder.pix_fmt, encoder.framerate, encoder.gop_size, encoder.max_b_frames = "yuv420p", 10, 5, 0
    encoder.options = {"tune": "zerolatency", "x264-params": "sliced-threads=0:threads=1"}
    packets = []
    for number in range(frames):
        packets += encoder.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24"))
    packets += encoder.encode(None)
    return [[unit for unit in re.split(rb"\x00?\x00\x00\x01", bytes(packet)) if unit] for packet in packets]


class RtspServer(socketserver.ThreadingTCPServer):
    """Cameras of one kind; ``played`` holds the URL of every PLAY."""

    allow_reuse_address, daemon_threads = True, True


@contextmanager
def rtsp_server(
    *, frames: int = 20, ending: str = "close", login: str | None = None, connections: list[str] | None = None
) -> Iterator[str]:
    """An RTSP server on loopback; its URL without credentials. ``connections`` gets the URL of every PLAY."""
    played = connections if connections is not None else []
    attributes = {"frames": frames, "ending": ending, "login": login, "connections": played}
    with _serving(RtspServer(("127.0.0.1", 0), type("Camera", (RtspCamera,), attributes))) as port:
        yield f"rtsp://127.0.0.1:{port}"


@contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        if isinstance(server, socketserver.ThreadingMixIn):
            server.block_on_close = False
        server.server_close()


def unused_port() -> int:
    """A port of loopback where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait until ``condition`` holds."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.01)
