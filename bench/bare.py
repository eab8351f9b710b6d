"""The bare loop that a trainer is measured against: forward, backward, update, on a batch that lies on the device."""
from typing import Any, Callable

from gluon_aa.compat import mx  # first: it prepares MXNet
from gluon_aa.models import get_model
from gluon_aa.training import precision
from gluon_aa.training.config import load
from gluon_aa.training.optimizers import make_optimizer


def make_step(dtype: str, images: Any, labels: Any, net_name: str = 'resnet34',
              **model_options: Any) -> Callable[[], None]:
    """One step of Gluon's own loop, as a user would write it; images (B, C, H, W) float32, labels (B,), NumPy."""
    config = load(None, {'net': net_name, 'optimizer': 'sgd', 'momentum': 0.9, 'learning_rate': 0.01, 'dtype': dtype})
    precision.use(dtype, on_gpus=False)
    net = get_model(net_name, classes=10, input_size=images.shape[2:], **model_options)
    net.initialize(mx.init.MSRAPrelu('in', 0))
    images, labels = mx.nd.array(images), mx.nd.array(labels)
    net(images[:1])  # fixes the shapes
    if dtype == 'bfloat16':
        precision.even_channels(net)
    net.hybridize(static_alloc=True, static_shape=True)
    cross_entropy = mx.gluon.loss.SoftmaxCrossEntropyLoss()
    trainer = mx.gluon.Trainer(net.collect_params(), make_optimizer(config), kvstore=None)

    def step() -> None:
        with mx.autograd.record():
            loss = cross_entropy(net(images).astype('float32'), labels)
        loss.backward()
        trainer.step(len(images))
    return step
