"""Attention-augmented convolutional networks on MXNet 1.9.1 / Gluon.

Importing this package prepares the process for MXNet (see `gluon_aa.compat`) but does not import it.
"""
from gluon_aa import compat

__version__ = '0.1.0'
__all__ = ['compat', '__version__']
