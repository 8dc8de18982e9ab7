"""Serves `backend: "openvino"`."""
