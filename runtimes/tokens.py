"""Bearer tokens in a file: read, compared, and read again when the file changes. docs/security.md has the format."""

import hashlib
import hmac
import logging
import re
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aecnn_deploy.errors import CredentialsError

MIN_TOKEN_CHARACTERS = 16
MAX_TOKEN_CHARACTERS = 512

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750's b64token
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)
_MAX_FILE_BYTES = 1 << 20
_POLL_S = 1.0

logger = logging.getLogger("aecnn_deploy.edge")


@dataclass(frozen=True, slots=True)
class Token:
    """One entry: its peer's name and the SHA-256 of the secret."""

    name: str
    digest: bytes


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The entries of an edge's token file, at least one.

    Raises CredentialsError, with the file and the line: it cannot be read, or a line is no entry.
    """
    tokens: dict[str, Token] = {}
    digests: dict[bytes, str] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        name, _, secret = line.partition(" ")
        secret = secret.strip()
        if not _NAME.fullmatch(name) or not secret:
            raise CredentialsError(f"{where}: expected 'name token', a name of letters, digits and . _ - (at most 64)")
        hashed = _HASHED.fullmatch(secret)
        if hashed is None:
            check_token(secret, where)
        digest = bytes.fromhex(hashed[1]) if hashed else _digest(secret)
        if name in tokens:
            raise CredentialsError(f"{where}: the name {name} stands in an earlier line, too; give each peer its own")
        if digest in digests:
            raise CredentialsError(f"{where}: {name} has the token of {digests[digest]}; give each peer its own")
        tokens[name] = Token(name, digest)
        digests[digest] = name
    if not tokens:
        raise CredentialsError(f"{path} holds no token; add a line 'name token'")
    return tuple(tokens.values())


def read_own_token(path: Path) -> str:
    """The first token of a device's file, whose line is the token, or ``name token``. Raises CredentialsError."""
    for number, line in _lines(path):
        token = line.split()[-1]
        if _HASHED.fullmatch(token):
            raise CredentialsError(f"{path}, line {number}: a device needs the token itself, not its SHA-256")
        check_token(token, f"{path}, line {number}")
        return token
    raise CredentialsError(f"{path} holds no token; write the device's token into it")


def check_token(token: str, where: str) -> None:
    """Raises CredentialsError, which does not repeat the secret: too short, too long, or of other characters."""
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS:
        raise CredentialsError(
            f"{where}: the token has {len(token)} characters, expected {MIN_TOKEN_CHARACTERS} to "
            f"{MAX_TOKEN_CHARACTERS}; make one with: openssl rand -hex 32"
        )
    if not _TOKEN.fullmatch(token):
        raise CredentialsError(
            f"{where}: the token has other characters than letters, digits and . _ ~ + / - =; "
            "make one with: openssl rand -hex 32"
        )


def find_token(tokens: Sequence[Token], presented: str) -> Token | None:
    """The entry of ``presented``. Takes the same time whichever it is and whether it is one."""
    digest = _digest(presented)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found


class TokenFile:
    """The entries of a file, followed as it changes. A change to something bad keeps the old ones and is logged once.

    Raises CredentialsError: it is bad already.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._looked_s = clock()
        self._stamp = file_stamp(path)
        self._tokens = read_tokens(path)
        self._warn()

    def find(self, presented: str) -> Token | None:
        """The entry of ``presented``, of the file as it was a second ago at most."""
        self.refresh()
        return find_token(self._tokens, presented)

    def holds(self, token: Token) -> bool:
        """Whether ``token`` is one of the entries still."""
        self.refresh()
        return token in self._tokens

    def refresh(self) -> None:
        """Look at the file, if that was not done within the last second, and read it if it has changed."""
        now_s = self._clock()
        if now_s - self._looked_s < _POLL_S:
            return
        self._looked_s = now_s
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tokens = read_tokens(self._path)
        except CredentialsError as exc:
            logger.error("%s; the tokens that it had before stay in use", exc)
            return
        logger.info("read %s again: %d tokens", self._path, len(self._tokens))
        self._warn()

    def _warn(self) -> None:
        if self._stamp is not None and self._stamp.mode & stat.S_IROTH:
            logger.warning("%s can be read by every user of this machine; chmod 600 it", self._path)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file is another one or was written to."""

    inode: int
    size_bytes: int
    changed_ns: int
    mode: int


def file_stamp(path: Path) -> FileStamp | None:
    """None: there is no such file, or nobody may look."""
    try:
        found = path.stat()  # follows links: a secret that is renewed often is one
    except OSError:
        return None
    return FileStamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines with their numbers, without white space around, comments and empty ones. Raises CredentialsError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise CredentialsError(f"cannot read the token file {path}: {exc.strerror}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise CredentialsError(
            f"the token file {path} has over {_MAX_FILE_BYTES} bytes, the limit; is it another file?"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        number = content[: exc.start].count(b"\n") + 1
        raise CredentialsError(f"{path}, line {number}: not text; expected 'name token'") from None
    stripped = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, " ".join(line.split())) for number, line in stripped if line and not line.startswith("#")]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
