"""gluon-aa data show: a run, its JSON, its picture; and bad data through the whole command, with the exit code."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from gluon_aa.cli import main
from gluon_aa.data import cifar
from pictures import drawn, encoded, folder_files, member, random_image, write_folder, write_tar
from pictures import own_directories  # noqa: F401


@pytest.fixture(autouse=True)
def isolated(own_directories, in_tmp_path):  # noqa: F811
    return own_directories


def invoke(*arguments):
    return CliRunner(mix_stderr=False).invoke(main, [str(argument) for argument in arguments])


def show(*arguments):
    return invoke('data', 'show', *arguments)


@pytest.mark.parametrize('command', [['data'], ['data', 'show']], ids=' '.join)
def test_help(command):
    result = invoke(*command, '--help')
    assert result.exit_code == 0 and result.stdout.startswith('Usage: ')


def test_a_data_set_is_described_and_drawn():
    result = show('--dataset', 'digits')
    assert result.exit_code == 0, result.stderr
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines['images'] == '1,257 training, 180 validation, 360 test'
    assert lines['size'] == '8x8 pixels (HxW), grey' and lines['classes'] == '10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9'
    assert lines['samples'] == 'samples.png'
    assert drawn('samples.png').shape == (24 + 128 + 8 + 20, 6 * 136 - 8 + 24, 3)
    assert [path.name for path in pathlib.Path().iterdir()] == ['samples.png']


def test_json_names_the_samples_that_are_drawn():
    result = show('--dataset', 'synthetic', '--input-size', '16x24', '--count', 2, '--output', 'x.png', '--json', '-')
    described = json.loads(result.stdout)
    assert described['input_size'] == [16, 24] and described['channels'] == 3 and len(described['mean']) == 3
    assert (described['train_images'], described['val_images'], described['test_images']) == (4500, 500, 1000)
    assert described['output'] == 'x.png' and len(described['fingerprint']) == 64
    from gluon_aa.data import load_dataset
    train = load_dataset('synthetic', input_size=(16, 24)).train
    sheet = drawn('x.png')
    for number, sample in enumerate(described['samples']):
        assert sample['class'] == described['classes'][train.labels[sample['index']]]
        square = train.images[sample['index']].transpose(1, 2, 0).repeat(5, axis=0).repeat(5, axis=1)
        assert np.array_equal(sheet[12:92, 12 + number * 128:132 + number * 128], square)


def test_seeds_choose_the_samples():
    indices = [[sample['index'] for sample in json.loads(show(
        '--dataset', 'digits', '--json', '-', '--seed', seed).stdout)['samples']] for seed in (0, 0, 1)]
    assert indices[0] == indices[1] != indices[2] and len(set(indices[0])) == 6


def test_augmented_versions_are_rows_beneath():
    assert show('--dataset', 'digits', '--augmented').exit_code == 0
    plain_height = 24 + 128 + 8 + 20
    assert len(drawn('samples.png')) == plain_height + 3 * 136 - 8


def test_a_folder_is_shown_with_its_notices_on_standard_error():
    write_folder(pathlib.Path('data'), folder_files(channels=1))
    result = show('--dataset', 'folder', '--data-dir', 'data', '--json', '-')
    assert result.exit_code == 0 and json.loads(result.stdout)['classes'] == ['cat', 'dog']
    assert 'decoding the images of data, to be kept in' in result.stderr


def test_mxnet_is_not_loaded():
    code = (f'import sys; sys.path[:] = {sys.path!r}\nfrom gluon_aa.cli import main\n'
            'main(["data", "show", "--dataset", "digits"], standalone_mode=False)\nassert "mxnet" not in sys.modules')
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120, stdout=subprocess.DEVNULL)


def folder(files):
    return write_folder(pathlib.Path('data'), files)


def tar(members):
    return write_tar(pathlib.Path('data'), members)


def truncated():
    path = tar(folder_files())
    path.write_bytes(path.read_bytes()[:-30_000])


def fill(size):
    """CIFAR-10's files, of zeros."""
    pathlib.Path('data').mkdir()
    for file in cifar.FORMATS['cifar10'].files:
        with open(f'data/{file.name}', 'wb') as stream:
            stream.truncate(size)


FILES = folder_files()
IMAGES = [member(name, content) for name, content in FILES.items()]
WHOLE = cifar.FORMATS['cifar10'].file_bytes(cifar.FORMATS['cifar10'].test)

#: What is wrong -> (the data set, what makes it, what the error says)
BAD = {
    'missing': ('cifar10', lambda: pathlib.Path('data').mkdir(), 'no CIFAR-10 in data'),
    'nowhere': ('cifar100', lambda: None, 'no CIFAR-100 in data'),
    'truncated': ('cifar10', lambda: fill(WHOLE - 1), 'data_batch_1.bin has 30,729,999 bytes instead of 30,730,000'),
    'unofficial': ('cifar10', lambda: fill(WHOLE), 'data_batch_1.bin in data is not the official file (SHA-1 '),
    'no archive': ('cifar10', lambda: pathlib.Path('data').write_bytes(b'text'), 'data is damaged, truncated or no'),
    'another archive': ('cifar10', lambda: tar({'a': b'b'}), 'data lacks data_batch_1.bin: it is not cifar-10-binary'),
    'bomb': ('cifar10', lambda: tar({'test_batch.bin': bytes(WHOLE + 1)}), "'test_batch.bin' of 30,730,001 bytes"),
    'no folder': ('folder', lambda: None, 'there is no directory or archive data'),
    'empty folder': ('folder', lambda: pathlib.Path('data').mkdir(), 'data has neither train/ nor test/'),
    'truncated tar': ('folder', truncated, 'data is damaged, truncated or no tar archive'),
    'way out': ('folder', lambda: tar([*IMAGES, member('../x.png')]), "data holds '../x.png', a name that leads out"),
    'link': ('folder', lambda: tar([*IMAGES, member('x.png', kind=b'2', linkname='/etc/passwd')]), "a link to '/etc"),
    'damaged image': ('folder', lambda: folder({**FILES, 'train/dog/0.png': b'x'}), "'train/dog/0.png' in data is no"),
    'other sizes': ('folder', lambda: folder({**FILES, 'train/dog/0.png': encoded(random_image(3, 3))}),
                    'make them one size with --input-size HxW'),
    'other classes': ('folder', lambda: folder({**FILES, 'train/cow/0.png': FILES['train/dog/0.png']}),
                      "the class 'cow' is in train/ but not in test/"),
    'empty class': ('folder', lambda: [(folder(FILES) / part / 'cow').mkdir() for part in ('train', 'test')],
                    "the class 'cow' has 0 of at least 2 images"),
}


@pytest.mark.parametrize('name', list(BAD))
def test_bad_data_is_one_line_and_exit_code_one(isolated, name):
    dataset, make, message = BAD[name]
    make()
    before = sorted(pathlib.Path().rglob('*'))
    result = show('--dataset', dataset, '--data-dir', 'data')
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if not line.startswith('decoding ')]
    assert len(errors) == 1 and errors[0].startswith('Error: ') and message in errors[0]
    assert sorted(pathlib.Path().rglob('*')) == before and not list(isolated.iterdir())  # nothing lost, nothing made


@pytest.mark.parametrize('arguments, message', [
    (['--dataset', 'cifar'], "unknown data set 'cifar': did you mean cifar10"),
    (['--dataset', 'folder'], 'the data set folder needs --data-dir'),
    (['--dataset', 'digits', '--input-size', '16x16'], 'leave out --input-size'),
    (['--dataset', 'digits', '--data-dir', '.'], 'leave out --data-dir'),
    (['--dataset', 'synthetic', '--input-size', '16'], "input_size: '16' is not HxW in pixels, such as 32x32"),
    (['--dataset', 'digits', '--count', '0'], '0 is not in the range 1<=x<=100'),
    (['--dataset', 'digits', '--output', 'no/such.png'], 'is no file in a directory that exists'),
    (['--dataset', 'digits', '--output', '.'], 'is no file in a directory that exists'),
])
def test_wrong_usage_is_one_line_and_exit_code_two(arguments, message):
    result = show(*arguments)
    assert result.exit_code == 2 and message in result.stderr.splitlines()[-1]
    assert not list(pathlib.Path().iterdir())


def test_more_samples_than_images_are_refused():
    folder(FILES)
    result = show('--dataset', 'folder', '--data-dir', 'data', '--count', 11)
    assert result.exit_code == 2 and '--count 11 is more than the 10 training images of folder' in result.stderr
