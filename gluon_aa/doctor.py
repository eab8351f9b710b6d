"""What `gluon-aa doctor` finds: the machine, the versions, MXNet, what was set right, and the traps that apply.

MXNet is loaded in a process of its own: where it cannot load, or kills the process, the rest is still reported.
"""
import importlib.metadata
import pathlib
import platform
from typing import Any, Callable, Dict, List, Optional, Tuple

from gluon_aa import compat, isolation, machine
from gluon_aa.errors import FailedError

PACKAGES = ('numpy', 'gluoncv', 'scikit-learn', 'matplotlib', 'click', 'PyYAML', 'tqdm', 'tabulate')
PROBE_SECONDS = 120
#: Compiling included.
NATIVE_PROBE_SECONDS = 900

#: (does it apply to these findings?, what to know). In the order they are shown.
_TRAPS: Tuple[Tuple[Callable[[Dict[str, Any]], bool], str], ...] = (
    (lambda found: found['threads']['number'] < found['cpu']['physical_cores'],
     'fewer threads than physical cores: unset OMP_NUM_THREADS (and its limits) to use them all'),
    (lambda found: found['threads']['number'] > found['cpu']['physical_cores'],
     'more threads than physical cores: they will take turns; unset OMP_NUM_THREADS'),
    (lambda found: found['nvidia_driver'] is not None and found['mxnet'].get('gpus') == 0,
     "an NVIDIA driver is here but MXNet sees no GPU: its CPU build cannot; install 'gluon-aa[cu112]' instead"),
    (lambda found: 'CUDA' in found['mxnet'].get('features', ()) and found['mxnet'].get('gpus') == 0,
     'MXNet was built for CUDA but sees no GPU: is the driver loaded, and CUDA_VISIBLE_DEVICES not empty?'),
    (lambda found: not any(found['cpu']['instructions'].get(name) for name in ('avx512_bf16', 'amx_bf16')),
     'this CPU has no bfloat16 instructions: bfloat16 would be slower than float32'),
    (lambda found: bool(found['native_attention']['error']) and 'difference' not in found['native_attention']
     and not found['mxnet']['error'],
     'native attention cannot be used here: CPUs compute attention by the slower backend folded'),
    (lambda found: bool(found['native_attention']['error']) and 'difference' in found['native_attention'],
     'native attention is wrong here: say --attention-backend folded, and please report this output'),
    (lambda found: not found['mxnet'].get('gpus'),
     'MXNet has no float16 on CPUs'),
    (lambda found: not found['mxnet']['error'],
     'MXNet reads optimizer states with pickle: never load_states a file you do not trust (gluon-aa does not)'),
    (lambda found: not found['mxnet']['error'],
     'mx.nd.load can abort the process on a damaged file: gluon-aa checks a checksum first'),
)


def examine() -> Dict[str, Any]:
    """Everything found, as JSON values; `mxnet.error` says why MXNet cannot be used, or is None."""
    found: Dict[str, Any] = {
        'gluon_aa': _version('gluon-aa'), 'python': platform.python_version(), 'platform': platform.platform(),
        'packages': {name: _version(name) for name in PACKAGES}, 'mxnet_wheels': compat.installed_wheels(),
        'mxnet': probe_mxnet(), 'native_attention': probe_native(), 'threads': compat.THREADS._asdict(),
        'waiting_set': compat.WAITING_SET, 'names_added': compat.ADDED_NAMES,
        'cpu': {'model': machine.cpu_model(), 'usable_cpus': len(machine.usable_cpus()),
                'physical_cores': machine.physical_cores(), 'cgroup_limit': machine.cgroup_cpu_limit(),
                'instructions': machine.cpu_instructions()},
        'nvidia_driver': _nvidia_driver(), 'datasets': _datasets()}
    found['traps'] = [text for applies, text in _TRAPS if applies(found)]
    return found


def probe_mxnet() -> Dict[str, Any]:
    """MXNet's version, library, features and GPUs, from a process of its own; or `error`."""
    return _probe('mxnet_here', PROBE_SECONDS)


def probe_native() -> Dict[str, Any]:
    """Where the attention compiled for this CPU lies, built if need be, and its largest `difference` from the
    reference, from a process of its own; or `error`."""
    return _probe('native_here', NATIVE_PROBE_SECONDS)


def _probe(function: str, seconds: float) -> Dict[str, Any]:
    try:
        return {'error': None, **isolation.call(f'{__name__}:{function}', {}, seconds)}
    except FailedError as error:
        return {'error': str(error)}


def mxnet_here() -> Dict[str, Any]:
    """What `probe_mxnet` asks its process for."""
    mx = compat.import_mxnet()
    return {'version': mx.__version__, 'path': mx.libinfo.find_lib_path()[0],
            'gpus': mx.context.num_gpus() if compat.sees_gpus() else 0,
            'features': sorted(name for name, feature in mx.runtime.Features().items() if feature.enabled)}


def native_here() -> Dict[str, Any]:
    """What `probe_native` asks its process for; a difference that is no number is None."""
    from gluon_aa.attention import native
    from gluon_aa.attention.native import build, check
    native.load()
    difference = check.largest_difference()
    return {'path': str(build.library()), 'difference': difference if difference == difference else None,
            'error': None if difference < check.TOLERANCE else 'its results are not those of the reference'}


def _version(name: str) -> Optional[str]:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_driver() -> Optional[str]:
    try:
        return pathlib.Path('/proc/driver/nvidia/version').read_text().splitlines()[0]
    except OSError:
        return None


def _datasets() -> Dict[str, Optional[str]]:
    try:
        from gluon_aa.data import DATASETS
        return {name: recipe.find(None) for name, recipe in DATASETS.items()}
    except (ImportError, ValueError, OSError):  # a broken scikit-learn or directory must not hide the rest
        return {}


def rows(found: Dict[str, Any]) -> List[Tuple[str, str]]:
    """The findings as (what, value) for people."""
    cpu, mxnet = found['cpu'], found['mxnet']
    versions = ', '.join(f'{name} {version or "missing"}' for name, version in found['packages'].items())
    instructions = ', '.join(f'{name} {"yes" if has else "no"}' for name, has in cpu['instructions'].items())
    limit = 'none' if cpu['cgroup_limit'] is None else f'{cpu["cgroup_limit"]:g} CPUs'
    result = [
        ('gluon-aa', found['gluon_aa'] or 'not installed'),
        ('Python', f'{found["python"]} on {found["platform"]}'),
        ('packages', versions),
        ('CPU', cpu['model']),
        ('cores', f'{cpu["physical_cores"]} physical of {cpu["usable_cpus"]} usable logical; cgroup limit: {limit}'),
        ('instructions', instructions),
        ('threads', f'{found["threads"]["number"]} ({found["threads"]["reason"]})'),
        ('waiting', 'OMP_WAIT_POLICY and GOMP_SPINCOUNT set' if found['waiting_set'] else 'left as the user set it'),
        ('names added', ', '.join(found['names_added']) or 'none needed'),
        ('MXNet wheels', ', '.join(found['mxnet_wheels']) or 'none')]
    if mxnet['error']:
        result.append(('MXNet', f'CANNOT BE USED: {mxnet["error"]}'))
    else:
        result += [('MXNet', f'{mxnet["version"]} ({mxnet["path"]})'),
                   ('features', ', '.join(mxnet['features'])),
                   ('GPUs', str(mxnet['gpus']))]
    result += [('native attention', _of_native(found['native_attention'])),
               ('NVIDIA driver', found['nvidia_driver'] or 'none')]
    result += [(f'data set {name}', where or 'absent') for name, where in found['datasets'].items()]
    return result + [('trap' if number == 0 else '', text) for number, text in enumerate(found['traps'])]


def _of_native(native: Dict[str, Any]) -> str:
    if native['error']:
        return f'{"WRONG" if "difference" in native else "CANNOT BE USED"}: {native["error"]}'
    return f'{native["path"]}, within {native["difference"]:.0e} of the reference'
