"""Views of the training images, kept or made anew, and what frozen stages and the teacher make of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aecnn_deploy.bundle.manifest import InputSpec
from aecnn_deploy.errors import TrainingError
from aecnn_deploy.models.backbones import Backbone
from aecnn_deploy.models.weights import library_keys
from aecnn_deploy.training import images
from aecnn_deploy.training.checkpoints import TaskFolder
from aecnn_deploy.training.dataset import DataSplit, LabelledPhotographs
from aecnn_deploy.training.images import Augment, Images, Views
from aecnn_deploy.training.settings import Algorithm1Settings, DataSettings
from aecnn_deploy.training.views import Batch, Teacher, ViewBank
from aecnn_deploy.training.workshop import Workshop
from tests.test_models import backbone

CPU = torch.device("cpu")
PLAIN = InputSpec(32, 32, 32, "bilinear", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
SIDE = 32
TRAIN = 70  # more than one batch of the bank


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 12) -> Tensor:
    """uint8 (count, 32, 32, 3)."""
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=seeded(), dtype=torch.uint8)


class TestViews:
    @pytest.mark.parametrize("mode", ["none", "flip", "crop"])
    def test_they_keep_shape_precision_and_layout(self, mode: Augment) -> None:
        x = Views(PLAIN, mode, CPU).random(noise(), seeded())
        assert (x.shape, x.dtype) == ((12, 3, SIDE, SIDE), torch.float32)
        assert x.is_contiguous(memory_format=torch.channels_last)

    def test_without_augmentation_they_are_the_frames(self) -> None:
        views, frames = Views(PLAIN, "none", CPU), noise()
        assert torch.equal(views.random(frames, seeded()), views.plain(frames))
        torch.testing.assert_close(views.plain(frames), frames.permute(0, 3, 1, 2) / 255)

    def test_a_picture_is_the_reverse_of_the_normalisation(self) -> None:
        spec = InputSpec(32, 32, 32, "bilinear", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
        views, frames = Views(spec, "none", CPU), noise()
        assert torch.equal(views.picture(views.plain(frames)).permute(0, 2, 3, 1), frames)
        beyond = torch.full((1, 3, 2, 2), 9.0)
        assert views.picture(beyond).unique().tolist() == [255], "light beyond white stays white"
        assert views.picture(-beyond).unique().tolist() == [0]

    def test_half_of_the_flipped_are_mirrored_to_the_bit(self) -> None:
        views, frames = Views(PLAIN, "flip", CPU), noise(200)
        x, plain = views.random(frames, seeded()), views.plain(frames)
        same = (x == plain).flatten(1).all(1)
        mirrored = (x == plain.flip(3)).flatten(1).all(1)
        assert bool((same ^ mirrored).all())
        assert 70 < int(mirrored.sum()) < 130

    @pytest.mark.parametrize("mode", ["flip", "crop"])
    def test_the_same_generator_gives_the_same_views_and_goes_on(self, mode: Augment) -> None:
        views, frames, generator = Views(PLAIN, mode, CPU), noise(), seeded(3)
        first, second = views.random(frames, generator), views.random(frames, generator)
        again = seeded(3)
        assert torch.equal(views.random(frames, again), first)
        assert torch.equal(views.random(frames, again), second)
        assert not torch.equal(first, second)

    def test_crops_are_rectangles_of_half_the_area_or_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a ramp in x (red) and in y (green): what a crop spans says where it was cut."""
        monkeypatch.setattr(images, "_LIGHT", 0.0)
        ramp = torch.linspace(0, 255, SIDE).round().to(torch.uint8)
        frame = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), ramp.expand(SIDE, SIDE)], dim=2)
        x = Views(PLAIN, "crop", CPU).random(frame.expand(400, -1, -1, -1), seeded())
        # Pixel centres: SIDE of them span SIDE - 1 steps.
        width, height = x[:, 0, 16, -1] - x[:, 0, 16, 0], x[:, 1, -1, 16] - x[:, 1, 0, 16]
        assert bool((x[:, 0].diff(dim=2).mean(dim=(1, 2)).sign() == width.sign()).all())
        assert bool((height > 0).all()), "nothing stands on its head"
        assert 150 < int((width < 0).sum()) < 250
        area, aspect = width.abs() * height, width.abs() / height
        assert 0.48 < float(area.min()) < 0.55
        assert float(area.max()) > 0.95
        assert float(aspect.log().abs().max()) < 0.25 + 0.02
        assert float(aspect.max()) > 1.1
        assert float(aspect.min()) < 0.9
        assert bool((x >= 0).all())
        assert bool((x <= 1).all())
        centre = x[:, 0].mean(dim=(1, 2))
        assert float(centre.std()) > 0.05, "and not all from the middle"

    def test_light_changes_by_a_fifth_at_most(self) -> None:
        grey = torch.full((300, SIDE, SIDE, 3), 102, dtype=torch.uint8)  # 0.4
        x = Views(PLAIN, "crop", CPU).random(grey, seeded())
        flat = x.flatten(1)
        torch.testing.assert_close(flat.amin(1), flat.amax(1), rtol=1e-4, atol=1e-5)
        value = flat[:, 0]
        assert 0.4 * 0.8 - 0.2 <= float(value.min()) < 0.2
        assert 0.6 < float(value.max()) <= 0.4 * 1.2 + 0.2
        black = Views(PLAIN, "crop", CPU).random(torch.zeros_like(grey), seeded()).flatten(1)[:, 0]
        assert float((value - black).min()) == pytest.approx(0.4 * 0.8, abs=0.01)
        assert float((value - black).max()) == pytest.approx(0.4 * 1.2, abs=0.01)

    def test_images_are_copies_with_their_labels(self) -> None:
        frames, labels = noise().numpy(), np.arange(12)
        copied = Images.of(frames, labels, CPU)
        frames[:] = 0
        assert torch.equal(copied.frames, noise())
        assert len(copied) == 12


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18's in the library's layout: random, but the same whenever they are read."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(library_keys(backbone("resnet18")), path)
    return path


@pytest.fixture
def make(tmp_path: Path, weights: Path) -> Callable[..., Workshop]:
    """A workshop on 70 training images of noise and colours, with an unsplit network that is done."""

    def workshop(**changes: object) -> Workshop:
        settings = Algorithm1Settings(
            "algorithm1", "resnet18", weights=str(weights), data=DataSettings(seed=4), **changes
        )
        rng = np.random.default_rng(0)
        colours = rng.integers(0, 200, (TRAIN + 4, 1, 1, 3))
        frames = (colours + rng.integers(0, 56, (TRAIN + 4, SIDE, SIDE, 3))).astype(np.uint8)
        names = tuple(f"a/{index}.png" for index in range(TRAIN + 4))
        photographs = LabelledPhotographs(frames, np.arange(TRAIN + 4) % 3, ("a", "b", "c"), names, ())
        order = np.arange(TRAIN + 4)
        split = DataSplit(order[4:], order[:2], order[2:4])
        shop = Workshop(tmp_path, settings, photographs, split, device=CPU)
        torch.manual_seed(0)
        unsplit = shop.untrained_classes(0)
        TaskFolder(tmp_path / "tasks" / "unsplit-s0").finish(unsplit, {})
        return shop

    return workshop


def rows_of(*rows: int) -> Tensor:
    return torch.tensor(rows)


def near(left: Tensor, right: Tensor) -> bool:
    """Equal but for bfloat16: 8 bits of every value, and what a sum of many loses."""
    return float((left - right).abs().max()) < 0.02 * float(right.abs().max())


class TestBank:
    def test_kept_views_are_those_that_would_be_made_anew(self, make: Callable[..., Workshop]) -> None:
        for mode in ("flip", "crop"):
            shop = make(augment=mode, views=2)
            bank = ViewBank(shop, 2, 0)
            frames, views, generator = shop.images("train").frames, shop.views(), seeded(4)
            anew = [torch.cat([views.random(part, generator) for part in frames.split(64)]) for _ in range(2)]
            assert not torch.equal(anew[0], anew[1])
            for view, expected in enumerate(anew):
                kept = torch.cat([batch.x for batch in bank.sequence(view)])
                pictures = views.picture(expected).permute(0, 2, 3, 1)  # kept as pictures: a half grey level is lost
                assert torch.equal(kept, views.plain(pictures))

    def test_a_batch_draws_one_kept_view_of_each_image(self, make: Callable[..., Workshop]) -> None:
        shop = make(augment="crop", views=3)
        bank = ViewBank(shop, 3, 0)
        views = torch.stack([torch.cat([batch.x for batch in bank.sequence(view)]) for view in range(3)])
        rows = torch.randperm(TRAIN, generator=seeded(1))
        batch = bank.batch(rows, seeded(2))
        assert batch.view is not None
        assert set(batch.view.tolist()) == {0, 1, 2}
        assert torch.equal(batch.x, views[batch.view, rows])
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        assert (batch.frozen, batch.rows.tolist()) == (0, rows.tolist())
        assert torch.equal(bank.batch(rows, seeded(2)).x, batch.x)
        assert not torch.equal(bank.batch(rows, seeded(3)).x, batch.x)

    def test_without_kept_views_every_batch_is_new_and_there_is_no_order(self, make: Callable[..., Workshop]) -> None:
        shop = make(augment="crop")
        bank, rows = ViewBank(shop, 0, 0), rows_of(5, 0, 69)
        batch = bank.batch(rows, seeded(2))
        assert batch.view is None
        assert torch.equal(batch.x, shop.views().random(shop.images("train").frames[rows], seeded(2)))
        with pytest.raises(TrainingError, match="set views to 1 or more"):
            bank.sequence(0)

    @pytest.mark.parametrize("frozen", [1, 3])
    @torch.no_grad()
    def test_kept_output_of_frozen_stages_is_what_they_compute(
        self, make: Callable[..., Workshop], frozen: int
    ) -> None:
        shop = make(augment="flip", views=2, freeze=frozen)
        bank, plain = ViewBank(shop, 2, frozen), ViewBank(shop, 2, 0)
        rows = rows_of(0, 63, 64, 69, 7)
        kept, seen = bank.batch(rows, seeded(1)), plain.batch(rows, seeded(1))
        assert kept.view is not None
        assert seen.view is not None
        assert kept.view.tolist() == seen.view.tolist()
        expected = shop.pretrained().head(frozen)(seen.x)
        assert kept.x.shape == expected.shape
        assert kept.x.dtype == torch.float32
        assert kept.x.is_contiguous(memory_format=torch.channels_last)
        assert near(kept.x, expected)
        assert not near(kept.x.flip(0), expected)
        fresh = ViewBank(shop, 0, frozen).batch(rows, seeded(5))
        again = ViewBank(shop, 0, 0).batch(rows, seeded(5))
        assert near(fresh.x, shop.pretrained().head(frozen)(again.x))

    def test_frozen_stages_take_no_gradient_and_the_backbone_keeps_its_batch_norms(
        self, make: Callable[..., Workshop]
    ) -> None:
        shop = make(augment="flip", views=1, freeze=2)
        bank = ViewBank(shop, 1, 2)
        assert not bank.batch(rows_of(1, 2), seeded()).x.requires_grad
        assert any(isinstance(module, torch.nn.BatchNorm2d) for module in shop.pretrained().stages[:2].modules())

    def test_the_workshop_makes_a_bank_once_and_keeps_one_with_views(self, make: Callable[..., Workshop]) -> None:
        shop = make(augment="flip", views=1, freeze=1)
        fresh, first = shop.bank(0, 0), shop.bank(1)
        assert (fresh.count, first.count) == (0, 1)
        assert shop.bank(1) is first
        assert shop.bank(0) is not first
        assert shop.bank(0, 0) is fresh
        assert shop.bank(1) is not first, "kept views take gigabytes: only the last bank stays"


class TestTeacher:
    SPLIT = 4

    @torch.no_grad()
    def expected(self, unsplit: Backbone, batch: Batch, frozen: int) -> tuple[Tensor, Tensor]:
        at_split = unsplit.head(self.SPLIT)[frozen:](batch.x)
        return at_split, unsplit.tail(self.SPLIT)(at_split)

    @pytest.mark.parametrize(("count", "frozen"), [(2, 0), (2, 2), (0, 0), (0, 2), (1, 4)])
    def test_it_gives_the_unsplit_networks_tensor_and_logits(
        self, make: Callable[..., Workshop], count: int, frozen: int
    ) -> None:
        shop = make(augment="flip", views=count, freeze=frozen)
        bank = shop.bank(frozen)
        teacher = shop.teacher(0, self.SPLIT, bank)
        batch = bank.batch(rows_of(3, 0, 65, 69), seeded(1))
        at_split, logits = teacher.of(batch)
        expected = self.expected(shop.unsplit(0), batch, frozen)
        assert at_split.dtype == logits.dtype == torch.float32
        for got, right in zip((at_split, logits), expected, strict=True):
            assert got.shape == right.shape
            assert near(got, right)
            assert not got.requires_grad
        assert not near(at_split.flip(0), expected[0])

    def test_kept_tensors_are_those_that_running_it_gives(
        self, make: Callable[..., Workshop], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = make(augment="crop", views=2)
        bank = shop.bank(0)
        kept = Teacher(shop, 0, self.SPLIT, bank)
        monkeypatch.setattr(Teacher, "_MOST_BYTES", 2 * 2 * TRAIN * 128 * 4 * 4 - 1)
        run = Teacher(shop, 0, self.SPLIT, bank)
        monkeypatch.setattr(Teacher, "_run", None)  # kept ones run nothing any more
        batch = bank.batch(torch.arange(TRAIN), seeded(6))
        tensors, logits = kept.of(batch)
        monkeypatch.undo()
        for got, right in zip((tensors, logits), run.of(batch), strict=True):
            assert near(got, right)
        torch.testing.assert_close(kept.scale, run.scale, rtol=0.02, atol=0)

    def test_what_would_take_too_much_memory_is_run(
        self, make: Callable[..., Workshop], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = make(augment="flip", views=1)
        bank = shop.bank(0)
        monkeypatch.setattr(Teacher, "_MOST_BYTES", 0)
        teacher = Teacher(shop, 0, self.SPLIT, bank)
        monkeypatch.setattr(Teacher, "_run", None)
        with pytest.raises(TypeError):
            teacher.of(bank.batch(rows_of(1), seeded()))

    @torch.no_grad()
    def test_its_scale_is_one_over_the_deviation_of_each_channel(self, make: Callable[..., Workshop]) -> None:
        shop = make(augment="none", views=1)
        bank = shop.bank(0)
        teacher = shop.teacher(0, self.SPLIT, bank)
        everything = torch.cat([self.expected(shop.unsplit(0), batch, 0)[0] for batch in bank.sequence(0)])
        expected = 1 / everything.var(dim=(0, 2, 3)).clamp_min(1e-6).sqrt()
        assert teacher.scale.shape == (128,)
        torch.testing.assert_close(teacher.scale, expected, rtol=0.15, atol=0)  # bfloat16, and channels of little

    @pytest.mark.parametrize("frozen", [0, 2])
    @torch.no_grad()
    def test_plain_images_come_in_order_without_augmentation(self, make: Callable[..., Workshop], frozen: int) -> None:
        shop = make(augment="crop", views=1, freeze=frozen)
        teacher = shop.teacher(0, self.SPLIT, shop.bank(frozen))
        batches = list(teacher.plain())
        assert [len(batch) for batch in batches] == [64, 6]
        frames = shop.images("train").frames
        assert near(torch.cat(batches), shop.unsplit(0).head(self.SPLIT)(shop.views().plain(frames)))

    def test_the_workshop_keeps_the_last_one(self, make: Callable[..., Workshop]) -> None:
        shop = make(augment="none")
        bank = shop.bank(0)
        first = shop.teacher(0, 4, bank)
        assert shop.teacher(0, 4, bank) is first
        assert shop.teacher(0, 5, bank).split == 5
        assert shop.teacher(0, 4, bank) is not first
