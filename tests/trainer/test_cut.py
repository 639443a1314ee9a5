"""The exact cut: a repeat changes nothing, whatever prefix is sent again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.examples import ClickExample, ExampleId
from trainer.cut import Cut, fresh, later


def example(source: str, partition: int, offset: int, ordinal: int = 0) -> ClickExample:
    return ClickExample(ExampleId(source, partition, offset, ordinal), "u", (), "i", 0, 0, None)


@given(
    identities=st.lists(st.tuples(st.sampled_from(["clicks", "impressions"]), st.integers(0, 1)), max_size=30),
    crashes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4),
    chunk=st.integers(1, 7),
)
def test_sending_any_prefix_again_changes_nothing(
    identities: list[tuple[str, int]], crashes: list[tuple[int, int]], chunk: int
) -> None:
    """A crash at `at` sends everything from `back` on again."""
    once = [example(source, partition, offset) for offset, (source, partition) in enumerate(identities)]
    sent = list(once)
    for at, back in crashes:
        cut_at = min(at, len(sent))
        sent = sent[:cut_at] + once[min(back, len(set(sent[:cut_at]))) :]

    learnt, marks = [], Cut().marks
    for start in range(0, len(sent), chunk):
        kept, marks = fresh(sent[start : start + chunk], marks)
        learnt += kept

    assert learnt == once


def test_several_examples_of_one_event_are_told_apart() -> None:
    kept, marks = fresh([example("clicks", 0, 5, 0), example("clicks", 0, 5, 1), example("clicks", 0, 5, 0)], {})

    assert [each.id.ordinal for each in kept] == [0, 1]
    assert marks == {"clicks": {0: (5, 1)}}


def test_what_either_of_two_models_has_learnt_lies_before_the_later_cut() -> None:
    left = Cut(offsets={0: 10, 1: 30}, marks={"clicks": {0: (5, 0)}})
    right = Cut(offsets={0: 20, 1: 25}, marks={"clicks": {0: (4, 9), 1: (7, 0)}})

    both = later(left, right)

    assert both.offsets == {0: 10, 1: 25}
    assert both.passed(example("clicks", 0, 5).id)
    assert both.passed(example("clicks", 1, 7).id)
    assert not both.passed(example("clicks", 0, 5, 1).id)
    assert not both.passed(example("impressions", 0, 0).id)
