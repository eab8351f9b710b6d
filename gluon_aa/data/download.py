"""Fetching a file from the first host that gives the right one."""
import hashlib
import http.client
import pathlib
import urllib.request
from typing import Iterable, Iterator, List, NamedTuple, Sequence

from gluon_aa.files import replacing
from gluon_aa.data.source import Notice
from gluon_aa.errors import FailedError, reason

#: Longest silence of a host.
TIMEOUT_SECONDS = 30.0
BLOCK_BYTES = 1 << 20


class Source(NamedTuple):
    """Where a file is to be had, and its checksum there."""

    url: str
    algorithm: str  # of hashlib
    digest: str  # hexadecimal


class _Unusable(Exception):
    """The host, or what it sends, is not what is wanted."""


def fetch(sources: Sequence[Source], path: pathlib.Path, max_bytes: int, on_progress: Notice) -> None:
    """Download `path` from the first of `sources` that gives a file with its checksum; whole or not at all.

    Raises:
        FailedError: none of them does (names every reason), or `path` cannot be written.
    """
    failures: List[str] = []
    for source in sources:
        try:
            _save(_blocks(source, max_bytes, on_progress), path)
            return
        except _Unusable as error:
            failures.append(f'{source.url}: {error}')
    raise FailedError('; '.join(failures))


def _save(blocks: Iterable[bytes], path: pathlib.Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            for block in blocks:
                file.write(block)
    except OSError as error:
        raise FailedError(f'cannot write {path}: {error.strerror}') from error


def _blocks(source: Source, max_bytes: int, on_progress: Notice) -> Iterator[bytes]:
    """The file's content, in blocks; its size and checksum are compared when all has come."""
    digest, size = hashlib.new(source.algorithm), 0
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT_SECONDS) as response:
            length = int(response.headers.get('Content-Length') or 0)
            on_progress(f'downloading {source.url} ({length / 1e6:,.0f} MB)')
            while True:
                block = response.read(BLOCK_BYTES)
                size += len(block)
                if max(size, length) > max_bytes:
                    raise _Unusable(f'it sends more than the {max_bytes:,} bytes expected')
                if not block:
                    break
                digest.update(block)
                yield block
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Unusable(reason(error)) from error
    if size < length:
        raise _Unusable(f'the connection broke off after {size:,} of {length:,} bytes')
    if digest.hexdigest() != source.digest:
        raise _Unusable(f'what it sends is not the official file ({source.algorithm.upper()} {digest.hexdigest()})')
