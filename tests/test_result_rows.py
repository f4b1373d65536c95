"""Rows that keep which test images were classified correctly, and what a report makes of them."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecnn_deploy.errors import RunFormatError
from aecnn_deploy.models.results import pack_correct, unpack_correct
from aecnn_deploy.planning.paper import paper_table
from aecnn_deploy.reports.curves import budget_rows
from aecnn_deploy.reports.numbers import difference_error
from aecnn_deploy.reports.points import make_group
from aecnn_deploy.reports.report import build_report
from aecnn_deploy.reports.tables import table_one
from tests.result_rows import codec_row, result_row


@given(st.lists(st.booleans(), max_size=100))
def test_what_is_packed_comes_back(correct: list[bool]) -> None:
    packed = pack_correct(np.array(correct, bool))
    assert unpack_correct(packed, len(correct)).tolist() == correct
    with pytest.raises(ValueError, match="are not those of"):
        unpack_correct(packed, len(correct) + 8)


def test_the_first_image_is_the_highest_bit() -> None:
    assert pack_correct(np.array([True, False, False, False, False, False, False, False, True])) == "8080"


def test_rows_that_keep_each_image_are_compared_image_by_image() -> None:
    """Where two networks fail on much the same images, a small margin is clear."""
    images, generator = 1000, np.random.default_rng(0)
    codec = generator.random(images) < 0.95
    ours = codec | (np.arange(images) < 100)  # right wherever the codec is, and on the first hundred
    kept = {"test_images": images, "test_set": "a"}
    rows = [
        codec_row(accuracy=float(codec.mean()), correct=pack_correct(codec), **kept),
        result_row(accuracy=float(ours.mean()), correct=pack_correct(ours), wire_bytes=2500.0, **kept),
    ]
    error = np.std(ours.astype(float) - codec, ddof=1) / np.sqrt(images)
    (row,) = (row for row in budget_rows(make_group("resnet50", [], rows, [])) if row.budget_bytes == 3000)
    assert row.margin_error == pytest.approx(error)
    page = build_report([make_group("resnet50", [], rows, [])])
    assert pack_correct(ours) in page.files["report.json"].decode()
    unpaired = difference_error(ours.mean(), codec.mean(), images)
    assert error < unpaired / 2
    for lacking in ({"test_set": "b"}, {"correct": None}, {"test_set": None}):
        other = [rows[0], msgspec.structs.replace(rows[1], **lacking)]
        (row,) = (row for row in budget_rows(make_group("resnet50", [], other, [])) if row.budget_bytes == 3000)
        assert row.margin_error == pytest.approx(unpaired), lacking


def test_seeds_are_averaged_image_by_image_and_table_one_takes_those_in_common() -> None:
    kept = {"test_images": 4, "test_set": "a"}
    right = [np.array(bits, bool) for bits in ((1, 1, 1, 0), (1, 0, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1))]
    rows = [
        result_row(seed=seed, accuracy=float(right[seed].mean()), correct=pack_correct(right[seed]), **kept)
        for seed in range(3)
    ]
    rival = result_row(arm="ca-pruned", seed=1, accuracy=1.0, correct=pack_correct(right[3]), **kept)
    group = make_group("resnet50", [], [*rows, rival], [])
    (point,) = group.of("aecnn")
    assert point.image_by_image(point.seeds) == pytest.approx([2 / 3, 1 / 3, 2 / 3, 0])
    (margin,) = table_one(group, paper_table())[0].rows[0].margins
    assert (margin.seeds, margin.difference) == (1, -0.5)
    assert margin.image_error == pytest.approx(np.std([0.0, -1, 0, -1], ddof=1) / 2)


@pytest.mark.parametrize("text", ["zz", "f", "ff", "f0f0", ""])
def test_a_row_whose_images_do_not_give_its_accuracy_is_refused(text: str) -> None:
    row = result_row(accuracy=0.75, test_images=4, test_set="a", correct=text)
    with pytest.raises(RunFormatError, match="image by image"):
        make_group("resnet50", [], [row], [])
