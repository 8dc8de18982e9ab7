"""tritonc: a declarative GitOps compiler and Bayesian tuner for NVIDIA Triton Inference Server."""

__version__ = "0.1.0"
