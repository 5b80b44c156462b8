"""Programs that use a trained model: photo, slider, export and the Python API."""
