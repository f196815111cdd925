"""Thresholds by the DVT authors' rule, for reports and evaluations to compare ours with.

Wang et al., "Not All Images are Worth 16x16 Words", NeurIPS 2021 (arXiv 2105.15075). Their release
fixes the share of samples per exit by one parameter and takes the thresholds at those quantiles.
"""

from __future__ import annotations

import numpy as np

from dvt_edge.policy.records import Floats, Records

AUTHORS_BUDGETS = range(1, 60)
"""The values of p for which the authors' release computes thresholds."""


def authors_thresholds(records: Records, p: float) -> Floats:
    """[K] thresholds of the authors' rule for their parameter ``p``, 1..59, more being dearer.

    Shares per exit are proportional to (p/20)^k, k = 1..K; the threshold of exit k is the
    confidence of the last of its share among the samples that have not left. Where a share is
    empty, or more than are left, none leaves, as in their code. Labels are not looked at.
    """
    share = (p / 20) ** np.arange(1, records.exits + 1)
    share /= share.sum()
    left = np.zeros(len(records), bool)
    thresholds = np.full(records.exits, np.inf)
    for k in range(records.exits - 1):
        remaining = np.sort(records.confidence[~left, k])[::-1]
        count = int(len(records) * share[k])
        if 1 <= count <= len(remaining):
            thresholds[k] = remaining[count - 1]
        left |= records.confidence[:, k] >= thresholds[k]
    thresholds[-1] = -np.inf
    return thresholds
