"""Which classes and images are easy: which leave early, and which go through all stages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import ImageDataset, Pixels
from dvt_edge.policy import Records
from dvt_edge.report.data import ClassImages, Thumbnail

CLASSES_SHOWN = 24
CLASSES_WITH_IMAGES = 12
IMAGES_PER_ROW = 4
FEW_IMAGES = 5
"""Where classes are many, those with fewer records say little about being easy."""
SIDE_PX = 72
QUALITY = 68
"""Of thumbnails in WebP and JPEG: about 1 kB an image."""

Rows = npt.NDArray[np.integer]


def order_classes(class_of: Rows, at: Rows, most: int = CLASSES_SHOWN) -> Rows:
    """[C] classes from the one whose images leave earliest to the one whose leave latest.

    ``at`` [N] is the exit of each record. Of more than ``most`` classes both ends are taken.
    """
    present, position, count = np.unique(class_of, return_inverse=True, return_counts=True)
    easiest_first = np.argsort(np.bincount(position, at) / count, kind="stable")
    enough = easiest_first[count[easiest_first] >= FEW_IMAGES]
    return both_ends(present[enough if len(enough) >= most else easiest_first], most)


def both_ends(ordered: Rows, most: int) -> Rows:
    """At most ``most`` of ``ordered``: the first half of them and the last."""
    if len(ordered) <= most:
        return ordered
    first = (most + 1) // 2
    return np.concatenate([ordered[:first], ordered[len(ordered) - (most - first) :]])


def easiest_and_hardest(
    records: Records, at: Rows, rows: Rows, count: int = IMAGES_PER_ROW
) -> tuple[Rows, Rows]:
    """Of the records ``rows``, at most ``count`` easy ones and as many hard ones.

    Easy ones leave first, with a right answer, and are the surest there; hard ones leave last and
    were the least sure before. No record is both.
    """
    confidence = records.confidence[np.arange(len(records)), at]
    right = records.correct_at(at)
    # Nothing is "before" the first exit: then it is the first exit's own confidence.
    before = records.confidence[:, : max(1, records.exits - 1)].max(axis=1)
    by_ease = rows[np.lexsort((-confidence[rows], at[rows]))]
    easiest = by_ease[right[by_ease]][: min(count, (len(rows) + 1) // 2)]
    by_pain = rows[np.lexsort((before[rows], -at[rows]))]
    hardest = by_pain[~np.isin(by_pain, easiest)][:count]
    return easiest, hardest


def gallery(
    images: ImageDataset,
    rows: Rows,
    records: Records,
    at: Rows,
    shown: Rows,
    class_names: Sequence[str],
) -> tuple[ClassImages, ...]:
    """Thumbnails of the easiest and hardest images of at most twelve of the classes ``shown``.

    ``rows`` [N] are the indices in ``images`` of the records, ``at`` [N] the exits where they
    leave. Raises :class:`~dvt_edge.errors.DataError` for images that cannot be read, or that are
    not the records' as far as their number and labels show.
    """
    labels = None if images.labels is None else np.asarray(images.labels)[rows]
    what = ""
    if len(rows) != len(records):
        what = f"the images are {len(rows)}, the records {len(records)}"
    elif not np.array_equal(labels, records.label):  # type: ignore[arg-type]  # None is as good
        what = "the images' labels are not the records'"
    if what:
        raise DataError(
            f"{what}: the data has changed since the build; rebuild with 'dvt-edge build'"
        )

    def thumbnails(chosen: Rows) -> tuple[Thumbnail, ...]:
        return tuple(
            Thumbnail(
                uri=thumbnail_uri(images.image(int(rows[row]))),
                exit_stage=int(at[row]) + 1,
                confidence=float(records.confidence[row, at[row]]),
                answer=class_names[records.prediction[row, at[row]]],
                right=None if records.label is None else bool(records.correct[row, at[row]]),
            )
            for row in chosen
        )

    found = []
    for number in both_ends(shown, CLASSES_WITH_IMAGES):
        of_class = np.flatnonzero(records.truth == number)
        easiest, hardest = map(thumbnails, easiest_and_hardest(records, at, of_class))
        found.append(ClassImages(name=class_names[number], easiest=easiest, hardest=hardest))
    return tuple(found)


def thumbnail_uri(image: Pixels) -> str:
    """The centre of ``image``, uint8 [H, W, 3] RGB or [H, W] gray, as a ``data:`` URI.

    At most :data:`SIDE_PX` wide and high; small images are not enlarged, browsers do that as well.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    side = min(SIDE_PX, *picture.size)
    picture = ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
    kind = "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=QUALITY)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"
