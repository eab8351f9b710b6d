"""Reading a tar archive that nobody vouches for: in memory, from front to back, and never more than was bargained for.

Nothing is extracted to disk. Only regular files and directories are allowed; names that leave the archive (`..`,
absolute), links, devices, sparse and duplicate members are refused by name, and so is one that is larger than expected,
before it is read. What ends early is refused, too: tarfile by itself takes a damaged header for the end.
"""
import bz2
import gzip
import lzma
import pathlib
import tarfile
import zlib
from typing import IO, Any, Callable, Iterator, List, NamedTuple, Optional, Set

from gluon_aa.errors import FailedError, reason

#: What a compressed file begins with -> what opens it.
_OPENERS = ((b'\x1f\x8b', gzip.open), (b'\xfd7zXZ\x00', lzma.open), (b'BZh', bz2.open))

#: tarfile's own reads are headers and their extensions.
HEADER_BYTES = 1 << 20
BLOCK_BYTES = 512
#: An archive may hold so many times its own size, and in any case `FREE_BYTES`: more is a bomb, not pictures.
EXPANSION = 100
FREE_BYTES = 1 << 30

_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, OverflowError)


class Member(NamedTuple):
    """A regular file with its content, or a directory with None."""

    name: str  # parts joined by /, without leading ./
    content: Optional[bytes]


def read_members(path: pathlib.Path, wanted: Callable[[str], int]) -> Iterator[Member]:
    """The members of the tar archive `path` (plain, gzip, xz or bzip2), in its order.

    Args:
        wanted: name -> the most bytes that a file of this name may have; 0 passes it over.

    Raises:
        FailedError: an archive that is unreadable, damaged or truncated, or a member that is refused.
    """
    try:
        raw = open(path, 'rb')
    except OSError as error:
        raise FailedError(f'cannot read {path}: {error.strerror}') from error
    try:
        with raw:
            stream = _Stream(_decompressed(raw), max(FREE_BYTES, EXPANSION * path.stat().st_size))
            with tarfile.open(fileobj=stream, mode='r:') as tar:  # type: ignore[call-overload]  # all that it calls
                yield from _checked(tar, stream, wanted)
            stream.drain()
    except _Refused as error:
        raise FailedError(f'{path} {error}') from None
    except _DAMAGE as error:
        raise FailedError(f'{path} is damaged, truncated or no tar archive: {reason(error)}') from error


class _Refused(Exception):
    """Why an archive is not read on; to follow its path."""


def _decompressed(raw: IO[bytes]) -> Any:
    start = raw.read(6)
    raw.seek(0)
    for magic, opener in _OPENERS:
        if start.startswith(magic):
            return opener(raw, 'rb')
    return raw


class _Stream:
    """A file as tarfile reads it: forwards only, and no more than `limit` bytes of it."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit = file, limit
        self._position = 0
        self.last = b''  # what was read last

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= HEADER_BYTES:
            raise _Refused(f'has a header of {size:,} bytes: it is damaged or was made to do harm')
        return self.take(size)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or those that are left."""
        self._position += size
        if self._position > self._limit:
            raise _Refused(f'unpacks to more than {self._limit:,} bytes, {EXPANSION} times its size: it was made to do '
                           'harm, or should be unpacked and named as a directory')
        self.last = bytes(self._file.read(size))
        return self.last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise _Refused('has a header that points backwards: it is damaged or was made to do harm')
        while self._position < position:
            if not self.take(min(position - self._position, HEADER_BYTES)):
                raise EOFError('it ends within a member')

    def drain(self) -> None:
        """Read what follows the last member, so that the compression's checksum is compared."""
        if self.last != bytes(BLOCK_BYTES):
            raise EOFError('the end of the archive is missing')
        while self.take(HEADER_BYTES):
            pass


def _checked(tar: tarfile.TarFile, stream: _Stream, wanted: Callable[[str], int]) -> Iterator[Member]:
    seen: Set[str] = set()
    for info in tar:
        parts = _parts(info.name)
        name = '/'.join(parts)
        if info.isdir():
            yield Member(name, None)
            continue
        if not info.isreg() or info.issparse():
            raise _Refused(f'holds {info.name!r}, which is {_kind(info)}: only regular files are read')
        if not parts or name in seen:
            raise _Refused(f'holds {info.name!r} more than once')
        seen.add(name)
        most = wanted(name)
        if most:
            yield Member(name, _content(info, stream, most))


def _parts(name: str) -> List[str]:
    parts = [part for part in name.split('/') if part not in ('', '.')]
    if name.startswith('/') or '..' in parts:
        raise _Refused(f'holds {name!r}, a name that leads out of it')
    return parts


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f'a link to {info.linkname!r}'
    return 'a sparse file' if info.issparse() else 'no file'


def _content(info: tarfile.TarInfo, stream: _Stream, most: int) -> bytes:
    if not 0 <= info.size <= most:
        raise _Refused(f'holds {info.name!r} of {info.size:,} bytes, where at most {most:,} are expected')
    stream.seek(info.offset_data)
    content = stream.take(info.size)
    if len(content) < info.size:
        raise EOFError(f'it ends within {info.name!r}')
    return content
