"""What networks know beside their answers, as functions: `features`, `probe` and `search`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnets.api import checks
from resnets.api.checks import public
from resnets.config.types import InferenceOptions, Normalize, Precision, SplitName
from resnets.errors import UsageError
from resnets.files import check_inputs, check_outside

if TYPE_CHECKING:
    from torch.nn import Module

    from resnets.analysis.similar import SearchResult
    from resnets.data.splits import Source
    from resnets.data.torch_dataset import Data
    from resnets.evaluation.feature_files import FeatureFile
    from resnets.evaluation.features import Features
    from resnets.evaluation.predictor import Model
    from resnets.evaluation.probe_methods import ProbeResult
else:  # so that the annotations can be read without torch
    Source = FeatureFile = Features = Model = Module = ProbeResult = SearchResult = Any
    Data = str | Path | Any

FeatureView = Literal["center", "flip"]
IndexName = Literal["auto", "exact", "faiss"]
Watch = Callable[[int, int], None]  # called with the images that are done, and all


@public
def features(
    model: str | Path | Model, data: Data, *, out: str | Path | None = None,
    level: str | None = None, maps: bool = False, view: FeatureView = "center",
    split: SplitName | None = None, max_unreadable: float = 0.01,
    normalize: Normalize | None = None, precision: Precision = "float32",
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2, watch: Watch | None = None,
) -> Features | FeatureFile:  # fmt: skip
    """Compute what a network makes of each image of DATA before it classifies it.

    DATA may be any folder of images, with or without classes. The file has names (paths from the
    folder on), splits, labels, class names and vectors. A killed command is continued by the same
    one, from FILE.partial.

    In Python the answer is a `Features` in memory, or with `out` a `FeatureFile`. `watch` is called
    with the number of images that are done, and of all.

    Raises UsageError for a model of another task, an unknown level, and a file that is there;
    DataError for data without images, or with too many unreadable ones; MissingPackage.

    Args:
        out: A new file: .npz, .safetensors, or .parquet, which needs pyarrow.
        level: Where in the network, as layer3; when left out what its last layer gets.
        maps: Write whole maps (C, H, W) rather than their means over positions.
        view: flip is the mean of the vectors of the image and its mirror image.
        split: One split of the data; all images when left out.
        batch: Images per forward pass.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(model)
    checks.check_data(data)
    if out is not None:
        check_outside(Path(out), data)
    from resnets.evaluation import feature_files, features
    from resnets.evaluation.feature_store import FeatureOptions, check_unreadable
    from resnets.evaluation.image_set import read_image_set

    if out is not None:
        feature_files.check_feature_file(Path(out))
    loaded = load_for_features(model, None, options)
    features.feature_function(loaded, level, pooled=not maps, mirrored=view == "flip")
    images = read_image_set(data, split=options.split, max_unreadable=max_unreadable)
    loaded = load_for_features(loaded, images.source, options)
    if out is not None:
        computed = FeatureOptions(
            level=level, pooled=not maps, mirrored=view == "flip",
            batch=options.images_per_batch(64), workers=workers, max_unreadable=max_unreadable,
        )  # fmt: skip
        return feature_files.write_features(Path(out), loaded, images, computed, watch)
    found = features.extract(
        loaded, images.split, level=level, pooled=not maps, mirrored=view == "flip",
        batch=options.images_per_batch(64), workers=workers,
    )  # fmt: skip
    check_unreadable(found.unreadable, images, max_unreadable)
    rows = found.indices.tolist()
    return replace(
        found,
        names=tuple(images.names[k] for k in rows),
        splits=tuple(images.splits[k] for k in rows),
        classes=images.classes,
        unreadable=(*images.unreadable, *found.unreadable),
    )


@public
def probe(
    model: str | Path | Model, data: Data, *, level: str | None = None,
    view: FeatureView = "center", plain: bool = False, knn: bool = False, episodes: int = 0,
    way: int = 5, shots: int | None = None, train_only: bool = False, seed: int = 0,
    out: str | Path | None = None, max_unreadable: float = 0.01,
    normalize: Normalize | None = None, precision: Precision = "float32",
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2, watch: Watch | None = None,
) -> ProbeResult:  # fmt: skip
    """Measure how well the features of a network tell the classes of DATA apart.

    A logistic regression learns from the training images; the validation images choose how strongly
    it is regularised, or cross-validation where there are none, and it is tested on the test
    images. The features are kept in the cache, so that another probe of them takes seconds.

    In Python `watch` is called with the number of images that are done, and of all.

    Raises UsageError for a model of another task, an unknown level, images with several labels
    each, options that contradict each other; DataError for data without training or test images.

    Args:
        level: Where in the network, as layer3; when left out what its last layer gets.
        view: flip is the mean of the vectors of the image and its mirror image.
        plain: Divide all features by one number, rather than each by its deviation.
        knn: Vote among the 20 and the 200 nearest images instead (cosine, temperature 0.07).
        episodes: Number of few-shot tasks to measure instead; their images are drawn from all, or
            from the test images where the network has learned from the others.
        way: Classes of an episode.
        shots: Labelled images of each class; all when left out, in episodes 1.
        train_only: Learn from the training images alone, not from those of validation once these
            have chosen.
        seed: Seed of the images that --shots and --episodes draw.
        out: A new model file: the network with the probe as its last layer.
        batch: Images per forward pass.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(model)
    checks.check_data(data)
    check_probe_options(knn, episodes, level, view, out)
    from resnets.data import dataset
    from resnets.evaluation.evaluate import split_as_trained
    from resnets.evaluation.feature_store import FeatureOptions
    from resnets.evaluation.features import feature_function
    from resnets.evaluation.probe import save_with_head
    from resnets.evaluation.probe_methods import ProbeOptions, run_probe

    loaded = load_for_features(model, None, options)
    feature_function(loaded, level)
    source = dataset.load(data, max_unreadable=max_unreadable)
    loaded = load_for_features(loaded, source, options)
    source = split_as_trained(loaded.path, loaded, source)
    computed = FeatureOptions(
        level=level, mirrored=view == "flip", batch=options.images_per_batch(64), workers=workers,
        max_unreadable=max_unreadable,
    )  # fmt: skip
    chosen = ProbeOptions(
        standardize=not plain, refit=not train_only, knn=knn, episodes=episodes, way=way,
        shots=shots, seed=seed,
    )  # fmt: skip
    result, fitted = run_probe(loaded, source, computed, chosen, watch)
    if out is None or fitted is None:
        return result
    save_with_head(Path(out), loaded, fitted, source, refit=not train_only)
    return replace(result, file=Path(out))


@public
def search(
    model: str | Path | Model, folder: Data, /, *queries: str | Path, top: int = 10,
    out: str | Path | None = None, evaluate: bool = False, duplicates: bool = False,
    outliers: bool = False, index: IndexName = "auto", level: str | None = None,
    view: FeatureView = "center", split: SplitName | None = None, max_unreadable: float = 0.01,
    normalize: Normalize | None = None, precision: Precision = "float32",
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    network: str | Module | None = None, batch: int | None = None, device: str = "auto",
    workers: int = 2, watch: Watch | None = None,
) -> SearchResult:  # fmt: skip
    """Find the images of FOLDER that are most alike to each QUERY, by the cosine of their features.

    The features are kept in the cache, by model, file names, sizes and times, so that a second
    search takes seconds. A query that lies in the folder is not among its own answers.

    In Python `watch` is called with the number of images that are done, and of all.

    Raises UsageError for a model of another task, an unknown level, or nothing that is asked for;
    DataError for a folder without images and a query that is none; MissingPackage for faiss.

    Args:
        folder: A folder of images, with or without classes, or data as for train.
        queries: Image files, folders or patterns.
        top: Number of images to list.
        out: A new PNG file, with a row for each query: the query, and the images that were found.
        evaluate: Measure how often images of the same class are found: recall@1, @5, @10 and mAP@R
            on the test images, or all where there are no splits.
        duplicates: List pairs of images that are nearly the same picture.
        outliers: List the images of the folder that are farthest from all others; with queries, how
            far each of them is, and whether it is farther than 95 % of the folder.
        index: exact, faiss (approximate), or auto: faiss above a million images if it is there.
        level: Where in the network, as layer3; when left out what its last layer gets.
        view: flip is the mean of the vectors of the image and its mirror image.
        split: One split of the data; all images when left out.
        batch: Images per forward pass.
    """
    options = checks.make_options(InferenceOptions, locals())
    checks.check_models(model)
    checks.check_data(folder)
    check_search(queries, evaluate, duplicates, outliers, out)
    from resnets.analysis.similar import SearchOptions, run_search
    from resnets.data import dataset
    from resnets.evaluation.feature_store import FeatureOptions
    from resnets.evaluation.features import feature_function
    from resnets.evaluation.image_set import images_of, unlabelled_images

    loaded = load_for_features(model, None, options)
    feature_function(loaded, level)
    if isinstance(folder, str | Path) and Path(folder).is_dir() and not (evaluate or split):
        images = unlabelled_images(Path(folder))
    else:
        source = dataset.load(folder, max_unreadable=max_unreadable, training=False)
        own_splits = evaluate and not source.automatic and "test" in source.splits
        tested = "test" if own_splits else None
        images = images_of(source, split or tested)
    loaded = load_for_features(loaded, images.source, options)
    computed = FeatureOptions(
        level=level, mirrored=view == "flip", batch=options.images_per_batch(64), workers=workers,
        max_unreadable=max_unreadable,
    )  # fmt: skip
    chosen = SearchOptions(
        top=top, index=index, evaluate=evaluate, duplicates=duplicates, outliers=outliers,
        out=None if out is None else Path(out),
    )  # fmt: skip
    return run_search(loaded, images, queries, computed, chosen, watch)


def check_search(
    queries: Sequence[str | Path], evaluate: bool, duplicates: bool, outliers: bool,
    out: str | Path | None,
) -> None:  # fmt: skip
    """Raise UsageError where nothing is asked for, or the picture's file cannot be a new one."""
    if not (queries or evaluate or duplicates or outliers):
        raise UsageError(
            "name an image to search for, or give --evaluate, --duplicates or --outliers:\n"
            "resnets search MODEL FOLDER IMAGE"
        )
    if queries:
        check_inputs(list(queries))
    if queries and outliers and out is not None:
        raise UsageError("--out draws images of the folder, not whether queries are like them")
    if out is not None and Path(out).suffix.lower() != ".png":
        raise UsageError(f"{out}: the picture is a PNG file; call it .png")
    if out is not None and Path(out).exists():
        raise UsageError(f"{out} is there, and nothing here overwrites: choose a new --out")


def check_probe_options(
    knn: bool, episodes: int, level: str | None, view: str, out: str | Path | None
) -> None:
    """Raise UsageError for options that contradict each other, or a file that is there."""
    if knn and episodes:
        raise UsageError("--knn and --episodes are two measurements: give one")
    if out is None:
        return
    if knn or episodes:
        raise UsageError("--out writes the linear probe as a model: leave out --knn and --episodes")
    if level not in (None, "pre_logits") or view != "center":
        raise UsageError(
            "--out writes a network whose last layer is the probe, which takes its last features "
            "of one view:\nleave out --level and --view"
        )
    path = Path(out)
    if path.exists():
        raise UsageError(f"{path} is there, and nothing here overwrites: choose a new --out")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a model file is called .safetensors")


def load_for_features(
    model: str | Path | Model, source: Source | None, options: InferenceOptions
) -> Model:
    """A classifier, whatever its classes; with a `source` normalised as asked for.

    Raises UsageError for a model of another task.
    """
    from resnets.data.dataset import normalization
    from resnets.evaluation.load import load_model

    loaded = load_model(model, None, replace(options, normalize=None), "classify")
    if source is None:
        return loaded
    if not loaded.metadata.provenance:  # of a foreign file nothing says what white was
        preprocess = replace(loaded.metadata.preprocess, white=source.white)
        loaded = replace(loaded, metadata=replace(loaded.metadata, preprocess=preprocess))
    if options.normalize is None:
        return loaded
    channels = loaded.metadata.arch.channels
    return loaded.normalized(*normalization(options.normalize, source, channels))
