import subprocess
import sys

CHECK = """
import sys
from tritonc.compiler.protobuf import ModelConfig
from tritonc.compiler.pbtxt import parse_pbtxt
assert parse_pbtxt('name: "m"') == ModelConfig(name="m")
assert not {"grpc", "numpy", "tritonclient.grpc"} & sys.modules.keys(), sorted(sys.modules)
import tritonclient.grpc
assert tritonclient.grpc.model_config_pb2.ModelConfig is ModelConfig
"""
AFTER_THE_CLIENT = """
import tritonclient.grpc
from tritonc.compiler.protobuf import ModelConfig
assert tritonclient.grpc.model_config_pb2.ModelConfig is ModelConfig
"""


def test_the_message_is_loaded_without_the_client_and_is_the_client_s_own() -> None:
    subprocess.run([sys.executable, "-c", CHECK], check=True)


def test_the_client_may_come_first() -> None:
    subprocess.run([sys.executable, "-c", AFTER_THE_CLIENT], check=True)
