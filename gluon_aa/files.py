"""Files that are whole or absent: written beside their place, flushed to disk, then renamed. And the cache's place."""
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any, Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path to write; it becomes `path` when the block ends well, and goes when it does not."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write or replace `path` at once; on failure the old file stays."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: pathlib.Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN and infinities, which are no JSON, are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def sync(path: pathlib.Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: pathlib.Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def make_private(path: pathlib.Path) -> None:
    """Make a directory, and those above it that are missing, for this user alone, whatever the umask."""
    for missing in reversed([place for place in (path, *path.parents) if not place.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def cache(kind: str) -> pathlib.Path:
    """The directory for what can be made anew: $XDG_CACHE_HOME/gluon-aa/<kind>, ~/.cache by default."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'gluon-aa' / kind
