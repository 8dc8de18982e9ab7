"""Fetches the models of the examples into their `models/` folders; what is there and right is left alone.

    python examples/fetch_models.py

The PP-OCRv4 models come from the wheel of rapidocr-onnxruntime, which pip downloads by a pinned hash from the
index it is configured for; DenseNet-121 (the real graph with synthetic weights) lies in the installed onnx
package. Every file is checked against its SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent

WHEEL = "rapidocr-onnxruntime==1.4.4"
WHEEL_SHA256 = "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf"


@dataclass(frozen=True, slots=True)
class Model:
    """One model file: where it comes from, what it must be and who uses it.

    Attributes:
        member: path inside the wheel; empty where the file is part of the onnx package.
        sha256: of the file itself.
        copies: paths below `examples/`.
    """

    member: str
    sha256: str
    copies: tuple[str, ...]


RECOGNITION = Model(
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    (
        "ocr/models/ch_PP-OCRv4_rec_infer.onnx",
        "multi-target/models/ch_PP-OCRv4_rec_infer.onnx",
    ),
)
DETECTION = Model(
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ("ocr-detection/models/ch_PP-OCRv4_det_infer.onnx",),
)
DENSENET = Model(
    "",
    "49ddb5712797d6164f1d864bedaad927de4f3909ad1b4ba390a92c2f8150e9f6",
    ("densenet/models/light_densenet121.onnx",),
)


def main() -> None:
    """Fetches what is missing and says where it lies."""
    if missing(DENSENET):
        place(DENSENET, onnx_data("light_densenet121.onnx").read_bytes())
    wanted = [model for model in (RECOGNITION, DETECTION) if missing(model)]
    if wanted:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(download(Path(folder))) as wheel:
            for model in wanted:
                place(model, wheel.read(model.member))
    for model in (RECOGNITION, DETECTION, DENSENET):
        for copy in model.copies:
            print(f"examples/{copy}")


def missing(model: Model) -> bool:
    """Whether a copy of the model is absent or has other bytes."""
    paths = [EXAMPLES / copy for copy in model.copies]
    return not all(path.is_file() and sha256(path.read_bytes()) == model.sha256 for path in paths)


def place(model: Model, content: bytes) -> None:
    """Writes the model's copies, each by a rename, so that an interrupted fetch leaves no half file.

    Raises:
        SystemExit: the bytes are not the ones this script was written for.
    """
    if sha256(content) != model.sha256:
        sys.exit(
            f"error: {model.member or model.copies[0]} has SHA-256 {sha256(content)}, not {model.sha256}"
        )
    for copy in model.copies:
        path = EXAMPLES / copy
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def onnx_data(name: str) -> Path:
    """Path of a test model of the installed onnx package; finding it does not import the package."""
    spec = importlib.util.find_spec("onnx")
    if spec is None or spec.origin is None:
        sys.exit("error: the onnx package is not installed; run: make install")
    return Path(spec.origin).parent / "backend" / "test" / "data" / "light" / name


def download(folder: Path) -> Path:
    """The wheel, downloaded by pip into `folder` and checked by it against the pinned hash.

    Raises:
        SystemExit: pip could not get it; its own words stand above the message.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode:
        sys.exit(
            f"error: pip could not download {WHEEL}; check the network, or point pip to an index that has it "
            "(PIP_INDEX_URL, PIP_FIND_LINKS), and run this again"
        )
    return next(folder.glob("*.whl"))


if __name__ == "__main__":
    main()
