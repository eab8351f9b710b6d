"""What this machine offers a CPU process: cores it may use, instructions that matter.

Reads the kernel's own files and nothing else, so that it works before (and without) MXNet.
"""
import math
import os
import pathlib
from typing import Dict, List, Optional, Set

_FLAGS_THAT_MATTER = ('avx2', 'avx512f', 'avx512_bf16', 'amx_tile', 'amx_bf16')


def usable_cpus() -> Set[int]:
    """Logical CPUs this process may run on (its affinity)."""
    if hasattr(os, 'sched_getaffinity'):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(root: pathlib.Path = pathlib.Path('/')) -> int:
    """Physical cores this process may use: affinity, less hyper-threads, within the cgroup limit.

    Hyper-threads of one core share its vector units, so a second thread there adds nothing to
    a convolution. A limit of 1.5 CPUs counts as 2: half a core more still helps.
    """
    cpus = usable_cpus()
    cores = {_thread_siblings(cpu, root) for cpu in cpus}
    quota = cgroup_cpu_limit(root)
    count = len(cores) if quota is None else min(len(cores), math.ceil(quota))
    return max(1, count)


def _thread_siblings(cpu: int, root: pathlib.Path) -> str:
    path = root / f'sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list'
    try:
        return path.read_text().strip()
    except OSError:  # no sysfs: count every logical CPU
        return str(cpu)


def cgroup_cpu_limit(root: pathlib.Path = pathlib.Path('/')) -> Optional[float]:
    """CPUs' worth of time the tightest enclosing cgroup grants (v2 or v1), or None for no limit."""
    limits = [limit for limit in map(_cgroup_limit, _cgroup_directories(root)) if limit is not None]
    return min(limits, default=None)


def _cgroup_directories(root: pathlib.Path, controller: str = 'cpu') -> List[pathlib.Path]:
    """Every cgroup directory that holds this process, from its own up to the mount."""
    try:
        lines = (root / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        return []
    mount = root / 'sys/fs/cgroup'
    directories = []
    for line in lines:
        _, controllers, path = line.split(':', 2)
        if controllers == '':
            top = mount
        elif controller in controllers.split(','):
            top = mount / controller
        else:
            continue
        own = top / path.lstrip('/')
        directories += [own, *(parent for parent in own.parents if top in (parent, *parent.parents))]
    return directories


def _cgroup_limit(directory: pathlib.Path) -> Optional[float]:
    try:
        if (directory / 'cpu.max').exists():
            quota, period = (directory / 'cpu.max').read_text().split()
        else:
            quota = (directory / 'cpu.cfs_quota_us').read_text().strip()
            period = (directory / 'cpu.cfs_period_us').read_text().strip()
    except OSError:
        return None
    return None if quota in ('max', '-1') else int(quota) / int(period)


def available_memory(root: pathlib.Path = pathlib.Path('/')) -> Optional[int]:
    """Bytes that can be used without swapping, as the kernel estimates them, within the tightest cgroup; None where it
    does not say."""
    try:
        lines = (root / 'proc/meminfo').read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:')]
    limits = [left for left in map(_cgroup_memory_left, _cgroup_directories(root, 'memory')) if left is not None]
    return min([found[0], *limits]) if found else None


def _cgroup_memory_left(directory: pathlib.Path) -> Optional[int]:
    """Bytes that a cgroup (v2 or v1) may still take, files that are read but not in use counted as free."""
    for limit, usage in (('memory.max', 'memory.current'), ('memory.limit_in_bytes', 'memory.usage_in_bytes')):
        try:
            most, used = (directory / limit).read_text().strip(), int((directory / usage).read_text())
            lines = (directory / 'memory.stat').read_text().splitlines()
        except OSError:
            continue
        files = [int(line.split()[1]) for line in lines if line.split()[0] in ('inactive_file', 'total_inactive_file')]
        return None if most == 'max' else max(0, int(most) - used + max(files, default=0))
    return None


def cpu_model(root: pathlib.Path = pathlib.Path('/')) -> str:
    """The processor's name as the kernel gives it."""
    return _cpuinfo(root).get('model name', 'unknown')


def cpu_instructions(root: pathlib.Path = pathlib.Path('/')) -> Dict[str, bool]:
    """Which of the instruction sets that decide speed here this CPU has."""
    flags = _cpuinfo(root).get('flags', '').split()
    return {flag: flag in flags for flag in _FLAGS_THAT_MATTER}


def all_cpu_instructions(root: pathlib.Path = pathlib.Path('/')) -> List[str]:
    """Every feature that the kernel lists of this CPU, sorted; ARM calls them so, too."""
    info = _cpuinfo(root)
    return sorted(info.get('flags', info.get('Features', '')).split())


def _cpuinfo(root: pathlib.Path) -> Dict[str, str]:
    try:
        text = (root / 'proc/cpuinfo').read_text()
    except OSError:
        return {}
    first_processor = text.split('\n\n', 1)[0]
    pairs = (line.split(':', 1) for line in first_processor.splitlines() if ':' in line)
    return {key.strip(): value.strip() for key, value in pairs}
