"""Every command: help, a run, its JSON, and its exit code where it must refuse."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner

from gluon_aa.cli import main, train as train_command
from gluon_aa.cli.train import sparkline
from gluon_aa.errors import FailedError
from gluon_aa.training import loop
from gluon_aa.training.config import FIELDS

TINY = ['train', '--dataset', 'digits', '--net', 'aa_wrn10_1', '--num-heads', '2', '--min-key-channels-per-head', '4',
        '--epochs', '1', '--batch-size', '64']


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize('command', [
    [], ['train'], ['eval'], ['doctor'], ['models'], ['models', 'list'], ['models', 'show'], ['data'], ['data', 'show'],
    ['bench'], ['bench', 'memory'], ['bench', 'throughput']], ids=' '.join)
def test_help(command):
    for flag in ('--help', '-h'):
        result = invoke(*command, flag)
        assert result.exit_code == 0 and result.stdout.startswith('Usage: ')


def test_version():
    assert invoke('--version').stdout.startswith('gluon-aa, version ')


def test_every_key_is_a_flag():
    flags = {option for parameter in train_command.train.params for option in parameter.opts}
    assert {f'--{name.replace("_", "-")}' for name in FIELDS} <= flags


@pytest.mark.usefixtures('without_curves')
def test_memory_mode_and_tile(in_tmp_path):
    result = invoke(*TINY, '--placement', 'stages:2,3', '--attention-backend', 'tiled', '--tile', 10, '--memory-mode',
                    'recompute', '--recompute', 'blocks', '--json', 'result.json')
    assert result.exit_code == 0, result.stderr
    assert '64 a device; attention tiled in tiles of 10, memory mode recompute' in result.stdout
    written = json.loads((in_tmp_path / 'result.json').read_text())
    assert (written['attention_backend'], written['tile'], written['memory_mode']) == ('tiled', 10, 'recompute')
    result = invoke('eval', in_tmp_path / written['run'], '--json', '-')
    assert json.loads(result.stdout)['accuracy'] == written['test_accuracy']
    for flags, message in ((('--tile', 0), 'tile: 0 must be at least 1'),
                           (('--memory-mode', 'recompute', '--no-hybridize'), 'which hybridize: false forbids')):
        result = invoke(*TINY, *flags)
        assert result.exit_code == 2 and message in result.stderr


def test_train_then_eval(in_tmp_path):
    result = invoke(*TINY, '--json', 'result.json')
    assert result.exit_code == 0, result.stderr
    written = json.loads((in_tmp_path / 'result.json').read_text())
    run = in_tmp_path / written['run']
    assert run.parent.name == 'runs' and (run / 'result.json').is_file()
    assert (run / 'curves.png').read_bytes().startswith(b'\x89PNG')
    for part in ('epoch   1/1', 'test accuracy', f'{written["run"]}/curves.png', '64 a device', 'steps an epoch'):
        assert part in result.stdout
    config = yaml.safe_load((run / 'config.yaml').read_text())
    assert config['num_heads'] == 2 and config['optimizer'] == 'nag'
    result = invoke('eval', run, '--json', '-', '--checkpoint', 1)
    assert result.exit_code == 0
    assert json.loads(result.stdout)['accuracy'] == written['test_accuracy']
    assert 'test accuracy' in result.stderr  # for people, out of the JSON's way


@pytest.mark.usefixtures('without_curves')
def test_json_on_standard_output_is_alone_there(in_tmp_path):
    result = invoke(*TINY, '--json', '-')
    assert json.loads(result.stdout)['best_epoch'] == 1
    assert 'epoch   1/1' in result.stderr


@pytest.mark.usefixtures('without_curves')
def test_train_from_a_recipe_with_flags_over_it(in_tmp_path):
    result = invoke('train', '--config', 'cpu/digits', '--epochs', 1, '--run', 'here', '--no-relative', '--seed', 3)
    assert result.exit_code == 0
    config = yaml.safe_load((in_tmp_path / 'here' / 'config.yaml').read_text())
    assert (config['net'], config['epochs'], config['relative'], config['seed']) == ('aa_wrn10_2', 1, False, 3)


@pytest.mark.usefixtures('without_curves')
def test_the_replications_recipe_in_its_smoke_mode(in_tmp_path):
    result = invoke('train', '--config', 'seed/wrn28_10', '--dataset', 'digits', '--net', 'wrn10_1', '--epochs', 1)
    assert result.exit_code == 0


def test_models_list():
    names = json.loads(invoke('models', 'list', '--json', '-').stdout)
    assert {'wrn28_10', 'aa_wrn28_10', 'resnet34', 'aa_resnet34', 'cifar_resnet20_v1'} <= set(names)
    assert invoke('models', 'list').stdout.split() == names


def test_models_show():
    result = invoke('models', 'show', 'aa_wrn28_10', '--classes', 100, '--input-size', '32x32', '--json', '-')
    summary = json.loads(result.stdout)
    assert summary['parameters'] == 36_312_660
    assert sum(layer['flops'] for layer in summary['layers']) == summary['flops']
    assert {'name', 'kind', 'channels', 'height', 'width', 'augmented'} <= set(summary['layers'][0])
    assert sum(layer['augmented'] for layer in summary['layers']) == 12
    for part in ('stage3.block4.conv1', '36,312,660 parameters', '12 layers augmented', '160/64 channels on 8x8'):
        assert part in result.stderr


def test_models_show_takes_the_architectures_keys():
    result = invoke('models', 'show', 'aa_resnet34', '--placement', 'seed', '--no-relative', '--json', '-')
    augmented = [layer for layer in json.loads(result.stdout)['layers'] if layer['augmented']]
    assert [layer['name'] for layer in augmented] == ['stage4.block3.conv2']
    assert not augmented[0]['attention']['relative']


@pytest.mark.parametrize('arguments, code, message', [
    (['train', '--net', 'aa_wrn2810'], 2, "unknown network 'aa_wrn2810': did you mean aa_wrn28_10"),
    (['train', '--dataset', 'digit'], 2, "unknown data set 'digit': did you mean digits"),
    (['train', '--schedule', 'cosin'], 2, "'cosin' is not one of 'constant', 'step', 'cosine'"),
    (['train', '--placement', 'papr'], 2, "unknown placement 'papr': did you mean paper"),
    (['train', '--epochs', 'x'], 2, "'x' is not a valid integer"),
    (['train', '--epochs', '0'], 2, 'epochs: 0 must be at least 1'),
    (['train', '--epoch', '3'], 2, 'No such option: --epoch'),
    (['train', '--config', 'bad.yaml'], 2, "bad.yaml: unknown key 'epoch': did you mean epochs"),
    (['train', '--config', 'cpu/digit'], 2, 'did you mean cpu/digits'),
    (['train', '--batch-size', '4000'], 2, 'batch_size=4000 is larger than the 1257 training images'),
    (['train', '--gpus', '0,1'], 1, '--gpus 0,1: MXNet sees 0 GPUs here'),
    (['train', '--gpus', '0;1'], 2, "gpus: '0;1' is not a list of whole numbers"),
    (['train', '--num-heads', '7', '--value-ratio', '1.5'], 2, 'leaves none for the convolution'),
    (['train', '--run', '.'], 2, 'exists already'),
    (['train', '--run', 'bad.yaml/run'], 1, 'cannot make the run directory bad.yaml/run'),
    (['train', '--dataset', 'cifar10', '--data-dir', '.'], 1, 'no CIFAR-10 in .'),
    (['eval', 'nowhere'], 2, 'nowhere is not a run directory'),
    (['eval', '.', '--split', 'all'], 2, "'all' is not one of 'test', 'val', 'train'"),
    (['models', 'show', 'resnet35'], 2, 'did you mean'),
    (['models', 'show', 'resnet34', '--input-size', '32'], 2, "'32' is not HxW in pixels, such as 32x32"),
    (['models', 'show', 'resnet34', '--input-size', '0x3'], 2, 'both must be at least 1'),
    (['models', 'list', '--json', 'no/such/directory'], 2, 'is no file in a directory that exists'),
    (['train', '--json', ''], 2, 'is no file in a directory that exists'),
    (['train', '--gpus', '0', '--cpus', '1'], 2, '--gpus and --cpus exclude each other'),
    (['train', '--dtype', 'bfloat16', '--gpus', '0'], 2, 'bfloat16 is for CPUs: on GPUs choose --dtype float16'),
    (['train', '--dtype', 'float16'], 2, 'MXNet has no float16 on CPUs: choose --dtype float32 or bfloat16'),
    (['train', '--dtype', 'float8'], 2, "'float8' is not one of 'float32', 'bfloat16', 'float16'"),
    (['train', '--kvstore', 'horovod'], 2, "'horovod' is not one of 'device', 'local'"),
    (['train', '--cpus', '65', '--batch-size', '64'], 2, 'batch_size=64 must be at least the number of devices, 65'),
    (['train', '--checkpoint-every', '5s'], 2, "'5s' is neither steps, such as 500, nor minutes, such as 10m"),
    (['train', '--checkpoint-every', '0'], 2, "checkpoint_every: '0' must be more than 0"),
    (['train', '--resume', 'nowhere'], 2, 'nowhere is not a run directory'),
    (['train', '--resume', '.', '--run', 'x'], 2, 'leave out --config and --run'),
    (['bench', 'throughput', '--net', 'resnet35'], 2, "unknown network 'resnet35': did you mean"),
    (['bench', 'throughput', '--net', ''], 2, 'there is nothing to measure'),
    (['bench', 'throughput', '--dtype', 'float23'], 2, 'dtype: unknown dtype'),
    (['bench', 'throughput', '--batch-size', '1,x'], 2, "'1,x' is not a list of whole numbers"),
    (['bench', 'throughput', '--batch-size', '0'], 2, 'batch_size: 0 must be at least 1'),
    (['bench', 'throughput', '--cpus', '1,1'], 2, 'names something twice'),
    (['bench', 'throughput', '--cpus', '1', '--gpus', '0'], 2, '--cpus and --gpus exclude each other'),
    (['bench', 'throughput', '--phase', 'validation'], 2, "unknown phase 'validation'"),
    (['bench', 'throughput', '--plot', 'no/such/directory'], 2, 'is no file in a directory that exists'),
    (['train', '--config', 'none.yaml'], 2, 'there is no file none.yaml'),
    (['train', '--placement', 'last:²'], 2, 'K must be 0 to 3'),
    (['models', 'show', 'cifar_resnet20_v1', '--stem', 'cifar'], 2, 'leave out stem'),
    (['trian'], 2, "No such command 'trian'"),
    ([], 0, None),
])
def test_refusals_are_one_line_with_the_exit_code(in_tmp_path, arguments, code, message):
    (in_tmp_path / 'bad.yaml').write_text('epoch: 3\n')
    if arguments[:1] == ['train']:
        arguments = TINY + arguments[1:]  # should it be accepted after all, it ends soon
    result = invoke(*arguments)
    assert result.exit_code == code
    if message is not None:
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith('Error: ') and message in last
        assert 'Traceback' not in result.stderr
    assert [path.name for path in in_tmp_path.iterdir()] == ['bad.yaml']


def test_a_loss_that_is_not_finite_ends_with_one(in_tmp_path):
    result = invoke(*TINY, '--learning-rate', '1e30')
    assert result.exit_code == 1 and 'Error: the loss or its gradient is not finite at step' in result.stderr


def raising(error):
    def fail(*args, **kwargs):
        raise error
    return fail


@pytest.mark.parametrize('error, code, message', [
    (KeyboardInterrupt(), 130, 'Interrupted.'),
    (FailedError('the disk is full'), 1, 'Error: the disk is full'),
    (ZeroDivisionError('by zero'), 1, 'Error: unexpected ZeroDivisionError: by zero (gluon-aa --debug'),
    (RuntimeError('C++ frames\n' * 200 + 'what went wrong'), 1, 'what went wrong'),
])
def test_whatever_happens_is_one_line(monkeypatch, error, code, message):
    monkeypatch.setattr(loop, 'train', raising(error))
    result = invoke('train')
    assert result.exit_code == code and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('arguments', [['--debug', 'train'], ['train', '--debug']])
def test_debug_shows_the_traceback(monkeypatch, arguments):
    monkeypatch.setattr(loop, 'train', raising(ZeroDivisionError('by zero')))
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert 'Traceback' in result.stderr and result.stderr.strip().endswith('shows where)')


@pytest.mark.usefixtures('without_curves')
def test_interruption_says_what_is_kept(in_tmp_path, monkeypatch):
    monkeypatch.setattr(loop.RunDirectory, 'write_result', raising(KeyboardInterrupt()))
    result = invoke(*TINY, '--run', 'run')
    assert result.exit_code == 130 and '--resume run goes on from its last checkpoint.' in result.stderr
    assert invoke('eval', 'run').exit_code == 0


def test_a_stopped_training_says_how_to_go_on_and_does(in_tmp_path):
    code = f'import sys; sys.path[:] = {sys.path!r}; from gluon_aa.cli import main; main()'
    command = [sys.executable, '-c', code, *TINY, '--epochs', '50', '--run', 'run', '--checkpoint-every', '3']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True) as process:
        while not list(in_tmp_path.glob('run/checkpoints/epoch-*')):
            assert process.poll() is None
            time.sleep(0.05)
        running = invoke('train', '--resume', 'run')
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert running.exit_code == 2
    assert f'Error: run is being trained by process {process.pid} on' in running.stderr
    assert process.returncode == 130 and 'gluon-aa train --resume run goes on from there' in errors
    assert errors.strip().splitlines()[-1] == 'Interrupted.' and 'Traceback' not in errors
    refused = invoke('train', '--resume', 'run', '--learning-rate', 1)
    assert refused.exit_code == 2 and 'Error: learning_rate cannot change in a training that goes on' in refused.stderr


@pytest.mark.usefixtures('without_curves')
def test_resume_goes_on_and_finishes(in_tmp_path):
    assert invoke(*TINY, '--run', 'whole').exit_code == 0
    os.mkdir('stopped')
    (in_tmp_path / 'stopped' / 'config.yaml').write_text((in_tmp_path / 'whole' / 'config.yaml').read_text())
    result = invoke('train', '--resume', 'stopped', '--keep-checkpoints', 3, '--json', '-')
    assert result.exit_code == 0, result.stderr
    whole = json.loads((in_tmp_path / 'whole' / 'result.json').read_text())
    assert json.loads(result.stdout)['test_accuracy'] == whole['test_accuracy']
    again = invoke('train', '--resume', 'stopped')
    assert again.exit_code == 0 and 'nothing is left to do' in again.stdout


def test_sparklines():
    assert sparkline([0.0, 0.5, 1.0]) in ('▁▅█', '▁▄█', '_*@', '_+@', '_=@')
    assert len(set(sparkline([3.0, 3.0]))) == 1
    assert len(sparkline(list(range(1000)))) <= 60
    assert sparkline(list(range(1000)))[-1] == sparkline([0, 1])[-1]


def test_several_cpu_devices_have_one_thread_each(in_tmp_path):
    # in a process of its own: the number of threads is settled when MXNet loads; more than one each would hang
    code = f'import sys; sys.path[:] = {sys.path!r}; from gluon_aa.cli import main; main()'
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    done = subprocess.run([sys.executable, '-c', code, *TINY, '--cpus', '2', '--run', 'run'], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((in_tmp_path / 'run' / 'result.json').read_text())['devices'] == ['cpu(0)', 'cpu(1)']


def test_json_follows_links_and_writes_into_pipes(in_tmp_path):
    (in_tmp_path / 'real.json').write_text('old')
    (in_tmp_path / 'link.json').symlink_to('real.json')
    assert invoke('models', 'list', '--json', 'link.json').exit_code == 0
    assert (in_tmp_path / 'link.json').is_symlink() and json.loads((in_tmp_path / 'real.json').read_text())
    os.mkfifo('pipe')
    reader = subprocess.Popen(['cat', 'pipe'], stdout=subprocess.PIPE)
    assert invoke('models', 'list', '--json', 'pipe').exit_code == 0
    assert json.loads(reader.communicate(timeout=60)[0]) and (in_tmp_path / 'pipe').is_fifo()
