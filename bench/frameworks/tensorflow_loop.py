"""ResNet-34 of the replication (7x7 stem at stride 1, 3x3 max-pool) in TensorFlow, as one tf.function; see loop.py."""
import loop

import numpy as np

import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers


def convolution(x: tf.Tensor, channels: int, kernel: int, stride: int) -> tf.Tensor:
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2)(x) if stride > 1 else x
    return layers.Conv2D(channels, kernel, stride, 'valid' if stride > 1 else 'same', use_bias=False)(x)


def block(x: tf.Tensor, channels: int, stride: int) -> tf.Tensor:
    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = layers.BatchNormalization()(convolution(x, channels, 1, stride))
    x = layers.ReLU()(layers.BatchNormalization()(convolution(x, channels, 3, stride)))
    x = layers.BatchNormalization()(convolution(x, channels, 3, 1))
    return layers.ReLU()(layers.add([x, shortcut]))


def resnet34() -> keras.Model:
    image = keras.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(convolution(image, 64, 7, 1)))
    x = layers.MaxPool2D(3, 2, 'same')(x)
    for number, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for index in range(blocks):
            x = block(x, channels, 2 if number and not index else 1)
    logits = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Activation('linear', dtype='float32')(logits))


def main() -> None:
    options = loop.arguments(__doc__)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    if options.dtype == 'bfloat16':
        keras.mixed_precision.set_global_policy('mixed_bfloat16')
    net = resnet34()
    assert sum(int(np.prod(weight.shape)) for weight in net.trainable_weights) == 21_289_802
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images, labels = loop.batch(options.batch_size)
    images, labels = tf.constant(images.transpose(0, 2, 3, 1)), tf.constant(labels)

    @tf.function
    def update() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels, net(images, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_weights), net.trainable_weights))
        return loss

    last = []

    def step() -> None:
        last[:] = [update()]

    loop.run(options, step, lambda: last[0].numpy(), f'TensorFlow {tf.__version__}')


if __name__ == '__main__':
    main()
