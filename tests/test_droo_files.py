"""Samples of DROO's channel: the generator's distribution, and a reader that refuses what is no test set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from aecnn_deploy.errors import AecnnError, PolicyError, SettingsError
from aecnn_deploy.offloading.droo import files
from aecnn_deploy.offloading.droo.files import read_samples, write_samples
from aecnn_deploy.offloading.droo.physics import alternating_weights, computation_rate
from aecnn_deploy.offloading.droo.samples import Samples, draw_gains, generate_samples, mean_gains

SAMPLES = generate_samples(30, 4, seed=9)


def fields(samples: Samples = SAMPLES) -> dict[str, Any]:
    assert samples.modes is not None
    return {
        "input_h": samples.gains.copy(),
        "output_mode": samples.modes.astype(np.uint8),
        "output_obj": samples.optimum[:, None].copy(),
    }


def written(path: Path, content: dict[str, Any]) -> Path:
    scipy.io.savemat(path, content)
    return path


class TestGenerator:
    def test_each_devices_gain_is_exponential_about_the_published_mean(self) -> None:
        distance = 2.5 + 0.3 * np.arange(6)
        wanted = 3 * (3e8 / (4 * np.pi * 915e6 * distance)) ** 2.8
        np.testing.assert_allclose(mean_gains(6), wanted, rtol=1e-12)
        fading = draw_gains(np.random.default_rng(0), 40_000, mean_gains(6)) / wanted
        np.testing.assert_allclose(fading.mean(0), 1, atol=0.03)
        np.testing.assert_allclose((fading > 1).mean(0), np.exp(-1), atol=0.01)
        np.testing.assert_allclose((fading > 3).mean(0), np.exp(-3), atol=0.005)
        assert np.abs(np.corrcoef(fading.T) - np.eye(6)).max() < 0.03

    def test_the_seed_decides(self) -> None:
        assert (generate_samples(30, 4, seed=9).gains == SAMPLES.gains).all()
        assert (generate_samples(30, 4, seed=10).gains != SAMPLES.gains).any()

    @pytest.mark.parametrize(("samples", "devices"), [(0, 4), (30, 0), (4, 3), (-1, 3)])
    def test_too_few_samples_or_devices_are_refused(self, samples: int, devices: int) -> None:
        with pytest.raises(SettingsError):
            generate_samples(samples, devices, seed=1)

    def test_the_last_fifth_is_what_is_tested(self) -> None:
        assert (len(SAMPLES.training_gains), len(SAMPLES.test_gains), len(SAMPLES.test_optimum)) == (24, 6, 6)
        assert (np.concatenate([SAMPLES.training_gains, SAMPLES.test_gains]) == SAMPLES.gains).all()


class TestReader:
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("devices", [1, 4, 9])
    def test_a_written_file_is_read_with_the_weights_that_it_was_made_with(
        self, tmp_path: Path, reverse: bool, devices: int
    ) -> None:
        samples = generate_samples(20, devices, seed=2, weights=alternating_weights(devices, reverse=reverse))
        write_samples(tmp_path / "data.mat", samples)
        read = read_samples(tmp_path / "data.mat")
        assert (read.weights == samples.weights).all()
        assert (read.gains == samples.gains).all()
        assert (read.optimum == samples.optimum).all()
        assert read.modes is not None
        assert (read.modes == samples.modes).all()
        assert read.source == "data.mat"

    def test_other_weights_are_refused_until_they_are_named(self, tmp_path: Path) -> None:
        weights = np.array([1.0, 3.0, 0.5, 2.0])
        write_samples(tmp_path / "data.mat", generate_samples(20, 4, seed=2, weights=weights))
        with pytest.raises(PolicyError, match=r"with weights 1, 1\.5, … \(off by .* name the weights"):
            read_samples(tmp_path / "data.mat")
        assert (read_samples(tmp_path / "data.mat", weights=weights).weights == weights).all()

    def test_without_modes_the_weights_must_be_named(self, tmp_path: Path) -> None:
        content = fields()
        del content["output_mode"]
        path = written(tmp_path / "data.mat", content)
        with pytest.raises(PolicyError, match="no field output_mode"):
            read_samples(path)
        assert read_samples(path, weights=SAMPLES.weights).modes is None

    @pytest.mark.parametrize("weights", [[1, 2], [1, 1, 1, 0], [1, 1, 1, float("nan")], "heavy", [[1, 1, 1, 1]]])
    def test_weights_that_are_no_positive_number_for_each_device_are_wrong_use(
        self, tmp_path: Path, weights: Any
    ) -> None:
        with pytest.raises(SettingsError, match="weights must be 4 positive numbers"):
            read_samples(written(tmp_path / "data.mat", fields()), weights=weights)

    @pytest.mark.parametrize("name", ["input_h", "output_obj"])
    def test_a_missing_field_is_named(self, tmp_path: Path, name: str) -> None:
        content = fields()
        del content[name]
        with pytest.raises(PolicyError, match=f"no field {name}"):
            read_samples(written(tmp_path / "data.mat", content))

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("input_h", np.zeros((0, 4)), "is empty"),
            ("input_h", SAMPLES.gains[:4], "holds 4 samples of 4 devices"),
            ("input_h", SAMPLES.gains[:20], "must hold 20 positive rates"),
            ("input_h", np.ones((30, 2, 2)), "two axes"),
            ("input_h", SAMPLES.gains * 1e6, "scaled"),
            ("input_h", -SAMPLES.gains, "negative"),
            ("input_h", SAMPLES.gains * np.nan, "not finite"),
            ("input_h", SAMPLES.gains + 0j, "no matrix of real numbers"),
            ("input_h", "gains", "input_h"),
            ("input_h", {"a": 1}, "input_h"),
            ("input_h", np.array([[1, "x"]], object), "input_h"),
            ("output_obj", SAMPLES.optimum[:29, None], "must hold 30 positive rates"),
            ("output_obj", SAMPLES.optimum[:, None] * 0, "0 of them positive"),
            ("output_obj", SAMPLES.optimum[:, None] * np.inf, "not finite"),
            ("output_obj", SAMPLES.optimum[:, None] * 1.01, "do not give its rates"),
            ("output_mode", SAMPLES.gains, "must hold 0 and 1"),
            ("output_mode", np.zeros((30, 3)), "must hold 0 and 1 in the shape"),
        ],
    )
    def test_a_field_that_cannot_be_is_refused(self, tmp_path: Path, name: str, value: Any, message: str) -> None:
        with pytest.raises(PolicyError, match=message):
            read_samples(written(tmp_path / "data.mat", fields() | {name: value}))

    def test_what_is_no_mat_file_or_absent_is_refused(self, tmp_path: Path) -> None:
        for content in (b"", b"MATLAB", b"\x00" * 200, np.random.default_rng(0).bytes(5000)):
            (tmp_path / "data.mat").write_bytes(content)
            with pytest.raises(PolicyError, match=r"data\.mat"):
                read_samples(tmp_path / "data.mat")
        with pytest.raises(PolicyError, match="No such file"):
            read_samples(tmp_path / "none.mat")
        with pytest.raises(PolicyError):
            read_samples(tmp_path)

    def test_cut_and_flipped_files_raise_the_projects_own_errors_alone(self, tmp_path: Path) -> None:
        write_samples(tmp_path / "data.mat", SAMPLES)
        whole = (tmp_path / "data.mat").read_bytes()
        rng = np.random.default_rng(4)
        refused = 0
        for attempt in range(150):
            content = bytearray(whole)
            if attempt % 3 == 0:
                content = content[: rng.integers(len(content))]
            else:
                for place in rng.integers(0, len(content), 3):
                    content[place] = rng.integers(256)
            (tmp_path / "bad.mat").write_bytes(content)
            try:
                read_samples(tmp_path / "bad.mat")
            except AecnnError:
                refused += 1
        assert refused > 50

    def test_a_file_that_is_too_big_is_not_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path / "data.mat", fields())
        monkeypatch.setattr(files, "_MOST_VALUES", 100)
        with pytest.raises(PolicyError, match=r"declares the shape \(30, 4\)"):
            read_samples(path)
        monkeypatch.setattr(files, "_MOST_BYTES", 100)
        with pytest.raises(PolicyError, match="over the limit of 100"):
            read_samples(path)

    def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "data.mat"
        scipy.io.savemat(path, fields() | {"padding": np.zeros(500_000)}, do_compression=True)
        assert path.stat().st_size < 20_000
        read_samples(path)
        monkeypatch.setattr(files, "_MOST_UNPACKED", 3_000_000)
        with pytest.raises(PolicyError, match="unpacks to more than the limit"):
            read_samples(path)

    def test_samples_without_modes_are_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match="without modes"):
            write_samples(tmp_path / "x.mat", Samples(SAMPLES.gains, SAMPLES.weights, SAMPLES.optimum))

    def test_the_published_rates_are_those_of_the_published_modes(self, tmp_path: Path) -> None:
        write_samples(tmp_path / "data.mat", SAMPLES)
        read = read_samples(tmp_path / "data.mat")
        assert read.modes is not None
        np.testing.assert_allclose(computation_rate(read.gains, read.modes, read.weights), read.optimum, rtol=1e-12)
