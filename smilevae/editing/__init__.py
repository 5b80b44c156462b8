"""Edits of a face in latent space: attributes, readers, calibration, face alignment."""
