"""Latency profiles: written, found again, and refused where they are of something else."""

from pathlib import Path

import msgspec
import pytest

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.link import Link, bytes_on_link
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profile_store import (
    cache_folder,
    find_profiles,
    profile_folder,
    profiles_here,
    read_profile,
    the_profile,
    write_profile,
)
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile, Machine, timing
from aecnn_deploy.zoo import zoo_bundle
from tests.bundles import make_bundle

PI = Machine("aarch64 Cortex-A72, 4 cores", "pi")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_bundle(tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def device(bundle: Bundle, machine: Machine = PI, **changes: object) -> DeviceProfile:
    profile = DeviceProfile(
        bundle_id=bundle.id,
        machine=machine,
        versions={"onnxruntime": "1.32.0"},
        measured_at="2026-01-01T00:00:00Z",
        took_s=1.0,
        threads=0,
        images=0,
        heads={"a": {"fp32": timing([3.0, 1.0, 2.0])}},
    )
    return msgspec.structs.replace(profile, **changes)


class TestStore:
    def test_a_profile_is_read_as_it_was_written_and_the_bundle_stays_as_it_is(self, bundle: Bundle) -> None:
        path = write_profile(bundle, device(bundle))
        assert path.parent == profile_folder(bundle) == bundle.path.with_name("bundle.profiles")
        assert read_profile(path) == device(bundle)
        assert open_bundle(bundle.path).id == bundle.id

    def test_measuring_again_replaces_and_another_machine_does_not(self, bundle: Bundle) -> None:
        for profile in (device(bundle), device(bundle, took_s=2.0), device(bundle, this_machine())):
            write_profile(bundle, profile)
        assert len(find_profiles(bundle, DeviceProfile)) == 2
        assert profiles_here(bundle, DeviceProfile, PI) == [device(bundle, took_s=2.0)]
        assert profiles_here(bundle, DeviceProfile, Machine(PI.processor, "another pi")) == []

    def test_a_damaged_one_is_told_and_leaves_the_others_in_use(self, bundle: Bundle) -> None:
        write_profile(bundle, device(bundle))
        damaged = write_profile(bundle, device(bundle, Machine(PI.processor, "another pi")))
        damaged.write_bytes(damaged.read_bytes()[:-9])
        with pytest.raises(PlanError, match=damaged.name):
            profiles_here(bundle, DeviceProfile, PI)
        told: list[PlanError] = []
        assert profiles_here(bundle, DeviceProfile, PI, damaged=told.append) == [device(bundle)]
        assert [damaged.name in str(error) for error in told] == [True]

    def test_the_only_one_is_found_and_several_are_not_chosen_from(self, bundle: Bundle) -> None:
        write_profile(bundle, device(bundle))
        assert the_profile(bundle, DeviceProfile) == device(bundle)
        with pytest.raises(PlanError, match=r"no edge profile of this bundle in .*run 'aecnn-deploy calibrate edge'"):
            the_profile(bundle, EdgeProfile)
        path = write_profile(bundle, device(bundle, threads=4))
        with pytest.raises(PlanError, match=r"there are 2 device profiles: .*choose one with --device"):
            the_profile(bundle, DeviceProfile)
        assert the_profile(bundle, DeviceProfile, path).threads == 4

    def test_a_profile_of_another_bundle_or_kind_is_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        path = write_profile(bundle, device(bundle, bundle_id="0" * 64), tmp_path / "kept")
        with pytest.raises(PlanError, match=r"measured with bundle 0{16}….*measure again"):
            the_profile(bundle, DeviceProfile, path)
        assert find_profiles(bundle, DeviceProfile, tmp_path / "kept") == []
        with pytest.raises(PlanError, match="is a profile of kind device, expected link"):
            the_profile(bundle, LinkProfile, path)

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"{", "is no profile"),
            (b'{"kind": "device"}', "is no profile"),
            (b'{"kind": "oven"}', "is no profile"),
            (b"[" * 100_000, "is no profile"),
            (b" " * (8 << 20) + b"{}", "which no profile has"),
        ],
    )
    def test_what_is_no_profile_is_told(self, tmp_path: Path, content: bytes, told: str) -> None:
        (tmp_path / "device-x.json").write_bytes(content)
        with pytest.raises(PlanError, match=told):
            read_profile(tmp_path / "device-x.json")

    def test_another_format_and_times_that_cannot_be_are_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        newer = write_profile(bundle, device(bundle, format=2), tmp_path)
        with pytest.raises(PlanError, match="is of profile format 2, this version reads 1"):
            read_profile(newer)
        newer.write_bytes(newer.read_bytes().replace(b'"p10_ms": 1.2', b'"p10_ms": -1'))
        with pytest.raises(PlanError, match="is no profile"):
            read_profile(newer)

    def test_beside_a_bundle_in_a_folder_that_cannot_be_written_the_cache_has_it(self, bundle: Bundle) -> None:
        profile_folder(bundle).write_text("in the way")
        path = write_profile(bundle, device(bundle))
        assert path.parent == cache_folder(bundle)
        assert the_profile(bundle, DeviceProfile) == device(bundle)
        cache_folder(bundle).joinpath(path.name).unlink()
        with pytest.raises(PlanError, match="give a folder by --profiles"):
            write_profile(bundle, device(bundle), profile_folder(bundle))

    def test_profiles_of_a_bundle_of_the_zoo_are_in_the_cache_and_not_where_the_package_is(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        ours = open_bundle(zoo_bundle("caltech101-lite0"))
        path = write_profile(ours, device(ours))
        assert path.is_relative_to(tmp_path / "cache")
        assert the_profile(ours, DeviceProfile) == device(ours)


class TestLink:
    def test_headers_of_every_packet_count(self) -> None:
        assert bytes_on_link(1000) == 1000 + 8 + 66
        assert bytes_on_link(1440) == 1440 + 8 + 66
        assert bytes_on_link(1441) == 1441 + 8 + 2 * 66

    def test_time_is_bytes_over_rate(self) -> None:
        assert Link(1e6, 3.0).send_ms(1000) == pytest.approx(1074 * 8 / 1e3)

    @pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_rate_that_is_none_is_refused(self, rate: float) -> None:
        with pytest.raises(SettingsError, match="expected a positive number"):
            Link(rate, 0.0)

    def test_a_negative_round_trip_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="expected 0 or more"):
            Link(1e6, -1.0)
