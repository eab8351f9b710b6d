"""Number formats: where each may be used, and what bfloat16 computes. AMP is for good, so it has its own processes."""
import json
import subprocess
import sys

import numpy as np
import pytest

from gluon_aa import machine
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError
from gluon_aa.training import precision
from compare import relative_error

nn = mx.gluon.nn
has_bfloat16 = any(machine.cpu_instructions()[name] for name in precision.BFLOAT16_INSTRUCTIONS)


@pytest.mark.parametrize('dtype, on_gpus, error, message', [
    ('bfloat16', True, UsageError, 'bfloat16 is for CPUs: on GPUs choose --dtype float16'),
    ('float16', False, UsageError, 'MXNet has no float16 on CPUs: choose --dtype float32 or bfloat16'),
])
def test_formats_that_a_device_does_not_have(dtype, on_gpus, error, message):
    with pytest.raises(error, match=message):
        precision.use(dtype, on_gpus)


def test_a_cpu_without_the_instructions(monkeypatch):
    monkeypatch.setattr(machine, 'cpu_instructions', lambda: dict.fromkeys(precision.BFLOAT16_INSTRUCTIONS, False))
    with pytest.raises(FailedError, match=r'has no instructions for bfloat16 \(avx512_bf16 or amx_bf16\): choose'):
        precision.use('bfloat16', on_gpus=False)


def test_a_process_has_one_format(monkeypatch):
    monkeypatch.setattr(machine, 'cpu_instructions', lambda: dict.fromkeys(precision.BFLOAT16_INSTRUCTIONS, True))
    monkeypatch.setattr(precision, '_of_this_process', 'float32')
    precision.use('float32', on_gpus=False)
    with pytest.raises(FailedError, match='computes in float32 already .* use bfloat16 in another process'):
        precision.use('bfloat16', on_gpus=False)


@pytest.mark.parametrize('channels, changed', [(1, True), (3, True), (4, False)])
def test_a_convolution_of_an_odd_number_of_channels_computes_the_same_with_one_more(channels, changed):
    x = mx.nd.random.normal(shape=(2, channels, 7, 9))
    results = []
    for even in (False, True):
        net = nn.HybridSequential()
        net.add(nn.Conv2D(5, 3, 2, 1, in_channels=channels), nn.BatchNorm(in_channels=5),
                nn.Conv2D(4, 1, in_channels=5))
        mx.random.seed(0)
        net.initialize(mx.init.Normal(0.5))
        if even:
            precision.even_channels(net)
            assert (type(net[0]) is not nn.Conv2D) == changed and type(net[2]) is not nn.Conv2D
        net.hybridize(static_alloc=True, static_shape=True)
        with mx.autograd.record():
            y = net(x)
            loss = (y * y).sum()
        loss.backward()
        trainable = [p for p in net.collect_params().values() if p.grad_req != 'null']
        results.append([y.asnumpy(), *(p.grad().asnumpy() for p in trainable)])
    assert len(results[0]) == len(results[1])
    for plain, even in zip(*results):
        assert plain.shape == even.shape and relative_error(even, plain) < 1e-5


TRAINING = '''
import json, pathlib, sys
import numpy as np
from gluon_aa.training.checkpoint import Position, path_of
from gluon_aa.training.config import load
from gluon_aa.training.loop import evaluate, train
run, _ = train(load(None, {'net': 'aa_wrn10_1', 'dataset': 'digits', 'num_heads': 2, 'min_key_channels_per_head': 4,
                           'batch_size': 64, 'epochs': 1, 'dtype': sys.argv[1]}), pathlib.Path(sys.argv[2]))
state = np.load(str(path_of(run.checkpoints, Position(1)) / 'training.npz'))
print(json.dumps({'rows': run.metrics(), 'dtypes': sorted({str(state[name].dtype) for name in state.files})}))
'''


@pytest.mark.skipif(not has_bfloat16, reason='this CPU has no bfloat16')
def test_training_in_bfloat16_is_near_float32_and_keeps_its_state_in_float32(tmp_path):
    found = {}
    for dtype in ('float32', 'bfloat16'):
        code = f'import sys; sys.path[:] = {sys.path!r}\n{TRAINING}'
        done = subprocess.run([sys.executable, '-c', code, dtype, str(tmp_path / dtype)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, check=False)
        assert done.returncode == 0, done.stderr
        found[dtype] = json.loads(done.stdout.splitlines()[-1])
    assert found['float32']['dtypes'] == found['bfloat16']['dtypes']
    losses = {dtype: [row['train_loss'] for row in answer['rows']] for dtype, answer in found.items()}
    assert np.allclose(losses['bfloat16'], losses['float32'], rtol=0.1) and losses['bfloat16'] != losses['float32']
