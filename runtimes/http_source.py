"""Streams and pictures over HTTP: MJPEG as network cameras send it, a still picture that is asked for again, video."""

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit, urlunsplit

from aecnn_deploy.errors import SourceError, SourceLostError
from aecnn_deploy.runtimes.frames import MAX_FILE_BYTES
from aecnn_deploy.runtimes.jpeg_stream import JpegSplitter
from aecnn_deploy.runtimes.live_source import Feed, sleep_until
from aecnn_deploy.runtimes.source import SourceImage, SourceSettings, Thinner
from aecnn_deploy.runtimes.video_source import VideoAddress, VideoFeed, frame_name

_CHUNK_BYTES = 1 << 16
_PASSING = frozenset({408, 425, 429, *range(500, 600)})  # statuses that may be others in a while


def open_http(url: str, name: str, settings: SourceSettings) -> Feed:
    """What the answer's content type says: multipart is MJPEG, an image a still picture, all else a video.

    Raises SourceError; SourceLostError: nobody answers, or with a status that may go away.
    """
    address = _HttpAddress(url, name, settings.stall_s)
    response = address.get()
    kind = response.headers.get_content_maintype()
    if kind == "multipart":
        return _MjpegFeed(address, response, settings)
    if kind == "image":
        return _StillFeed(address, response, settings)
    response.close()
    if kind == "text" and response.headers.get_content_subtype() == "html":
        raise SourceError(f"{name} is a web page; give the address of its stream or picture")
    return VideoFeed(VideoAddress("http", url, name), settings)


class _HttpAddress:
    """A URL, its credentials apart, and one way to ask for it."""

    def __init__(self, url: str, name: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self.name, self.timeout_s = name, timeout_s
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._opener = urllib.request.OpenerDirector()
        handlers: list[urllib.request.BaseHandler] = [
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ]
        if parts.username is not None:
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, self._url, unquote(parts.username), unquote(parts.password or ""))
            handlers.append(urllib.request.HTTPBasicAuthHandler(passwords))
            handlers.append(urllib.request.HTTPDigestAuthHandler(passwords))
        for handler in handlers:  # and no others: no proxy of the environment, no ftp: or file: behind a redirect
            self._opener.add_handler(handler)

    def get(self) -> http.client.HTTPResponse:
        """The answer, when its headers are there. Raises SourceError, SourceLostError."""
        try:
            response = self._opener.open(self._url, timeout=self.timeout_s)
        except urllib.error.HTTPError as exc:
            exc.close()
            raise self._refused(exc) from None
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self.failure(exc) from None
        if not isinstance(response, http.client.HTTPResponse):
            raise SourceError(f"{self.name}: it leads to no HTTP address")
        return response

    def failure(self, exc: Exception) -> SourceError:
        """What a connection's error means for the source."""
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        if isinstance(reason, TimeoutError):
            return SourceLostError(f"{self.name}: no answer for {self.timeout_s:g} s")
        if isinstance(reason, ssl.SSLCertVerificationError):
            return SourceError(
                f"{self.name}: its certificate is not trusted ({reason.verify_message}); "
                "name the authority's file in SSL_CERT_FILE"
            )
        if isinstance(reason, http.client.HTTPException):
            return SourceError(f"{self.name}: it does not speak HTTP as it should ({type(reason).__name__})")
        if isinstance(reason, OSError):
            return SourceLostError(f"{self.name}: {reason.strerror or type(reason).__name__}")
        return SourceError(f"{self.name}: it is no address that can be asked")

    def _refused(self, error: urllib.error.HTTPError) -> SourceError:
        words = f"{self.name}: {error.code} {http.client.responses.get(error.code, '')}".rstrip()
        if error.code == 401:
            return SourceError(f"{words}; give a user and password as http://USER:PASSWORD@HOST/…")
        return SourceLostError(words) if error.code in _PASSING else SourceError(words)


class _MjpegFeed:
    """JPEGs of a multipart answer; a ``Feed``. Each is found by its own markers, whatever the server's headers say."""

    live, paced = True, True

    def __init__(self, address: _HttpAddress, response: http.client.HTTPResponse, settings: SourceSettings) -> None:
        self._address, self._response, self._settings = address, response, settings

    def close(self) -> None:
        self._response.close()

    def images(self, stop: threading.Event) -> Iterator[SourceImage]:
        splitter, thinner = JpegSplitter(), Thinner(self._settings.fps)
        count, first_s = 0, time.perf_counter()
        while not stop.is_set():
            data = self._read()
            if not data:
                raise SourceLostError(f"{self._address.name}: the stream ended after {count} frames")
            now_s = time.perf_counter()
            for jpeg in self._jpegs(splitter, data):
                count += 1
                first_s = now_s if count == 1 else first_s
                if thinner.takes(now_s):
                    yield SourceImage(frame_name(self._address.name, count, now_s - first_s), jpeg, now_s)

    def _jpegs(self, splitter: JpegSplitter, data: bytes) -> list[bytes]:
        try:
            return splitter.feed(data)
        except SourceError as exc:
            raise SourceError(f"{self._address.name}: {exc}") from None

    def _read(self) -> bytes:
        try:
            return self._response.read1(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            if isinstance(exc, http.client.HTTPException):
                raise SourceLostError(f"{self._address.name}: the stream broke off") from None
            raise self._address.failure(exc) from None


class _StillFeed:
    """A still picture; a ``Feed``: once, or with ``fps`` asked for again that often."""

    def __init__(self, address: _HttpAddress, response: http.client.HTTPResponse, settings: SourceSettings) -> None:
        self._address, self._settings = address, settings
        self._first: http.client.HTTPResponse | None = response

    @property
    def live(self) -> bool:
        return self._settings.fps is not None

    @property
    def paced(self) -> bool:
        return False  # each request has its own limit, and two may be far apart

    def close(self) -> None:
        if self._first is not None:
            self._first.close()

    def images(self, stop: threading.Event) -> Iterator[SourceImage]:
        name, fps = self._address.name, self._settings.fps
        start_s = time.perf_counter()
        count = 0
        while not stop.is_set():
            response, self._first = self._first or self._address.get(), None
            content = self._whole(response)
            captured_s = time.perf_counter()
            count += 1
            yield SourceImage(frame_name(name, count, captured_s - start_s) if fps else name, content, captured_s)
            if fps is None:
                return
            sleep_until(max(start_s + count / fps, captured_s), stop)

    def _whole(self, response: http.client.HTTPResponse) -> bytes:
        content = bytearray()
        end_s = time.perf_counter() + self._settings.stall_s
        with response:
            while True:
                try:
                    more = response.read1(_CHUNK_BYTES)
                except http.client.HTTPException:
                    raise SourceLostError(f"{self._address.name}: the picture broke off") from None
                except OSError as exc:
                    raise self._address.failure(exc) from None
                if not more:
                    return bytes(content)
                content += more
                if len(content) > MAX_FILE_BYTES:
                    raise SourceError(f"{self._address.name}: the picture is over the limit of {MAX_FILE_BYTES} bytes")
                if time.perf_counter() > end_s:
                    raise SourceLostError(
                        f"{self._address.name}: the picture takes longer than {self._settings.stall_s:g} s"
                    )
