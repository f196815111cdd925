"""Which classes and images are easy: which leave early, and which go through all stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import ImageDataset
from dvt_edge.policy import Records
from dvt_edge.report.data import ClassImages, Thumbnail
from dvt_edge.report.thumbnails import thumbnail_uri

CLASSES_SHOWN = 24
CLASSES_WITH_IMAGES = 12
IMAGES_PER_ROW = 4
FEW_IMAGES = 5
"""Where classes are many, those with fewer records say little about being easy."""

Rows = npt.NDArray[np.integer]


def order_classes(class_of: Rows, at: Rows, most: int = CLASSES_SHOWN) -> Rows:
    """[C] classes from the one whose images leave earliest to the one whose leave latest.

    ``at`` [N] is the exit of each record. Of more than ``most`` classes both ends are taken.
    """
    present, position, count = np.unique(class_of, return_inverse=True, return_counts=True)
    if len(present) > most and (count >= FEW_IMAGES).sum() >= most:
        enough = count >= FEW_IMAGES
    else:
        enough = np.ones(len(present), bool)
    depth = np.bincount(position, at) / count
    easiest_first = np.argsort(depth, kind="stable")
    ordered = present[easiest_first[enough[easiest_first]]]
    return both_ends(ordered, most)


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
    # Nobody is "before" the first exit: then it is the first exit's own confidence.
    before = records.confidence[:, : max(1, records.exits - 1)].max(axis=1)
    by_ease = rows[np.lexsort((-confidence[rows], at[rows]))]
    easiest = by_ease[right[by_ease]][: min(count, (len(rows) + 1) // 2)]
    by_pain = rows[np.lexsort((before[rows], -at[rows]))]
    hardest = by_pain[~np.isin(by_pain, easiest)][:count]
    return easiest, hardest


def check_images(images: ImageDataset, rows: Rows, records: Records) -> None:
    """Raises DataError unless ``rows`` of ``images`` are what ``records`` were made from, as far
    as their number and labels tell."""
    if len(rows) != len(records):
        raise DataError(
            f"the images are {len(rows)}, the records {len(records)}: the data has changed since "
            "the build; rebuild with 'dvt-edge build'"
        )
    if (images.labels is None) != (records.label is None) or (
        images.labels is not None
        and records.label is not None
        and not np.array_equal(np.asarray(images.labels)[rows], records.label)
    ):
        raise DataError(
            "the images' labels are not the records': the data has changed since the build; "
            "rebuild with 'dvt-edge build'"
        )


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
    leave. Raises :class:`~dvt_edge.errors.DataError` for images that are others than the records'
    or cannot be read.
    """
    check_images(images, rows, records)
    class_of = records.truth

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
        easiest, hardest = easiest_and_hardest(records, at, np.flatnonzero(class_of == number))
        found.append(
            ClassImages(
                name=class_names[number],
                easiest=thumbnails(easiest),
                hardest=thumbnails(hardest),
            )
        )
    return tuple(found)
