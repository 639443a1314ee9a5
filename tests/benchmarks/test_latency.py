from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.latency import Seen, interleaved, measured


def test_users_are_interleaved_and_each_keeps_its_own_order() -> None:
    users = [f"u{n // 50}" for n in range(500)]
    rows = pa.table({"user_id": users, "item_id": [f"i{n}" for n in range(500)], "time_ms": list(range(500))})

    mixed = interleaved(rows, end_ms=10_000)

    assert sorted(mixed["item_id"].to_pylist()) == sorted(rows["item_id"].to_pylist())
    assert mixed["time_ms"].to_pylist() == list(range(9_500, 10_000))
    assert len(set(mixed["user_id"].to_pylist()[:50])) > 5
    for user in set(users):
        items = [
            item
            for item, of in zip(mixed["item_id"].to_pylist(), mixed["user_id"].to_pylist(), strict=True)
            if of == user
        ]
        assert items == sorted(items, key=lambda item: int(item[1:]))


def test_hops_add_up_and_clicks_without_a_slate_of_their_own_are_left_out() -> None:
    first, second, third = (0, 1), (0, 2), (1, 1)
    seen = Seen(
        sent={first: 100.0, second: 200.0, third: 300.0},
        read_back={first: 101.0, second: 203.0, third: 304.0},
        in_sequence={first: 110.0, third: 320.0},
        ranked={first: 115.0, third: 330.0},
        answered={first: 121.0, third: 350.0},
        versions={"a/1", "a/2"},
    )

    found = measured(seen, rate=10, sent=3, cores={})

    assert found.answered == 2
    assert found.versions == 2
    assert found.hops["click -> slate"].tolist() == [21.0, 50.0]
    parts = [took for hop, took in found.hops.items() if hop != "click -> slate"]
    assert np.sum(parts, axis=0).tolist() == [21.0, 50.0]
    assert found.read_back.tolist() == [1.0, 3.0, 4.0]
    assert found.is_sustained
