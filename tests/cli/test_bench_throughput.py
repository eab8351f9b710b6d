"""gluon-aa bench throughput, in its smallest form."""
import json
import statistics

from click.testing import CliRunner

from gluon_aa import isolation
from gluon_aa.cli import main
from gluon_aa.training import throughput

SMALL = ['bench', 'throughput', '--net', 'wrn10_1', '--batch-size', '4', '--input-size', '8x12', '--warm-up', '1',
         '--steps', '2', '--repeats', '3']


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


def test_every_combination_is_measured_and_shown(in_tmp_path, monkeypatch):
    # in this process; what processes of their own answer, the next test shows
    monkeypatch.setattr(isolation, 'call', lambda function, arguments, time_limit: throughput.answer(**arguments))
    result = invoke(*SMALL, '--hybridize', 'both', '--cpus', '1,2', '--json', 'found.json', '--plot', 'found.png')
    assert result.exit_code == 0, result.stderr
    found = json.loads((in_tmp_path / 'found.json').read_text())
    assert [(len(cell['devices']), cell['hybridized'], cell['phase']) for cell in found['cells']] == [
        (devices, hybridized, phase) for devices in (1, 2) for hybridized in (True, False)
        for phase in ('training', 'inference')]
    for cell in found['cells']:
        assert cell['source'] == 'measured' and len(cell['repeats']) == 3
        assert cell['images_per_second'] == statistics.median(cell['repeats'])
        assert 0 < cell['slowest'] <= cell['images_per_second'] <= cell['fastest']
        assert f'{cell["images_per_second"]:,.1f}' in result.stdout
    assert found['protocol'] == {'warm_up': 1, 'steps': 2, 'repeats': 3, 'phases': ['training', 'inference']}
    assert (in_tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')


def test_what_cannot_be_measured_is_said_beside_what_can(in_tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    result = invoke(*SMALL, '--dtype', 'float32,float16', '--cpus', '2', '--json', '-')
    assert result.exit_code == 1
    *measured, failed = json.loads(result.stdout)['cells']
    assert [cell['phase'] for cell in measured] == ['training', 'inference']
    for cell in measured:
        assert len(cell['repeats']) == 3 and 0 < cell['slowest'] <= cell['images_per_second'] <= cell['fastest']
        assert cell['devices'] == ['cpu(0)', 'cpu(1)'] and cell['threads'] == 1  # the process was told before MXNet
    assert failed['error'].startswith('MXNet has no float16 on CPUs: ') and 'images_per_second' not in failed
    last = result.stderr.strip().splitlines()[-1]
    assert last == 'Error: 1 of 2 combinations were not measured: see above'


def test_where_nothing_can_be_measured_the_json_still_says_why(in_tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, '_CHILD', 'raise SystemExit("no memory")')
    result = invoke(*SMALL, '--json', 'found.json', '--plot', 'found.png')
    assert result.exit_code == 1 and 'Error: 1 of 1 combinations were not measured' in result.stderr
    cell, = json.loads((in_tmp_path / 'found.json').read_text())['cells']
    assert 'its process ended with code 1: no memory' in cell['error'] and not (in_tmp_path / 'found.png').exists()
