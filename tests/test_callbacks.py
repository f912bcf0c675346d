"""The seeds of dropout."""

from tinygpt_pl.callbacks import dropout_seed


def test_dropout_seeds_differ_and_repeat() -> None:
    seeds = [dropout_seed(s, t, m, r) for s in range(3) for t in range(3) for m in range(3) for r in range(3)]
    assert len(set(seeds)) == 81
    assert dropout_seed(1, 2, 0, 1) == dropout_seed(1, 2, 0, 1)
