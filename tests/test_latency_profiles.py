"""Latency profiles as they are measured: real heads, tails, links and processes, of tiny bundles."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from aecnn_deploy.bundle.reader import Bundle, open_bundle
from aecnn_deploy.calibration.classify_client import ClassifyClient
from aecnn_deploy.calibration.device_timing import time_device
from aecnn_deploy.calibration.edge_timing import time_edge
from aecnn_deploy.calibration.pictures import CAMERA_SIZES, FRAME_CODINGS, encode_image, gather, made_up
from aecnn_deploy.calibration.profile_facts import with_other_variants
from aecnn_deploy.calibration.turns import Clock, Effort, in_turns
from aecnn_deploy.calibration.uplink_timing import LinkEffort, is_too_fast, padded_jpeg, time_link
from aecnn_deploy.codec import PlaneEncoder, coder_names
from aecnn_deploy.errors import PlanError, RequestFailedError, SessionRefusedError, SettingsError, SourceError
from aecnn_deploy.planning.link import bytes_on_link
from aecnn_deploy.planning.machine import this_machine
from aecnn_deploy.planning.profile_store import find_profiles, profile_folder, read_profile, write_profile
from aecnn_deploy.planning.profiles import DeviceProfile, EdgeProfile, LinkProfile, Machine
from aecnn_deploy.runtimes.credentials import Credentials
from aecnn_deploy.runtimes.edge_runners import RunnerOptions
from aecnn_deploy.runtimes.frames import read_frame
from aecnn_deploy.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from tests.bundles import VARIANTS, Edge, TinyVariant, command, make_bundle, make_photos, one_line, serving
from tests.certificates import Authority
from tests.in_process import command_here
from tests.link_proxy import LinkProxy, LinkSettings

QUICK = Effort(wanted=1, least=1, longest_s=0.1, pause_ms=0.5)
FEW = LinkEffort(requests=5, pairs=5, least_pairs=5, longest_s=1.0, pause_ms=1.0)
UNEQUAL = (
    TinyVariant("big", 4, 4, 8, head_loops=6, tail_loops=6),
    TinyVariant("small", 2, 4, 4),
)
NONE = Credentials()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    make_bundle(folder / "bundle", variants=UNEQUAL)
    return open_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def photos(folder: Path) -> list[Path]:
    return make_photos(folder / "photos", 3)


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[Edge]:
    with serving(bundle.path) as running:
        yield running


@pytest.fixture(scope="module")
def device(bundle: Bundle, photos: list[Path]) -> DeviceProfile:
    return time_device(bundle, threads=1, images=photos, effort=QUICK)


@pytest.fixture(scope="module")
def timed_edge(bundle: Bundle) -> EdgeProfile:
    return time_edge(bundle, options=RunnerOptions(threads=1), batches=(4,), effort=QUICK)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class TestDevice:
    def test_it_says_of_what_and_where_it_is(self, device: DeviceProfile, bundle: Bundle) -> None:
        assert (device.bundle_id, device.machine, device.threads) == (bundle.id, this_machine(), 1)
        assert device.images == 3
        assert {"aecnn-deploy", "onnxruntime", "python", "numpy"} <= device.versions.keys()

    def test_a_head_that_computes_more_takes_longer(self, device: DeviceProfile) -> None:
        big, small = (device.heads[name]["fp32"] for name in ("big", "small"))
        assert big.p50_ms > 5 * small.p50_ms > 0
        assert big.p10_ms <= big.p50_ms <= big.p90_ms
        assert device.local is not None
        assert device.local.p50_ms < big.p50_ms

    def test_each_coder_has_the_bytes_that_it_makes_of_the_photographs(
        self, device: DeviceProfile, bundle: Bundle, photos: list[Path]
    ) -> None:
        spec = bundle.variant("small")
        with OnnxRuntimeRunner(bundle.file(spec.head)) as head:
            planes = [head.infer(read_frame(path, bundle.manifest.input)[None])[0] for path in photos]
        coders = device.coders["small"]
        assert coders.keys() == set(coder_names()) - {"zstd-dict"}  # it has no dictionary
        assert coders["raw"].bytes_mean == spec.plane_bytes
        encoder = PlaneEncoder(spec.planes, spec.bits, coder="zstd")
        sizes = [len(encoder.encode(each).payload) for each in planes]
        assert coders["zstd"].bytes_mean == pytest.approx(np.mean(sizes), abs=0.1)
        assert all(coding.encode.p50_ms > 0 and coding.decode.p50_ms > 0 for coding in coders.values())

    def test_reading_and_whole_images_are_of_photographs_and_of_cameras_sizes(
        self, device: DeviceProfile, photos: list[Path]
    ) -> None:
        own, *sized = device.reads
        assert own.bytes_mean == pytest.approx(np.mean([path.stat().st_size for path in photos]), abs=0.1)
        assert (own.width, own.height) == (137, 109)
        assert [(read.width, read.height) for read in sized] == list(CAMERA_SIZES)
        frames = [item for item in device.image_codings if (item.width, item.height) == (64, 64)]
        assert [item.coding for item in frames] == list(FRAME_CODINGS)
        sizes = {item.coding: item.bytes_mean for item in frames}
        assert sizes["raw"] == 64 * 64 * 3 + 54  # a BMP
        assert sizes["jpeg-q30"] < sizes["jpeg-q90"] < sizes["raw"]
        whole = {(item.width, item.height) for item in device.image_codings if item.coding == "jpeg-q75"}
        assert whole == {(64, 64), *CAMERA_SIZES}
        assert all(item.encode is not None and item.decode is None for item in device.image_codings)

    def test_an_empty_request_within_the_machine_takes_a_moment_without_the_pause(self, device: DeviceProfile) -> None:
        assert device.loopback is not None
        assert 0 < device.loopback.p10_ms < 100

    def test_without_photographs_pictures_are_made_up(self, bundle: Bundle) -> None:
        other = time_device(bundle, variants=["small"], effort=QUICK, layers=False)
        assert (other.images, other.heads.keys(), other.layers) == (0, {"small"}, {})
        assert [(read.width, read.height) for read in other.reads] == list(CAMERA_SIZES)

    def test_what_cannot_be_measured_is_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        with pytest.raises(SourceError, match="none of 1 photographs decodes"):
            time_device(bundle, images=[tmp_path / "broken.jpg"])
        with pytest.raises(SettingsError, match="threads is -1"):
            time_device(bundle, threads=-1)


class TestDeviceCommand:
    def test_each_thread_count_has_its_profile_and_measuring_again_replaces_them(
        self, bundle: Bundle, photos: list[Path], tmp_path: Path
    ) -> None:
        words = ("calibrate", "device", str(bundle.path), "--images", str(photos[0].parent), "--no-layers", "--json")
        words += ("--profiles", str(tmp_path), "--variant", "small", "--seconds", "0.1")
        done = command(*words, "--threads", "1", "--threads", "2")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document.keys() >= {"bundle_id", "machine", "host", "onnxruntime", "threads", "profile", "variants"}
        (row,) = document["variants"]
        assert (row["variant"], row["head"], row["head_ms"].keys()) == ("small", "fp32", {"fp32"})
        (more,) = document["more"]
        assert (document["threads"], more["threads"]) == (1, 2)
        kept = dict(find_profiles(bundle, DeviceProfile, tmp_path))
        assert kept.keys() == {Path(document["profile"]), Path(more["profile"])}
        path = Path(document["profile"])
        assert msgspec.to_builtins(kept[path], str_keys=True) == document["measured"]
        path.write_bytes(b"damaged")
        again = with_other_variants(bundle, kept[path], tmp_path)
        assert write_profile(bundle, again, tmp_path) == path
        assert dict(find_profiles(bundle, DeviceProfile, tmp_path)) == kept

    def test_of_one_variant_alone_the_others_stay_and_another_machines_profile_is_left_alone(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        before = time_device(bundle, threads=1, effort=QUICK, layers=False)
        write_profile(bundle, before, tmp_path)
        pi = msgspec.structs.replace(before, machine=Machine("aarch64 Cortex-A72, 4 cores", "pi"))
        there = write_profile(bundle, pi, tmp_path)
        words = ("calibrate", "device", str(bundle.path), "--threads", "1", "--variant", "small", "--no-layers")
        words += ("--seconds", "0.1")
        done = command_here(*words, "--profiles", str(tmp_path))
        assert done.returncode == 0, done.stderr
        found = dict(find_profiles(bundle, DeviceProfile, tmp_path))
        assert found.pop(there) == pi
        (now,) = found.values()
        assert now.heads["big"] == before.heads["big"]
        assert now.heads["small"] != before.heads["small"]
        lines = done.stdout.decode().splitlines()
        assert max(map(len, lines[:-2])) <= 80  # the last two name the machine and a path
        assert lines[0].split() == ["milliseconds", "p50", "p10", "p90"]
        assert not any(line.startswith("big") for line in lines)

    def test_where_nothing_can_be_written_it_is_told_before_anything_is_measured(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        for words in (("device",), ("edge",), ("link", "--edge", "ws://127.0.0.1:1")):
            name, *rest = words
            done = command_here("calibrate", name, str(bundle.path), *rest, "--profiles", str(tmp_path / "file"))
            assert (done.returncode, done.stdout) == (1, b"")
            assert "cannot write a profile to" in one_line(done.stderr)

    def test_wrong_use_is_status_2_and_another_fault_1(self, bundle: Bundle, tmp_path: Path) -> None:
        path = str(bundle.path)
        assert command_here("calibrate", "device", path, "--threads", "-1").returncode == 2
        assert command_here("calibrate", "edge", path, "--batch", "0", "--no-layers").returncode == 2
        for words, why in (
            (("device", path, "--variant", "x"), "has no variant 'x'; it has big, small"),
            (("device", path, "--images", str(tmp_path / "none")), "there is no file or folder"),
            (("device", str(tmp_path / "none")), "there is no such file or folder"),
        ):
            done = command_here("calibrate", *words)
            assert done.returncode == 1
            assert why in one_line(done.stderr)
        assert not list(profile_folder(bundle).glob("*.json"))


class TestEdge:
    def test_tails_are_timed_by_batch_size_with_the_runner_that_serves_them(self, timed_edge: EdgeProfile) -> None:
        assert (timed_edge.runner, timed_edge.precision, timed_edge.threads) == ("onnxruntime", "fp32", 1)
        assert {name: set(sizes) for name, sizes in timed_edge.tails.items()} == {"big": {1, 4}, "small": {1, 4}}
        assert timed_edge.tails["big"][1].p50_ms > 5 * timed_edge.tails["small"][1].p50_ms > 0
        assert timed_edge.full.keys() == {1, 4}

    def test_decoding_of_planes_and_of_images_is_timed(self, timed_edge: EdgeProfile) -> None:
        assert timed_edge.coders.keys() == {"big", "small"}
        assert timed_edge.coders["small"].keys() == set(coder_names()) - {"zstd-dict"}
        codings = {(item.coding, item.width, item.height) for item in timed_edge.image_codings}
        assert codings == {(name, 64, 64) for name in FRAME_CODINGS} | {("jpeg-q75", *size) for size in CAMERA_SIZES}
        assert all(item.decode is not None and item.encode is None for item in timed_edge.image_codings)

    def test_a_real_service_says_what_it_takes_around_a_request(self, timed_edge: EdgeProfile) -> None:
        assert timed_edge.overhead is not None
        assert timed_edge.loopback is not None
        assert 0 < timed_edge.overhead.p50_ms < 100
        assert 0 < timed_edge.loopback.p50_ms < 100

    def test_it_is_read_as_it_was_written(self, timed_edge: EdgeProfile, bundle: Bundle, tmp_path: Path) -> None:
        assert read_profile(write_profile(bundle, timed_edge, tmp_path)) == timed_edge

    def test_a_service_that_does_not_start_is_told_in_its_own_words(self, bundle: Bundle) -> None:
        done = command_here("calibrate", "edge", str(bundle.path), "--runner", "tensorrt", "--no-build")
        assert (done.returncode, done.stdout) == (1, b"")
        assert "holds no tensorrt engine" in one_line(done.stderr)


class TestLink:
    @pytest.mark.parametrize(("rate_bps", "delay_s"), [(2e6, 0.0), (20e6, 0.02)])
    def test_the_rate_of_a_slow_link_is_found_within_a_tenth_and_its_delay(
        self, bundle: Bundle, edge: Edge, rate_bps: float, delay_s: float
    ) -> None:
        with LinkProxy(edge.port, LinkSettings(rate_bps=rate_bps, delay_s=(delay_s, delay_s))) as proxy:
            profile = time_link(bundle, proxy.url, NONE, variant="small", effort=FEW)
        with_headers = bytes_on_link(1e6) / 1e6  # of packets, for which the proxy takes no time
        assert profile.rate_bps["p50"] == pytest.approx(rate_bps * with_headers, rel=0.1)
        assert profile.rate_bps["p10"] <= profile.rate_bps["p50"] <= profile.rate_bps["p90"]
        assert not is_too_fast(profile)
        assert profile.fixed.p10_ms >= 2 * delay_s * 1e3
        assert profile.fixed.count == FEW.requests
        assert (profile.edge, profile.machine, profile.bundle_id) == (proxy.url, this_machine(), bundle.id)
        assert profile.edge_software.startswith("aecnn-deploy ")
        assert 100_000 < profile.bytes_sent < 20_000_000

    def test_the_command_keeps_a_profile_for_each_edge(self, bundle: Bundle, edge: Edge, tmp_path: Path) -> None:
        words = ("calibrate", "link", str(bundle.path), "--variant", "small", "--profiles", str(tmp_path))
        done = command_here(*words, "--edge", edge.url, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document.keys() == {"bundle_id", "edge", "profile", "too_fast", "measured"}
        ((path, kept),) = find_profiles(bundle, LinkProfile, tmp_path)
        assert Path(document["profile"]) == path
        assert document["measured"] == msgspec.to_builtins(kept)
        text = command_here(*words, "--edge", edge.http).stdout.decode()
        assert "bytes were sent for it" in text
        assert "uplink" in text
        assert max(map(len, text.splitlines()[:-2])) <= 80
        assert len(find_profiles(bundle, LinkProfile, tmp_path)) == 2  # by another address

    def test_an_edge_that_is_away_or_serves_another_bundle_is_one_line(
        self, bundle: Bundle, edge: Edge, tmp_path: Path
    ) -> None:
        make_bundle(tmp_path / "other", variants=VARIANTS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = f"ws://127.0.0.1:{free.getsockname()[1]}"
        for path, url, why in (
            (bundle.path, nobody, "cannot reach the edge at"),
            (tmp_path / "other", edge.url, "the edge refused this device (bundle-mismatch)"),
        ):
            done = command_here("calibrate", "link", str(path), "--edge", url)
            assert (done.returncode, done.stdout) == (1, b"")
            assert why in one_line(done.stderr)
        assert command_here("calibrate", "link", str(bundle.path), "--edge", "nowhere").returncode == 2

    def test_a_guarded_edge_is_measured_with_credentials_and_refuses_without(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        authority = Authority(tmp_path / "tls")
        pair = authority.issue("edge")
        (tmp_path / "tokens").write_text("device 0123456789abcdef0123456789abcdef\n")
        (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef\n")
        words = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--token-file", str(tmp_path / "tokens"))
        with serving(bundle.path, *words) as guarded:
            own = Credentials(authority.ca, token_file=tmp_path / "token")
            profile = time_link(bundle, guarded.url, own, variant="small", effort=FEW)
            assert profile.fixed.p50_ms > 0
            with (
                pytest.raises(SessionRefusedError, match="token"),
                ClassifyClient(guarded.url, Credentials(authority.ca), timeout_s=10) as client,
            ):
                client.classify(b"x")

    def test_what_the_edge_says_of_a_bad_image_is_told(self, edge: Edge) -> None:
        with (
            ClassifyClient(edge.url, NONE, timeout_s=10) as client,
            pytest.raises(RequestFailedError, match="bad-image"),
        ):
            client.classify(b"no picture")


class TestPictures:
    @pytest.mark.parametrize("size", [2048, 65_535, 66_200, 66_203, 131_072, 200_001])
    def test_a_padded_jpeg_has_exactly_its_bytes_and_decodes(self, size: int) -> None:
        content = padded_jpeg(np.random.default_rng(0).bytes(1 << 18), size)
        assert len(content) == size
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (16, 16)
            picture.load()

    def test_a_padded_jpeg_of_any_size_within_a_few_segments_is_exact(self) -> None:
        noise = bytes(1 << 18)
        assert all(len(padded_jpeg(noise, size)) == size for size in range(65_900, 66_500))

    def test_made_up_pictures_are_between_a_plain_surface_and_noise_to_a_coder(self) -> None:
        picture = made_up(224, 224, 0)
        assert (picture.shape, picture.dtype) == ((224, 224, 3), np.uint8)
        noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
        plain = np.full_like(picture, 128)
        sizes = [len(encode_image(each, "jpeg-q75")) for each in (plain, picture, noise)]
        assert 2 * sizes[0] < sizes[1] < sizes[2] / 2
        assert not np.array_equal(picture, made_up(224, 224, 1))

    def test_photographs_that_do_not_decode_are_left_out(self, bundle: Bundle, tmp_path: Path) -> None:
        files = make_photos(tmp_path, 2)
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        pictures = gather(bundle, [tmp_path / "broken.jpg", *files])
        assert (pictures.count, pictures.photographs) == (2, files)

    def test_an_unknown_image_coding_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="no image coding 'png'; known are jpeg-qN"):
            encode_image(np.zeros((4, 4, 3), np.uint8), "png")


class TestTurns:
    def test_the_first_round_does_not_count_and_time_ends_what_goes_beyond_the_least(self) -> None:
        clock, rounds, told = Clock(), [], []

        def turn(number: int) -> None:
            rounds.append(number)
            clock.add(("x",), float(number))

        in_turns([turn], clock, Effort(wanted=50, least=2, longest_s=1e-9), cycle=3, progress=told.append)
        assert rounds == [0, *range(6)]
        assert clock.timing("x").count == 6
        assert told[-1] == 1.0
        assert told == sorted(told)

    def test_a_measurement_can_be_broken_off(self) -> None:
        import threading

        stop = threading.Event()
        stop.set()
        with pytest.raises(PlanError, match="broken off"):
            in_turns([lambda _: None], Clock(), QUICK, cycle=1, stop=stop)

    @pytest.mark.parametrize("change", [{"least": 0}, {"wanted": 2}, {"longest_s": 0.0}, {"pause_ms": -1.0}])
    def test_an_effort_out_of_range_is_refused(self, change: dict[str, float]) -> None:
        with pytest.raises(SettingsError, match="expected"):
            Effort(**change)  # type: ignore[arg-type]
