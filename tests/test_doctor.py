"""The doctor reports what is there, and does so where MXNet cannot load."""
import json

import pytest
from click.testing import CliRunner

from gluon_aa import compat, doctor, isolation
from gluon_aa.cli import main


@pytest.fixture(scope='module')
def found():
    return doctor.examine()


def test_what_is_found_here(found):
    assert found['mxnet']['version'] == '1.9.1' and found['mxnet']['error'] is None
    assert 'MKLDNN' in found['mxnet']['features'] and found['mxnet']['gpus'] == 0
    assert found['threads']['number'] == compat.THREADS.number
    assert found['datasets']['digits']
    assert any('float16' in trap for trap in found['traps'])


def test_native_attention_is_compared_with_the_reference(found):
    native = found['native_attention']
    assert native['error'] is None and 0 < native['difference'] < 1e-5 and native['path'].endswith('.so')


def test_without_a_compiler_all_else_is_reported(found, monkeypatch):
    monkeypatch.setattr(doctor, 'probe_mxnet', lambda: found['mxnet'])  # another process's business
    monkeypatch.setenv('CXX', 'no-such-compiler')
    report = doctor.examine()
    assert 'there is no C++ compiler (no-such-compiler)' in report['native_attention']['error']
    assert report['mxnet']['error'] is None
    assert any('native attention cannot be used here' in trap for trap in report['traps'])
    assert ('native attention', f'CANNOT BE USED: {report["native_attention"]["error"]}') in doctor.rows(report)


def test_people_read_every_part(found):
    text = '\n'.join(f'{what}: {value}' for what, value in doctor.rows(found))
    for part in ('MXNet: 1.9.1', 'avx512_bf16', 'amx_bf16', 'threads', 'GPUs: 0', 'data set digits', 'trap'):
        assert part in text


@pytest.mark.parametrize('code, limit, message', [
    ('import os; os.kill(os.getpid(), 4)', 60, 'its process ended with code -4'),  # as an unknown instruction does
    ('raise SystemExit("boom")', 60, 'its process ended with code 1: boom'),
    ('import time; time.sleep(60)', 0.5, 'not done after 0.5 s'),
    ('from gluon_aa import compat, isolation; compat.PYTHON_BELOW = 3, 0; isolation.child()', 60,
     'is newer than MXNet 1.9.1 works with here'),
], ids=['killed', 'ended', 'hangs', 'too new'])
def test_where_mxnet_does_not_load_all_else_is_reported(monkeypatch, code, limit, message):
    monkeypatch.setattr(isolation, '_CHILD', code)
    for name in ('PROBE_SECONDS', 'NATIVE_PROBE_SECONDS'):
        monkeypatch.setattr(doctor, name, limit)
    result = CliRunner(mix_stderr=False).invoke(main, ['doctor', '--json', '-'])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert message in report['mxnet']['error'] and report['cpu']['physical_cores'] >= 1
    assert f'CANNOT BE USED: {report["mxnet"]["error"]}' in ' '.join(result.stderr.split())


@pytest.mark.parametrize('changes, trap', [
    ({'threads': {'number': 1, 'reason': ''}, 'cpu': {'physical_cores': 2}}, 'fewer threads than physical cores'),
    ({'threads': {'number': 9, 'reason': ''}, 'cpu': {'physical_cores': 2}}, 'more threads than physical cores'),
    ({'nvidia_driver': 'NVRM version: 470'}, "install 'gluon-aa[cu112]' instead"),
    ({'mxnet': {'features': ['CUDA'], 'gpus': 0, 'error': None}}, 'built for CUDA but sees no GPU'),
    ({'cpu': {'instructions': {'avx512_bf16': False, 'amx_bf16': False}}}, 'no bfloat16 instructions'),
    ({'native_attention': {'error': 'its results are not', 'difference': 0.1}}, 'native attention is wrong here'),
])
def test_traps_are_shown_where_they_apply(found, changes, trap):
    changed = {key: {**found[key], **value} if isinstance(value, dict) else value for key, value in changes.items()}
    texts = [text for applies, text in doctor._TRAPS if applies({**found, **changed})]
    assert any(trap in text for text in texts)
