"""One step of an ensemble of the spec: a model, and the ensemble's tensors that it reads and writes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from tritonc.schemas.errors import found
from tritonc.schemas.problems import problem
from tritonc.schemas.spec_fields import Model, Name


def _tensor_name(value: str) -> str:
    if not value or not value.isprintable():
        raise problem(f"{{field}} is {found(value)}", "a tensor's name has at least one character to be read")
    return value


TensorName = Annotated[str, AfterValidator(_tensor_name)]


class Step(Model):
    """One execution of a model in an ensemble."""

    model: Name
    """A model of the spec."""
    input_map: Annotated[dict[str, TensorName], Field(min_length=1)]
    """The ensemble's tensor that each input of the model reads, by the input's name."""
    output_map: Annotated[dict[str, TensorName], Field(min_length=1)]
    """The ensemble's tensor that an output of the model writes, by the output's name. Outputs may be left
    out."""
