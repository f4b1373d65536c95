"""Label-free training: settings, photographs, what it learns, what a run on disk keeps."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from aecnn_deploy.errors import ModelError, RunFormatError, SettingsError, SourceError, TrainingError
from aecnn_deploy.models.backbones import BACKBONES, Backbone
from aecnn_deploy.models.deploy import DeviceHead, EdgeTail, FullModel, Normalise
from aecnn_deploy.models.run import check_run_target, load_run
from aecnn_deploy.models.split import SplitModel, pruned_split
from aecnn_deploy.models.weights import caltech101_imagenet, imagenet_labels, load_backbone
from aecnn_deploy.training.evaluation import agreement, full_top1, run_split
from aecnn_deploy.training.label_free import LabelFreeTraining, has_bfloat16
from aecnn_deploy.training.photographs import Frames, choose_files, load_photographs
from aecnn_deploy.training.pipeline import train_label_free
from aecnn_deploy.training.samples import cut_patches, write_sample_photographs
from aecnn_deploy.training.settings import DistilSettings, LabelFreeSettings, MatchSettings, read_settings
from tests.labelled_runs import Steps

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sample_photographs(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def patches(backbone: Backbone, photographs: list[Path]) -> Frames:
    return cut_patches(photographs, 96, backbone.input, seed=1).frames


def settings(**changed: object) -> LabelFreeSettings:
    base = LabelFreeSettings(split=6, ratios=(2,), bits=6, hidden=32, match=MatchSettings(epochs=6, batch=16))
    return msgspec.structs.replace(base, **changed)


@torch.no_grad()
def mismatch(backbone: Backbone, model: SplitModel, frames: Frames) -> float:
    """Mean squared error of the recovered tensor over the original's variance."""
    x = Normalise(backbone.input)(torch.from_numpy(frames))
    original = backbone.head(model.split)(x)
    return float((model.recover(x) - original).square().mean() / original.var())


@pytest.fixture(scope="module")
def matched(backbone: Backbone, patches: Frames) -> SplitModel:
    training = LabelFreeTraining(backbone, settings(), patches[:80], device=torch.device("cpu"))
    training.prepare()
    return training.train(2)


def test_matching_brings_the_recovered_tensor_near_the_original_on_unseen_patches(
    backbone: Backbone, patches: Frames, matched: SplitModel
) -> None:
    untrained = pruned_split(backbone, 6, matched.kept, 6, hidden=32, repack=True)
    with torch.no_grad():
        untrained.quantiser.calibrate(untrained.head(Normalise(backbone.input)(torch.from_numpy(patches[:16]))))
    unseen = patches[80:]
    assert mismatch(backbone, matched, unseen) < 0.5 * mismatch(backbone, untrained, unseen)


def test_the_same_settings_and_photographs_give_the_same_network(
    backbone: Backbone, patches: Frames, matched: SplitModel
) -> None:
    training = LabelFreeTraining(backbone, settings(), patches[:80], device=torch.device("cpu"))
    training.prepare()
    again = training.train(2)
    for (name, a), b in zip(matched.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_training_leaves_the_backbone_the_frozen_stages_and_the_tail_as_they_were(
    backbone: Backbone, matched: SplitModel
) -> None:
    fresh = load_backbone("efficientnet_lite0").state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in backbone.state_dict().items())
    expected = pruned_split(backbone, 6, matched.kept, 6, hidden=32, repack=True)
    for part in (lambda m: m.head[:5], lambda m: m.tail):
        for a, b in zip(part(matched).parameters(), part(expected).parameters(), strict=True):
            assert torch.equal(a, b)
    changed = [
        not torch.equal(a, b) for a, b in zip(matched.head[5].parameters(), expected.head[5].parameters(), strict=True)
    ]
    assert any(changed)


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("efficientnet_lite0", 6, {"5.block.conv_pwl.weight", "5.block.bn3.weight", "5.block.bn3.bias"}),
        ("efficientnet_lite0", 1, {"0.0.weight", "0.1.weight", "0.1.bias"}),
        ("resnet18", 4, {"3.conv2.weight", "3.bn2.weight", "3.bn2.bias"}),
    ],
)
def test_projection_only_trains_the_last_convolution_and_its_batch_norm(
    name: str, split: int, expected: set[str], patches: Frames
) -> None:
    net = load_backbone(name, "wheel" if name == "efficientnet_lite0" else "random")
    wanted = settings(backbone=name, split=split, projection_only=True, match=MatchSettings(epochs=1, batch=16))
    training = LabelFreeTraining(net, wanted, patches[:16], device=torch.device("cpu"))
    training.prepare()
    trained = training.train(2).head
    fresh = pruned_split(net, split, training.train(2).kept, 6, hidden=32, repack=True).head
    changed = {
        key for (key, a), b in zip(trained.named_parameters(), fresh.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert changed == expected


def test_distillation_brings_the_logits_nearer_to_the_unsplit_model_s(backbone: Backbone, patches: Frames) -> None:
    """Both begin with the same matching: what lies between them is the distillation."""
    short, distil = MatchSettings(epochs=2, batch=16), DistilSettings(epochs=1, batch=16)
    models = []
    for wanted in (settings(match=short), settings(match=short, distil=distil)):
        training = LabelFreeTraining(backbone, wanted, patches[:32], device=torch.device("cpu"))
        training.prepare()
        models.append(training.train(2))
    x = Normalise(backbone.input)(torch.from_numpy(patches[:32]))
    with torch.no_grad():
        teacher = torch.log_softmax(backbone(x), dim=1)
        far, near = (
            torch.nn.functional.kl_div(
                torch.log_softmax(model(x), dim=1), teacher, reduction="batchmean", log_target=True
            )
            for model in models
        )
    assert near < 0.9 * far


def test_every_announced_step_is_reported(backbone: Backbone, patches: Frames) -> None:
    steps: list[str] = []
    wanted = settings(match=MatchSettings(epochs=1, batch=16), distil=DistilSettings(epochs=1, batch=16))
    training = LabelFreeTraining(backbone, wanted, patches[:40], steps.append, torch.device("cpu"))
    training.prepare()
    assert len(steps) == training.prepare_steps()
    steps.clear()
    training.train(2)
    assert len(steps) == training.train_steps()


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"split": 18}, ModelError, "choose 1 to 17"),
        ({"ratios": (64,)}, ModelError, "leaves no channel"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(
    backbone: Backbone, patches: Frames, changed: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        LabelFreeTraining(backbone, settings(**changed), patches)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(config: Path) -> None:
    assert read_settings(config).backbone in BACKBONES


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("spilt = 3", "unknown key 'spilt'; did you mean 'split'"),
        ("[match]\nepoch = 3", r"unknown key 'match\.epoch'; did you mean 'epochs'"),
        ("bits = 9", "bits"),
        ("ratios = []", "ratios"),
        ("ratios = [2, 2]", "name one ratio twice"),
        ("split = 2\ntrainable_stages = 3", "more than the head"),
        ("trainable_stages = 0\nprojection_only = true", "needs trainable_stages"),
        ("split = 'four'", "split"),
        ("split =", "not valid TOML"),
        ("method = 'algorithm-1'", "method"),
        ("hidden = -8", "hidden is -8, expected a whole number >= 1"),
        ("kernel = 2", "kernel is 2, expected one of 1, 3"),
        ("ratios = 3", "ratios is 3, expected a list"),
        ("[match]\nlearning_rate = inf", r"match\.learning_rate is inf, expected a number <= "),
        ("[[sweep]]\nsplits = [1]", "unknown key 'sweep'; it goes with method = \"algorithm1\""),
        ("method = 'algorithm1'\n[sweep]", r"sweep is one table, expected several; write \[\[sweep\]\]"),
        (
            "method = 'algorithm1'\n[[sweep]]\narms = ['aecn']",
            r"sweep\[0\]\.arms\[0\] is 'aecn', expected one of aecnn,",
        ),
        ("method = 'algorithm1'\n[[strided]]", r"strided\[0\]: .*missing required field `name`"),
        ("method = 'algorithm1'\n[data]\ntest = 0.95", "data: the shares .* leave a part empty"),
    ],
)
def test_bad_settings_are_refused_by_name(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=match):
        read_settings(file)


def test_a_byte_order_mark_is_no_part_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("split = 3", encoding="utf-8-sig")
    assert read_settings(tmp_path / "config.toml") == LabelFreeSettings(split=3)


def test_patches_are_real_pixels_and_the_same_for_the_same_seed(backbone: Backbone, photographs: list[Path]) -> None:
    a, b, c = (cut_patches(photographs, 12, backbone.input, seed).frames for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert all(frame.std() > 1 for frame in a)


def test_photographs_are_drawn_with_a_seed_and_damaged_ones_are_named(backbone: Backbone, tmp_path: Path) -> None:
    write_sample_photographs(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    everything = choose_files(tmp_path, 1000, 0)
    assert len(everything) == 11
    assert choose_files(tmp_path, 4, 1) == choose_files(tmp_path, 4, 1) != choose_files(tmp_path, 4, 2)
    loaded = load_photographs(everything, backbone.input)
    assert len(loaded.frames) == len(loaded.sources) == 10
    assert len(loaded.skipped) == 1
    assert "broken.jpg does not decode" in loaded.skipped[0]
    with pytest.raises(SourceError, match="none of the 1 images decodes"):
        load_photographs([tmp_path / "broken.jpg"], backbone.input)


@pytest.fixture(scope="module")
def run(patches: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    for index, frame in enumerate(patches[:60]):
        Image.fromarray(frame).save(folder / f"{index:03}.png", compress_level=1)
    out = folder / "run"
    wanted = settings(ratios=(2, 8), match=MatchSettings(epochs=2, batch=16))
    steps = Steps()
    train_label_free(wanted, folder, out, progress=steps)
    assert [planned for _, planned in steps.planned] == steps.done
    return out


def test_a_run_read_back_computes_what_was_evaluated(run: Path, patches: Frames) -> None:
    loaded = load_run(run)
    assert [variant.id for variant in loaded.variants] == ["efficientnet_lite0-l6-v2-u6", "efficientnet_lite0-l6-v8-u6"]
    assert loaded.frames.shape == (8, 224, 224, 3)
    assert len(loaded.labels) == 1000
    held_out = loaded.measurements["photographs"]["held_out"]
    assert held_out == 6
    assert loaded.measurements["photographs"]["trained"] == 54
    # The first held-out photographs are kept as frames.npy: what was measured can be measured again.
    top1 = full_top1(loaded.full(), loaded.frames[:held_out])
    for variant in loaded.variants:
        outcome = run_split(variant.head(), variant.tail(), variant.bits, loaded.frames[:held_out])
        assert agreement(outcome.top1, top1) == variant.agreement
        assert variant.head_macs < variant.full_macs


def test_an_existing_run_is_kept_unless_it_may_be_replaced(run: Path) -> None:
    before = (run / "run.json").read_bytes()
    with pytest.raises(TrainingError, match="add --force"):
        train_label_free(settings(), run.parent, run, progress=Steps())
    assert (run / "run.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TrainingError, match="holds no run"):
        train_label_free(settings(), tmp_path, tmp_path, replace=True, progress=Steps())
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_lies_beside_a_run_is_never_removed_with_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "bundle").mkdir()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(TrainingError, match="holds bundle besides a run: not replaced; move that away"):
        train_label_free(settings(), run.parent, tmp_path / "run", replace=True, progress=Steps())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("file", "is not a folder: not replaced"),
        ("file/run", "file is not a folder"),
        ("link", "is a link to nowhere: not replaced"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_that_holds_no_run_is_refused_before_the_work(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(TrainingError, match=f"{why}; choose another --out"):
        check_run_target(tmp_path / name, replace=True)


def test_a_failed_training_leaves_nothing_behind(tmp_path: Path, patches: Frames) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for index in range(5):
        Image.fromarray(patches[index]).save(data / f"{index}.png")
    with pytest.raises(TrainingError, match="at least 10 photographs, got 5"):
        train_label_free(settings(), data, tmp_path / "run", progress=Steps())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_damaged_run_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    for name, content in (
        ("run.json", b"{"),
        ("run.json", b'{"format": 99}'),
        ("frames.npy", b"\x00" * 10),
        ("backbone.safetensors", b"\x01" * 100),
        ("variants/efficientnet_lite0-l6-v2-u6.safetensors", None),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        with pytest.raises(RunFormatError):
            load_run(copy)
    with pytest.raises(RunFormatError, match=r"no run\.json"):
        load_run(tmp_path)


def test_json_of_a_run_can_be_read_by_others(run: Path) -> None:
    document = json.loads((run / "run.json").read_text())
    assert document["backbone"] == "efficientnet_lite0"
    assert document["settings"]["ratios"] == [2, 8]


@pytest.mark.data
def test_the_wheel_s_weights_know_the_caltech_categories_that_are_imagenet_classes(
    backbone: Backbone, caltech101: Path
) -> None:
    number = {label: index for index, label in enumerate(imagenet_labels())}
    full = FullModel(backbone).to(memory_format=torch.channels_last)
    device = torch.device("cpu")
    first = fifth = total = 0
    for category, classes in caltech101_imagenet().items():
        files = sorted((caltech101 / category).glob("*.jpg"))[:12]
        frames = torch.from_numpy(load_photographs(files, backbone.input).frames)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(device)):
            best = full(frames).float().topk(5).indices
        hit = torch.isin(best, torch.tensor([number[name] for name in classes]))
        first, fifth, total = first + int(hit[:, 0].sum()), fifth + int(hit.any(1).sum()), total + len(files)
    assert total > 300
    assert first / total > 0.75
    assert fifth / total > 0.88


def test_deploy_modules_agree_with_themselves_on_any_batching(backbone: Backbone, patches: Frames) -> None:
    model = pruned_split(backbone, 2, torch.arange(0, 16, 2), 8)
    with torch.no_grad():
        model.quantiser.calibrate(model.head(Normalise(backbone.input)(torch.from_numpy(patches[:4]))))
    head, tail = DeviceHead(model, backbone.input), EdgeTail(model)
    whole = run_split(head, tail, 8, patches[:30])
    parts = [run_split(head, tail, 8, patches[start : start + 10]).top1 for start in (0, 10, 20)]
    assert np.array_equal(whole.top1, np.concatenate(parts))
