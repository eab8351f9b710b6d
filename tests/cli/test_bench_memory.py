"""gluon-aa bench memory, in its smallest form."""
import json

import pytest
from click.testing import CliRunner

from gluon_aa.attention import native
from gluon_aa.cli import main

SMALL = ['bench', 'memory', '--net', 'aa_wrn10_1', '--batch-size', '1,2', '--depth', '0,2', '--input-size', '16x24',
         '--attention-backend', 'folded']


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


def test_what_fits_is_shown_and_kept(in_tmp_path):
    result = invoke(*SMALL, '--device', 'p100-16g', '--output', 'swept', '--jobs', 1, '--json', 'found.json')
    assert result.exit_code == 0, result.stderr
    found = json.loads((in_tmp_path / 'found.json').read_text())
    keys = 'depth', 'batch_size', 'status', 'source', 'device', 'budget_bytes'
    assert [tuple(cell[key] for key in keys) for cell in found['cells']] == [
        (depth, batch, 'fits', 'modelled', 'p100-16g', int(0.95 * 16280 * 2 ** 20))
        for depth in (0, 2) for batch in (1, 2)]
    assert {name.name for name in (in_tmp_path / 'swept').iterdir()} == {
        'sweep.json', 'cells.jsonl', 'cells.csv', 'result.json', 'heatmap-p100-16g.png', 'layers.png', 'report.html'}
    assert found == {**json.loads((in_tmp_path / 'swept/result.json').read_text()), 'output': 'swept'}
    assert found['answers'][0] in result.stdout and 'report: swept/report.html' in result.stdout
    assert '[4/4] p100-16g, depth 2, folded, float32: fits up to batch 2' in result.stderr

    again = invoke(*SMALL, '--device', 'p100-16g', '--output', 'swept')
    assert again.exit_code == 2 and 'holds this very sweep, finished' in again.stderr
    other = invoke(*SMALL, '--device', 'v100-16g', '--output', 'swept', '--resume')
    assert other.exit_code == 2 and 'holds another sweep: devices is ["p100-16g"] there' in other.stderr
    (in_tmp_path / 'swept/result.json').unlink()
    lines = (in_tmp_path / 'swept/cells.jsonl').read_text().splitlines(keepends=True)
    (in_tmp_path / 'swept/cells.jsonl').write_text(''.join(lines[:2]))
    resumed = invoke('bench', 'memory', '--output', 'swept', '--resume', '--json', '-')
    assert resumed.exit_code == 0, resumed.stderr
    assert json.loads(resumed.stdout)['cells'] == found['cells']
    assert '2 of 4 cells are there already' in resumed.stderr


def test_a_budget_is_enforced_where_it_is_measured(in_tmp_path):
    result = invoke(*SMALL, '--measure', '--memory-budget', '1GiB', '--depth', '2', '--time-limit', 120, '--json', '-')
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [cell['status'] for cell in found['cells']] == ['fits', 'fits']
    assert found['cells'][1]['source'] == 'measured' and found['cells'][1]['baseline_bytes'] > 0
    assert ' + budget of 1.00 GiB)' in result.stderr
    assert len(list(in_tmp_path.glob('memory-aa_wrn10_1-*Z/report.html'))) == 1


def test_a_sweep_in_which_nothing_works_fails(in_tmp_path):
    result = invoke(*SMALL, '--time-limit', '0.05', '--output', 'swept')
    assert result.exit_code == 1 and 'not one of 4 cells was found: not done after 0.05 s' in result.stderr
    assert json.loads((in_tmp_path / 'swept/result.json').read_text())['cells'][0]['status'] == 'timed out'


@pytest.mark.parametrize('arguments, message', [
    (['--device', 'p100'], "unknown device 'p100': did you mean p100-"),
    (['--device', 'p100-16g,p100-16g'], 'names something twice'),
    (['--device', ''], 'there is no cell to sweep: --device names nothing'),
    (['--memory-budget', '11GX'], "'11GX': unknown unit 'GX': use "),
    (['--memory-budget', '0'], 'must be at least one byte'),
    (['--memory-budget', '-1GiB'], 'must be at least one byte'),
    (['--batch-size', ''], 'there is no cell to sweep: --batch-size names nothing'),
    (['--batch-size', '0,2'], '--batch-size 0 must be at least 1'),
    (['--batch-size', 'two'], "'two' is not a list of whole numbers"),
    (['--depth', ''], 'there is no cell to sweep: --depth names nothing'),
    (['--depth', '0,4'], '--depth 4: aa_wrn10_1 has 3 convolutions that can be augmented, so the depth is 0 to 3'),
    (['--depth', '2-9'], '--depth 4: aa_wrn10_1 has 3'),
    (['--depth', '3-1'], '3-1 is no range: it ends before it begins'),
    (['--depth', '-1'], "'-1' is no depth"),
    (['--depth', '1,0-2'], 'names a depth twice'),
    (['--attention-backend', ''], 'there is no cell to sweep: --attention-backend names nothing'),
    (['--net', 'wrn10_1', '--depth', '1'],
     '--depth 1: wrn10_1 has no layer to augment: leave --depth out, or take aa_wrn10_1'),
    (['--net', 'cifar_resnet20_v1', '--depth', '1'], 'cifar_resnet20_v1 has no layer to augment: leave --depth out'),
    (['--net', 'wrn10_1', '--depth', '0'], 'wrn10_1 has no attention: leave out --attention-backend'),
    (['--net', 'aa_wrn10'], "unknown network 'aa_wrn10'"),
    (['--attention-backend', 'foldde'], "unknown attention backend 'foldde': did you mean folded?"),
    (['--attention-backend', 'native', '--device', 'p100-16g'], 'native has no GPU kernel'),
    (['--tile', '0', '--attention-backend', 'tiled'], '--tile 0 must be at least 1 query'),
    (['--tile', '8'], '--tile is for the attention backend tiled'),
    (['--memory-mode', 'fast'], "unknown memory mode 'fast'"),
    (['--recompute', 'blocks'], '--recompute blocks is for --memory-mode recompute'),
    (['--recompute', 'blocks', '--memory-mode', 'recompute', '--device', 'p100-16g'],
     'on p100-16g choose --recompute attention'),
    (['--dtype', 'float8'], "unknown dtype 'float8'"),
    (['--dtype', 'float16'], 'MXNet has no float16 on CPUs'),
    (['--dtype', 'bfloat16', '--device', 'p100-16g'], 'bfloat16 is for CPUs'),
    (['--gpus', '0,1', '--device', 'cpu'], '--gpus is for GPUs'),
    (['--cpus', '2', '--device', 'p100-16g'], '--cpus is for --device cpu'),
    (['--cpus', '0'], '--cpus 0 must be at least 1'),
    (['--gpus', '0,1', '--device', 'p100-16g'], '--batch-size 1 must be at least the number of devices'),
    (['--measure', '--device', 'p100-16g'], '--measure runs on what is here'),
    (['--measure', '--source', 'modelled'], '--measure and --source modelled exclude each other'),
    (['--all-cells'], '--all-cells is for --measure'),
    (['--resume'], '--resume needs --output'),
    (['--resume', '--output', 'absent'], 'there is no sweep in absent to resume'),
    (['--output', '.'], 'exists and holds no sweep'),
    (['--input-size', '32'], "'32' is not HxW"),
])
def test_what_cannot_be_swept_is_refused_at_once(in_tmp_path, arguments, message):
    (in_tmp_path / 'photo.jpg').write_text('')
    result = invoke(*SMALL, *([] if '--device' in arguments or '--measure' in arguments else ['--device', 'cpu']),
                    *arguments)
    assert result.exit_code == 2 and message in result.stderr.strip().splitlines()[-1], result.stderr
    assert [path.name for path in in_tmp_path.iterdir()] == ['photo.jpg']


def test_gpus_that_are_not_here_can_only_be_modelled(in_tmp_path):
    result = invoke(*SMALL, '--device', 'gpu')
    assert result.exit_code == 1 and 'MXNet sees 0 GPUs here' in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(native.unavailable() is not None, reason='native cannot be built here')
def test_native_is_among_the_ways_of_cpus(in_tmp_path):
    result = invoke('bench', 'memory', '--net', 'aa_wrn10_1', '--batch-size', '4', '--depth', '1', '--input-size',
                    '16x24', '--device', 'cpu', '--memory-budget', '2GiB', '--json', '-')
    assert result.exit_code == 0, result.stderr
    assert [cell['attention_backend'] for cell in json.loads(result.stdout)['cells']] == [
        'reference', 'folded', 'tiled', 'native']
