"""Peaks of memory, measured: what MXNet allocates on a device, and what the process holds.

    meter.start()                                   # before MXNet allocates anything
    with meter.storage(mx.cpu(0)) as allocated, meter.resident() as held:
        ...
    allocated.growth, held.growth                   # bytes over what was in use before

`storage` is MXNet's own count of every allocation, workspaces included, on CPUs and GPUs: exact and repeatable.
`resident` is the kernel's count of the whole process: it sees what libraries allocate behind MXNet's back, and not
what is allocated and never touched.
"""
import atexit
import contextlib
import ctypes
import pathlib
import re
import resource
import shutil
import tempfile
import threading
from typing import Any, Dict, Iterator, List, Optional

from gluon_aa import machine
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError

#: Seconds between two looks at the process where the kernel does not keep its peak for us.
SAMPLING_INTERVAL = 0.001

_PROCESS = pathlib.Path('/proc/self')
_RESET_PEAK = '5'  # to clear_refs: see Linux's Documentation/filesystems/proc.rst
_PROBE_BYTES = 4
_MAXIMUM = 'Max Use (kB)'  # the column's title
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

_started = False


class Usage:
    """Bytes in use `before`, and at the `peak` of what was watched; complete when the watching ends."""

    def __init__(self, before: int) -> None:
        self.before = self.peak = before

    @property
    def growth(self) -> int:
        """Bytes at the peak beyond those before."""
        return self.peak - self.before


def start() -> None:
    """Let MXNet count its allocations from now to the end of the process, which slows small operators.

    Call it before the first allocation: what MXNet does not know it allocated, it cannot take off when it is freed.
    Repeated calls do nothing. The profiler must never stop, for the same reason.
    """
    global _started
    if _started:
        return
    # MXNet deletes and makes anew the file that it is given, so it gets one in a directory of its own
    directory = tempfile.mkdtemp(prefix='gluon-aa-profile-')
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    mx.profiler.set_config(profile_memory=True, profile_symbolic=False, profile_imperative=False, profile_api=False,
                           aggregate_stats=True, filename=str(pathlib.Path(directory, 'profile.json')))
    mx.profiler.set_state('run')
    _started = True


@contextlib.contextmanager
def storage(device: Any) -> Iterator[Usage]:
    """Watch what MXNet allocates on `device`; waits for MXNet to be idle before and after. Not to be nested.

    MXNet keeps thousands of bytes as single-precision numbers: 64 bytes are lost in a gigabyte.

    Raises:
        FailedError: `start` was not called.
    """
    if not _started:
        raise FailedError('the storage profiler does not run: call gluon_aa.memory.meter.start() before MXNet '
                          'allocates anything')
    mx.nd.waitall()
    usage = Usage(_in_use(device))
    _peaks()
    yield usage
    mx.nd.waitall()
    usage.peak = max(usage.before, _peaks().get(_name(device), 0))


def _in_use(device: Any) -> int:
    """Bytes allocated on `device` now: the profiler tells only at an allocation, so there is a small one."""
    _peaks()
    probe = mx.nd.empty((_PROBE_BYTES // 4,), ctx=device)
    level = _peaks()[_name(device)] - _PROBE_BYTES
    del probe
    mx.nd.waitall()
    return level


def _peaks() -> Dict[str, int]:
    """The most that was allocated on each device that allocated or freed since the last call: {'cpu/0': bytes}."""
    return parse(mx.profiler.dumps(reset=True, format='table'))  # format json rounds to whole kB


def _name(device: Any) -> str:
    return f'{device.device_type}/{device.device_id}'


def parse(table: str) -> Dict[str, int]:
    """Device -> maximum in bytes, from the profiler's table.

    Columns are found by their titles. A kB is 1000 bytes here.

    Raises:
        FailedError: rows of memory without the titles.
    """
    found: Dict[str, int] = {}
    titles: List[str] = []
    for line in table.splitlines():
        cells = re.split(r'\s{2,}', re.sub(r'\s+\(', ' (', line.strip()))  # a title's unit stands two spaces after it
        if cells[0] == 'Name':
            titles = cells
        device = re.fullmatch(r'Memory: (\S+)', cells[0])
        if not device:
            continue
        if _MAXIMUM not in titles or len(cells) != len(titles):
            raise FailedError(f"cannot read MXNet's memory profile: {cells} under {titles}")
        found[device.group(1)] = round(float(cells[titles.index(_MAXIMUM)]) * 1000)
    return found


def return_freed_memory() -> None:
    """Make glibc give every larger block back to the kernel when it is freed, from now on.

    By itself it keeps freed blocks for later, so that what a second computation needs would not show as growth.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):  # glibc's, not musl's
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 16)
        libc.malloc_trim(0)


@contextlib.contextmanager
def resident() -> Iterator[Usage]:
    """Watch the resident set of this process (RSS); call `return_freed_memory` first, once.

    The kernel's own peak (VmHWM) is reset where that is permitted, and exact to some pages a thread; elsewhere a thread
    looks every millisecond, and can miss what lasts no longer.
    """
    mx.nd.waitall()
    if _reset_peak():
        usage = Usage(_status('VmRSS'))
        yield usage
        mx.nd.waitall()
        usage.peak = max(usage.before, _status('VmHWM'))
        return
    usage = Usage(_status('VmRSS'))
    with _sampling(usage):
        yield usage
        mx.nd.waitall()


def data_bytes() -> int:
    """What of this process's memory is its own and can be written to, touched or not: what RLIMIT_DATA limits."""
    return _status('VmData')


def left() -> Optional[int]:
    """Bytes that this process may still take: of its limits, and of what the machine has free; None where none says."""
    mx.nd.ones((1,)).wait_to_read()  # MXNet's threads, which come with the first operator, have their stacks
    found = [machine.available_memory()]
    for kind, held in ((resource.RLIMIT_DATA, 'VmData'), (resource.RLIMIT_AS, 'VmSize')):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append(max(0, limit - _status(held)))
    return min((count for count in found if count is not None), default=None)


def _reset_peak() -> bool:
    """Whether the kernel let us set its peak back to what is in use."""
    try:
        (_PROCESS / 'clear_refs').write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """Bytes, from the line `key` of /proc/self/status."""
    for line in (_PROCESS / 'status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise FailedError(f'{_PROCESS / "status"} has no line {key}')


@contextlib.contextmanager
def _sampling(usage: Usage) -> Iterator[None]:
    """Raise `usage.peak` to the highest resident set seen by a thread."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLING_INTERVAL):
            usage.peak = max(usage.peak, _status('VmRSS'))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        usage.peak = max(usage.peak, _status('VmRSS'))
