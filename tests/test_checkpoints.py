"""Checkpoints and the training loop: what is stopped goes on as if it had not been, and what is written is whole."""

import errno
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aecnn_deploy.errors import TrainingError
from aecnn_deploy.training import checkpoints
from aecnn_deploy.training.checkpoints import Reached, TaskFolder, optimiser_state, restore_optimiser
from aecnn_deploy.training.fitting import Fitter, Group
from aecnn_deploy.training.settings import FitSettings
from tests.small_files import files_of_at_most

IMAGES, BATCH = 26, 8  # three batches of eight; each epoch leaves two images out
CPU = torch.device("cpu")


def network() -> nn.Sequential:
    """Convolutions with filters that lie channels last, batch norms, a classifier."""
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4)),
    )
    return net.to(memory_format=torch.channels_last)


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Stop(KeyboardInterrupt):
    """As Ctrl-C comes: anywhere."""


@dataclass
class Training:
    """A task of two stages. ``stop``: it ends at this step; ``accuracies``: what validation says, epoch by epoch."""

    path: Path
    patience: int = 0
    accuracies: tuple[float, ...] = ()
    epochs: int = 4
    every_s: float = 0.0
    seed: int = 3
    stop: int | None = None
    steps: int = 0
    validated: list[float] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)

    def run(self) -> tuple[dict[str, Tensor], Fitter]:
        """Both stages, from the checkpoint that stands. Raises Stop."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(IMAGES, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
        labels = torch.randint(4, (IMAGES,), generator=generator)
        net = network()
        torch.manual_seed(self.seed)
        fitter = Fitter(TaskFolder(self.path, self.every_s), CPU, self.seed, self._step)

        def loss_of(rows: Tensor, generator: torch.Generator, progress: float) -> Tensor:
            self.seen.append(rows.tolist())
            noise = torch.randn(x[rows].shape, generator=generator)
            return (1 + progress) * F.cross_entropy(net(x[rows] + 0.1 * noise), labels[rows])

        def validate() -> float:
            # A resumed process begins in the middle of an epoch, which is its first.
            epoch = math.ceil(len(self.seen) / (IMAGES // BATCH)) - 1
            self.validated.append(self.accuracies[epoch % len(self.accuracies)])
            return self.validated[-1]

        settings = FitSettings(epochs=self.epochs, batch=BATCH, learning_rate=0.02, patience=self.patience)
        checked = validate if self.accuracies else None
        fitter.fit("first", net, [Group([net[2]])], settings, IMAGES, loss_of, checked)
        groups = [Group([net[1], net[2]]), Group([net[0]], 0.3, statistics=False)]
        fitter.fit("second", net, groups, settings, IMAGES, loss_of, checked)
        return state_of(net), fitter

    def _step(self, _note: str) -> None:
        self.steps += 1
        if self.steps == self.stop:
            raise Stop


class TestInterruptedTraining:
    @pytest.mark.parametrize("every_s", [0.0, 3600.0], ids=["a checkpoint each step", "none"])
    def test_it_ends_with_the_same_bits_wherever_it_was_stopped(self, tmp_path: Path, every_s: float) -> None:
        straight = Training(tmp_path / "straight")
        expected, fitter = straight.run()
        assert straight.steps == 24
        assert not same(expected, state_of(network()))
        for stop in range(1, straight.steps + 1):
            path = tmp_path / f"stopped-{stop}"
            with pytest.raises(Stop):
                Training(path, stop=stop, every_s=every_s).run()
            resumed = Training(path, every_s=every_s)
            state, again = resumed.run()
            assert same(state, expected), f"stopped at step {stop}"
            assert again.epochs == fitter.epochs == 8
            # The step that was stopped is done again; the last of a stage is kept in no checkpoint of its own.
            assert resumed.steps <= straight.steps - stop + (2 if not every_s else stop)

    def test_it_may_be_stopped_again_and_again(self, tmp_path: Path) -> None:
        expected, _ = Training(tmp_path / "straight").run()
        for _ in range(20):
            training = Training(tmp_path / "stopped", stop=7)
            try:
                state, _ = training.run()
                break
            except Stop:
                continue
        assert same(state, expected)

    @pytest.mark.parametrize("stop", range(1, 19))
    def test_with_patience_the_best_epoch_is_kept_wherever_it_was_stopped(self, tmp_path: Path, stop: int) -> None:
        """The second of at most six epochs is the best, two more are tried; then comes a stage without patience."""

        def run(path: Path, stop: int | None) -> tuple[dict[str, Tensor], list[int]]:
            net, epochs, steps = network(), list[int](), 0
            x = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            labels, now = torch.arange(IMAGES) % 4, [0.0]

            def step(_note: str) -> None:
                nonlocal steps
                steps += 1
                if steps == stop:
                    raise Stop

            def loss_of(rows: Tensor, _generator: torch.Generator, progress: float) -> Tensor:
                now[0] = progress
                return F.cross_entropy(net(x[rows]), labels[rows])

            def validate() -> float:
                epochs.append(int(now[0] * 6 + 1e-9))
                return (0.3, 0.6, 0.6, 0.5, 0.9, 0.9)[epochs[-1]]

            fitter = Fitter(TaskFolder(path, 0), CPU, 1, step)
            settings = FitSettings(epochs=6, batch=BATCH, learning_rate=0.02, patience=2)
            fitter.fit("patient", net, [Group([net])], settings, IMAGES, loss_of, validate)
            best = state_of(net)
            fitter.fit("then", net, [Group([net])], FitSettings(epochs=2, batch=BATCH), IMAGES, loss_of)
            return best | {f"then.{key}": value for key, value in state_of(net).items()}, epochs

        expected, epochs = run(tmp_path / "straight", None)
        assert epochs == [0, 1, 2, 3]
        with pytest.raises(Stop):
            run(tmp_path / "stopped", stop)
        state, _ = run(tmp_path / "stopped", None)
        after = {key for key in expected if key.startswith("then.")}
        for key in expected if stop <= 13 else after:  # later the first stage's result is in the checkpoint only
            assert torch.equal(state[key], expected[key]), key

    def test_patience_ends_a_stage_and_counts_the_epochs_that_were_done(self, tmp_path: Path) -> None:
        training = Training(tmp_path / "a", patience=1, accuracies=(0.5, 0.4, 0.9, 0.9))
        _, fitter = training.run()
        assert training.validated == [0.5, 0.4, 0.9, 0.9], "two epochs of either stage"
        assert fitter.epochs == 4
        only_two = Training(tmp_path / "b", patience=0, accuracies=(0.5,))
        assert only_two.run()[1].epochs == 8
        assert not only_two.validated, "without patience nothing is validated"

    def test_the_epochs_of_a_stage_that_ended_early_are_counted_once_after_an_interruption(
        self, tmp_path: Path
    ) -> None:
        accuracies = (0.5, 0.4, 0.3, 0.4, 0.5, 0.6)
        straight = Training(tmp_path / "straight", patience=1, accuracies=accuracies)
        _, fitter = straight.run()
        assert (straight.steps, fitter.epochs) == (6 + 12, 2 + 4)
        with pytest.raises(Stop):
            Training(tmp_path / "stopped", patience=1, accuracies=accuracies, stop=14).run()
        resumed = Training(tmp_path / "stopped", patience=1, accuracies=accuracies[4:])
        assert resumed.run()[1].epochs == fitter.epochs
        assert resumed.validated == [0.5, 0.6]

    def test_time_before_the_interruption_counts(self, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            Training(tmp_path, stop=8).run()
        loaded = TaskFolder(tmp_path).load()
        assert loaded is not None
        reached, tensors = loaded
        assert (reached.stage, reached.epoch, reached.steps) == ("first", 2, 1)
        TaskFolder(tmp_path).save(msgspec.structs.replace(reached, seconds=1000.0), tensors)
        _, fitter = Training(tmp_path).run()
        assert 1000 < fitter.spent_s < 1100

    def test_the_time_of_preparation_counts(self, tmp_path: Path) -> None:
        fitter = Fitter(TaskFolder(tmp_path), CPU, 0, lambda _: None)
        with fitter.timed():
            sum(range(100_000))
        assert fitter.spent_s > 0

    def test_checkpoints_are_as_far_apart_as_they_should_be(self, tmp_path: Path) -> None:
        folder = TaskFolder(tmp_path, every_s=0.2)
        assert not folder.due()
        folder._written_s -= 0.2
        assert folder.due()
        folder.save(Reached("a", 1, "state-a-1.safetensors", 0.0), {"x": torch.ones(1)})
        assert not folder.due()


class TestOptimiser:
    @staticmethod
    def trained(net: nn.Module, steps: int, optimiser: torch.optim.Optimizer) -> None:
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(steps))
        for _ in range(steps):
            optimiser.zero_grad()
            net(x.to(memory_format=torch.channels_last)).square().mean().backward()
            optimiser.step()

    def test_its_moments_lie_in_memory_as_the_parameters_do(self, tmp_path: Path) -> None:
        """A fused step walks through both as they lie: in another order it would mix up the filters' values."""
        net = network().eval()
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
        self.trained(net, 3, optimiser)
        model, folder = state_of(net), TaskFolder(tmp_path)
        folder.save(Reached("a", 1, "state-a-1.safetensors", 0.0), optimiser_state(optimiser))
        self.trained(net, 2, optimiser)
        again = network().eval()
        again.load_state_dict(model)
        resumed = torch.optim.AdamW(again.parameters(), lr=0.01, fused=True)
        loaded = folder.load()
        assert loaded is not None
        restore_optimiser(resumed, loaded[1])
        filters = 0
        for parameter in again.parameters():
            for name in ("exp_avg", "exp_avg_sq"):
                moment = resumed.state[parameter][name]
                assert moment.stride() == parameter.stride()
                filters += not moment.is_contiguous()
        assert filters > 0, "channels last is what this is about"
        self.trained(again, 2, resumed)
        assert same(state_of(again), state_of(net))


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    """A task with one checkpoint, of an epoch 1."""
    folder = TaskFolder(tmp_path / "task", every_s=0)
    folder.save(Reached("match", 1, "state-match-1.safetensors", 2.5, 0.75, {"waited": 1}), {"x": torch.arange(600.0)})
    return folder


def files(folder: TaskFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def is_first(folder: TaskFolder) -> bool:
    loaded = folder.load()
    assert loaded is not None
    reached, tensors = loaded
    expected = Reached("match", 1, "state-match-1.safetensors", 2.5, 0.75, {"waited": 1})
    return reached == expected and same(tensors, {"x": torch.arange(600.0)})


def save_second(folder: TaskFolder) -> None:
    folder.save(Reached("match", 2, "state-match-2.safetensors", 3.0), {"x": torch.ones(600)})


class TestCheckpoint:
    def test_it_is_read_back_and_the_next_one_replaces_it(self, folder: TaskFolder) -> None:
        assert is_first(folder)
        save_second(folder)
        assert files(folder) == {"state.json", "state-match-2.safetensors"}
        loaded = folder.load()
        assert loaded is not None
        assert loaded[0].epoch == 2
        assert same(loaded[1], {"x": torch.ones(600)})

    def test_where_there_is_none_nothing_is_loaded(self, tmp_path: Path) -> None:
        assert TaskFolder(tmp_path / "nowhere").load() is None

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: (path / "state.json").write_bytes(b"{"),
            lambda path: (path / "state.json").write_bytes(b'{"stage": 3}'),
            lambda path: (path / "state-match-1.safetensors").unlink(),
            lambda path: os.truncate(path / "state-match-1.safetensors", 900),
            lambda path: (path / "state-match-1.safetensors").write_bytes(b""),
        ],
        ids=["JSON", "fields", "missing", "cut", "empty"],
    )
    def test_a_damaged_one_is_named_with_the_way_on(self, folder: TaskFolder, damage: Callable[[Path], object]) -> None:
        damage(folder.path)
        with pytest.raises(TrainingError, match=r"the checkpoint in .*task is damaged .*; remove it and go on with"):
            folder.load()
        with pytest.raises(TrainingError, match="is damaged"):
            Fitter(folder, CPU, 0, lambda _: None)

    def test_a_full_disk_leaves_the_old_one_whole(self, folder: TaskFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = files(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(TrainingError, match="No space left on device; free some space and go on with --resume"):
                save_second(folder)
        assert files(folder) == before
        assert is_first(folder)
        save_second(folder)

    def test_a_write_that_ends_half_way_leaves_the_old_one_whole(self, folder: TaskFolder) -> None:
        before = files(folder)
        with pytest.raises(TrainingError, match=r"cannot write .*state-match-2\.safetensors"), files_of_at_most(1024):
            save_second(folder)
        assert files(folder) == before
        assert is_first(folder)

    def test_a_kill_between_tensors_and_json_leaves_the_old_one_whole(
        self, folder: TaskFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed(*_: object) -> None:
            raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write_json", killed)
            with pytest.raises(Stop):
                save_second(folder)
        assert is_first(folder)
        save_second(folder)
        assert files(folder) == {"state.json", "state-match-2.safetensors"}


class TestFinishedTask:
    def test_it_keeps_its_network_and_its_document_only(self, folder: TaskFolder) -> None:
        net = network()
        assert not folder.is_done
        folder.finish(net, {"epochs": 3, "train_s": 1.5})
        assert folder.is_done
        assert files(folder) == {"done.json", "model.safetensors"}
        assert folder.done() == {"epochs": 3, "train_s": 1.5}
        assert same(folder.model_state(), state_of(net))

    def test_a_refused_network_leaves_the_task_undone_and_its_checkpoint(
        self, folder: TaskFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"model\.safetensors: No space left"):
            folder.finish(network(), {})
        assert not folder.is_done
        assert is_first(folder)

    @pytest.mark.parametrize("name", ["done.json", "model.safetensors"])
    @pytest.mark.parametrize("content", [None, b"", b"{"], ids=["missing", "empty", "cut"])
    def test_a_damaged_file_is_named_with_the_way_on(self, folder: TaskFolder, name: str, content: Any) -> None:
        folder.finish(network(), {"epochs": 3})
        file = folder.path / name
        file.unlink() if content is None else file.write_bytes(content)
        read: Callable[[], object] = folder.done if name == "done.json" else folder.model_state
        with pytest.raises(TrainingError, match=rf"task/{name} cannot be read.*; remove .*task, use --resume"):
            read()


class TestLoop:
    def fit(self, path: Path, settings: FitSettings, groups: list[Group], net: nn.Module, **options: Any) -> Fitter:
        x = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(IMAGES) % 4
        seen, scale = options.get("seen", []), options.get("scale", lambda progress: 1.0)

        def loss_of(rows: Tensor, _generator: torch.Generator, progress: float) -> Tensor:
            seen.append((progress, rows.tolist()))
            return scale(progress) * F.cross_entropy(net(x[rows]), labels[rows])

        fitter = Fitter(TaskFolder(path, 0), CPU, options.get("seed", 0), lambda _: None)
        fitter.fit("match", net, groups, settings, IMAGES, loss_of)
        return fitter

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_loss_that_is_no_number_is_an_error_and_keeps_the_epoch_before(
        self, tmp_path: Path, value: float
    ) -> None:
        net = network()
        with pytest.raises(
            TrainingError, match=rf"match: the loss is {value} in epoch 3; lower learning_rate \(0.02\)"
        ):
            self.fit(
                tmp_path,
                FitSettings(epochs=4, batch=BATCH, learning_rate=0.02),
                [Group([net])],
                net,
                scale=lambda progress: value if progress > 0.6 else 1.0,
            )
        loaded = TaskFolder(tmp_path).load()
        assert loaded is not None
        assert (loaded[0].epoch, loaded[0].steps) == (2, 2)
        assert all(bool(value.isfinite().all()) for value in loaded[1].values())

    def test_every_epoch_takes_each_image_once_at_most_in_an_order_of_its_own(self, tmp_path: Path) -> None:
        settings, orders = FitSettings(epochs=3, batch=BATCH), []
        for name, seed in (("a", 5), ("b", 5), ("c", 6)):
            seen: list[tuple[float, list[int]]] = []
            net = network()
            self.fit(tmp_path / name, settings, [Group([net])], net, seen=seen, seed=seed)
            assert [len(rows) for _, rows in seen] == [BATCH] * 9
            assert [progress for progress, _ in seen] == pytest.approx([step / 9 for step in range(9)])
            epochs = [[row for _, rows in seen[first : first + 3] for row in rows] for first in (0, 3, 6)]
            assert all(len(set(rows)) == 24 for rows in epochs)
            assert epochs[0] != epochs[1] != epochs[2]
            orders.append(epochs)
        assert orders[0] == orders[1] != orders[2]

    def test_fewer_images_than_a_batch_are_one_batch(self, tmp_path: Path) -> None:
        seen: list[tuple[float, list[int]]] = []
        net = network()
        self.fit(tmp_path, FitSettings(epochs=2, batch=64), [Group([net])], net, seen=seen)
        assert [len(rows) for _, rows in seen] == [IMAGES, IMAGES]

    def test_what_is_in_no_group_stays_as_it_was_and_statistics_learn_where_they_should(self, tmp_path: Path) -> None:
        net = network()
        before = state_of(net)
        groups = [Group([net[1]], statistics=False), Group([net[2]])]
        self.fit(tmp_path, FitSettings(epochs=2, batch=BATCH, learning_rate=0.05), groups, net)
        changed = {key for key, value in state_of(net).items() if not torch.equal(value, before[key])}
        assert changed == {"1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias", "2.2.weight", "2.2.bias"}
        assert not net.training
        self.fit(tmp_path / "b", FitSettings(epochs=1, batch=BATCH), [Group([net[1]])], net)
        changed = {key for key, value in state_of(net).items() if not torch.equal(value, before[key])}
        assert {"1.1.running_mean", "1.1.running_var"} < changed
        assert not [key for key in changed if key.startswith("0.")]

    def test_a_group_learns_at_its_share_of_the_rate(self, tmp_path: Path) -> None:
        moved = []
        for rate in (1.0, 0.1):
            net = network()
            before = state_of(net)
            self.fit(
                tmp_path / str(rate), FitSettings(epochs=1, batch=64, learning_rate=0.5), [Group([net], rate)], net
            )
            moved.append(float((state_of(net)["2.2.bias"] - before["2.2.bias"]).abs().mean()))
        # One step of Adam is as long as the learning rate, whatever the gradient.
        assert moved[0] == pytest.approx(10 * moved[1], rel=1e-3)
        assert moved[0] > 0

    def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_nothing(self, tmp_path: Path) -> None:
        net, lengths = network().requires_grad_(False), list[float]()
        bias = net[2][2].bias.detach()
        before = bias.clone()

        def step(_note: str) -> None:
            lengths.append(float((bias - before).abs().max()))
            before.copy_(bias)

        x = torch.randn(IMAGES, 3, 8, 8)
        fitter = Fitter(TaskFolder(tmp_path), CPU, 0, step)
        settings = FitSettings(epochs=20, batch=BATCH, learning_rate=0.01)
        fitter.fit("a", net, [Group([net[2]])], settings, IMAGES, lambda rows, *_: -net(x[rows])[:, 0].mean())
        assert len(lengths) == 60
        peak = lengths.index(max(lengths))
        assert 5 <= peak <= 7
        assert max(lengths) == pytest.approx(0.01, rel=0.02)
        assert lengths[0] < 0.001
        assert lengths[:peak] == sorted(lengths[:peak])
        assert lengths[peak:] == sorted(lengths[peak:], reverse=True)
        assert lengths[-1] < 0.0001

    def test_no_epochs_change_nothing(self, tmp_path: Path) -> None:
        net = network()
        fitter = self.fit(tmp_path / "task", FitSettings(epochs=0), [Group([net])], net)
        assert same(state_of(net), state_of(network()))
        assert fitter.epochs == 0
        assert not (tmp_path / "task").exists()
