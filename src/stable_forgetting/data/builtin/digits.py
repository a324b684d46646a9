"""Handwritten digits: a class-deletion problem that trains in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

TEST_SHARE = 0.2
LARGEST_INK = 16


def digits_rows() -> list[dict[str, Any]]:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, with a fixed division into training and test images.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998;
    the part that scikit-learn carries. The division keeps the shares of the classes (80 % train, 20 % test, seed 0).

    Returns:
        Rows with ``image`` (8, 8, 3) uint8, ``label`` 0 to 9, and ``split`` train or test, in the source's order.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = np.round(digits.images * (255 / LARGEST_INK)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.target.tolist()
    _, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=0)
    in_test = set(test.tolist())
    return [
        {"image": image, "label": label, "split": "test" if number in in_test else "train"}
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
