import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tritonc.compiler.pbtxt import parse_pbtxt, print_pbtxt
from tritonc.compiler.protobuf import ModelConfig

FULL = """# made by a test
#
# of two parts

name: "m"
backend: "onnxruntime"
max_batch_size: 8
input {
  name: "a/b"
  data_type: TYPE_FP32
  dims: [ 3, -1 ]
}
output {
  name: "y"
  data_type: TYPE_INT64
  dims: [ 1 ]
  reshape { }
}
instance_group {
  kind: KIND_GPU
  count: 2
  gpus: [ 0, 1 ]
  profile: "p"
  profile: "q"
}
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
  priority_queue_policy {
    key: 2
    value {
      max_queue_size: 7
    }
  }
}
optimization {
  execution_accelerators {
    gpu_execution_accelerator {
      name: "tensorrt"
      parameters {
        key: "a"
        value: "1"
      }
      parameters {
        key: "b"
        value: ""
      }
    }
  }
  input_pinned_memory { }
}
parameters {
  key: "a"
  value {
    string_value: "1"
  }
}
parameters {
  key: "z"
  value { }
}
version_policy {
  latest {
    num_versions: 1
  }
}
model_warmup {
  name: "w"
  inputs {
    key: "x"
    value {
      zero_data: false
    }
  }
}
model_metrics {
  metric_control {
    histogram_options {
      buckets: [ 0.1, 2.0, inf ]
    }
  }
}
"""


def test_a_config_is_printed_in_one_order_and_reads_back() -> None:
    config = ModelConfig(name="m", backend="onnxruntime", max_batch_size=8)
    config.model_metrics.metric_control.add().histogram_options.buckets.extend([0.1, 2, math.inf])
    config.model_warmup.add(name="w").inputs["x"].zero_data = False
    config.version_policy.latest.num_versions = 1
    config.parameters["z"].SetInParent()
    config.parameters["a"].string_value = "1"
    config.optimization.input_pinned_memory.enable = False
    config.optimization.execution_accelerators.gpu_execution_accelerator.add(
        name="tensorrt", parameters={"b": "", "a": "1"}
    )
    config.dynamic_batching.preferred_batch_size.extend([4, 8])
    config.dynamic_batching.max_queue_delay_microseconds = 100
    config.dynamic_batching.priority_queue_policy[2].max_queue_size = 7
    config.instance_group.add(count=2, kind=1, gpus=[0, 1], profile=["p", "q"])
    config.input.add(name="a/b", data_type=11, dims=[3, -1])
    config.output.add(name="y", data_type=9, dims=[1]).reshape.SetInParent()
    text = print_pbtxt(config, ["made by a test", "\nof two parts"])
    assert text == FULL
    assert parse_pbtxt(text) == config


def test_max_batch_size_0_is_written_out() -> None:
    assert print_pbtxt(ModelConfig()) == "max_batch_size: 0\n"
    assert parse_pbtxt("max_batch_size: 0\n") == ModelConfig()


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("plain", '"plain"'),
        ('"\\', '"\\"\\\\"'),
        ("tab\tline\nreturn\r", '"tab\\tline\\nreturn\\r"'),
        ("\x00\x7f", '"\\000\\177"'),
        ("größe 模型 🚀", '"größe 模型 🚀"'),
        ("\u2028", '"\\342\\200\\250"'),
        ("'", '"\'"'),
    ],
)
def test_strings_are_quoted_so_that_they_stay_on_one_line(name: str, printed: str) -> None:
    config = ModelConfig(name=name)
    assert print_pbtxt(config).splitlines()[0] == f"name: {printed}"
    assert parse_pbtxt(print_pbtxt(config)) == config


def test_an_enum_number_without_a_name_is_printed_as_a_number() -> None:
    config = ModelConfig()
    config.input.add(name="x", data_type=999)
    assert "  data_type: 999\n" in print_pbtxt(config)
    assert parse_pbtxt(print_pbtxt(config)) == config


@pytest.mark.parametrize(
    ("value", "printed"), [(0.1, "0.1"), (1 / 3, "0.33333334"), (1e-30, "1e-30"), (math.nan, "nan")]
)
def test_floats_have_the_fewest_digits_that_read_back(value: float, printed: str) -> None:
    config = ModelConfig()
    config.sequence_batching.direct.minimum_slot_utilization = value
    assert f"minimum_slot_utilization: {printed}\n" in print_pbtxt(config)


def test_bytes_fields_are_escaped() -> None:
    from google.protobuf.wrappers_pb2 import BytesValue

    assert print_pbtxt(BytesValue(value=b'a"\x00\xff\n')) == 'value: "a\\"\\000\\377\\n"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_sise: 1", r"1:1 : .*max_batch_sise"),
        ('name: "m"\ninput [ { dims: [ x ] } ]', "2:"),
        ("name: m", "1:7"),
    ],
)
def test_what_is_no_config_says_where(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pbtxt(text)


def scalars(field: Any) -> st.SearchStrategy[Any]:
    bounds = {
        field.TYPE_INT32: (-(2**31), 2**31 - 1),
        field.TYPE_INT64: (-(2**63), 2**63 - 1),
        field.TYPE_UINT32: (0, 2**32 - 1),
        field.TYPE_UINT64: (0, 2**64 - 1),
    }
    if field.type in bounds:
        return st.integers(*bounds[field.type])
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type == field.TYPE_BOOL:
        return st.booleans()
    if field.type == field.TYPE_STRING:
        return st.text(max_size=6)
    return st.floats(allow_nan=False, width=32 if field.type == field.TYPE_FLOAT else 64)


def fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda f: f.name, max_size=4)):
        target = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            for key in draw(st.lists(scalars(field.message_type.fields_by_name["key"]), max_size=2)):
                value_field = field.message_type.fields_by_name["value"]
                if value_field.message_type:
                    fill(draw, target[key], depth + 1)
                else:
                    target[key] = draw(scalars(value_field))
        elif field.message_type and field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                fill(draw, target.add(), depth + 1)
        elif field.message_type:
            target.SetInParent()
            if depth < 5:
                fill(draw, target, depth + 1)
        elif field.is_repeated:
            target.extend(draw(st.lists(scalars(field), max_size=3)))
        else:
            setattr(message, field.name, draw(scalars(field)))


@st.composite
def configs(draw: st.DrawFn) -> Any:
    config = ModelConfig()
    fill(draw, config, 0)
    return config


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
def test_any_config_reads_back_equal(config: Any) -> None:
    text = print_pbtxt(config)
    assert parse_pbtxt(text) == config
    assert print_pbtxt(parse_pbtxt(text)) == text
