"""Each testing protocol against its definition, image by image."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from resnets import models
from resnets.config.recipe import Preprocess
from resnets.data.dataset import Split
from resnets.data.loader import test_batches as shown
from resnets.errors import CheckpointError, UsageError
from resnets.evaluation import classification
from resnets.evaluation.classification import classification_metrics, running_means, running_sums
from resnets.evaluation.load import load, match_classes
from resnets.evaluation.predictor import Model
from resnets.evaluation.scores import ensemble, predict_scores
from resnets.evaluation.tta import dense_logits, passes
from resnets.models.io.model_file import ModelMetadata, save

CPU = torch.device("cpu")
SEE = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def made(name="resnet8", preprocess=SEE, classes=5, seed=0, **card):
    torch.manual_seed(seed)
    network = models.create(name, classes=classes).eval()
    for module in network.modules():  # statistics of no training, and a head that is sure
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    list(network.modules())[-1].weight.data.mul_(10)
    names = tuple("abcde"[:classes])
    return Model(
        network, ModelMetadata(arch=network.arch, classes=names, preprocess=preprocess, **card), CPU
    )


def pictures(n=7, height=32, width=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n) % 5)


def seen(images, see=SEE):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (see.mean, see.std))
    return (images / 255 - mean) / std


def resized(images, side):
    """As the data room does it, of square images."""
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def probabilities(model, images):
    with torch.inference_mode():
        return model.network(images).double().softmax(1)


def assert_same(scores, expected):
    torch.testing.assert_close(scores.probabilities, expected, rtol=1e-5, atol=1e-6)


def test_the_centre_is_a_forward_pass():
    model, split = made(), pictures()
    scores = model.scores(split)
    with torch.inference_mode():
        expected = model.network(seen(split.images))
    torch.testing.assert_close(scores.logits, expected, rtol=1e-5, atol=1e-5)
    assert scores.indices.tolist() == [*range(7)]
    assert torch.equal(scores.labels, split.labels)


def test_the_temperature_divides_the_logits():
    split = pictures()
    plain, cooled = made().scores(split), made(temperature=2.0).scores(split)
    torch.testing.assert_close(cooled.logits, plain.logits / 2)


def test_flip_is_the_mean_of_two():
    model, split = made(), pictures()
    x = seen(split.images)
    expected = (probabilities(model, x) + probabilities(model, x.flip(3))) / 2
    assert_same(model.scores(split, view="flip"), expected)


@pytest.mark.parametrize("batch", [250, 11, 1])
def test_ten_crops_are_ten_forwards_averaged(batch):
    model, split = made(), pictures()
    large = resized(split.images, 37)  # 32 * 8 / 7 = 36.6
    ten = []
    for top, left in ((0, 0), (0, 5), (5, 0), (5, 5), (2, 2)):
        x = seen(large[:, :, top : top + 32, left : left + 32])
        ten += [probabilities(model, x), probabilities(model, x.flip(3))]
    assert_same(model.scores(split, view="ten-crop", batch=batch), torch.stack(ten).mean(0))


@pytest.mark.parametrize("batch", [250, 1])
def test_multi_scale_is_the_mean_over_places_sizes_and_mirrors(batch):
    model, split = made(), pictures()
    every = []
    for side in (32, 37, 55, 69, 91):  # 32 * (224, 256, 384, 480, 640) / 224
        large = seen(resized(split.images, side))
        for x in (large, large.flip(3)):
            with torch.inference_mode():
                last = model.network.features(x)["layer3"].double()  # stride 4: 8 x 8 of 32 pixels
                rows, columns = (last.shape[d] - 8 + 1 for d in (2, 3))
                logits = [
                    F.linear(
                        last[:, :, i : i + 8, j : j + 8].mean((2, 3)),
                        model.network.fc.weight.double(),
                        model.network.fc.bias.double(),
                    )
                    for i in range(rows)
                    for j in range(columns)
                ]
            every.append(torch.stack(logits).mean(0).softmax(1))
    scores = model.scores(split, view="multi-scale", batch=batch)
    assert_same(scores, torch.stack(every).mean(0))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet8", 32), ("preresnet20", 32), ("resnet18", 70), ("densenet121", 64)]
)
def test_the_convolutional_head_at_training_size_is_the_head(name, size):
    model = made(name, replace(SEE, size=size))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        places = dense_logits(model.network, x, size)
        assert places.shape == (2, 5, 1, 1)
        torch.testing.assert_close(places[:, :, 0, 0], model.network(x), rtol=1e-5, atol=1e-5)
        assert dense_logits(model.network, x, size // 2).shape[2] > 1


def test_the_published_protocols_in_numbers():
    see = Preprocess(size=224, resize=256)
    (ten,) = passes("ten-crop", see)
    assert (ten.preprocess, ten.crops, ten.mirrored, ten.load) == (see, "corners", True, 5)
    assert passes("ten-crop", Preprocess(size=224))[0].preprocess.resize == 256
    many = passes("multi-scale", see)
    assert [p.preprocess.resize for p in many] == [224, 256, 384, 480, 640]
    assert {(p.crops, p.mirrored, p.preprocess.size) for p in many} == {("whole", True, 224)}
    (large,) = passes("center", see, 320)  # 1603.05027, Table 5
    assert large.preprocess == replace(see, size=320, resize=320)
    assert passes("center", see, 224)[0].preprocess == see


def test_a_larger_size_is_a_larger_input():
    model, split = made(), pictures(height=64, width=80)
    x = seen(resized_shorter(split.images, 48)[:, :, :, 6:54])  # 48 x 60, and its centre
    assert_same(model.scores(split, size=48), probabilities(model, x))


def resized_shorter(images, side):
    height, width = images.shape[2:]
    return F.interpolate(images, (side, side * width // height), mode="bilinear", antialias=True)


@pytest.mark.parametrize(("view", "size"), [("multi-scale", 0), ("center", 40)])
def test_a_mean_of_each_pixel_becomes_one_of_each_channel(view, size):
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    each = replace(SEE, mean=tuple(pixels.flatten().tolist()))
    channels = replace(SEE, mean=tuple(pixels.double().mean((1, 2)).tolist()))
    split = pictures()
    ours, same = (made(preprocess=p).scores(split, view=view, size=size) for p in (each, channels))
    torch.testing.assert_close(ours.logits, same.logits, rtol=1e-4, atol=1e-4)


def test_networks_with_one_size_refuse_others():
    from resnets.config.arch import VitArch

    arch = VitArch(blocks=1, width=16, heads=2, hidden=16, patch=8, size=32, classes=5)
    card = ModelMetadata(arch=arch, classes=tuple("abcde"), preprocess=SEE)
    model, split = Model(models.build(arch).eval(), card, CPU), pictures()
    assert len(model.scores(split, view="ten-crop").labels) == 7
    with pytest.raises(UsageError, match="VisionTransformer takes images of 32 pixels only"):
        model.scores(split, view="multi-scale")
    with pytest.raises(UsageError, match="no other size"):
        model.scores(split, size=64)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("name", ["mlp_resnet", "resnet18_1d"])
def test_networks_that_take_no_pictures_are_refused(tmp_path, name, ours):
    network, path = models.create(name, classes=5), tmp_path / ("a.safetensors" if ours else "a.pt")
    channels = network.arch.channels
    see = Preprocess(size=8, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    if ours:
        save(
            path, network, ModelMetadata(arch=network.arch, classes=tuple("abcde"), preprocess=see)
        )
    else:
        torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="takes no 2-D images"):
        load(path)


@pytest.fixture
def files(tmp_path):
    paths = []
    for k, (height, width) in enumerate([(32, 32), (40, 60), (70, 33), (50, 50)]):
        generator = torch.Generator().manual_seed(k)
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(pixels.numpy()).save(paths[-1])
    paths.insert(2, tmp_path / "bad.png")
    paths[2].write_bytes(b"no picture")
    return Split(tuple(paths), torch.arange(5))


@pytest.mark.parametrize("view", ["center", "flip", "ten-crop", "multi-scale"])
def test_files_of_any_shape_one_at_a_time_or_together(files, view):
    model = made()
    whole = model.scores(files, view=view)
    assert whole.indices.tolist() == [0, 1, 3, 4]
    assert whole.labels.tolist() == [0, 1, 3, 4]
    assert [path.name for path, _ in whole.unreadable] == ["bad.png"]
    alone = [model.scores(files.take(torch.tensor([k])), view=view) for k in (0, 1, 3, 4)]
    assert_same(whole, torch.cat([one.probabilities for one in alone]))
    assert_same(model.scores(files, view=view, batch=2), whole.probabilities)


def test_nothing_that_can_be_read(files):
    none = made().scores(files.take(torch.tensor([2])))
    assert (len(none.labels), len(none.unreadable)) == (0, 1)
    assert classification_metrics(none).images == 0


@pytest.mark.parametrize("several", [False, True])
def test_the_parts_of_ranks_are_the_whole(several):
    model, split = made(), pictures(11)
    if several:
        labels = (torch.arange(55).view(11, 5) % 3 == 0).float()
        split = replace(split, labels=labels)
    whole = model.scores(split)
    parts, sums = [], []
    for rank in range(4):
        rows = shown(split, preprocess=SEE, batch=2, device=CPU, rank=rank, ranks=4)
        parts.append(predict_scores(model.network, rows, model.metadata.classes))
        sums.append(running_sums(parts[-1]))
    order = torch.cat([part.indices for part in parts]).argsort()
    torch.testing.assert_close(torch.cat([part.logits for part in parts])[order], whole.logits)
    assert torch.equal(torch.cat([part.labels for part in parts])[order], whole.labels)
    together = running_means(sum(sums))
    rows = shown(split, preprocess=SEE, batch=3, device=CPU)
    found = classification.evaluate(model.network.train(), rows, model.metadata.classes)
    assert model.network.training
    assert (found.images, found.top1, found.top5) == (11, together.top1, together.top5)
    figures = classification_metrics(whole)
    assert found.loss == pytest.approx(figures.loss, rel=1e-6)
    assert (found.top1, found.top5) == (figures.top1, figures.top5)


def test_a_rank_without_images_adds_nothing():
    model = made()
    found = classification.evaluate(model.network, iter(()), model.metadata.classes)
    assert (found.images, found.loss, found.top1) == (0, 0, 0)


def test_models_of_different_networks_and_views_are_averaged():
    split = pictures()
    one = made().scores(split, view="flip")
    other = made("resnet14", seed=1).scores(split)
    expected = (one.probabilities + other.probabilities) / 2
    assert_same(ensemble([one, other]), expected)


def test_labels_are_renumbered_by_name():
    model = made()
    one = match_classes(Split(pictures(3).images, torch.tensor([0, 1, 1])), ("d", "b"), model)
    assert one.labels.tolist() == [3, 1, 1]
    several = Split(pictures(2).images, torch.tensor([[1.0, 0], [1, 1]]))
    assert match_classes(several, ("d", "b"), model).labels.tolist() == [
        [0, 0, 0, 1, 0],
        [0, 1, 0, 1, 0],
    ]
    with pytest.raises(CheckpointError, match=r"(?s)2 classes .*: D , x\n.*'D ' is 'd' to it$"):
        match_classes(several, ("D ", "x"), model)


def test_a_model_of_several_labels_predicts_each_by_itself(tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(pictures(1).images[0].permute(1, 2, 0).numpy()).save(path)
    model = made(provenance={"labels": "several"}, temperature=2.0)
    found = model.predict(path)
    with torch.inference_mode():
        expected = (model.network(seen(pictures(1).images)) / 2).sigmoid()[0]
    wanted = expected.sort(descending=True).values.tolist()
    assert list(found.probabilities) == pytest.approx(wanted, rel=1e-4)
