"""What of a Triton repository is settings and text: what is refused, and what goes through protobuf's parser."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from aecnn_deploy.bundle.reader import open_bundle
from aecnn_deploy.bundle.writer import BundleWriter
from aecnn_deploy.errors import ExportError, SettingsError
from aecnn_deploy.exporters.triton_config import labels_text
from aecnn_deploy.exporters.triton_repository import write_repository
from aecnn_deploy.exporters.triton_settings import TritonSettings
from aecnn_deploy.exporters.triton_text import Message, entry, message, render
from tests.bundles import VARIANTS, make_bundle
from tests.triton_models import check_model


class TestSettings:
    @pytest.mark.parametrize(
        ("chosen", "why"),
        [
            ({"backend": "pytorch"}, "no Triton backend 'pytorch'; choose one of auto, onnxruntime, tensorrt"),
            ({"precision": "fp8"}, "no model file is in 'fp8'; choose one of fp16, int8, fp32"),
            ({"max_batch": 0}, "max_batch is 0, expected 1 to 1024"),
            ({"max_batch": 1025}, "max_batch is 1025"),
            ({"max_batch": 4, "preferred_batches": (8,)}, "expected ascending sizes from 1 to the largest batch, 4"),
            ({"preferred_batches": (4, 2)}, "preferred batches are"),
            ({"preferred_batches": (2, 2)}, "preferred batches are"),
            ({"preferred_batches": (0,)}, "preferred batches are"),
            ({"queue_delay_us": -1}, "queue_delay_us is -1"),
            ({"queue_timeout_us": 3_600_000_001}, "queue_timeout_us is"),
            ({"queue_delay_us": 500, "queue_timeout_us": 500}, "give them a longer time, or a shorter wait"),
            ({"max_queue": -1}, "max_queue is -1"),
            ({"instances": 0}, "instances is 0"),
            ({"threads": -1}, "threads is -1"),
            ({"device": "tpu"}, "no device 'tpu'; choose cpu or gpu"),
            ({"device": "cpu", "backend": "tensorrt"}, "tensorrt plans run on a GPU only"),
            ({"gpus": (0,)}, "go with the device gpu, got none"),
            ({"gpus": (0,), "device": "cpu"}, "go with the device gpu, got cpu"),
            ({"gpus": (1, 1), "device": "gpu"}, "expected different numbers from 0"),
            ({"gpus": (-1,), "device": "gpu"}, "expected different numbers from 0"),
            ({"prefix": "a/b-"}, "the prefix is 'a/b-', expected at most 64 letters"),
            ({"prefix": "{bundle-"}, "expected at most 64 letters"),
            ({"prefix": "-{bundle}"}, "expected a letter or a digit at its beginning"),
            ({"prefix": "x" * 65}, "expected at most 64 letters"),
        ],
    )
    def test_a_wrong_one_is_refused_when_it_is_made(self, chosen: dict[str, Any], why: str) -> None:
        with pytest.raises(SettingsError, match=why):
            TritonSettings(**chosen)


class TestText:
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_any_text_comes_back_from_protobufs_parser(self, text: str) -> None:
        config = Message((("name", text), ("parameters", entry(text, message(string_value=text)))))
        read = text_format.Parse(render(config), ModelConfig())
        assert (read.name, read.parameters[text].string_value) == (text, text)

    @given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=5), st.integers(0, (1 << 31) - 1), st.booleans())
    def test_any_sizes_come_back_from_protobufs_parser(self, dims: list[int], batch: int, yes: bool) -> None:
        tensor = message(name="x", dims=tuple(dims), optional=yes)
        read = text_format.Parse(render(message(max_batch_size=batch, input=tensor)), ModelConfig())
        assert (list(read.input[0].dims), read.max_batch_size, read.input[0].optional) == (dims, batch, yes)

    def test_what_the_format_has_no_form_for_is_refused(self) -> None:
        with pytest.raises(ExportError, match="no text that UTF-8 can hold"):
            render(message(name="\ud800"))
        with pytest.raises(ExportError, match="is no 64-bit number"):
            render(message(max_batch_size=1 << 63))

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
    def test_every_label_is_one_line_in_its_place(self, labels: list[str]) -> None:
        text = labels_text(tuple(labels))
        lines = text.splitlines()  # which splits at more than Triton's getline does
        assert text.count("\n") == len(lines) == len(labels)
        for line, label in zip(lines, labels, strict=True):
            assert line == label or (line != label and "".join(line.split()) == "".join(label.split()))

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(labels=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=7, max_size=7))
    def test_labels_of_any_kind_get_through_a_bundle_into_a_repository(
        self, labels: list[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("labels")
        opened = open_bundle(relabelled(folder, (*labels[:5], 'a "quoted" \\ label', "zwei\nZeilen 日本")))
        write_repository(opened, folder / "models", variants=[VARIANTS[0].id])
        check_model(folder / "models" / VARIANTS[0].id)
        lines = (folder / "models" / "full" / "labels.txt").read_bytes().decode().split("\n")
        assert lines[5:] == ['a "quoted" \\ label', "zwei Zeilen 日本", ""]


def relabelled(folder: Path, labels: tuple[str, ...]) -> Path:
    """A tiny bundle with ``labels``."""
    make_bundle(folder / "plain")
    plain = open_bundle(folder / "plain")
    with BundleWriter(folder / "bundle") as writer:
        for name in plain.manifest.files:
            writer.copy(plain.file(name), name)
        manifest = plain.manifest
        writer.commit(
            backbone=manifest.backbone,
            labels=labels,
            input_spec=manifest.input,
            full=manifest.full,
            variants=manifest.variants,
            measurements={},
            tools={},
        )
    return folder / "bundle"
