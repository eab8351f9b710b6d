"""The gradient of a batch, from passes over its parts one after the other."""
from typing import Any, Dict, List, Sequence

from gluon_aa.compat import mx


class Accumulation:
    """Sums of gradients in arrays of their own, as many bytes as the gradients.

    Not by `grad_req='add'`, which would need none: oneDNN's operators, and native ones, overwrite instead of adding in
    several cases.

    Args:
        parameters: initialised, each with a gradient on every device.
    """

    def __init__(self, parameters: Sequence[Any], devices: Sequence[Any]) -> None:
        self._gradients: Dict[Any, List[Any]] = {
            device: [parameter.grad(device) for parameter in parameters] for device in devices}
        self._sums = {device: [mx.nd.zeros_like(gradient) for gradient in gradients]
                      for device, gradients in self._gradients.items()}

    def keep(self, device: Any, first: bool) -> None:
        """Add what a pass, the `first` or a later one, left as gradients."""
        for total, gradient in zip(self._sums[device], self._gradients[device]):
            if first:
                gradient.copyto(total)
            else:
                mx.nd.elemwise_add(total, gradient, out=total)

    def finish(self, device: Any) -> None:
        """Let the gradients, which the last pass left, be those of all passes."""
        for total, gradient in zip(self._sums[device], self._gradients[device]):
            mx.nd.elemwise_add(gradient, total, out=gradient)
