from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from stream.bounding import Sizes, bounded
from stream.draft import Arrival
from stream.examples import ClickExample, SlateExample
from stream.sequences import Accounts, ParkedClick, Slate, UserState, decode_state, encode_state, times_of
from stream.settings import StreamSettings
from stream.topics import CLICKS
from tests.rows import SETTINGS, Raw, Store, raw
from tests.strategies import START_MS, Read, any_histories, interleaved

SMALL = StreamSettings(max_state_bytes=1_024)
LONG = b"x" * 100
ARRIVAL = Arrival(CLICKS, 0, 9, START_MS)


def long_ids(read: Read) -> Raw:
    """The event with ids so long that a few of them fill a state."""
    record = raw(read)
    assert record.value is not None
    return record._replace(value=record.value.replace(b':"i', b':"' + LONG + b"i"))


def slate(number: int, *, clicked: bool = False) -> Slate:
    return Slate(
        request_id=f"r{number}",
        policy="p" * 100,
        surface="s",
        served_at_ms=START_MS + number,
        items=("a",),
        positions=(),
        propensities=(),
        kinds=b"",
        sources=b"\0",
        seen=(0,) if clicked else (),
    )


@given(any_histories.flatmap(interleaved), st.data())
def test_no_state_is_larger_than_is_set_and_its_accounts_balance(reads: list[Read], data: st.DataObject) -> None:
    records = [long_ids(read) for read in reads]
    whole, cut = Store(SMALL), Store(SMALL)
    place = data.draw(st.integers(0, len(records)))

    at_once = whole.fold(records)
    pieces = [cut.fold(records[:place]), cut.fold(records[place:])]

    assert all(len(row) <= SMALL.max_state_bytes for row in whole.rows.values())
    for state in map(decode_state, whole.rows.values()):
        accounts = asdict(state.accounts)
        ended = sum(accounts[f"items_{outcome}"] for outcome in ("clicked", "expired", "duplicate", "late"))
        assert ended + sum(len(one.seen) for one in state.slates) == state.accounts.items_seen
    assert cut.rows == whole.rows
    assert [example for piece in pieces for example in piece.examples] == at_once.examples
    ids = [example.id for example in at_once.examples]
    assert all(earlier != later for earlier, later in pairwise(sorted(ids)))


@given(any_histories.flatmap(interleaved))
def test_what_a_state_may_take_at_most_is_never_less_than_what_it_takes(reads: list[Read]) -> None:
    store, sizes = Store(), Sizes(SETTINGS)
    sizes.met(b"ada", None, row_bytes=0)
    for record in map(long_ids, reads):
        store.fold([record])
        for row in store.rows.values():
            state = decode_state(row)
            fits = not sizes.may_exceed(b"ada", state, event_bytes=len(record.value or b""))
            assert not fits or len(row) <= SETTINGS.max_state_bytes
            assert state.parked or len(row) <= sizes.at_most(b"ada")


def test_a_state_that_was_weighed_counts_with_what_it_weighs_until_it_has_grown_again() -> None:
    state, sizes = UserState(items=("a",), times=times_of([START_MS])), Sizes(SETTINGS)
    sizes.met(b"ada", None, row_bytes=0)
    while not sizes.may_exceed(b"ada", state, event_bytes=100):
        pass

    weighed = bounded(state, "ada", ARRIVAL, SETTINGS, ordinal=0)
    sizes.met(b"ada", weighed.state, row_bytes=weighed.row_bytes)

    assert weighed == (state, [], len(encode_state(state)))
    assert not sizes.may_exceed(b"ada", state, event_bytes=100)


def test_the_oldest_goes_first_and_what_was_open_is_learnt_from() -> None:
    clicks = 40
    state = UserState(
        items=tuple(f"{number:02}" + "y" * 20 for number in range(clicks)),
        times=times_of(range(START_MS, START_MS + clicks)),
        clicks_applied=clicks,
        clock_ms=START_MS + clicks,
        slates=tuple(slate(number, clicked=True) for number in (5, 4)),
        closed=(slate(1), slate(2)),
        accounts=Accounts(items_seen=2),
        parked=(ParkedClick("z", START_MS, "unknown", None, START_MS, ("c" * 100,)),),
    )
    sizes = [
        len(encode_state(state)) - 1,
        len(encode_state(replace(state, closed=()))),
        len(encode_state(replace(state, closed=(), slates=state.slates[:1]))),
        len(encode_state(replace(state, closed=(), slates=()))),
        len(encode_state(replace(state, closed=(), slates=(), parked=()))),
    ]

    kept = [bounded(state, "u", ARRIVAL, StreamSettings(max_state_bytes=size), ordinal=3) for size in (*sizes, 1_024)]

    assert [one.request_id for one in kept[0].state.closed] == ["r2"]
    assert [len(kept[nth].state.slates) for nth in range(4)] == [2, 2, 1, 0]
    assert kept[2].state.slates == state.slates[:1], "the one served first is closed first"
    assert [type(example) for example in kept[4].examples] == [SlateExample, SlateExample, ClickExample]
    assert [example.id.ordinal for example in kept[4].examples] == [3, 4, 5]
    assert kept[4].state.items == state.items
    assert kept[5].state.items == state.items[-len(kept[5].state.items) :]
    assert kept[5].state.times_ms == state.times_ms[-len(kept[5].state.items) :]
    assert 0 < len(kept[5].state.items) < clicks
    assert kept[5].state.accounts.items_expired == 2
