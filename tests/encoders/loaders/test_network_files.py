"""Single files that hold a whole network: TorchScript archives and ONNX graphs."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pathfm_kedro.encoders import EncoderSpec, RuntimeTrial
from pathfm_kedro.encoders.gradients import differentiable
from pathfm_kedro.encoders.input_size import native_encoder
from pathfm_kedro.encoders.operations import operations_per_tile

DECLARED = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_pixels": 32}


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 8, 8)
        self.last = torch.nn.Linear(8, 6)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv(batch)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def expected(small, tiles):
    scaled = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.inference_mode():
        return small(scaled).numpy()


@pytest.fixture(scope="module")
def archive(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "m.pt"
    torch.jit.script(small).save(path)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("runtime", ["eager", "channels_last"])
def test_an_archive_embeds_as_the_module_did(
    small, load, tiles, expected, tmp_path, frozen, runtime
):
    scripted = torch.jit.script(small)
    path = tmp_path / "m.pt"
    (torch.jit.freeze(scripted) if frozen else scripted).save(path)
    encoder = load(f"torchscript:{path}", sha256=sha256(path), runtime=runtime, **DECLARED)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)
    gradients = differentiable(encoder)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float().div(255).requires_grad_()
    gradients.embed(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert native_encoder(encoder, (64, 64)) == (None, 4)


def test_an_archive_is_opened_only_where_its_digest_is_declared(archive, refused):
    text = refused(f"torchscript:{archive}", **DECLARED)
    assert "is a program" in text
    assert f"encoders.mine.sha256: {sha256(archive)}" in text
    text = refused(f"torchscript:{archive}", sha256="0" * 64, **DECLARED)
    assert sha256(archive) in text


def test_constants_of_a_frozen_archive_are_part_of_the_fingerprint(load, tmp_path):
    prints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.pt"
        torch.jit.freeze(torch.jit.script(Small().eval())).save(path)
        prints.add(load(f"torchscript:{path}", sha256=sha256(path), **DECLARED).fingerprint)
    assert len(prints) == 2


def test_the_trial_of_an_archive_ends_in_a_runtime(archive):
    spec = EncoderSpec("mine", f"torchscript:{archive}", sha256=sha256(archive), **DECLARED)
    assert RuntimeTrial(spec).record()["runtime"] in ("channels_last", "eager", "onnxruntime")


class Classifier(Small):
    """Probabilities of classes."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.last(torch.relu(self.conv(batch)).mean(dim=(2, 3))), dim=1)


class Score(Small):
    """One number for a tile."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.last(torch.relu(self.conv(batch)).mean(dim=(2, 3)))[:, :1])


@pytest.mark.parametrize(
    ("kind", "stated"),
    [(Classifier, "the probabilities of 6 classes"), (Score, "one number for a tile")],
)
def test_a_classifiers_scores_are_no_vectors(tmp_path, kind, stated):
    path = tmp_path / "m.pt"
    torch.jit.script(kind().eval()).save(path)
    spec = EncoderSpec("mine", f"torchscript:{path}", sha256=sha256(path), **DECLARED)
    with pytest.raises(ValueError, match=f"{stated}.* without its classifier"):
        RuntimeTrial(spec).key()


class Pair(torch.nn.Module):
    def forward(self, batch: torch.Tensor):
        return batch.mean(dim=(2, 3)), batch


ARCHIVES = {
    "two_outputs": (lambda p: torch.jit.script(Pair()).save(p), "gives a tuple"),
    "weights_only": (lambda p: torch.save({"w": torch.ones(2)}, p), "no TorchScript archive"),
    "cut_short": (lambda p: p.write_bytes(b"PK\x03\x04 and no more"), "cut short"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_another_file_than_an_archive_is_refused(refused, tmp_path, case):
    make, stated = ARCHIVES[case]
    make(tmp_path / "m.pt")
    text = refused(f"torchscript:{tmp_path / 'm.pt'}", sha256=sha256(tmp_path / "m.pt"), **DECLARED)
    assert stated in text


def graph(path, small, batch="n", side=32, **changes):
    """The module as an ONNX graph, written tensor by tensor and not by PyTorch's exporter."""
    weights = {k: v.numpy() for k, v in small.state_dict().items()}
    given = {
        "inputs": [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        "outputs": [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 6])],
    } | changes
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], strides=[8, 8]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "last.weight", "last.bias"], ["y"], transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "small",
        given["inputs"],
        given["outputs"],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_a_graph_embeds_as_the_module_did_whatever_its_batch(
    small, load, tiles, expected, tmp_path, batch
):
    encoder = load(f"onnx:{graph(tmp_path / 'm.onnx', small, batch)}", **DECLARED)
    np.testing.assert_allclose(encoder.embed(tiles), expected, atol=1e-5)
    np.testing.assert_array_equal(encoder.embed(tiles[:1]), encoder.embed(tiles)[:1])
    assert differentiable(encoder) is None
    assert native_encoder(encoder, (64, 64)) == (None, 4)


def test_a_graph_is_run_by_onnxruntime_and_recorded_so(small, tmp_path):
    spec = EncoderSpec("mine", f"onnx:{graph(tmp_path / 'm.onnx', small)}", **DECLARED)
    record = RuntimeTrial(spec).record()
    assert (record["runtime"], record["device"]) == ("onnxruntime", "cpu")
    assert record["tiles_per_second"] == {}
    with pytest.raises(ValueError, match=r"runtime is 'eager'.*onnxruntime only"):
        EncoderSpec("mine", "onnx:m.onnx", runtime="eager", **DECLARED)


def value(name, shape, kind=TensorProto.FLOAT):
    return [helper.make_tensor_value_info(name, kind, shape)]


GRAPHS = {
    "channels_last": ({"inputs": value("x", ["n", 32, 32, 3])}, "takes tensor(float) of shape"),
    "another_side": ({"side": 64}, "input_pixels is 32: set it to 64"),
    "two_outputs": (
        {"outputs": value("y", ["n", 6]) + value("c", ["n", 8, 1, 1])},
        "gives 2 (x, y, c)",
    ),
    "tokens": ({"outputs": value("b", ["n", 8, 4, 4])}, "one float32 vector per tile"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_takes_or_gives_something_else_is_refused(small, refused, tmp_path, case):
    changes, stated = GRAPHS[case]
    assert stated in refused(f"onnx:{graph(tmp_path / 'm.onnx', small, **changes)}", **DECLARED)


def test_data_beside_a_graph_counts_and_data_elsewhere_is_refused(small, load, refused, tmp_path):
    prints = []
    for scale in (1, 2):
        changed = Small().eval()
        changed.load_state_dict({k: v * scale for k, v in small.state_dict().items()})
        folder = tmp_path / str(scale)
        folder.mkdir()
        model = onnx.load(graph(folder / "m.onnx", changed))
        onnx.save(
            model,
            folder / "m.onnx",
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
        )
        prints.append(load(f"onnx:{folder / 'm.onnx'}", **DECLARED).fingerprint)
    assert len(set(prints)) == 2
    model = onnx.load(tmp_path / "1/m.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../2/m.data"
    (tmp_path / "1/other.onnx").write_bytes(model.SerializeToString())
    assert "outside of its folder" in refused(f"onnx:{tmp_path}/1/other.onnx", **DECLARED)


@pytest.mark.parametrize("prefix", ["onnx:", "torchscript:"])
@pytest.mark.parametrize(
    ("entry", "stated"),
    [
        ({"std": None}, "give encoders.mine.std as the model's page has it"),
        ({"pooling": "class_token"}, "it was exported with"),
        ({"model_kwargs": {"img_size": 3}}, "leave them out"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
    ],
)
def test_an_entry_of_a_single_file_says_what_the_file_does_not(refused, prefix, entry, stated):
    assert stated in refused(f"{prefix}m", **(DECLARED | entry))


def test_a_file_that_is_not_there_or_none(refused, tmp_path):
    assert "there is no file at" in refused("onnx:nowhere.onnx", **DECLARED)
    (tmp_path / "m.onnx").write_bytes(b"hello")
    assert "no ONNX file" in refused(f"onnx:{tmp_path}/m.onnx", **DECLARED)


def test_a_checkpoint_of_another_digest_is_refused(refused, tmp_path):
    torch.save({}, tmp_path / "w.pth")
    text = refused("timm:test_vit", checkpoint=str(tmp_path / "w.pth"), sha256="0" * 64)
    assert "sha256 is not that of" in text


def test_operations_of_a_graph_are_not_counted_as_none(small, tmp_path):
    spec = EncoderSpec("mine", f"onnx:{graph(tmp_path / 'm.onnx', small)}", **DECLARED)
    with pytest.raises(ValueError, match="onnxruntime runs this file"):
        operations_per_tile(spec)
