"""Which convolutions each placement augments."""
import pytest

from gluon_aa.errors import UsageError
from gluon_aa.layers import AttentionAugmentedConv2D
from gluon_aa.models import get_model


def augmented(net, prefix=''):
    """Addresses of the augmented convolutions, from input to output."""
    found = []
    for name, child in net._children.items():
        address = f'{prefix}.{name}' if prefix else name
        found += [address] if isinstance(child, AttentionAugmentedConv2D) else augmented(child, address)
    return found


def place(name, placement=None, **options):
    return augmented(get_model(name, placement=placement, **options))


BLOCKS = [f'stage{stage}.block{block}' for stage in (1, 2, 3) for block in (1, 2, 3, 4)]
PAPER = [f'{block}.conv1' for block in BLOCKS]


@pytest.mark.parametrize('placement, addresses', [
    ('none', []),
    ('paper', PAPER),
    (None, PAPER),
    ('all', [f'{block}.{conv}' for block in BLOCKS for conv in ('conv1', 'conv2')]),
    ('last:0', []),
    ('last:1', ['stage3.block4.conv1']),
    ('last:5', PAPER[-5:]),
    ('last:12', PAPER),
    ('stages:3', PAPER[8:]),
    ('stages:2,3', PAPER[4:]),
    ('seed', ['stage3.block1.conv1']),
    ('stage1.block2.conv2,stage3.block4.conv1', ['stage1.block2.conv2', 'stage3.block4.conv1']),
])
def test_wide_resnet(placement, addresses):
    assert place('aa_wrn28_1', placement) == addresses


@pytest.mark.parametrize('name, placement, addresses', [
    ('aa_resnet18', None, [f'stage{s}.block{b}.conv1' for s in (2, 3, 4) for b in (1, 2)]),
    ('aa_resnet34', 'seed', ['stage4.block3.conv2']),
    ('aa_resnet50', 'last:2', ['stage4.block2.conv2', 'stage4.block3.conv2']),
    ('aa_resnet50', 'all', [f'stage{stage}.block{block}.conv2' for stage, blocks in enumerate((3, 4, 6, 3), 1)
                            for block in range(1, blocks + 1)]),
])
def test_resnet(name, placement, addresses):
    assert place(name, placement) == addresses


def test_plain_names_augment_nothing_unless_asked():
    assert place('wrn16_1') == []
    assert place('wrn16_1', 'last:1') == ['stage3.block2.conv1']


@pytest.mark.parametrize('placement, message', [
    ('papr', "unknown placement 'papr': did you mean paper"),
    ('last:13', 'K must be 0 to 12'),
    ('last:x', 'K must be 0 to 12'),
    ('last:-1', 'K must be 0 to 12'),
    ('stages:4', 'this network has stages 1, 2, 3'),
    ('stages:', 'this network has stages 1, 2, 3'),
    ('stage3.block9.conv1', "unknown convolution in placement 'stage3.block9.conv1': did you mean"),
    ('', 'unknown placement'),
])
def test_unknown_placements_are_explained(placement, message):
    with pytest.raises(UsageError, match=message):
        place('aa_wrn28_1', placement)


def test_the_imagenet_recipe_pools_the_first_augmented_stage():
    net = get_model('aa_resnet18', input_size=224, stem='imagenet')
    blocks = [stage._children['block1'] for stage in (net.stage2, net.stage3)]
    assert [block.conv1.map_size for block in blocks] == [(28, 28), (14, 14)]
    assert [block.conv1.attention_size for block in blocks] == [(14, 14), (14, 14)]


def test_a_layer_that_cannot_be_augmented_is_named():
    with pytest.raises(UsageError, match=r'stage1.block1.conv1: attention takes 16 of 16 channels'):
        place('aa_wrn10_1', num_heads=16)
