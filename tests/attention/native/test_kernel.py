"""The kernel without MXNet, built with sanitizers and for CPUs of other widths, against the float64 oracle."""
import pathlib
import platform
import shutil
import subprocess

import numpy as np
import pytest

from gluon_aa import machine
from gluon_aa.attention.native import build
from compare import relative_error
import oracle

DRIVER = pathlib.Path(__file__).with_name('driver.cc')
SANITIZERS = ('-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer')

#: (batch, heads, height, width, key_depth, value_depth, relative, threads)
SIZES = [
    (1, 1, 1, 1, 1, 1, 1, 1), (2, 2, 5, 7, 3, 2, 1, 2), (1, 3, 9, 9, 20, 8, 1, 2), (1, 1, 4, 16, 5, 3, 0, 3),
    (1, 2, 6, 32, 7, 1, 1, 1), (2, 1, 13, 10, 80, 64, 1, 2), (1, 1, 2, 65, 17, 33, 1, 4), (3, 8, 8, 8, 20, 8, 1, 2),
    (1, 1, 30, 3, 6, 5, 0, 2), (1, 1, 12, 48, 4, 2, 1, 1)]


def compiled(tmp_path, *flags, compiler=None):
    program = tmp_path / 'driver'
    subprocess.run([*([compiler] if compiler else build.compiler()), *build.FLAGS[:4], *flags, f'-I{build.HERE}',
                    str(DRIVER), str(build.HERE / 'kernel.cc'), '-o', str(program)], check=True)
    return program


def assert_equals_oracle(program, batch, heads, height, width, key_depth, value_depth, relative, threads):
    channels = {'num_heads': heads, 'key_channels': heads * key_depth, 'value_channels': heads * value_depth}
    qkv = np.random.randn(batch, heads * (2 * key_depth + value_depth), height, width)
    tables = [np.random.randn(2 * length - 1, key_depth) for length in (height, width)] if relative else []
    d_out = np.random.randn(batch, heads * value_depth, height, width)
    inputs = [x.astype('float32') for x in (qkv, *tables, d_out)]
    sizes = (batch, heads, height, width, key_depth, value_depth, relative, threads)
    done = subprocess.run([str(program), *map(str, sizes)], input=b''.join(x.tobytes() for x in inputs),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    numbers = np.frombuffer(done.stdout, np.float32)
    wanted = oracle.attend_and_gradients(inputs[0], *(inputs[1:-1] or [None, None]), inputs[-1], **channels)
    assert len(numbers) == sum(x.size for x in wanted)
    for expected in wanted:
        actual, numbers = numbers[:expected.size].reshape(expected.shape), numbers[expected.size:]
        if np.abs(expected).max() < 1e-12:
            assert np.abs(actual).max() < 1e-6
        else:
            assert relative_error(actual, expected) < 1e-5


def assert_spreads_what_is_not_finite(program):
    """A key that is not a number leaves no output of its head finite; an infinite one, whose weight is 0 where a logit
    is -inf, leaves some; neither leaves a trace in the other head's."""
    for value in (np.nan, np.inf):
        qkv = np.random.randn(1, 2 * 11, 5, 9).astype('float32')
        qkv[0, 8, 1, 1] = value  # keys of the first head are channels 8 to 11
        rest = [np.zeros(shape, np.float32) for shape in ((9, 4), (17, 4), (1, 6, 5, 9))]
        done = subprocess.run([str(program), *map(str, (1, 2, 5, 9, 4, 3, 1, 2))], stdout=subprocess.PIPE, check=True,
                              input=b''.join(x.tobytes() for x in (qkv, *rest)))
        output = np.frombuffer(done.stdout, np.float32)[:6 * 45].reshape(6, 45)
        assert np.isnan(output[:3]).all() if np.isnan(value) else np.isnan(output[:3]).any()
        assert np.isfinite(output[3:]).all()


@pytest.mark.slow
@pytest.mark.parametrize('cpu', ['native', 'x86-64-v3', 'x86-64'])
def test_sanitizers_find_nothing(tmp_path, cpu):
    if cpu != 'native' and platform.machine() != 'x86_64':
        pytest.skip('of another architecture')
    if cpu == 'x86-64-v3' and not machine.cpu_instructions()['avx2']:
        pytest.skip('this CPU has no AVX2')
    program = compiled(tmp_path, *SANITIZERS, *(build.cpu_flags() if cpu == 'native' else (f'-march={cpu}',)))
    for sizes in SIZES:
        assert_equals_oracle(program, *sizes)
    assert_spreads_what_is_not_finite(program)


@pytest.mark.slow
@pytest.mark.parametrize('compiler', ['g++-11', 'clang++-14'])
def test_other_compilers_agree(tmp_path, compiler):
    if not shutil.which(compiler):
        pytest.skip(f'{compiler} is not installed')
    program = compiled(tmp_path, *build.cpu_flags(), compiler=compiler)
    for sizes in SIZES:
        assert_equals_oracle(program, *sizes)
