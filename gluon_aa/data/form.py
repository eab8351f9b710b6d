"""What a data set's images are, without reading it."""
from typing import Dict, NamedTuple, Optional, Tuple

from gluon_aa.errors import UsageError, unknown


class Form(NamedTuple):
    """The number of classes, and the shape (C, H, W) of an image."""

    classes: int
    image_shape: Tuple[int, int, int]


#: Of the data sets that have one form; a test compares them with the data sets.
FORMS: Dict[str, Form] = {
    'digits': Form(10, (1, 8, 8)),
    'cifar10': Form(10, (3, 32, 32)),
    'cifar100': Form(100, (3, 32, 32)),
    'synthetic': Form(10, (3, 32, 32)),
}

#: A folder's images are of any size, in colour, and of as many classes as it has directories.
_SIZED = ('synthetic', 'folder')
_FOLDER_CLASSES = 10


def form_of(dataset: str, input_size: Optional[Tuple[int, int]] = None, classes: Optional[int] = None) -> Form:
    """The form of the data set `dataset`, of images made to have `input_size` (H, W), where it can.

    Args:
        classes: of a folder.

    Raises:
        UsageError: an unknown data set; a size or a number of classes that it cannot have.
    """
    if dataset not in (*FORMS, 'folder'):
        raise unknown('data set', dataset, (*FORMS, 'folder'))
    if dataset == 'folder' and input_size is None:
        raise UsageError("say the size that the folder's images get: --input-size HxW")
    form = FORMS.get(dataset, Form(classes or _FOLDER_CLASSES, (3, 0, 0)))
    if input_size is not None and dataset not in _SIZED:
        raise UsageError(f'input_size means nothing for the data set {dataset}: leave out --input-size, '
                         'or say --dataset folder')
    if classes is not None and classes != form.classes:
        raise UsageError(f'the data set {dataset} has {form.classes} classes: leave out --classes, '
                         'or say --dataset folder')
    return form if input_size is None else form._replace(image_shape=(form.image_shape[0], *input_size))
