"""All that must happen before `import mxnet`, and the one place MXNet is imported from.

MXNet 1.9.1 (2022) predates NumPy 1.24 and Python 3.12, and on CPUs starts with half the threads
it should. `prepare` mends both; it runs when `gluon_aa` is imported. The rest of the package says
`from gluon_aa.compat import mx`, which turns a missing, doubled or unusable MXNet into one
readable error.
"""
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
import types
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from gluon_aa import machine
from gluon_aa.errors import FailedError

#: Newest versions MXNet 1.9.1 was made to work with here (exclusive bounds).
PYTHON_BELOW = (3, 13)
NUMPY_BELOW = (2, 0)

#: What bounds the threads of MXNet's CPU operators, were it set by the user.
THREAD_LIMITS = ('OMP_THREAD_LIMIT', 'MXNET_OMP_MAX_THREADS')

# Dependency order matters: each library needs the ones before it. [wheel, library]
_CUDA11_LIBRARIES = (
    ('cuda_runtime', 'libcudart.so.11.0'),
    ('nvtx', 'libnvToolsExt.so.1'),
    ('cuda_nvrtc', 'libnvrtc.so.11.2'),
    ('cublas', 'libcublasLt.so.11'),
    ('cublas', 'libcublas.so.11'),
    ('cufft', 'libcufft.so.10'),
    ('curand', 'libcurand.so.10'),
    ('cusparse', 'libcusparse.so.11'),
    ('cusolver', 'libcusolver.so.11'),
    ('cudnn', 'libcudnn.so.8'),
    ('nccl', 'libnccl.so.2'),
)


class Threads(NamedTuple):
    """Threads for MXNet's CPU operators, and why that many."""

    number: int
    reason: str
    by_user: bool = False


def _number(text: Optional[str]) -> Optional[int]:
    """The first level of an OpenMP setting such as '4' or '4,2'; None where it is no number."""
    first = (text or '').split(',')[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def set_threads() -> Threads:
    """Give MXNet the physical cores this process may use, unless the user chose otherwise.

    MXNet reads OMP_NUM_THREADS once, when it loads; without it, it assumes hyper-threads and
    takes half the logical CPUs, which halves training speed where there are none.
    """
    chosen = _number(os.environ.get('OMP_NUM_THREADS'))
    if chosen is not None:
        return Threads(chosen, 'OMP_NUM_THREADS was set already', by_user=True)
    count, reason = machine.physical_cores(), 'physical cores this process may use'
    for name in THREAD_LIMITS:
        limit = _number(os.environ.get(name))
        if limit is not None and limit < count:
            count, reason = limit, f'{name} was set'
    os.environ['OMP_NUM_THREADS'] = str(count)
    return Threads(count, reason)


def set_waiting() -> bool:
    """Let OpenMP threads spin 1,000 rounds at a barrier before they sleep, always.

    libgomp's default is 300,000 rounds, or 100 once there are more team threads than cores. Both cost on 2 cores
    (images/s of aa_wrn10_2 on the digits): two trainings side by side spin each other's time away (fewer than 90 each;
    370 with this), and as soon as the main thread makes a team of its own, by reading an array that oneDNN laid out,
    every operator waits for threads to wake (1,780 before, 760 after; 1,200 to 1,500 with this). Networks whose
    operators take milliseconds do not notice: resnet34 at batch 32 shows no difference beyond a fifth, the noise.
    """
    if 'OMP_WAIT_POLICY' in os.environ or 'GOMP_SPINCOUNT' in os.environ:
        return False
    os.environ.update(OMP_WAIT_POLICY='active', GOMP_SPINCOUNT='1000')
    return True


def add_missing_names() -> List[str]:
    """Give NumPy and Python back the names that MXNet 1.9.1 and gluoncv import; returns what was added."""
    added = []
    if '1.24.0' <= np.lib.NumpyVersion(np.__version__) < '2.0.0':  # gone since NumPy 1.24
        for name, builtin in (('bool', bool), ('int', int), ('float', float)):
            setattr(np, name, builtin)
            added.append(f'numpy.{name}')
    if importlib.util.find_spec('distutils') is None:  # gone since Python 3.12
        from packaging.version import Version
        distutils, version = types.ModuleType('distutils'), types.ModuleType('distutils.version')
        version.LooseVersion = version.StrictVersion = Version  # type: ignore[attr-defined]
        distutils.version = version  # type: ignore[attr-defined]
        sys.modules.update({'distutils': distutils, 'distutils.version': version})
        added.append('distutils.version')
    return added


def installed_wheels() -> List[str]:
    """Installed distributions that carry the module `mxnet`, such as ['mxnet']; sorted."""
    names = (distribution.metadata['Name'] or '' for distribution in importlib.metadata.distributions())
    found = {name.lower().replace('_', '-') for name in names}
    return sorted(name for name in found if name in ('mxnet', 'mxnet-native') or name.startswith('mxnet-cu'))


def load_cuda11_libraries() -> List[str]:
    """Load the CUDA 11 libraries that the nvidia-*-cu11 wheels bring; returns those loaded.

    mxnet-cu112 bundles none of them and the wheels are not on the loader's path. A library that no
    wheel brings is left to the system's loader, as is libcuda.so.1, which is the driver's.
    """
    spec = importlib.util.find_spec('nvidia')
    if spec is None or not spec.submodule_search_locations:
        return []
    loaded = []
    for package, library in _CUDA11_LIBRARIES:
        for location in spec.submodule_search_locations:
            path = pathlib.Path(location, package, 'lib', library)
            if path.exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                loaded.append(library)
                break
    return loaded


def unsupported() -> Optional[str]:
    """Why MXNet 1.9.1 cannot work with this Python or NumPy, or None."""
    if sys.version_info[:2] >= PYTHON_BELOW:
        return (f'Python {sys.version_info[0]}.{sys.version_info[1]} is newer than MXNet 1.9.1 works with here: '
                'use Python 3.8 to 3.12')
    numpy_version: Tuple[int, ...] = tuple(int(part) for part in np.__version__.split('.')[:2])
    if numpy_version >= NUMPY_BELOW:
        return f"NumPy {np.__version__} is newer than MXNet 1.9.1 works with here: pip install 'numpy<2'"
    return None


def import_mxnet() -> Any:
    """Import MXNet, or raise `FailedError` (an import error's cause is kept) saying what to install."""
    if 'mxnet' in sys.modules:
        return sys.modules['mxnet']
    reason = unsupported()
    if reason:
        raise FailedError(reason)
    wheels = installed_wheels()
    if len(wheels) > 1:
        raise FailedError(f'{" and ".join(wheels)} are both installed and overwrite each other: '
                          f'pip uninstall {" ".join(wheels)}, then install the one you want')
    if not wheels and importlib.util.find_spec('mxnet') is None:
        raise FailedError("MXNet is not installed: pip install 'gluon-aa[cpu]', "
                          "or 'gluon-aa[cu112]' on a machine with an NVIDIA GPU")
    try:
        if any('-cu' in wheel for wheel in wheels):
            load_cuda11_libraries()
        return importlib.import_module('mxnet')
    except (ImportError, OSError, AttributeError) as error:
        hint = "; it comes with NVIDIA's driver: install that, or gluon-aa[cpu]" if 'libcuda.so' in str(error) else ''
        raise FailedError(f'{" ".join(wheels) or "mxnet"} is installed but does not load: {error}{hint}') from error


def sees_gpus() -> bool:
    """Whether MXNet is built for GPUs and there is one."""
    mx = import_mxnet()
    # some builds without CUDA have no working count
    return bool(mx.runtime.Features().is_enabled('CUDA') and mx.context.num_gpus() > 0)


def prepare() -> Tuple[Threads, bool, List[str]]:
    """Set threads and their waiting and add names, before MXNet; warns where MXNet came first."""
    mxnet_was_first = 'mxnet' in sys.modules
    threads, waiting, added = set_threads(), set_waiting(), add_missing_names()
    if mxnet_was_first and not threads.by_user:
        warnings.warn('mxnet was imported before gluon_aa, so its thread count could not be set and CPU training may '
                      'run at half speed: import gluon_aa first, or set OMP_NUM_THREADS', RuntimeWarning, stacklevel=3)
    return threads, waiting, added


THREADS, WAITING_SET, ADDED_NAMES = prepare()

#: How many workspaces MXNet keeps for its CPU operators, and whether `share_cores` said so.
_WORKSPACES = 'MXNET_CPU_TEMP_COPY'
WORKSPACES_SET = False


def share_cores(cpu_devices: int) -> None:
    """One thread for each of several CPU devices; call it before MXNet is imported, else it changes nothing.

    And a workspace for each: MXNet by itself keeps four, each as large as the largest that was asked for, in turn. The
    operators of a device run one by one, so it needs one.

    The OpenBLAS in MXNet's wheel (0.3.13 with OpenMP) never returns from `exec_blas` where two threads call it with
    more than one OpenMP thread each, as the engine's workers of two CPU contexts do for attention's products.
    """
    global THREADS, WORKSPACES_SET
    if 'mxnet' not in sys.modules and (WORKSPACES_SET or _WORKSPACES not in os.environ):
        os.environ[_WORKSPACES] = str(cpu_devices)
        WORKSPACES_SET = True
    if cpu_devices > 1 and THREADS.number > 1 and not THREADS.by_user and 'mxnet' not in sys.modules:
        THREADS = Threads(1, f'one for each of {cpu_devices} CPU devices')
        os.environ['OMP_NUM_THREADS'] = '1'


def users_environment() -> Dict[str, str]:
    """The environment without what `prepare` set, for a child process that is to choose for itself."""
    ours = [] if THREADS.by_user else ['OMP_NUM_THREADS']
    if WAITING_SET:
        ours += ['OMP_WAIT_POLICY', 'GOMP_SPINCOUNT']
    if WORKSPACES_SET:
        ours.append(_WORKSPACES)
    return {name: value for name, value in os.environ.items() if name not in ours}


def __getattr__(name: str) -> Any:
    """`from gluon_aa.compat import mx`: MXNet, imported on first use (PEP 562)."""
    if name == 'mx':
        return import_mxnet()
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
