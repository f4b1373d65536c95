"""The numbers of a report: statistics, points, tables and curves, on values that are known."""

from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aecnn_deploy.errors import RunFormatError
from aecnn_deploy.models.results import ARMS, Ranking, ResultRow
from aecnn_deploy.planning.paper import paper_table
from aecnn_deploy.reports.canvas import STYLES
from aecnn_deploy.reports.costs import costs, own_seconds, scope
from aecnn_deploy.reports.curves import ablation_tables, budget_rows, factor_rows, front, speed_rows, verdict
from aecnn_deploy.reports.numbers import (
    best_within,
    interpolate,
    pareto_front,
    ranks,
    spearman,
    spread,
)
from aecnn_deploy.reports.points import NAMES, Group, make_group, read_groups
from aecnn_deploy.reports.report import build_report
from aecnn_deploy.reports.tables import failures, method_agreement, other_rankings, paper_splits, stability, table_one
from tests.result_rows import codec_row, many_rows, result_row, unsplit_row, write_run

PNG = b"\x89PNG\r\n\x1a\n"


Values = list[float]


def group_of(rows: list[ResultRow], orders: list[Ranking] | None = None, backbone: str = "resnet50") -> Group:
    return make_group(backbone, [], rows, orders or [])


class TestNumbers:
    def test_ranks_share_the_mean_of_tied_places(self) -> None:
        assert ranks([30.0, 10.0, 20.0, 20.0]).tolist() == [4.0, 1.0, 2.5, 2.5]

    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            ([1, 2, 3, 4, 5], [2, 4, 6, 8, 10], 1.0),
            ([1, 2, 3, 4, 5], [9, 7, 5, 3, 1], -1.0),
            # 1 - 6·Σd²/(n(n²-1)) with Σd² = 1 + 1 + 4 + 0 + 4, n = 5.
            ([1, 2, 3, 4, 5], [2, 1, 5, 4, 3], 0.5),
            # Ties: Pearson's correlation of (1, 2.5, 2.5, 4) and (1, 2, 3, 4) is 4.5 / sqrt(4.5 · 5).
            ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / np.sqrt(22.5)),
        ],
    )
    def test_spearman_of_known_orders(self, first: Values, second: Values, expected: float) -> None:
        assert spearman(first, second) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [2.0]), ([3.0, 3.0, 3.0], [1.0, 2.0, 3.0])])
    def test_spearman_is_none_where_it_is_not_defined(self, first: Values, second: Values) -> None:
        assert spearman(first, second) is None

    def test_spearman_of_unequal_lengths_is_refused(self) -> None:
        with pytest.raises(ValueError, match="2 and 3 values"):
            spearman([1.0, 2.0], [1.0, 2.0, 3.0])

    @given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=12))
    @settings(max_examples=50)
    def test_spearman_is_symmetric_and_sees_the_order_only(self, pairs: list[tuple[int, int]]) -> None:
        a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
        value = spearman(a, b)
        assert value == pytest.approx(spearman(b, a))
        assert value == pytest.approx(spearman(list(np.exp(a)), b))
        assert value is None or -1.0 <= value <= 1.0

    def test_the_deviation_is_the_samples_and_none_for_one_seed(self) -> None:
        assert spread([1.0, 2.0, 3.0]).sd == pytest.approx(1.0)
        assert (spread([2.0]).mean, spread([2.0]).sd, spread([2.0]).n) == (2.0, None, 1)
        with pytest.raises(ValueError, match="no values"):
            spread([])

    def test_the_pareto_front_leaves_out_what_is_dearer_and_no_better(self) -> None:
        cost, gain = [300, 100, 200, 200, 400, 100], [0.9, 0.5, 0.8, 0.7, 0.9, 0.5]
        assert pareto_front(cost, gain) == [1, 2, 0]
        assert pareto_front([], []) == []
        assert pareto_front([7], [0.1]) == [0]

    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=15))
    @settings(max_examples=50)
    def test_every_point_is_beaten_or_matched_by_one_of_the_front(self, pairs: list[tuple[int, int]]) -> None:
        cost, gain = [float(c) for c, _ in pairs], [float(g) for _, g in pairs]
        chosen = pareto_front(cost, gain)
        assert all(any(cost[i] <= c and gain[i] >= g for i in chosen) for c, g in zip(cost, gain, strict=True))
        assert all(cost[i] < cost[j] and gain[i] < gain[j] for i, j in pairwise(chosen))

    def test_the_best_within_a_budget_is_the_cheaper_of_equals(self) -> None:
        cost, gain = [500, 300, 900, 400], [0.9, 0.8, 0.99, 0.9]
        assert [best_within(cost, gain, budget) for budget in (299, 300, 700, 900)] == [None, 1, 3, 2]
        assert best_within([], [], 1000) is None

    def test_a_curve_is_read_between_its_points_in_the_logarithm_of_the_bytes(self) -> None:
        assert interpolate([4000, 1000], [0.9, 0.8], 2000) == pytest.approx(0.85)
        assert interpolate([1000, 4000], [0.8, 0.9], 1000) == pytest.approx(0.8)
        assert interpolate([1000, 4000], [0.8, 0.9], 50000) == pytest.approx(0.9)
        assert interpolate([1000, 4000], [0.8, 0.9], 999) is None
        assert interpolate([1000, 1000, 4000], [0.8, 0.7, 0.9], 1000) == pytest.approx(0.8)
        assert interpolate([1000], [0.8], 1000) == pytest.approx(0.8)
        assert interpolate([], [], 1000) is None


class TestPoints:
    def test_rows_that_differ_in_the_seed_alone_become_one_point(self) -> None:
        rows = [result_row(task=f"s{seed}", seed=seed, accuracy=0.90 + 0.01 * seed) for seed in (2, 0, 1)]
        (point,) = group_of([*rows, result_row(task="ablated", label="x", ablation=True)]).points
        assert (point.accuracy.mean, point.accuracy.sd) == (pytest.approx(0.91), pytest.approx(0.01))
        assert (point.accuracy.n, point.seeds) == (3, (0, 1, 2))

    def test_of_two_rows_with_one_seed_the_longer_trained_counts_and_the_report_says_so(self) -> None:
        rows = [result_row(accuracy=0.95, epochs=30.0), result_row(accuracy=0.80, epochs=2.0)]
        group = group_of(rows)
        assert [point.accuracy.mean for point in group.points] == [0.95]
        assert "1 rows repeat" in group.notes[0]

    def test_rows_of_different_test_sets_are_named(self) -> None:
        group = group_of([result_row(test_images=100), codec_row(test_images=300)])
        assert group.notes == ("rows were measured on different numbers of test images: 100, 300",)

    def test_runs_are_merged_by_backbone_and_one_without_a_record_is_unfinished(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a", [result_row()])
        b = write_run(tmp_path / "b", [result_row(seed=1)])
        c = write_run(tmp_path / "c", [codec_row()], backbone=None)
        found = {group.backbone: group for group in read_groups([a, b, c, a])}
        assert [len(group.rows) for group in found.values()] == [2, 1]
        assert [run.finished for run in found["unknown"].runs] == [False]
        assert len(found["resnet50"].runs) == 2

    def test_an_unfinished_run_is_known_by_the_settings_that_it_began_with(self, tmp_path: Path) -> None:
        finished = write_run(tmp_path / "a", [result_row()])
        begun = write_run(tmp_path / "b", [result_row(seed=1)], backbone=None)
        (begun / "settings.json").write_text('{"backbone": "resnet50"}')
        (group,) = read_groups([finished, begun])
        assert ([run.finished for run in group.runs], len(group.rows)) == ([True, False], 2)
        assert "unfinished or kept without the networks" in build_report([group]).files["index.html"].decode()
        (begun / "settings.json").write_text("{")
        with pytest.raises(RunFormatError, match="is damaged"):
            read_groups([begun])

    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunFormatError, match="it has neither run"):
            read_groups([tmp_path])

    def test_every_arm_has_a_name_and_a_look_of_its_own(self) -> None:
        assert set(NAMES) == set(ARMS)
        assert set(STYLES) == set(ARMS) - {"unsplit"}
        assert len({marker for _, marker in STYLES.values()}) == len(STYLES)


class TestPaper:
    def test_the_papers_table_has_twelve_rows_and_the_corrected_misprint(self) -> None:
        paper = paper_table()
        assert len(paper.rows) == 12
        assert all(row.kept_channels * row.ratio == row.shape[0] for row in paper.rows)
        last = paper.row(2, 64)
        assert last is not None
        assert (last.kept_channels, last.aecnn) == (4, (93.78, 0.19))
        assert paper.row(3, 2) is None

    def test_its_bytes_are_its_entropy_times_its_values(self) -> None:
        row = paper_table().row(1, 64)
        assert row is not None
        assert row.estimated_bytes == pytest.approx(56 * 56 * 7.73 / 8)

    def test_another_network_stands_beside_it_in_the_order_of_its_split_points(self) -> None:
        paper = paper_table()
        assert paper_splits("resnet50", [2, 3], paper) == {2: 2}
        assert paper_splits("efficientnet_lite0", [3, 5, 8], paper) == {3: 1, 5: 2}


class TestTableOne:
    def rows(self, aecnn: float, ca_pruned: float) -> list[ResultRow]:
        """BottleNet++ at 91 and 92 % with 10 and 40 kB; AECNN and CA_Pruned at 20 kB, two seeds each, ± 0.1."""
        found = [
            result_row(arm="bottlenetpp", ratio=ratio, planes=(64 // ratio, 56, 56), wire_bytes=size, accuracy=accuracy)
            for ratio, size, accuracy in ((2, 40000.0, 0.92), (8, 10000.0, 0.91))
        ]
        for arm, mean in (("aecnn", aecnn), ("ca-pruned", ca_pruned)):
            found += [result_row(arm=arm, seed=seed, accuracy=mean + d) for seed, d in ((0, 0.001), (1, -0.001))]
        return found

    def test_each_ratio_has_a_row_with_the_papers_beside_it(self) -> None:
        (table,) = table_one(group_of(self.rows(0.93, 0.92)), paper_table())
        assert [row.ratio for row in table.rows] == [2, 4, 8]
        row = table.rows[1]
        assert row.bottlenetpp is None
        assert row.bottlenetpp_at_equal_bytes == pytest.approx(0.915)
        assert row.paper is not None
        assert row.paper.aecnn == (95.30, 0.21)
        assert failures([table]) == []

    def test_where_aecnn_is_below_a_rival_the_report_says_so_in_words(self) -> None:
        tables = table_one(group_of(self.rows(0.913, 0.9140)), paper_table())
        below, at_bytes = failures(tables)
        assert below.startswith("l = 1, V = 4, 8 bits: AECNN is 0.10 points below CA_Pruned at the same ratio")
        # sqrt((0.913 · 0.087 + 0.914 · 0.086) / 1695)
        assert below.endswith("; within the standard error on 1,695 test images, 0.97; ± 0.00 over 2 seeds")
        assert "0.20 points below BottleNet++ at the same bytes" in at_bytes

    def test_a_clear_loss_is_not_excused_by_the_spread(self) -> None:
        tables = table_one(group_of(self.rows(0.93, 0.95)), paper_table())
        assert "; beyond the standard error on 1,695 test images, 0.82; ± 0.00 over 2 seeds" in failures(tables)[0]

    def test_only_the_seeds_that_both_have_are_compared(self) -> None:
        """An unfinished run: CA_Pruned's third seed is poor, AECNN's is still to come."""
        accuracies = {"aecnn": (0.93, 0.92), "ca-pruned": (0.932, 0.924, 0.85)}
        rows = [
            result_row(arm=arm, seed=seed, accuracy=value)
            for arm, values in accuracies.items()
            for seed, value in enumerate(values)
        ]
        (found,) = failures(table_one(group_of(rows), paper_table()))
        assert "AECNN is 0.30 points below CA_Pruned" in found
        assert found.endswith("± 0.14 over 2 seeds")

    def test_only_rivals_that_were_trained_are_named(self) -> None:
        rows = [result_row(arm="aecnn", accuracy=0.92), result_row(arm="ca-pruned", accuracy=0.91)]
        page = build_report([group_of(rows)]).files["index.html"].decode()
        assert "AECNN is at least as good as CA_Pruned in the one comparison." in page

    def test_without_a_common_seed_the_means_are_compared(self) -> None:
        rows = [result_row(arm="aecnn", seed=0, accuracy=0.90), result_row(arm="ca-pruned", seed=1, accuracy=0.91)]
        (found,) = failures(table_one(group_of(rows), paper_table()))
        assert "1.00 points below CA_Pruned" in found
        assert "seeds" not in found

    def test_equal_channels_are_compared_as_well(self) -> None:
        rows = [*self.rows(0.93, 0.92), result_row(arm="bottlenetpp", accuracy=0.94, wire_bytes=30000.0)]
        found = failures(table_one(group_of(rows), paper_table()))
        assert "0.90 points below BottleNet++ at the same number of channels; " in found[0]  # seed 0's 93.1 and 94
        assert "seeds" not in found[0]

    def test_other_bits_stand_in_tables_of_their_own_after_8(self) -> None:
        rows = [result_row(bits=bits, split=split) for bits in (4, 8, 6) for split in (2, 1)]
        tables = table_one(group_of(rows), paper_table())
        assert [(table.bits, table.split) for table in tables] == [(8, 1), (8, 2), (6, 1), (6, 2), (4, 1), (4, 2)]

    def test_other_rankings_stand_beside_the_papers_attention(self) -> None:
        rows = [result_row(arm=arm, accuracy=a) for arm, a in (("ca-pruned", 0.93), ("l1", 0.92), ("random", 0.9))]
        (row,) = other_rankings(group_of(rows))
        assert list(row.points) == ["ca-pruned", "random", "l1"]
        assert other_rankings(group_of(rows[:1])) == ()


class TestRankings:
    def ranking(self, *batches: tuple[float, ...], method: str = "ca") -> Ranking:
        return Ranking(task="r", method=method, split=1, seed=0, importance=(3.0, 1.0, 2.0), batches=batches)

    def test_each_pair_of_batches_has_its_correlation(self) -> None:
        (row,) = stability([self.ranking((3.0, 1.0, 2.0), (30.0, 10.0, 20.0), (1.0, 3.0, 2.0))])
        assert row.correlations == pytest.approx((1.0, -1.0, -1.0))
        assert stability([self.ranking((1.0, 2.0, 3.0))]) == ()

    def test_batches_of_unequal_length_are_refused(self) -> None:
        with pytest.raises(RunFormatError, match="3 channels and a batch of 2"):
            stability([self.ranking((1.0, 2.0), (1.0, 2.0))])

    def test_methods_are_compared_at_one_split_point_and_seed(self) -> None:
        (row,) = method_agreement([self.ranking(), self.ranking(method="l1")])
        assert (row.first, row.second, row.correlation) == ("ca", "l1", pytest.approx(1.0))


class TestCurves:
    def rows(self) -> list[ResultRow]:
        return [
            unsplit_row(accuracy=0.95),
            codec_row(accuracy=0.85, wire_bytes=900.0),
            codec_row(arm="avif", accuracy=0.93, wire_bytes=2500.0),
            result_row(accuracy=0.92, wire_bytes=1000.0, head_macs=20, full_macs=100),
            result_row(arm="strided", ratio=8, accuracy=0.91, wire_bytes=1900.0, head_macs=8, full_macs=100),
            result_row(arm="strided", ratio=16, accuracy=0.94, wire_bytes=400.0, head_macs=31, full_macs=100),
        ]

    def test_a_head_above_30_percent_does_not_count_against_the_codecs(self) -> None:
        rows = {row.budget_bytes: row for row in budget_rows(group_of(self.rows()))}
        assert rows[700].ours is None
        assert rows[1000].margin == pytest.approx(0.07)
        assert rows[1000].ours_small is None
        assert rows[2000].margin_small == pytest.approx(0.06)
        assert rows[3000].margin == pytest.approx(-0.01)

    def test_a_budget_that_only_a_codec_meets_is_lost_in_the_summary_too(self) -> None:
        rows = {row.budget_bytes: row for row in budget_rows(group_of([*self.rows(), codec_row(wire_bytes=350.0)]))}
        assert (rows[400].margin, rows[400].wins) == (None, False)
        page = build_report([group_of([*self.rows(), codec_row(quality=1, wire_bytes=350.0)])]).files["index.html"]
        assert "more accurate, or alone, at 3 of 9 budgets" in page.decode()

    def test_the_verdict_names_the_winner(self) -> None:
        rows = {row.budget_bytes: row for row in budget_rows(group_of(self.rows()))}
        assert verdict(rows[700]) == "700 B: nothing is so small"
        assert verdict(rows[1000]) == "1,000 B: the split wins by 7.00 points; no head of 10 % or less is so small"
        assert verdict(rows[2000]).endswith("with a head of 10 % or less +6.00")
        assert verdict(rows[3000]).startswith("3,000 B: the codecs win by 1.00 points")

    def test_a_margin_within_the_standard_error_of_the_test_images_says_so(self) -> None:
        images = {"test_images": 1000}
        rows = [codec_row(accuracy=0.95, **images), result_row(accuracy=0.951, wire_bytes=2500.0, **images)]
        clear = [codec_row(accuracy=0.85, **images), result_row(accuracy=0.951, wire_bytes=2500.0, **images)]
        (close, far) = (
            next(r for r in budget_rows(group_of(some)) if r.budget_bytes == 3000) for some in (rows, clear)
        )
        error = np.sqrt((0.95 * 0.05 + 0.951 * 0.049) / 1000)
        assert close.margin_error == pytest.approx(error)
        assert (close.wins, close.clear, far.wins, far.clear) == (True, False, True, True)
        said = f"the split wins by 0.10 points, within one standard error ({100 * error:.2f})"
        assert verdict(close).startswith(f"3,000 B: {said};")
        assert "standard error" not in verdict(far)
        page = build_report([group_of([*rows, unsplit_row(**images)])]).files["index.html"].decode()
        assert "(0 of them by more than one standard error, or alone)" in page
        assert "One test image is 0.10 points" in page

    def test_what_the_settings_reduce_or_share_stands_on_the_page(self, tmp_path: Path) -> None:
        run = write_run(tmp_path / "a", [result_row()], backbone=None)
        (run / "settings.json").write_text(
            '{"backbone": "resnet50", "bottlenet_linear": true, "shared_unsplit": true, "data": {"train_limit": 1500}}'
        )
        page = build_report(read_groups([run])).files["index.html"].decode()
        for said in ("without its decoder", "one unsplit network", "trained on 1,500 photographs at most"):
            assert said in page
        (run / "settings.json").write_text('{"backbone": "resnet50"}')
        page = build_report(read_groups([run])).files["index.html"].decode()
        for said in ("without its decoder", "one unsplit network", "photographs at most"):
            assert said not in page

    def test_local_computing_sends_nothing_and_is_not_on_the_front(self) -> None:
        group = group_of([*self.rows(), unsplit_row(arm="local-int8", accuracy=0.99, head_macs=100, full_macs=100)])
        assert [point.arm for point in front(group.points)] == ["strided"]
        assert [point.arm for point in front(group.of("aecnn", "jpeg", "avif"))] == ["jpeg", "aecnn", "avif"]

    def test_factors_are_against_the_tensor_that_is_sent_and_the_first_one(self) -> None:
        rows = [
            unsplit_row(accuracy=0.95),
            result_row(split=2, split_shape=(256, 56, 56), accuracy=0.945, wire_bytes=3211264 / 100),
            result_row(accuracy=0.93, wire_bytes=802816 / 256),
        ]
        found = {(row.what, row.loss): row for row in factor_rows(group_of(rows), (64, 56, 56))}
        half = found["best of ours, any head", 0.005]
        assert (half.factor_sent, half.factor_first) == (pytest.approx(100), pytest.approx(25))
        two = found["AECNN as written, any head", 0.02]
        assert (two.factor_sent, two.factor_first) == (pytest.approx(256), pytest.approx(256))
        assert factor_rows(group_of(rows[1:]), None) == ()

    def test_nothing_good_enough_has_no_factor(self) -> None:
        rows = [unsplit_row(accuracy=0.95), result_row(accuracy=0.5)]
        assert all(row.factor_sent is None for row in factor_rows(group_of(rows), (64, 56, 56)))

    def test_an_ablation_is_compared_with_all_of_its_own_table(self) -> None:
        rows = [
            result_row(task=label + str(ratio), label=label, ratio=ratio, accuracy=accuracy, ablation=True)
            for ratio, label, accuracy in ((4, "all", 0.93), (4, "no rate", 0.92), (8, "all", 0.90), (8, "fp", 0.91))
        ]
        tables = ablation_tables(group_of(rows))
        assert [[row.point.label for row in table.rows] for table in tables] == [["all", "no rate"], ["all", "fp"]]
        assert [table.rows[1].difference for table in tables] == pytest.approx([-0.01, 0.01])

    def test_an_ablation_of_another_shape_joins_the_only_all_of_its_arm(self) -> None:
        rows = [result_row(label="all", ablation=True), result_row(label="deeper", split=2, ablation=True)]
        (table,) = ablation_tables(group_of(rows))
        assert len(table.rows) == 2
        (alone,) = ablation_tables(group_of(rows[1:]))
        assert alone.rows[0].difference is None

    def test_the_faster_path_is_paired_with_plain_training_of_the_same_network(self) -> None:
        rows = [
            result_row(accuracy=0.93, train_s=1000.0),
            result_row(arm="aecnn-fast", accuracy=0.94, train_s=200.0),
            result_row(arm="aecnn-fast", ratio=64, train_s=1.0),
        ]
        (row,) = speed_rows(group_of(rows))
        assert (row.speed_up, row.difference) == (pytest.approx(5.0), pytest.approx(0.01))
        (other,) = speed_rows(group_of([rows[0], msgspec.structs.replace(rows[1], device="cuda")]))
        assert other.speed_up is None

    def test_training_that_rows_share_counts_once(self) -> None:
        rows = [
            result_row(arm="ca-pruned", train_s=60.0),
            result_row(train_s=100.0),
            result_row(arm="jpeg-features", quality=20, train_s=100.0),
            *[codec_row(quality=quality, side=side, train_s=7.0) for quality in (5, 10) for side in (112, 224)],
        ]
        assert own_seconds(rows) == [60.0, 40.0, 0.0, 7.0, 7.0, 0.0, 0.0]
        assert costs(group_of(rows))[-1].train_s == pytest.approx(114.0)

    def test_fewer_bits_do_not_pay_again_for_the_pruned_network_that_they_begin_from(self) -> None:
        rows = [
            result_row(arm="ca-pruned", train_s=60.0),
            *[result_row(bits=bits, train_s=100.0 + bits) for bits in (8, 6, 4)],
            result_row(bits=4, seed=1, train_s=50.0),
        ]
        assert own_seconds(rows) == [60.0, 48.0, 46.0, 44.0, 50.0]

    def test_each_row_is_paid_for_once(self) -> None:
        group = group_of(many_rows())
        *each, whole = costs(group)
        assert whole.title == "all"
        assert sum(item.rows for item in each) == whole.rows == len(group.rows)
        assert sum(item.train_s for item in each) == pytest.approx(whole.train_s)

    def test_a_reduced_size_says_so(self) -> None:
        full = group_of([result_row(seed=seed) for seed in (0, 1, 2)])
        assert str(scope(full.points)) == "(30 epochs, 3 seeds)"
        small = group_of([result_row(epochs=1.0), result_row(ratio=8, epochs=4.0)])
        assert str(scope(small.points)) == "(1–4 epochs, 1 seed; reduced size)"
        assert scope([]) is None
