"""What a network is made of: layers, sizes, parameters, FLOPs and attention's share of them.

Read from the network's symbol, so nothing is initialised or computed, and gluoncv's networks work too.
"""
import math
from typing import Any, Dict, Iterator, List, Tuple

from gluon_aa.attention.cost import attention_flops
from gluon_aa.compat import mx
from gluon_aa.layers import AttentionAugmentedConv2D

nn: Any = mx.gluon.nn

Shape = Tuple[int, ...]


def summarize(net: Any, input_size: Tuple[int, int], in_channels: int = 3) -> Dict[str, Any]:
    """The layers of `net` and their costs for one image of `in_channels` x H x W.

    Returns:
        A dictionary: `parameters` (trainable), `flops` (2 x multiply-adds of convolutions, dense layers and attention,
        one forward pass), `attention` with its own `parameters`, `flops` and the `share` (a fraction) of each, and
        `layers`: name, kind, channels, height, width, augmented, parameters, flops; augmented layers
        also have `attention`: heads, channels, map and cost.
    """
    layers = list(_leaves(net, ''))
    outputs = _outputs(net, [layer for _, layer in layers])
    symbol = mx.sym.Group([outputs[id(layer)] for _, layer in layers if id(layer) in outputs])
    shape = (1, in_channels, *input_size)
    argument_shapes, output_shapes, _ = symbol.infer_shape(data=shape)
    shapes = dict(zip(symbol.list_arguments(), argument_shapes))
    maps = dict(zip(outputs, output_shapes))
    rows = [_row(name, layer, maps[id(layer)], shapes) for name, layer in layers if id(layer) in maps]
    attention = [row['attention'] for row in rows if row['augmented']]
    totals = {key: sum(row[key] for row in rows) for key in ('parameters', 'flops')}
    shares = {key: sum(entry[key] for entry in attention) for key in ('parameters', 'flops')}
    return {**totals, 'input_size': list(input_size),
            'attention': {**shares, 'share': {key: shares[key] / totals[key] for key in shares}}, 'layers': rows}


def _leaves(block: Any, address: str) -> Iterator[Tuple[str, Any]]:
    """Blocks without children, and augmented convolutions as one, with their addresses."""
    children = block._children.items()
    if not children or isinstance(block, AttentionAugmentedConv2D):
        yield address, block
        return
    for name, child in children:
        yield from _leaves(child, f'{address}.{name}' if address else name)


def _outputs(net: Any, layers: List[Any]) -> Dict[int, Any]:
    """id(layer) -> the symbol of its (first) output, in order of execution."""
    outputs: Dict[int, Any] = {}
    handles = [layer.register_forward_hook(lambda layer, _, output: outputs.setdefault(id(layer), output))
               for layer in layers]
    net(mx.sym.var('data'))
    for handle in handles:
        handle.detach()
    return outputs


def _row(name: str, layer: Any, output: Shape, shapes: Dict[str, Shape]) -> Dict[str, Any]:
    height, width = output[2:] if len(output) == 4 else (1, 1)
    augmented = isinstance(layer, AttentionAugmentedConv2D)
    row: Dict[str, Any] = {
        'name': name, 'kind': type(layer).__name__, 'channels': output[1], 'height': height, 'width': width,
        'augmented': augmented, 'parameters': _parameters(layer, shapes)}
    if augmented:
        row['attention'] = _attention(layer, shapes)
        row['flops'] = _product_flops(layer.conv, (height, width), shapes) + row['attention']['flops']
    else:
        row['flops'] = _product_flops(layer, (height, width), shapes)
    return row


def _attention(layer: AttentionAugmentedConv2D, shapes: Dict[str, Shape]) -> Dict[str, Any]:
    height, width = layer.attention_size
    flops = attention_flops(height=height, width=width, key_channels=layer.key_channels,
                            value_channels=layer.value_channels, relative=layer.relative)
    flops += sum(_product_flops(part, (height, width), shapes) for part in (layer.qkv, layer.projection))
    return {'num_heads': layer.num_heads, 'key_channels': layer.key_channels, 'value_channels': layer.value_channels,
            'relative': layer.relative, 'height': height, 'width': width, 'flops': flops,
            'parameters': _parameters(layer, shapes) - _parameters(layer.conv, shapes),
            'map_numbers': layer.num_heads * (height * width) ** 2}


def _parameters(block: Any, shapes: Dict[str, Shape]) -> int:
    return sum(math.prod(shapes[name]) for name, parameter in block.collect_params().items()
               if parameter.grad_req != 'null')


def _product_flops(layer: Any, size: Tuple[int, int], shapes: Dict[str, Shape]) -> int:
    """A convolution meets each pixel, a dense layer each image, with every weight once."""
    if isinstance(layer, nn.Conv2D):
        return 2 * math.prod(shapes[layer.weight.name]) * size[0] * size[1]
    if isinstance(layer, nn.Dense):
        return 2 * math.prod(shapes[layer.weight.name])
    return 0
