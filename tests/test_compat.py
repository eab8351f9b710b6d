"""What is prepared before MXNet; each in a process of its own where the order of imports is what matters."""
import os
import subprocess
import sys

import numpy as np
import pytest

from gluon_aa import compat, machine
from gluon_aa.errors import FailedError


def python(code, **environment):
    """(exit code, standard output, standard error) of `code` in a fresh interpreter."""
    names = ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', *compat.THREAD_LIMITS)
    clean = {name: value for name, value in os.environ.items() if name not in names}
    code = f'import sys; sys.path[:] = {sys.path!r}; {code}'
    done = subprocess.run([sys.executable, '-W', 'ignore::DeprecationWarning', '-c', code], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, env={**clean, **environment}, check=False)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


THREADS = ('from gluon_aa import compat; compat.import_mxnet(); import os, ctypes; '
           'print(ctypes.CDLL("libgomp.so.1").omp_get_max_threads(), os.environ["OMP_NUM_THREADS"])')


def test_mxnet_gets_the_physical_cores():
    cores = machine.physical_cores()
    assert python(THREADS)[1] == f'{cores} {cores}'


@pytest.mark.parametrize('environment, threads', [
    ({'OMP_NUM_THREADS': '1'}, 1),
    ({'OMP_NUM_THREADS': '3'}, 3),  # the user may ask for more, too
    ({'OMP_NUM_THREADS': '3,2'}, 3),
    ({'MXNET_OMP_MAX_THREADS': '1'}, 1),
    ({'OMP_THREAD_LIMIT': '1'}, 1),
])
def test_what_the_user_set_is_kept(environment, threads):
    _, output, _ = python('from gluon_aa import compat; print(compat.THREADS.number)', **environment)
    assert int(output) == threads


@pytest.mark.parametrize('environment, policy', [
    ({}, "'active' '1000'"),
    ({'OMP_WAIT_POLICY': 'passive'}, "'passive' None"),
    ({'GOMP_SPINCOUNT': '7'}, "None '7'"),
])
def test_waiting_is_set_unless_the_user_did(environment, policy):
    code = 'import gluon_aa, os; print(*(repr(os.environ.get(n)) for n in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))'
    assert python(code, **environment)[1] == policy


def test_a_meaningless_setting_is_replaced(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', 'many')
    assert compat.set_threads().number == machine.physical_cores()
    assert os.environ['OMP_NUM_THREADS'] == str(machine.physical_cores())


def test_mxnet_first_is_warned_about():
    shim = 'import numpy as np; np.bool = bool; import sys, types; sys.modules["mxnet"] = types.ModuleType("mxnet"); '
    _, _, error = python(shim + 'import gluon_aa')
    assert 'RuntimeWarning: mxnet was imported before gluon_aa' in error and 'OMP_NUM_THREADS' in error
    _, _, error = python(shim + 'import gluon_aa', OMP_NUM_THREADS='2')
    assert 'RuntimeWarning' not in error


def test_importing_the_package_does_not_import_mxnet():
    assert python('import sys, gluon_aa, gluon_aa.cli; print("mxnet" in sys.modules)')[1] == 'False'


@pytest.mark.filterwarnings('ignore:.*distutils:DeprecationWarning')  # where it is Python's or setuptools' own
def test_missing_names_are_there():
    # below 1.24 it is NumPy's own, and warns when it is touched
    assert np.lib.NumpyVersion(np.__version__) < '1.24.0' or np.bool is bool
    from distutils.version import LooseVersion
    assert LooseVersion('1.10') > LooseVersion('1.9')


@pytest.mark.parametrize('python_version, numpy_version, message', [
    ((3, 13), '1.26.4', r'Python 3\.13 is newer than MXNet 1\.9\.1 works with here: use Python 3\.8 to 3\.12'),
    ((3, 12), '2.0.1', r"NumPy 2\.0\.1 is newer .*pip install 'numpy<2'"),
])
def test_versions_that_are_too_new_are_named(monkeypatch, python_version, numpy_version, message):
    monkeypatch.delitem(sys.modules, 'mxnet')
    monkeypatch.setattr(sys, 'version_info', (*python_version, 0, 'final', 0))
    monkeypatch.setattr(np, '__version__', numpy_version)
    with pytest.raises(FailedError, match=message):
        compat.import_mxnet()


@pytest.mark.parametrize('wheels, message', [
    (['mxnet', 'mxnet-cu112'], 'mxnet and mxnet-cu112 are both installed and overwrite each other: pip uninstall'),
    ([], r"MXNet is not installed: pip install 'gluon-aa\[cpu\]'"),
])
def test_both_wheels_or_none(monkeypatch, wheels, message):
    monkeypatch.delitem(sys.modules, 'mxnet')
    monkeypatch.setattr(compat, 'installed_wheels', lambda: wheels)
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(FailedError, match=message):
        compat.import_mxnet()


def test_a_library_that_does_not_load_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, 'mxnet')

    def fail(name):
        raise OSError('libcuda.so.1: cannot open shared object file')
    monkeypatch.setattr(compat.importlib, 'import_module', fail)
    with pytest.raises(FailedError, match="mxnet is installed but does not load: libcuda.so.1.*NVIDIA's driver"):
        compat.import_mxnet()


def test_the_wheel_that_is_installed_is_found():
    assert compat.installed_wheels() == ['mxnet']


def test_cuda_libraries_are_loaded_from_wheels_in_order(tmp_path, monkeypatch):
    for package, library in (('cublas', 'libcublas.so.11'), ('cuda_runtime', 'libcudart.so.11.0')):
        (tmp_path / 'nvidia' / package / 'lib').mkdir(parents=True)
        (tmp_path / 'nvidia' / package / 'lib' / library).write_bytes(b'')
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = []
    monkeypatch.setattr(compat.ctypes, 'CDLL', lambda path, mode: asked.append((path, mode)))
    assert compat.load_cuda11_libraries() == ['libcudart.so.11.0', 'libcublas.so.11']
    assert [mode for _, mode in asked] == [compat.ctypes.RTLD_GLOBAL] * 2
