"""The two errors that end a command with one line, exit code 2 or 1, and the notice that does not."""
import difflib
from typing import Iterable


class UsageError(ValueError):
    """A request that cannot be met as worded: an unknown name, a bad value, a contradiction."""


class FailedError(RuntimeError):
    """The work failed, or the machine lacks what it needs."""


class OutOfMemory(FailedError):
    """Memory was too small. MXNet may hang in this process from here on, even at its end: `os._exit` is what ends it."""


class Notice(UserWarning):
    """What a user should know although the work goes on; the command line shows it as one line."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a `name` that is not among `known`: lists the near ones, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=4, cutoff=0.6)
    if near:
        return UsageError(f'unknown {kind} {name!r}: did you mean {" or ".join(near)}?')
    return UsageError(f'unknown {kind} {name!r}: choose from {", ".join(names)}')


def reason(error: BaseException) -> str:
    """What `error` says, on one line; MXNet's own errors begin with a C++ traceback and end with the point."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith('Traceback'):
        lines = lines[-1:]
    return ' '.join(lines) or type(error).__name__
