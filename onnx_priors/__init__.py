"""The diffusion prior as an ONNX model. Knows nothing of enkg_ref."""
