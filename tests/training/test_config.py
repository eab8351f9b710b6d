"""The configuration: defaults, file, flags; and what is refused."""
import dataclasses

import pytest

from gluon_aa.configs import DIRECTORY, find_recipe, recipes
from gluon_aa.data import DATASETS
from gluon_aa.data.normalization import NORMALIZATIONS
from gluon_aa.data.pipeline import LAST_BATCHES
from gluon_aa.errors import UsageError
from gluon_aa.training.config import FIELDS, TrainConfig, kind, load, parse_interval


def write(tmp_path, text):
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(tmp_path, 'net: wrn10_1\nepochs: 3\nlearning_rate: 1e-3\n')
    config = load(path, {'epochs': 7, 'gpus': '0,1'})
    assert (config.net, config.epochs, config.learning_rate, config.gpus) == ('wrn10_1', 7, 0.001, (0, 1))
    assert config.batch_size == TrainConfig().batch_size


def test_the_flag_cpus_wins_over_gpus_of_the_file(tmp_path):
    assert load(write(tmp_path, 'gpus: [0]'), {'cpus': 2}).gpus == ()
    assert load(write(tmp_path, 'cpus: 2'), {'gpus': '0'}).gpus == (0,)
    with pytest.raises(UsageError, match='exclude each other'):
        load(None, {'cpus': 2, 'gpus': '0'})


def test_what_is_written_reads_back(tmp_path):
    config = load(None, {'net': 'resnet18', 'gpus': '1,0', 'decay_epochs': [2, 5], 'stem': 'cifar', 'hybridize': False})
    assert load(write(tmp_path, config.to_yaml())) == config


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load(write(tmp_path, '# nothing\n')) == TrainConfig()


@pytest.mark.parametrize('text, message', [
    ('epoch: 3', "unknown key 'epoch': did you mean epochs"),
    ('weight_decy: 3', 'did you mean weight_decay'),
    ('epochs: many', "epochs: 'many' is not a whole number"),
    ('epochs: 1.5', 'is not a whole number'),
    ('epochs: true', 'is not a whole number'),
    ('epochs: 0', 'epochs: 0 must be at least 1'),
    ('learning_rate: fast', "learning_rate: 'fast' is not a number"),
    ('learning_rate: .nan', 'must be at least 0'),
    ('learning_rate: .inf', 'is not finite'),
    ('momentum: 1', 'momentum: 1.0 must be below 1'),
    ('label_smoothing: -0.1', 'must be at least 0'),
    ('hybridize: 3', 'is not true or false'),
    ('schedule: cosin', "unknown schedule 'cosin': did you mean cosine"),
    ('optimizer: sdg', 'did you mean sgd'),
    ('gpus: 0,x', "is not a list of whole numbers, such as 0,1"),
    ('gpus: [0, 0]', 'must name each number once'),
    ('decay_epochs: [-1]', 'none below 0'),
    ('net: 3', 'net: 3 is not a word'),
    ('- net', 'must hold keys and values'),
    ('net: [', 'is not YAML'),
])
def test_bad_files_are_explained(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        load(path)
    assert 'recipe.yaml' in str(caught.value) and '\n' not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match='cannot read the configuration .*absent.yaml'):
        load(tmp_path / 'absent.yaml')


def test_every_key_has_help_and_a_default_of_its_own_kind():
    for name, field in FIELDS.items():
        assert field.metadata['help'].endswith('.')
        assert field.default is None or isinstance(field.default, kind(name))


@pytest.mark.parametrize('name', recipes())
def test_recipes_load_and_say_how_to_run_them(name):
    path = find_recipe(name)
    load(path)
    header = path.read_text().split('\nnet:')[0]
    assert f'gluon-aa train --config {name}' in header


def test_recipes_are_found_by_path_and_by_name():
    assert find_recipe('cpu/digits') == find_recipe(str(DIRECTORY / 'cpu' / 'digits.yaml'))
    with pytest.raises(UsageError, match="unknown configuration 'cpu/digit': did you mean cpu/digits"):
        find_recipe('cpu/digit')


def test_the_replications_recipe():
    config = load(find_recipe('seed/wrn28_10'))
    wanted = {'net': 'wrn28_10', 'dataset': 'cifar10', 'optimizer': 'nag', 'momentum': 0.9, 'learning_rate': 0.1,
              'dropout': 0.1, 'batch_size': 128, 'epochs': 60, 'weight_decay': 0.0, 'schedule': 'seed-wrn'}
    assert {key: value for key, value in dataclasses.asdict(config).items() if key in wanted} == wanted


def test_steps_between_checkpoints_are_a_number_in_yaml_too(tmp_path):
    (tmp_path / 'mine.yaml').write_text('checkpoint_every: 500\n')
    assert load(tmp_path / 'mine.yaml').checkpoint_every == '500'
    assert parse_interval('500') == (500, None) and parse_interval('2.5m') == (None, 2.5)
    for wrong in ('0', '-1', '0m', 'nanm', 'infm', '5s', 'm', '1.5'):
        with pytest.raises(UsageError):
            parse_interval(wrong)


def test_choices_are_those_of_the_data():
    assert FIELDS['last_batch'].metadata['choices'] == LAST_BATCHES
    assert FIELDS['normalization'].metadata['choices'] == tuple(NORMALIZATIONS)
    assert FIELDS['dataset'].metadata['help'] == f'Data set: {", ".join(sorted(DATASETS))}.'
