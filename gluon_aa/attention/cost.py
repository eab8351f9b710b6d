"""What attention costs in arithmetic, whatever backend computes it."""


def attention_flops(*, height: int, width: int, key_channels: int, value_channels: int, relative: bool) -> int:
    """FLOPs (2 x multiply-adds) of the operator's forward pass on one image.

    Logits and weighted values are (H*W)^2 products of depth key_channels and value_channels, all heads together;
    each query's relative logits are H + W products of depth key_channels. The softmax is not counted.
    """
    pixels = height * width
    products = pixels * pixels * (key_channels + value_channels)
    if relative:
        products += pixels * (height + width) * key_channels
    return 2 * products


#: The gradients take each product of the forward pass twice: S = Q K' gives dQ and dK, O = P V gives dP and dV, the
#: relative logits give dQ and the table's gradient. What an operator computes again to get there does not count.
BACKWARD_OVER_FORWARD = 2
