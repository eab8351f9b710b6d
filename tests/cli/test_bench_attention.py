"""gluon-aa bench attention, in its smallest form."""
import json
import statistics

from click.testing import CliRunner
import pytest

from gluon_aa import isolation
from gluon_aa.attention import BACKENDS, measuring
from gluon_aa.cli import main

SMALL = ['bench', 'attention', '--num-heads', '2', '--key-channels', '6', '--value-channels', '4', '--warm-up', '1',
         '--repeats', '3']


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


def call_here(function, arguments, *rest):
    """Times measured in this process; memory, which cannot be, made up."""
    if function.endswith(':extra_bytes'):
        return {'storage_bytes': 1_230_000, 'resident_bytes': 4_560_000}
    return measuring.time_passes(**arguments)


def test_every_size_is_measured_and_shown(in_tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, 'call', call_here)  # what a process of its own answers, the next test shows
    result = invoke(*SMALL, '--map-size', '3x4,5x2', '--batch-size', '1,2', '--attention-backend', 'native',
                    '--json', 'found.json', '--plot', 'found.png')
    assert result.exit_code == 0, result.stderr
    found = json.loads((in_tmp_path / 'found.json').read_text())
    keys = 'height', 'batch_size', 'attention_backend', 'pass'
    assert [tuple(cell[key] for key in keys) for cell in found['cells']] == [
        (height, batch, 'native', name) for height, batch in ((3, 1), (5, 2))
        for name in ('forward', 'backward', 'forward+backward')]
    for cell in found['cells']:
        assert cell['source'] == 'measured' and len(cell['repeats']) == 3
        assert cell['seconds'] == statistics.median(cell['repeats'])
        assert 0 < cell['fastest'] <= cell['seconds'] <= cell['slowest']
        assert cell['storage_bytes'] == (None if cell['pass'] == 'backward' else 1_230_000)
        assert f'{1e3 * cell["seconds"]:,.2f}' in result.stdout
    assert found['protocol'] == {'warm_up': 1, 'repeats': 3, 'passes': ['forward', 'backward', 'forward+backward']}
    assert (in_tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')


def test_the_default_is_every_backend_on_the_maps_of_aa_wrn28_10():
    result = invoke('bench', 'attention', '--help')
    assert result.exit_code == 0
    assert f'[default: {",".join(BACKENDS)}]' in ' '.join(result.stdout.split())


def test_without_relative_positions_and_json_on_standard_output():
    result = invoke(*SMALL, '--map-size', '2x3', '--no-relative', '--attention-backend', 'folded', '--json', '-')
    assert result.exit_code == 0, result.stderr
    cells = json.loads(result.stdout)['cells']
    assert [cell['pass'] for cell in cells] == ['forward', 'backward', 'forward+backward']
    for cell in cells:
        assert cell['relative'] is False and cell['batch_size'] == 8192 // 6
        assert 0 < cell['fastest'] <= cell['seconds'] <= cell['slowest'] and len(cell['repeats']) == 3
    assert cells[1]['storage_bytes'] is None
    # a map of logits at least, and its gradient when there is one
    assert 4 * 8192 // 6 * 2 * 36 < cells[0]['storage_bytes'] < cells[2]['storage_bytes']


@pytest.mark.parametrize('arguments, message', [
    (['--map-size', '0x4'], "'0x4': both must be at least 1"),
    (['--map-size', '3x4', '--batch-size', '1,2'], '2 batch sizes for 1 maps'),
    (['--map-size', '3x4', '--batch-size', '0'], 'batch_size=0 must be at least 1'),
    (['--key-channels', '5'], '5 key and 4 value channels must both divide by 2 heads'),
    (['--attention-backend', 'foldde'], "unknown attention backend 'foldde': did you mean folded?"),
    (['--attention-backend', ''], 'there is nothing to measure'),
    (['--pass', 'forwards'], "unknown pass 'forwards': did you mean forward?"),
])
def test_what_cannot_be_measured_is_refused_at_once(arguments, message):
    result = invoke(*SMALL, *arguments)
    assert result.exit_code == 2 and message in result.stderr.strip().splitlines()[-1]
