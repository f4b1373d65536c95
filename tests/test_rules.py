"""Rules of others: what each chooses from, that it chooses the best of it, and when it has no answer."""

from dataclasses import dataclass, replace
from math import prod

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.bundle.manifest import InputSpec, Manifest, VariantSpec
from aecnn_deploy.errors import PlanError, SettingsError
from aecnn_deploy.planning.layer_predictor import LayerPredictor
from aecnn_deploy.planning.layers import Layer, LayerTable
from aecnn_deploy.planning.link import HTTP_BYTES, Link, bytes_on_link
from aecnn_deploy.planning.partitions import Situation
from aecnn_deploy.planning.powers import RASPBERRY_PI_4B, DevicePowers
from aecnn_deploy.planning.profiles import (
    CutFeatures,
    DeviceProfile,
    EdgeProfile,
    FeatureProfile,
    GraphNode,
    ImageCoding,
    ImageRead,
    LayerTime,
    Machine,
    PlaneCoding,
    timing,
)
from aecnn_deploy.planning.rule_edgent import UNSPLIT, edgent_exits, exit_ranks
from aecnn_deploy.planning.rule_neurosurgeon import neurosurgeon_partitions
from aecnn_deploy.planning.rules import ALL_RULES, RuleChoice, RuleRefusal, apply_rules

ID = "b" * 64
SIDE = 64
READ_MS, OVERHEAD_MS = 2.0, 1.0
LINK = Link(5e6, 4.0)


@dataclass(frozen=True)
class World:
    """A chain of layers on two machines, and a link between them."""

    manifest: Manifest
    device: DeviceProfile
    edge: EdgeProfile
    features: FeatureProfile | None
    link: Link = LINK
    deadline_ms: float | None = None
    powers: DevicePowers | None = RASPBERRY_PI_4B
    max_loss: float = 0.01

    def outcomes(self) -> dict[str, RuleChoice | RuleRefusal]:
        found = apply_rules(
            self.manifest,
            self.device,
            self.edge,
            self.features,
            self.link,
            deadline_ms=self.deadline_ms,
            powers=self.powers,
            max_loss=self.max_loss,
        )
        return {each.rule: each for each in found}

    def chosen(self, rule: str) -> RuleChoice:
        outcome = self.outcomes()[rule]
        assert isinstance(outcome, RuleChoice), outcome
        return outcome

    def refused(self, rule: str) -> str:
        outcome = self.outcomes()[rule]
        assert isinstance(outcome, RuleRefusal), outcome
        return outcome.why

    def situation(self) -> Situation:
        return Situation(
            self.manifest,
            self.device,
            self.edge,
            self.features,
            self.link,
            deadline_ms=self.deadline_ms,
            powers=self.powers,
            max_loss=self.max_loss,
        )


def variant(name: str, accuracy: float | None, agreement: float | None = None) -> VariantSpec:
    return VariantSpec(
        id=name,
        split=1,
        split_name="stem",
        ratio=2,
        bits=8,
        planes=(4, 8, 8),
        head="head.onnx",
        head_macs=200,
        full_macs=1000,
        tails={"onnxruntime": "tail.onnx"},
        accuracy=accuracy,
        agreement=agreement,
    )


def make_world(
    device_ms: list[float],
    edge_ms: list[float],
    shapes: list[tuple[int, int, int]],
    *,
    heads: dict[str, float] | None = None,
    tail_ms: float = 3.0,
    accuracies: tuple[float | None, ...] = (0.95, 0.90),
    unsplit: float | None = 0.97,
    jpeg: tuple[dict[int, float], dict[int, float]] = ({30: 400.0, 90: 900.0}, {30: 0.95, 90: 1.0}),
) -> World:
    """A chain of ``len(shapes)`` convolutions, each giving a tensor of its shape; a cut after all but the last."""
    names = [f"conv{index}" for index in range(len(shapes))]
    heads = heads or {f"v{index}": 5.0 + index for index in range(len(accuracies))}
    specs = tuple(variant(name, accuracy) for name, accuracy in zip(heads, accuracies, strict=True))
    common = {
        "bundle_id": ID,
        "machine": Machine("x86_64", "here"),
        "versions": {},
        "measured_at": "2026-01-01T00:00:00Z",
        "took_s": 1.0,
    }
    macs = {name: 1000 * (index + 1) for index, name in enumerate(names)}
    codings = [("raw", SIDE * SIDE * 3 + 54.0, 0.2, 0.1), ("jpeg-q75", 1500.0, 1.0, 0.8), ("jpeg-q20", 700.0, 0.9, 0.7)]
    return World(
        Manifest(
            1,
            ID,
            "chain",
            ("a", "b"),
            InputSpec(SIDE, SIDE, SIDE, "bicubic", (0.0,) * 3, (1.0,) * 3),
            "full.onnx",
            specs,
            {},
            {} if unsplit is None else {"unsplit_accuracy": unsplit},
        ),
        DeviceProfile(
            **common,
            threads=1,
            images=1,
            heads={name: {"fp32": timing([ms]), "int8": timing([ms + 1])} for name, ms in heads.items()},
            local=timing([sum(device_ms)]),
            coders={name: {"raw": PlaneCoding(256.0, 256.0, timing([0.5]), timing([0.5]))} for name in heads},
            reads=[ImageRead(100, 100, 4000.0, timing([READ_MS]))],
            image_codings=[ImageCoding(name, SIDE, SIDE, size, encode=timing([ms])) for name, size, ms, _ in codings],
            layers={name: LayerTime("Conv", ms) for name, ms in zip(names, device_ms, strict=True)},
        ),
        EdgeProfile(
            **common,
            threads=1,
            runner="onnxruntime",
            precision="fp32",
            tails={name: {1: timing([tail_ms])} for name in heads},
            full={1: timing([sum(edge_ms)])},
            coders={name: {"raw": timing([0.25])} for name in heads},
            image_codings=[ImageCoding(name, SIDE, SIDE, size, decode=timing([ms])) for name, size, _, ms in codings],
            overhead=timing([OVERHEAD_MS]),
            layers={name: LayerTime("Conv", ms) for name, ms in zip(names, edge_ms, strict=True)},
        ),
        FeatureProfile(
            **common,
            images=20,
            layer_macs=macs,
            cuts=[
                CutFeatures(name, f"t{index}", list(shape), sum(list(macs.values())[: index + 1]), *jpeg)
                for index, (name, shape) in enumerate(zip(names[:-1], shapes[:-1], strict=True))
            ],
            nodes={
                name: GraphNode("Conv", f"t{index}", 4 * prod(shape))
                for index, (name, shape) in enumerate(zip(names, shapes, strict=True))
            },
        ),
    )


CHAIN = make_world([4.0] * 5, [0.5] * 5, [(8, 32, 32), (8, 16, 16), (8, 8, 8), (4, 4, 4), (2, 1, 1)])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(2, 9))
    times = st.lists(st.floats(0.01, 50.0), min_size=count, max_size=count)
    side = st.sampled_from([1, 2, 7, 14, 28])
    shapes = draw(st.lists(st.tuples(st.integers(1, 64), side, side), min_size=count, max_size=count))
    accuracies = draw(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=4))
    heads = {f"v{index}": draw(st.floats(0.1, 60.0)) for index in range(len(accuracies))}
    world = make_world(
        draw(times),
        draw(times),
        shapes,
        heads=heads,
        tail_ms=draw(st.floats(0.1, 40.0)),
        accuracies=tuple(accuracies),
        unsplit=draw(st.floats(0.1, 1.0)),
        jpeg=(
            {30: draw(st.floats(10.0, 1e4)), 90: draw(st.floats(10.0, 1e5))},
            {30: draw(st.floats(0.0, 1.0)), 90: draw(st.floats(0.0, 1.0))},
        ),
    )
    powers = DevicePowers(draw(st.floats(3.0, 12.0)), draw(st.floats(3.0, 12.0)), draw(st.floats(0.0, 3.0)))
    return replace(
        world,
        link=Link(draw(st.floats(1e4, 1e9)), draw(st.floats(0.0, 100.0))),
        deadline_ms=draw(st.none() | st.floats(1.0, 500.0)),
        powers=powers,
        max_loss=draw(st.sampled_from([0.0, 0.01, 0.2, 1.0])),
    )


def brute_force_ms(world: World) -> list[float]:
    """Every partition of the unsplit model by the formula itself: device, edge, and each cut with its tensor."""
    assert world.features is not None
    device = [layer.ms for layer in world.device.layers.values()]
    edge = [layer.ms for layer in world.edge.layers.values()]
    around = READ_MS + world.link.fixed_ms + OVERHEAD_MS
    per_byte = 8e3 / world.link.rate_bps
    found = [READ_MS + sum(device)]
    for size, coding_ms in ((SIDE * SIDE * 3 + 54, 0.2 + 0.1), (1500, 1.0 + 0.8)):
        found.append(around + coding_ms + bytes_on_link(size, HTTP_BYTES) * per_byte + sum(edge))
    for index, cut in enumerate(world.features.cuts):
        sent = bytes_on_link(36 + 4 * prod(cut.shape)) * per_byte
        found.append(around + sum(device[: index + 1]) + sent + sum(edge[index + 1 :]))
    return found


class TestNeurosurgeon:
    @given(worlds())
    @settings(max_examples=40, deadline=None)
    def test_by_measured_layers_it_is_as_fast_as_the_best_of_all_partitions(self, world: World) -> None:
        best = world.chosen("neurosurgeon-measured")
        assert best.predicted_ms == pytest.approx(min(brute_force_ms(world)), rel=1e-4)
        assert sum(best.parts.values()) == pytest.approx(best.predicted_ms)

    @given(worlds())
    @settings(max_examples=40, deadline=None)
    def test_no_partition_is_faster_or_takes_less_energy_by_the_same_predictor(self, world: World) -> None:
        device, edge, error = world.situation().predicted_layers
        partitions = neurosurgeon_partitions(world.situation(), (device, edge))
        fastest, thriftiest = world.chosen("neurosurgeon"), world.chosen("neurosurgeon-energy")
        assert world.powers is not None
        assert fastest.energy_mj is not None
        assert thriftiest.energy_mj is not None
        assert fastest.predictor_error == error >= 0
        for each in partitions:
            assert fastest.predicted_ms <= each.total_ms
            assert thriftiest.energy_mj <= world.powers.energy_mj(each.parts)
        assert thriftiest.energy_mj <= fastest.energy_mj

    def test_a_slow_link_keeps_all_on_the_device_and_a_fast_one_sends_the_image(self) -> None:
        assert replace(CHAIN, link=Link(1e4, 4.0)).chosen("neurosurgeon").description == "all on the device"
        assert replace(CHAIN, link=Link(1e9, 0.5)).chosen("neurosurgeon").description == "all on the edge, raw"

    def test_a_cut_behind_which_the_tensor_is_small_wins_between_them(self) -> None:
        world = make_world([1.0, 1.0, 90.0], [0.1, 0.1, 9.0], [(64, 32, 32), (1, 8, 8), (2, 1, 1)])
        best = replace(world, link=Link(1e6, 1.0)).chosen("neurosurgeon-measured")
        assert best.description == "after conv1, 1×8×8 float32"
        assert best.sent_bytes == 36 + 4 * 64
        assert list(best.parts) == ["read", "head", "encode", "send", "fixed", "overhead", "decode", "tail"]
        assert (best.parts["head"], best.parts["tail"]) == (2.0, 9.0)
        assert best.accuracy == 0.97

    def test_energy_is_power_times_time_of_what_the_device_does(self) -> None:
        world = replace(CHAIN, powers=DevicePowers(5.0, 4.0, 1.0))
        for outcome in world.outcomes().values():
            assert isinstance(outcome, RuleChoice)
            parts = outcome.parts
            computing = sum(parts.get(name, 0.0) for name in ("read", "head", "encode", "local"))
            waiting = sum(parts.get(name, 0.0) for name in ("fixed", "overhead", "decode", "tail", "full"))
            assert outcome.energy_mj == pytest.approx(5 * computing + 4 * parts.get("send", 0.0) + waiting)

    def test_computing_that_costs_nothing_extra_stays_on_the_device_where_sending_is_dear(self) -> None:
        world = replace(CHAIN, powers=DevicePowers(1.0, 50.0, 1.0), link=Link(3e6, 4.0))
        assert world.chosen("neurosurgeon-energy").description == "all on the device"
        assert world.chosen("neurosurgeon").description == "all on the edge, jpeg-q75"

    def test_what_the_measured_layers_say_and_how_good_the_predictors_are_is_told(self) -> None:
        best = CHAIN.chosen("neurosurgeon")
        assert "the predictors are off by 0%; by measured layers it takes" in best.why
        assert "of 7 partitions (all on the edge" in best.why

    def test_without_powers_there_is_no_energy_and_no_rule_for_it(self) -> None:
        world = replace(CHAIN, powers=None)
        assert "give its powers" in world.refused("neurosurgeon-energy")
        assert world.chosen("neurosurgeon").energy_mj is None


class TestPredictors:
    def test_times_that_follow_work_and_bytes_are_found_and_layers_of_few_kinds_share_one(self) -> None:
        def layer(kind: str, index: int, macs: int, written: int, ms: float) -> Layer:
            return Layer(f"{kind}{index}", kind, index, ms, macs, written)

        work = [(1000, 40), (5000, 20), (200, 400), (30_000, 10), (7, 90), (900, 900)]
        convs = [layer("Conv", i, macs, size, 0.1 + macs * 1e-3 + size * 1e-2) for i, (macs, size) in enumerate(work)]
        pools = [layer("Pool", i, 0, 100 * i, 0.05 * i) for i in range(1, 3)]
        predictor = LayerPredictor.fit([*convs, *pools])
        for each in convs:
            assert predictor.predict_ms(each) == pytest.approx(each.ms, rel=1e-6)
        assert set(predictor.coefficients) == {"Conv", "other"}
        assert predictor.predict_ms(layer("Softmax", 9, 0, 300, 0.0)) == pytest.approx(0.15)

    @given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7), st.floats(0.0, 100.0)), min_size=1))
    @settings(max_examples=40, deadline=None)
    def test_no_layer_takes_less_than_nothing(self, rows: list[tuple[int, int, float]]) -> None:
        layers = [Layer(str(i), "Conv", i, ms, macs, size) for i, (macs, size, ms) in enumerate(rows)]
        predictor = LayerPredictor.fit(layers)
        assert all(predictor.predict_ms(layer) >= 0 for layer in layers)
        assert predictor.error >= 0


class TestEdgent:
    @given(worlds())
    @settings(max_examples=50, deadline=None)
    def test_it_keeps_the_deadline_and_no_more_accurate_exit_would(self, world: World) -> None:
        exits, (ranks, _) = edgent_exits(world.situation()), exit_ranks(world.situation())
        limit = world.deadline_ms if world.deadline_ms is not None else float("inf")
        fits = {name: min(each.total_ms for each in partitions) for name, partitions in exits.items()}
        in_time = [ranks[name] for name, ms in fits.items() if ms <= limit]
        outcome = world.outcomes()["edgent"]
        if isinstance(outcome, RuleRefusal):
            assert not in_time
            return
        assert outcome.predicted_ms <= limit
        name = outcome.description.partition(",")[0]
        assert ranks[name] == max(in_time)
        assert outcome.predicted_ms == fits[name]

    def test_a_smaller_exit_is_taken_where_the_unsplit_model_is_late(self) -> None:
        shapes = [(8, 32, 32), (8, 16, 16), (2, 1, 1)]
        world = make_world([50.0] * 3, [20.0] * 3, shapes, heads={"v0": 9.0, "v1": 1.0}, tail_ms=20.0)
        best = replace(world, deadline_ms=40.0).chosen("edgent")
        assert best.description == "v0, raw planes"
        assert (best.accuracy, best.sent_bytes) == (0.95, 36 + 256)
        assert (best.parts["head"], best.parts["encode"], best.parts["decode"]) == (9.0, 0.5, 0.25)
        assert f"better, but late: {UNSPLIT}" in best.why
        assert replace(world, deadline_ms=35.0).chosen("edgent").accuracy == 0.90

    def test_an_end_of_a_variant_that_was_not_measured_is_called_an_estimate(self) -> None:
        world = make_world([6.0] * 5, [0.5] * 5, [(8, 9, 9)] * 5, tail_ms=0.5)
        best = replace(world, link=Link(1e3, 500.0), deadline_ms=20.0).chosen("edgent")
        assert best.description == "v0, all on the device"
        assert best.parts["local"] == pytest.approx(5.0 + 30.0 * 0.5 / 2.5)
        assert "estimated, not measured" in best.why

    def test_without_a_deadline_the_most_accurate_exit_is_taken(self) -> None:
        assert replace(CHAIN, link=Link(1e5, 4.0)).chosen("edgent").description.startswith(UNSPLIT)

    def test_a_deadline_that_nothing_meets_is_refused_with_what_each_exit_takes(self) -> None:
        why = replace(CHAIN, deadline_ms=1.0).refused("edgent")
        assert why.startswith("no exit meets 1 ms on this link")
        assert all(name in why for name in (UNSPLIT, "v0", "v1"))

    def test_where_an_accuracy_is_missing_agreement_ranks_all(self) -> None:
        specs = (variant("v0", None, 0.8), variant("v1", 0.99, 0.7))
        world = replace(CHAIN, manifest=msgspec.structs.replace(CHAIN.manifest, variants=specs))
        assert exit_ranks(world.situation()) == (
            {UNSPLIT: 1.0, "v0": 0.8, "v1": 0.7},
            "agreement with the unsplit model",
        )


class TestCodedFeatures:
    @given(worlds())
    @settings(max_examples=40, deadline=None)
    def test_the_loss_is_kept_where_it_can_be_and_nothing_is_chosen_that_loses_more(self, world: World) -> None:
        assert world.features is not None
        best = world.chosen("jpeg-features")
        agreements = world.features.cuts[0].jpeg_agreement
        taken = agreements[int(best.description.rpartition(" ")[2])]
        assert taken >= min(1 - world.max_loss, max(agreements.values()))
        unsplit = world.situation().unsplit_accuracy
        assert unsplit is not None
        assert best.accuracy == unsplit * taken

    def test_the_coder_is_counted_by_the_pixels_of_the_mosaic(self) -> None:
        best = replace(CHAIN, link=Link(1e5, 0.0)).chosen("jpeg-features")
        assert best.description == "after conv0, 8×32×32 as JPEG of quality 90"
        assert best.parts["encode"] == pytest.approx(1.0 * 8 * 32 * 32 / SIDE**2)
        assert best.parts["decode"] == pytest.approx(0.8 * 8 * 32 * 32 / SIDE**2)
        assert best.sent_bytes == 36 + 900
        worse = replace(CHAIN, link=Link(1e5, 0.0), max_loss=0.05).chosen("jpeg-features")
        assert (worse.sent_bytes, worse.accuracy) == (36 + 400, pytest.approx(0.97 * 0.95))

    def test_without_jpeg_in_a_profile_it_names_what_is_missing(self) -> None:
        bare = msgspec.structs.replace(CHAIN.edge, image_codings=[])
        assert "edge profile has no times of JPEG" in replace(CHAIN, edge=bare).refused("jpeg-features")
        assert CHAIN.features is not None
        cuts = [msgspec.structs.replace(cut, jpeg_bytes={}) for cut in CHAIN.features.cuts]
        world = replace(CHAIN, features=msgspec.structs.replace(CHAIN.features, cuts=cuts))
        assert "run: aecnn-deploy calibrate features" in world.refused("jpeg-features")


class TestLateSplit:
    def test_it_is_the_first_cut_with_fewer_bytes_than_the_input(self) -> None:
        best = CHAIN.chosen("late-split")  # 32,768 bytes are not fewer than 12,288, 8,192 are
        assert best.description == "after conv1, 8×16×16 float32"
        in_8_bits = CHAIN.chosen("late-split-u8")  # than a JPEG of 1,500: 8,200 no, 2,056 no, 520 yes
        assert (in_8_bits.description, in_8_bits.sent_bytes) == ("after conv2, 8×8×8 in 8 bits", 36 + 520)
        assert "not measured at this cut" in in_8_bits.why

    def test_where_no_tensor_is_smaller_there_is_no_such_cut(self) -> None:
        world = make_world([1.0] * 3, [1.0] * 3, [(64, 32, 32), (64, 16, 16), (2, 1, 1)])
        assert "no cut has fewer than the 12,288 bytes of the raw frame; the least is 65,536" in world.refused(
            "late-split"
        )
        assert "the frame as jpeg-q75" in world.refused("late-split-u8")


class TestRefusals:
    def test_every_rule_answers_in_order_and_the_registry_is_read_only(self) -> None:
        assert list(CHAIN.outcomes()) == list(ALL_RULES)
        with pytest.raises(TypeError):
            ALL_RULES["mine"] = ALL_RULES["edgent"]  # type: ignore[index]

    def test_without_cuts_only_what_needs_none_answers(self) -> None:
        outcomes = replace(CHAIN, features=None).outcomes()
        answered = {name for name, outcome in outcomes.items() if isinstance(outcome, RuleChoice)}
        assert answered == {"edgent"}
        assert all(
            "aecnn-deploy calibrate features" in each.why for each in outcomes.values() if each.rule not in answered
        )

    def test_layers_that_were_not_timed_or_are_another_models_are_named(self) -> None:
        bare = msgspec.structs.replace(CHAIN.device, layers={})
        assert "the device profile has no times of layers" in replace(CHAIN, device=bare).refused("neurosurgeon")
        other = msgspec.structs.replace(CHAIN.edge, layers={"dense0": LayerTime("Gemm", 3.0)})
        assert "the edge profile's layers are not those" in replace(CHAIN, edge=other).refused("late-split")

    def test_a_feature_profile_that_contradicts_itself_is_refused(self) -> None:
        assert CHAIN.features is not None
        stray = [CutFeatures("gone", "g", [1, 2, 2], 5), *CHAIN.features.cuts]
        world = replace(CHAIN, features=msgspec.structs.replace(CHAIN.features, cuts=stray))
        assert "a cut after 'gone', which is none of its nodes" in world.refused("neurosurgeon")

    def test_profiles_of_another_bundle_are_refused(self) -> None:
        assert CHAIN.features is not None
        for name in ("device", "edge", "features"):
            other = msgspec.structs.replace(getattr(CHAIN, name), bundle_id="c" * 64)
            with pytest.raises(PlanError, match=f"the {name} profile was measured with bundle cccc"):
                replace(CHAIN, **{name: other}).outcomes()

    @pytest.mark.parametrize("deadline_ms", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_deadline_that_is_none_is_refused(self, deadline_ms: float) -> None:
        with pytest.raises(SettingsError, match="expected a positive number"):
            replace(CHAIN, deadline_ms=deadline_ms).outcomes()

    def test_a_loss_beyond_all_and_powers_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(SettingsError, match="expected a share of 0 to 1"):
            replace(CHAIN, max_loss=1.5).outcomes()
        for watts in ((1.0, 2.0, 3.0), (5.0, 4.0, -1.0), (float("nan"), 4.0, 1.0), (5.0, float("inf"), 1.0)):
            with pytest.raises(SettingsError, match="expected numbers of 0 or more"):
                DevicePowers(*watts)

    def test_a_link_without_a_rate_never_reaches_a_rule(self) -> None:
        with pytest.raises(SettingsError, match="rate is 0 bit/s"):
            replace(CHAIN, link=Link(0.0, 1.0)).outcomes()

    def test_a_missed_deadline_is_said_of_a_rule_that_knows_of_none(self) -> None:
        world = replace(CHAIN, deadline_ms=3.0)
        assert "misses the deadline of 3 ms" in world.chosen("late-split").why
        assert "misses" not in replace(CHAIN, deadline_ms=5000.0).chosen("late-split").why


class TestLayerTable:
    def test_fused_layers_stand_where_their_nodes_are(self) -> None:
        assert CHAIN.features is not None
        nodes = {
            "conv": GraphNode("depthwise Conv", "x", 400),
            "relu": GraphNode("Relu", "y", 400),
            "pool": GraphNode("MaxPool", "z", 100),
            "dense": GraphNode("MatMul", "u", 40),
            "bias": GraphNode("Add", "logits", 40),
        }
        features = msgspec.structs.replace(CHAIN.features, nodes=nodes, layer_macs={"conv": 1000, "dense": 50}, cuts=[])
        layers = {
            "y_nchwc": LayerTime("Conv", 5.0),  # convolution and activation, named after the second's tensor
            "ReorderOutput": LayerTime("ReorderOutput", 0.5),  # ONNX Runtime's own
            "pool": LayerTime("MaxPool", 1.0),
            "dense/MatMulAddFusion": LayerTime("FusedGemm", 2.0),
        }
        table = LayerTable.of(layers, features, "edge")
        found = [(layer.kind, layer.place, layer.macs, layer.written_bytes) for layer in table.layers]
        assert found == [
            ("depthwise Conv", 1, 1000, 400),
            ("ReorderOutput", 1, 0, 0),
            ("MaxPool", 2, 0, 100),
            ("Gemm", 3, 50, 40),
        ]
        after_relu = CutFeatures("relu", "y", [1, 10, 10], 1000)
        assert (table.up_to_ms(after_relu), table.after_ms(after_relu), table.total_ms) == (5.5, 3.0, 8.5)
