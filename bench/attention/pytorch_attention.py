"""One form of attention in PyTorch (see pytorch_forms.py), checked against the oracle, then timed turn by turn."""
import time
from typing import Any, Callable, List

import pytorch_forms
import worker

import torch


def tensors(sizes: Any, layout: str, dtype: torch.dtype) -> List[torch.Tensor]:
    """worker.arrays, the maps in `layout`; all but the last want gradients."""
    found = [torch.from_numpy(array).to(dtype) for array in worker.arrays(sizes)]
    if layout == 'channels_last':
        found = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in found]
    return [x.requires_grad_() for x in found[:3]] + found[3:]


def build(form: pytorch_forms.Form, sizes: Any) -> Callable[..., torch.Tensor]:
    return form.build(pytorch_forms.Sizes(**{key: value for key, value in sizes.items() if key != 'batch_size'}))


def check(form: pytorch_forms.Form, layout: str) -> float:
    """The largest relative error for small sizes, in float64; FlexAttention has float32 and no gradients."""
    dtype, tolerance = (torch.float64, 1e-12) if form.backward else (torch.float32, 1e-5)
    *inputs, head_gradient = tensors(worker.SMALL, layout, dtype)
    attend = build(form, worker.SMALL)
    if not form.backward:
        with torch.inference_mode():
            return worker.check([attend(*(x.detach() for x in inputs)).numpy()], tolerance)
    output = attend(*inputs)
    output.backward(head_gradient)
    return worker.check([output.detach().numpy(), *(x.grad.numpy() for x in inputs)], tolerance)


def main() -> None:
    options = worker.arguments(__doc__)
    torch.set_num_threads(options.threads)
    form = pytorch_forms.FORMS[options.form]
    error = check(form, options.layout)
    torch.compiler.reset()  # or the small sizes count against what may be compiled
    *inputs, head_gradient = tensors(options.sizes, options.layout, torch.float32)
    if not form.backward:  # FlexAttention refuses what might want a gradient, in inference too
        inputs = [x.detach() for x in inputs]
    attend = build(form, options.sizes)

    def run(pass_: str) -> float:
        for x in inputs:
            x.grad = None  # the quicker way: nothing is added to
        start = time.perf_counter()
        if pass_ == 'forward':
            with torch.inference_mode():
                attend(*inputs)
        else:
            attend(*inputs).backward(head_gradient)
        return time.perf_counter() - start

    worker.serve(run, framework=f'PyTorch {torch.__version__.split("+")[0]}', error=error,
                 passes=['forward', 'forward+backward'] if form.backward else ['forward'])


if __name__ == '__main__':
    main()
