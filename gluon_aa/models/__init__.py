"""The networks, by name: `get_model('aa_wrn28_10', classes=10)`."""
from gluon_aa.models import resnet, wide_resnet  # registers their families
from gluon_aa.models.registry import get_model, list_models

__all__ = ['get_model', 'list_models', 'resnet', 'wide_resnet']
