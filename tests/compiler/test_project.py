from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests import models
from tests.conftest import Content, ProjectFolder
from tritonc.compiler.project import Project, measuring_shapes, open_project
from tritonc.schemas.errors import InputErrors, TritoncError

MakeProject = Callable[[Mapping[str, Content]], ProjectFolder]

TARGETS = "targets:\n  cpu: {device: cpu, backends: {onnxruntime: {}}}\n"


def spec(**bodies: str) -> str:
    """A spec with these models: what stands below the name of each."""
    blocks = [
        f"  {name}:\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
        for name, body in bodies.items()
    ]
    return "\n".join(["apiVersion: tritonc/v1", "name: test", "models:", *blocks, TARGETS])


def opened(folder: ProjectFolder, *, allow_outside: bool = False) -> Project:
    return open_project(folder.path("spec.yaml"), allow_outside=allow_outside)


def errors(folder: ProjectFolder, *, allow_outside: bool = False) -> list[str]:
    """Every problem as the command line prints it, without the folder."""
    with pytest.raises(InputErrors) as caught:
        opened(folder, allow_outside=allow_outside)
    return [str(error).removeprefix(f"{folder.folder}/") for error in caught.value]


def test_opens_a_spec_with_its_models(project: MakeProject) -> None:
    text = spec(small="source: models/mlp.onnx\nmax_batch_size: 4", wide="source: file:models/conv.onnx")
    p = project({"spec.yaml": text, "models/mlp.onnx": models.mlp(), "models/conv.onnx": models.conv()})
    opened_project = opened(p)
    assert list(opened_project.models) == ["small", "wide"]
    assert opened_project.folder == p.folder
    assert opened_project.spec.name == "test"
    small = opened_project.models["small"]
    assert small.path == p.folder.resolve() / "models/mlp.onnx"
    assert small.sha256 == hashlib.sha256(p.path("models/mlp.onnx").read_bytes()).hexdigest()
    assert opened_project.max_batch_size("small") == 4
    assert opened_project.max_batch_size("wide") == 8


def test_an_objective_that_a_target_cannot_serve_is_an_error_at_its_place(project: MakeProject) -> None:
    text = spec(
        cheap="source: m.onnx\nobjective: {cost: 0.5, memory: 0.5}", green="source: m.onnx\nobjective: energy"
    )
    p = project({"spec.yaml": text, "m.onnx": models.mlp()})
    assert errors(p) == [
        "spec.yaml:9:16: the objective is about energy, which only a GPU tells, and target cpu has none; "
        "choose another objective, or put this model and GPU targets in a spec of their own",
        "spec.yaml:11:3: target cpu has no price_per_hour, but the objective of cheap is about cost; "
        "add what an hour of this machine costs, in any currency: price_per_hour: 0.50",
    ]
    p.write(
        "spec.yaml",
        spec(cheap="source: m.onnx\nobjective: cost").replace("cpu, b", "cpu, price_per_hour: 2, b"),
    )
    assert opened(p).spec.targets["cpu"].price_per_hour == 2


def test_a_model_without_a_batch_axis_is_not_batched_unless_asked(project: MakeProject) -> None:
    text = spec(m="source: m.onnx")
    p = project({"spec.yaml": text, "m.onnx": models.fixed_batch()})
    assert opened(p).max_batch_size("m") == 0
    p.write("spec.yaml", spec(m="source: m.onnx\nmax_batch_size: 8"))
    assert errors(p) == [
        'spec.yaml:6:21: max_batch_size is 8, but m.onnx has no batch axis: input "x" is [1, 4]; '
        "write max_batch_size: 0, or export the model with an open first dimension"
    ]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (models.no_inputs(), "it has no inputs"),
        (models.scalar_input(), 'input "factor" is []'),
        (models.mlp("batch", out_batch=1), 'output "y" is [1, 3]'),
        (models.folded_batch(), "the first dimension of its outputs does not follow that of its inputs"),
    ],
)
def test_says_why_there_is_no_batch_axis(project: MakeProject, model: Content, why: str) -> None:
    p = project({"spec.yaml": spec(m="source: m.onnx\nmax_batch_size: 2"), "m.onnx": model})
    assert f"m.onnx has no batch axis: {why};" in errors(p)[0]


def test_max_batch_size_0_puts_the_batch_axis_among_the_dims(project: MakeProject) -> None:
    text = spec(m="source: m.onnx\nmax_batch_size: 0\nshapes: {x: [2, 4]}", n="source: m.onnx")
    opened_project = opened(project({"spec.yaml": text, "m.onnx": models.mlp()}))
    assert opened_project.max_batch_size("m") == 0
    assert opened_project.models["m"].signature.inputs[0].dims == (-1, 4)
    assert measuring_shapes(opened_project, "m") == {"x": (2, 4)}
    assert opened_project.models["n"].signature.inputs[0].dims == (4,)


def test_requests_of_several_items_need_a_batch_axis(project: MakeProject) -> None:
    text = spec(m="source: m.onnx\nworkload: {request_batch: 4}")
    p = project({"spec.yaml": text, "m.onnx": models.fixed_batch()})
    assert errors(p) == [
        "spec.yaml:6:31: request_batch is 4, but m.onnx has no batch axis; write request_batch: 1"
    ]

    text = text.replace(
        "{request_batch: 4}", "{arrival: poisson, rate: 9, request_batch: [{size: 1}, {size: 4}]}"
    )
    p = project({"spec.yaml": text, "m.onnx": models.fixed_batch()})
    assert "request_batch is 4, but m.onnx has no batch axis" in errors(p)[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models/absent.onnx", "models/absent.onnx: does not exist; check the path"),
        ("models", "models: is a folder; name the .onnx file in it"),
        ("models/empty.onnx", "models/empty.onnx: is empty; copy or export the file again"),
        (
            "models/notes.txt",
            "models/notes.txt: is not an ONNX model, or is truncated; copy or export the file again",
        ),
        (
            "models/cut.onnx",
            "models/cut.onnx: is not an ONNX model, or is truncated; copy or export the file again",
        ),
        (
            "../m.onnx",
            "../m.onnx: is outside the project's folder; "
            "move it into the folder of the spec, or allow it with --allow-outside",
        ),
        (
            "https://example.com/m.onnx",
            "https://example.com/m.onnx: is a remote source (https:); remote sources come later; "
            "download the model and write its path",
        ),
        (
            "models/external.onnx",
            "models/external.onnx: its external data file weights.bin does not exist; "
            "copy it together with the model",
        ),
    ],
)
def test_a_source_that_cannot_be_used(project: MakeProject, source: str, message: str) -> None:
    p = project(
        {
            "spec.yaml": spec(m=f"source: {source}"),
            "models/empty.onnx": b"",
            "models/notes.txt": "not a model\n",
            "models/cut.onnx": models.mlp().SerializeToString()[:-40],
        }
    )
    models.write_with_external_data(models.mlp(), p.path("models/external.onnx"))
    p.path("models/weights.bin").unlink()
    assert errors(p) == [f"spec.yaml:5:13: {message}"]


def test_sources_outside_the_project_can_be_allowed(project: MakeProject) -> None:
    p = project({"spec.yaml": spec(m="source: link.onnx", n="source: ../m.onnx"), "../m.onnx": models.mlp()})
    p.path("link.onnx").symlink_to("../m.onnx")
    assert [error.split(";")[0] for error in errors(p)] == [
        "spec.yaml:5:13: link.onnx: is outside the project's folder",
        "spec.yaml:7:13: ../m.onnx: is outside the project's folder",
    ]
    assert (
        opened(p, allow_outside=True).models["m"].sha256 == opened(p, allow_outside=True).models["n"].sha256
    )


def test_external_data_may_not_be_linked_from_outside(project: MakeProject) -> None:
    p = project({"spec.yaml": spec(m="source: m.onnx")})
    models.write_with_external_data(models.mlp(), p.path("m.onnx"))
    p.path("weights.bin").rename(p.path("../weights.bin"))
    p.path("weights.bin").symlink_to("../weights.bin")
    assert errors(p)[0].startswith("spec.yaml:5:13: m.onnx: weights.bin: is outside the project's folder")
    assert opened(p, allow_outside=True).models["m"].external_data == (p.folder.resolve() / "weights.bin",)


def test_another_file_than_the_pinned_one_is_refused(project: MakeProject) -> None:
    actual = hashlib.sha256(models.mlp().SerializeToString()).hexdigest()
    text = spec(m=f"source: m.onnx\nsha256: {'a' * 64}", n=f"source: m.onnx\nsha256: {actual}")
    p = project({"spec.yaml": text, "m.onnx": models.mlp()})
    assert errors(p) == [
        f"spec.yaml:6:13: m.onnx has sha256 {actual}, not {'a' * 64}; "
        "restore the file; if the new one is meant, write its digest here"
    ]


def test_every_problem_of_every_model_is_reported_at_its_place(project: MakeProject) -> None:
    text = spec(
        a="source: absent.onnx",
        b="""
        source: m.onnx
        shapes:
          X: [4]
        dims: {x: [5], y: [3, 3]}
        """,
        c="source: m.onnx\nshapes: {x: [1, 4]}",
        d="source: m.onnx\ndata: {y: {constant: 1}}",
    )
    p = project({"spec.yaml": text, "m.onnx": models.mlp()})
    assert errors(p) == [
        "spec.yaml:5:13: absent.onnx: does not exist; check the path",
        'spec.yaml:9:10: shapes: the model has no input "X"; one of: x',
        "spec.yaml:10:16: dims: dimension 0 of x is 5, but the file fixes it at 4; write 4",
        "spec.yaml:10:23: dims: y is [3, 3], but [3] in the file, without the batch axis; "
        "leave out the batch axis",
        "spec.yaml:13:17: shapes: x is [1, 4], but [4] in the file, without the batch axis; "
        "leave out the batch axis",
        'spec.yaml:16:12: data: the model has no input "y"; one of: x',
    ]


def test_problems_of_the_spec_itself_come_first(project: MakeProject) -> None:
    p = project({"spec.yaml": spec(m="source: absent.onnx\nmax_batch: 3")})
    assert len(errors(p)) == 1
    assert 'unknown key "max_batch"' in errors(p)[0]
    with pytest.raises(TritoncError, match="no such file"):
        open_project(p.path("other.yaml"))


def test_measuring_shapes_are_the_specs_or_the_files(project: MakeProject) -> None:
    text = spec(
        given="source: two.onnx\nshapes: {ids: [16]}",
        pinned="source: two.onnx\ndims: {ids: [32]}",
        fixed="source: fixed.onnx",
    )
    p = project({"spec.yaml": text, "two.onnx": models.two_inputs(), "fixed.onnx": models.fixed_batch()})
    opened_project = opened(p)
    assert measuring_shapes(opened_project, "given") == {"ids": (16,), "scale": (1,)}
    assert measuring_shapes(opened_project, "pinned") == {"ids": (32,), "scale": (1,)}
    assert measuring_shapes(opened_project, "fixed") == {"x": (1, 4)}
    assert opened_project.served_signature("pinned").inputs[0].dims == (32,)


def test_every_open_dimension_without_a_size_is_a_problem_of_measuring(project: MakeProject) -> None:
    text = spec(conv="source: conv.onnx", folded="source: folded.onnx\nshapes: {}")
    p = project({"spec.yaml": text, "conv.onnx": models.conv(), "folded.onnx": models.folded_batch()})
    opened_project = opened(p)
    for model, expected in (
        (
            "conv",
            ':4:3: the file leaves dimensions of input "image" open: [3, -1, -1], without the batch axis; '
            "say which size to measure: shapes: {image: [3, ?, ?]} with a number for each ?",
        ),
        (
            "folded",
            ':8:13: the file leaves dimensions of input "x" open: [-1, -1, 4]; '
            "say which size to measure: shapes: {x: [?, ?, 4]} with a number for each ?",
        ),
    ):
        with pytest.raises(InputErrors) as caught:
            measuring_shapes(opened_project, model)
        assert [str(error) for error in caught.value] == [f"{p.path('spec.yaml')}{expected}"]


def test_a_file_that_several_models_share_is_read_once(project: MakeProject, tmp_path: Path) -> None:
    text = spec(a="source: m.onnx", b="source: ./m.onnx", c=f"source: {tmp_path.resolve()}/project/m.onnx")
    opened_project = opened(project({"spec.yaml": text, "m.onnx": models.mlp()}))
    assert len({id(file) for file in opened_project.models.values()}) == 1
