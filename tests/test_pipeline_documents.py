"""Helpers of the document artifacts that no stage shows by itself."""

import random

from pipeline.data.documents import first_difference


def test_first_difference_is_that_of_a_plain_loop():
    rng = random.Random(1)
    for _ in range(300):
        a = "".join(rng.choices("ab好", k=rng.randrange(40)))
        b = a[: rng.randrange(len(a) + 1)] + "".join(rng.choices("ab好", k=rng.randrange(10)))
        plain = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert first_difference(a, b) == first_difference(b, a) == plain
