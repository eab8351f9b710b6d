"""Data sets by name: images as uint8 arrays, split for training, validation and test."""
from gluon_aa.data.datasets import DATASETS, Dataset, Split, load_dataset

__all__ = ['DATASETS', 'Dataset', 'Split', 'load_dataset']
