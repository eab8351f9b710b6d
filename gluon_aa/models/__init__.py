"""The networks, by name: `get_model('aa_wrn28_10', classes=10)`."""
from gluon_aa.models import resnet, wide_resnet  # registers their families
from gluon_aa.models.registry import get_model, list_models
from gluon_aa.models.resize import copy_weights

__all__ = ['copy_weights', 'get_model', 'list_models', 'resnet', 'wide_resnet']
