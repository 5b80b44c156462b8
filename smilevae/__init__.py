"""Variational autoencoders on smiling and non-smiling faces: train, compare, and edit a smile."""

__version__ = "0.1.0"
