"""What `api.search` does: images that are alike, copies, and images that are like no other."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from resnets.analysis.embedding import duplicates
from resnets.analysis.explain import Tile, contact_sheet, whole_image
from resnets.data.decode import decode
from resnets.data.inputs import expand_inputs
from resnets.errors import Assumption, UsageError
from resnets.evaluation.feature_store import FeatureOptions, Watch, cached_features
from resnets.evaluation.features import Features
from resnets.evaluation.image_set import ImageSet
from resnets.evaluation.intervals import bootstrap_interval
from resnets.evaluation.predictor import Model
from resnets.evaluation.search import (
    EXACT,
    Nearest,
    Outliers,
    Vectors,
    approximate,
    nearest,
    outliers,
    retrieval,
)
from resnets.files import check_inputs, write_whole

IndexName = Literal["auto", "exact", "faiss"]
SIDE = 320  # pixels of a picture in a contact sheet, at most
WIDTH = 27  # characters above a picture
BLANK: Tile = (Image.new("RGB", (1, 1), "white"), "")


@dataclass(frozen=True, slots=True)
class Hit:
    """An image of the folder that is like a query."""

    query: str
    rank: int  # from 1
    file: str
    cosine: float


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """A figure of the search among images with classes, and its 95 % interval by bootstrap."""

    figure: str  # recall@K or mAP@R
    value: float
    interval: tuple[float, float]
    images: int  # each of them was a query against the others


@dataclass(frozen=True, slots=True)
class Copy:
    """Two images that are nearly the same picture."""

    first: str
    second: str
    bits: int  # of 64 bits of their hashes that differ
    correlation: float  # of their thumbnails


@dataclass(frozen=True, slots=True)
class Outlier:
    """An image that is far from the others."""

    file: str
    distance: float  # 1 - cosine with the K-th nearest image
    beyond: bool  # whether it is farther than 95 % of the folder's images


@dataclass(slots=True)
class SearchResult:
    """What was found; a list is empty where it was not asked for."""

    images: int  # of the folder
    level: str
    hits: list[Hit] = field(default_factory=list)
    scores: list[RetrievalScore] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    outliers: list[Outlier] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0
    picture: str = ""  # the file of the contact sheet

    def summary(self) -> dict[str, Any]:
        """The stable JSON form."""
        return asdict(self) | {"seconds": round(self.seconds, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What is asked for."""

    top: int = 10
    index: IndexName = "auto"
    evaluate: bool = False
    duplicates: bool = False
    outliers: bool = False
    out: Path | None = None


def run_search(
    model: Model,
    images: ImageSet,
    queries: Sequence[str | Path],
    computed: FeatureOptions,
    options: SearchOptions,
    watch: Watch | None = None,
) -> SearchResult:
    """Search the images of a set; of what is asked for beside it, each fills its list.

    Raises DataError for a query that is no image, MissingPackage for an index that needs faiss.
    """
    began = time.monotonic()
    names = query_names(queries)
    features = cached_features(model, images, computed, watch)
    result = SearchResult(len(features), features.level)
    result.unreadable = [str(path) for path, _ in (*images.unreadable, *features.unreadable)]
    if names:
        vectors = model.features(names, level=computed.level, batch=computed.batch).numpy()
        if options.outliers:
            far = outliers(features.vectors, vectors)
            result.outliers = list_outliers(names, far)
        else:
            near = find(features, vectors, options.top + 1, options.index)
            result.hits = list_hits(names, near, features, images, options.top)
    elif options.outliers:
        far = outliers(features.vectors)
        result.outliers = list_outliers(features.names, far)[: options.top]
    if options.evaluate:
        result.scores = measure_retrieval(features)
    if options.duplicates:
        result.copies = list_copies(model, images, computed)
    if options.out is not None:
        draw_hits(options.out, result, images, min(options.top, len(images.names)))
        result.picture = str(options.out)
    result.seconds = time.monotonic() - began
    return result


def query_names(queries: Sequence[str | Path]) -> list[str]:
    """The files that are meant, with folders and patterns taken apart. Raises as `check_inputs`."""
    if not queries:
        return []
    check_inputs(list(queries))
    return [str(name) for name, _ in expand_inputs(list(queries))]


def find(features: Features, vectors: Vectors, count: int, index: IndexName) -> Nearest:
    """The images nearest to the vectors: exact, or by faiss where there are very many.

    Raises MissingPackage where faiss is asked for and not there.
    """
    many = index == "auto" and len(features) > EXACT
    if many and find_spec("faiss") is None:
        text = f"{len(features):,} vectors are searched one by one; pip install 'resnets[faiss]'"
        warnings.warn(f"{text} makes that faster", Assumption, stacklevel=2)
        many = False
    search = approximate if many or index == "faiss" else nearest
    return search(features.vectors, vectors, count)


def list_hits(
    queries: Sequence[str], near: Nearest, features: Features, images: ImageSet, top: int
) -> list[Hit]:
    """The `top` images for each query, which is left out itself where it is in the folder."""
    hits = list[Hit]()
    for query, cosines, rows in zip(
        queries, near.cosines.tolist(), near.rows.tolist(), strict=True
    ):
        pairs = [
            (features.names[row], cosine)
            for cosine, row in zip(cosines, rows, strict=True)
            if not is_file(images, int(features.indices[row]), query)
        ]
        hits += [
            Hit(query, rank, file, cosine) for rank, (file, cosine) in enumerate(pairs[:top], 1)
        ]
    return hits


def is_file(images: ImageSet, number: int, path: str) -> bool:
    """Whether an image of the set is the file of that path."""
    files = images.split.images
    return not isinstance(files, Tensor) and Path(path).resolve() == files[number].resolve()


def list_outliers(names: Sequence[str], far: Outliers) -> list[Outlier]:
    """The images, the farthest first."""
    rows = sorted(zip(far.distances.tolist(), names, strict=True), reverse=True)
    return [Outlier(name, distance, distance > far.threshold) for distance, name in rows]


def measure_retrieval(features: Features) -> list[RetrievalScore]:
    """Recall@1, @5, @10 and mAP@R of images with classes, each a query against the others.

    Raises UsageError for images without classes, or where no class has two images.
    """
    measured = retrieval(features)
    rows = {f"recall@{k}": values for k, values in measured.recall.items()}
    return [
        RetrievalScore(name, float(values.double().mean()), bootstrap_interval(values), len(values))
        for name, values in (rows | {"mAP@R": measured.precision}).items()
    ]


def list_copies(model: Model, images: ImageSet, computed: FeatureOptions) -> list[Copy]:
    """Pairs of images that are nearly the same picture, the most alike first."""
    pairs = duplicates(
        images.split, images.split, model=model, batch=computed.batch, workers=computed.workers
    )
    names = images.names
    return [
        Copy(names[pair.first], names[pair.second], pair.distance, pair.correlation)
        for pair in pairs
        if pair.first < pair.second
    ]


def end_of(name: str) -> str:
    """As much of the end of a name as stands above a picture."""
    return name if len(name) <= WIDTH else f"…{name[1 - WIDTH :]}"


def draw_hits(out: Path, result: SearchResult, images: ImageSet, top: int) -> None:
    """A picture with a row for each query, the query first; or of copies or outliers.

    Raises UsageError where there is nothing to draw.
    """
    tiles, columns, number = list[Tile](), top + 1, {n: k for k, n in enumerate(images.names)}

    def tile(name: str, text: str) -> Tile:
        picture = whole_image(images.split, number[name])
        picture.thumbnail((SIDE, SIDE))
        return picture, f"{end_of(name)}\n{text}"

    if result.hits:
        for query in dict.fromkeys(hit.query for hit in result.hits):
            picture = Image.fromarray(decode(query, 3, 65535))
            picture.thumbnail((SIDE, SIDE))
            tiles.append((picture, f"{end_of(query)}\nquery"))
            found = [hit for hit in result.hits if hit.query == query]
            tiles += [tile(hit.file, f"{hit.rank}: {hit.cosine:.3f}") for hit in found]
            tiles += [BLANK] * (top - len(found))
    elif result.copies:
        columns = 2
        for pair in result.copies[:top]:
            tiles += [tile(pair.first, ""), tile(pair.second, f"{pair.correlation:.3f}")]
    else:
        columns = 6
        known = [row for row in result.outliers if row.file in number]
        tiles = [tile(row.file, f"distance {row.distance:.3f}") for row in known]
    if not tiles:
        raise UsageError(f"there is nothing to draw in {out}: leave out --out")
    data = io.BytesIO()
    contact_sheet(tiles, columns).savefig(data, format="png", dpi=100)
    write_whole(out, data.getvalue())
