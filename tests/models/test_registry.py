"""Names: what they build, what they refuse."""
import pytest

from gluon_aa.compat import mx
from gluon_aa.errors import UsageError
from gluon_aa.models import get_model, list_models
from gluon_aa.models.placement import Augmentation
from gluon_aa.models.registry import eligible_layers, register


@pytest.mark.parametrize('name', list_models())
def test_every_listed_name_builds(name):
    assert isinstance(get_model(name, classes=3), mx.gluon.HybridBlock)


def test_gluoncvs_own_arguments_are_taken():
    for name in ('wrn10_1', 'cifar_resnet20_v1'):
        assert get_model(name, classes=3, pretrained=False, ctx=mx.cpu()) is not None


def test_any_depth_and_width():
    assert len(get_model('wrn22_3').stage1._children) == 3


@pytest.mark.parametrize('name, message', [
    ('aa_wrn2810', "unknown network 'aa_wrn2810': did you mean aa_wrn28_10"),
    ('resnet35', 'did you mean .*resnet34'),
    ('wrn29_10', r'wrn29_10: the depth must be 6n \+ 4 and the width at least 1, such as wrn28_10'),
    ('wrn4_1', 'such as wrn10_1'),
    ('wrn16_0', 'such as wrn16_1'),
    ('cifar_resnet21_v1', "did you mean cifar_resnet20_v1"),
    ('', 'unknown network'),
])
def test_unknown_names_list_the_near_ones(name, message):
    with pytest.raises(UsageError, match=message):
        get_model(name)


@pytest.mark.parametrize('name, options, message', [
    ('resnet18', {'dropout': 0.1}, "unknown option of resnet18 'dropout'"),
    ('wrn10_1', {'stem': 'cifar'}, "unknown option of wrn10_1 'stem'"),
    ('wrn10_1', {'placment': 'none'}, 'did you mean placement'),
    ('resnet18', {'stem': 'imagnet'}, 'did you mean imagenet'),
    ('cifar_resnet20_v1', {'placement': 'paper'}, "gluoncv's and cannot be changed or augmented: leave out placement"),
    ('wrn10_1', {'classes': 0}, 'must be at least 1'),
    ('wrn10_1', {'pretrained': True}, 'there are no pretrained weights for wrn10_1'),
    ('wrn10_1', {'input_size': (0, 32)}, 'must be at least 1'),
])
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UsageError, match=message):
        get_model(name, **options)


@pytest.mark.parametrize('pattern, example', [
    (r'resnet(?P<depth>18|34|50|101|152)', 'another1'),
    (r'other(?P<depth>\d+)', 'resnet18'),
])
def test_duplicates_are_refused(pattern, example):
    with pytest.raises(ValueError, match='is registered already, by resnet'):
        register(pattern, examples=(example,), augmentation=Augmentation())(lambda depth: None)


@pytest.mark.parametrize('name, count', [('aa_wrn28_10', 12), ('aa_wrn10_1', 3), ('aa_resnet34', 16),
                                         ('aa_resnet50', 16), ('wrn28_10', 0), ('cifar_resnet20_v1', 0)])
def test_as_many_layers_are_eligible_as_last_k_takes(name, count):
    assert eligible_layers(name) == count
    if count:
        get_model(name, placement=f'last:{count}', attention_backend='folded')
        with pytest.raises(UsageError, match=f'K must be 0 to {count}'):
            get_model(name, placement=f'last:{count + 1}', attention_backend='folded')
