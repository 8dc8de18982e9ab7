"""Serves `backend: "onnxruntime"`."""
