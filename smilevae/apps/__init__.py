"""Programs around a trained model: your own photo, the slider in a browser, the export, the Python API."""
