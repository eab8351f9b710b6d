"""gluon-aa plan, in its smallest form."""
import json
import re
import shlex

import pytest
from click.testing import CliRunner

from gluon_aa.cli import main
from gluon_aa.memory.plan import CATEGORIES, plans
from gluon_aa.memory.devices import DEVICES, find_device
from gluon_aa.training.config import load

SMALL = ['plan', '--net', 'aa_wrn10_1', '--num-heads', '2', '--min-key-channels-per-head', '4', '--input-size', '8x12']
KEYS = {'net': 'aa_wrn10_1', 'num_heads': 2, 'min_key_channels_per_head': 4, 'memory_mode': 'speed'}


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


def planned(batch_size, shape=(3, 8, 12), **keys):
    config = load(None, {**KEYS, 'gpus': [0], **keys})
    return plans(config, 10, shape, find_device('p100-16g'), [batch_size])[0]


def test_help():
    result = invoke('plan', '--help')
    assert result.exit_code == 0 and all(name in result.stdout for name in DEVICES)


def test_answers_first(in_tmp_path):
    result = invoke(*SMALL, '--device', 'p100-16g', '--json', 'found.json')
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith('aa_wrn10_1 at batch 128 fits P100 PCIe 16 GB\n')
    found = json.loads((in_tmp_path / 'found.json').read_text())
    first, *others = found['cells']
    made = planned(128, attention_backend='folded')
    assert first['bytes'] == made.bytes and list(first['bytes']) == list(CATEGORIES)
    assert (first['total_bytes'], first['uncertainty_bytes']) == (made.total, made.uncertainty)
    assert {cell['source'] for cell in found['cells']} == {'modelled'} and first['fits']
    assert planned(first['largest_batch'], attention_backend='folded').safe <= found['budget_bytes'] < planned(
        first['largest_batch'] + 1, attention_backend='folded').safe
    assert f'largest batch         {first["largest_batch"]:,}' in result.stdout
    assert 'deepest at batch 128  all 3 of 3' in result.stdout and 'Modelled: no step was run.' in result.stdout
    for cell in others:
        assert re.search(rf'^{cell["way"]} +{cell["largest_batch"]:,} ', result.stdout, re.MULTILINE)
    assert f'total{made.total / 2 ** 20:>19,.1f}'.split() == re.search(
        r'^(total) +(\S+)', result.stdout, re.MULTILINE).group(0).split()


def test_where_it_does_not_fit_the_command_that_does_is_printed_and_runs(in_tmp_path):
    least = planned(512, (3, 32, 48), attention_backend='tiled', tile=64, memory_mode='recompute')
    budget = least.safe // 0.95 + 2 ** 20
    result = invoke(*SMALL, '--input-size', '32x48', '--dataset', 'synthetic', '--device', 'p100-16g', '--batch-size',
                    512, '--memory-mode', 'speed', '--attention-backend', 'reference', '--memory-budget', int(budget),
                    '--json', '-')
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)  # alone on standard output
    assert result.stderr.startswith('aa_wrn10_1 at batch 512 does not fit P100 PCIe 16 GB\n')
    change = found['changes'][0]
    assert f'\n  {change["command"]}\n' in result.stderr
    words = shlex.split(change['command'])
    assert words[:2] == ['gluon-aa', 'train'] and ['--gpus', '0'] == words[-2:]
    result = invoke('plan', *words[2:], '--device', 'p100-16g', '--memory-budget', int(budget), '--json', '-')
    cell = json.loads(result.stdout)['cells'][0]
    assert cell['fits'] and cell['total_bytes'] + cell['uncertainty_bytes'] == change['safe_bytes']


def test_where_nothing_fits_it_says_what_the_least_needs():
    result = invoke(*SMALL, '--memory-budget', '10KiB')
    assert result.exit_code == 0
    assert 'does not fit' in result.stdout and 'largest batch         none' in result.stdout
    assert 'No change makes it fit: the least, ' in result.stdout and ' at batch 1, needs ' in result.stdout
    assert 'gluon-aa train' not in result.stdout


def test_the_cpu_here_is_the_default():
    result = invoke('plan', '--config', 'cpu/digits', '--json', '-')
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found['device'], found['image_shape']) == ('cpu', [1, 8, 8])
    assert ' available now' in result.stderr and 'a step takes' not in result.stderr  # nobody knows a CPU's peak


def test_several_devices_share_the_batch():
    result = invoke(*SMALL, '--device', 't4-16g', '--gpus', '0,1,2', '--batch-size', 6, '--json', '-')
    cell = json.loads(result.stdout)['cells'][0]
    assert (cell['devices'], cell['largest_batch'] % 3) == (3, 0)
    assert 'fits 3 x T4 16 GB' in result.stderr


def test_plain_networks_are_asked_nothing_about_attention():
    result = invoke('plan', '--net', 'wrn10_1', '--device', 'v100-16g', '--batch-size', 4)
    assert result.exit_code == 0 and 'deepest' not in result.stdout and 'memory mode' in result.stdout


def test_images_of_a_size_are_a_folder_s():
    result = invoke(*SMALL, '--classes', 7, '--memory-budget', '100MiB', '--batch-size', 20000, '--json', '-')
    found = json.loads(result.stdout)
    assert found['classes'] == 7
    assert '--dataset folder --data-dir DIRECTORY' in found['changes'][-1]['command']


@pytest.mark.parametrize('flags, message', [
    (('--device', 'p100'), 'did you mean p100-16g or p100-12g?'), (('--memory-budget', '11Gig'), 'unknown unit'),
    (('--memory-budget', '0GiB'), 'at least one byte'), (('--memory-budget=-1GiB',), 'at least one byte'),
    (('--memory-budget', 'lots'), 'is not a size in bytes'),
    (('--device', 't4-16g', '--attention-backend', 'native'), 'native is for CPUs'),
    (('--device', 't4-16g', '--cpus', 2), '--cpus are not for a T4'), (('--gpus', 0), 'Name their kind: --device p100'),
    (('--cpus', 4, '--batch-size', 3), 'at least the number of devices, 4'),
    (('--net', 'aa_wrn10_1x'), 'unknown network'), (('--config', 'cpu/digit'), 'unknown configuration'),
    (('--dataset', 'cifar10', '--classes', 100), 'cifar10 has 10 classes'), (('--batch-size', 0), 'at least 1')])
def test_wrong_usage_is_one_line(flags, message):
    result = invoke('plan', *flags)
    assert result.exit_code == 2 and result.stdout == ''
    line, = result.stderr.strip().splitlines()
    assert line.startswith('Error: ') and message in line
