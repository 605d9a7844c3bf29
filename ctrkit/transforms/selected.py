"""Vocabularies without the values that a model does without."""

from collections.abc import Mapping

import numpy as np

from ctrkit.transforms.bag import BagTransform
from ctrkit.transforms.base import FittedTransform
from ctrkit.transforms.categorical import CategoricalTransform
from ctrkit.transforms.fitted import FittedTransforms
from ctrkit.transforms.vocabulary import VocabularyLookup


def without_unused_words(transforms: FittedTransforms, used: Mapping[str, np.ndarray]) -> tuple[FittedTransforms, dict[str, np.ndarray]]:
    """Drops the words of no use from vocabularies whose unknown ids are of no use either: nobody can tell the two apart.

    A vocabulary that has a use for an unknown id keeps all its words, to know an unused one from an unknown one. One word is left in any
    case, since ONNX has no empty look-up.

    Args:
        used: field -> bool ``[rows]``, the ids a model has a use for.

    Returns:
        The transforms and the ids of use, in their numbering.
    """
    smaller, left = [], dict(used)
    for transform in transforms.transforms:
        name = transform.feature.name
        if isinstance(transform, CategoricalTransform | BagTransform) and isinstance(transform.lookup, VocabularyLookup):
            first = transform.lookup.first_word
            if not used[name][1:first].any():
                words = used[name][first:].copy()
                words[0] |= not words.any()
                transform = _with_lookup(transform, transform.lookup.only(words))
                left[name] = np.concatenate([used[name][:first], used[name][first:][words]])
        smaller.append(transform)
    return FittedTransforms(smaller), left


def _with_lookup(transform: CategoricalTransform | BagTransform, lookup: VocabularyLookup) -> FittedTransform:
    return type(transform)(transform.feature, lookup)
