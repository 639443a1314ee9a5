"""Leave one out: nobody learns what is asked, and a rank is counted among what the user does not have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.protocol import CANDIDATES, Figures, Split, judge, read_split
from model.sasrec import SASRec
from model.settings import ModelSettings

ITEMS = 130


def split() -> Split:
    """Three users who can be asked, and one who cannot."""
    lengths = (5, 2, 3, 12)
    return Split([np.arange(10 * user + 1, 10 * user + 1 + length) for user, length in enumerate(lengths)], ITEMS)


def knowing(answers: dict[int, int]) -> SASRec:
    """A network that says of every sequence, by its last item, what comes next."""
    network = SASRec(
        ModelSettings(max_length=4, units=ITEMS + 1, blocks=0, norm="post"),
        capacity=ITEMS + 1,
        generator=torch.Generator(),
    )
    with torch.no_grad():
        network.item_RD.copy_(torch.eye(ITEMS + 1))
        network.item_RD[0] = 0.0
        network.position_TD.zero_()
    scores = torch.eye(ITEMS + 1)
    for last, following in answers.items():
        scores[last] = torch.nn.functional.one_hot(torch.tensor(following), ITEMS + 1)
    network.encode_last = lambda rows_BT: scores[rows_BT[:, -1]]  # type: ignore[method-assign]  # an oracle
    return network


def test_the_last_two_items_are_not_learnt_and_short_sequences_are_learnt_whole() -> None:
    learnt = [row_E.tolist() for row_E in split().training()]

    assert learnt == [[1, 2, 3], [11, 12], [21], list(range(31, 41))]


def test_the_history_of_the_test_holds_the_validation_item() -> None:
    assert [(q.history.tolist(), q.target) for q in split().questions("validation")[:2]] == [([1, 2, 3], 4), ([21], 22)]
    assert [(q.history.tolist(), q.target) for q in split().questions("test")[:2]] == [
        ([1, 2, 3, 4], 5),
        ([21, 22], 23),
    ]


def test_who_knows_the_answer_is_judged_perfect_and_only_on_what_was_asked() -> None:
    network = knowing({4: 5, 22: 23, 41: 42})
    candidates = split().candidates()

    test = judge(network, split(), "test", candidate_BC=candidates)
    validation = judge(network, split(), "validation", candidate_BC=candidates)

    assert test.catalogue == test.sampled == (1.0, 1.0)
    assert validation.catalogue == validation.sampled == (0.0, 0.0)


def test_what_the_user_has_is_not_ranked() -> None:
    """The network is certain of the item that was just chosen: it does not count, and all others tie."""
    network = knowing({4: 3, 22: 21, 41: 40})

    judged = judge(network, split(), "test", candidate_BC=split().candidates())

    assert judged.catalogue == (0.0, 0.0)


def test_candidates_are_never_what_the_user_has_and_always_the_same() -> None:
    candidates = split().candidates()

    assert candidates is not None
    assert candidates.shape == (3, CANDIDATES)
    np.testing.assert_array_equal(candidates, split().candidates())
    for asked, row_E in zip(candidates, (split().sequences[user] for user in (0, 2, 3)), strict=True):
        assert len(set(asked.tolist())) == CANDIDATES
        assert not set(asked.tolist()) & set(row_E.tolist())


@pytest.mark.parametrize("name", ["clicks.parquet", "clicks.csv", "clicks.txt"])
def test_any_file_of_users_and_items_in_order_will_do(name: str, tmp_path: Path) -> None:
    rows = [("u", "x"), ("v", "y"), ("u", "y"), ("u", "z"), ("v", "x"), ("u", "x")]
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(zip(("who", "what"), zip(*rows, strict=True), strict=True))), path)
    else:
        mark = "," if path.suffix == ".csv" else " "
        path.write_text("".join(f"{user}{mark}{item}\n" for user, item in rows))

    found = read_split(path)

    assert [row_E.tolist() for row_E in found.sequences] == [[1, 2, 3, 1], [2, 1]]
    assert found.fingerprint()[:3] == (2, 3, 6)


def test_a_file_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        read_split(tmp_path / "nothing.parquet")


PAIRS = "u1,7\nu2,8\nu1,8\nu1,9\nu2,7\n"


def in_text(folder: Path, text: str) -> Path:
    path = folder / "clicks.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("mark", ["::", "\t", ";", "|", ",", " "])
@pytest.mark.parametrize("heading", ["", "userId,movieId\n", "user_id:token,item_id:token\n", "who,what\n"])
def test_a_heading_is_no_user_and_columns_may_be_parted_by_any_usual_mark(
    mark: str, heading: str, tmp_path: Path
) -> None:
    if mark == " " and not heading.replace(",", "").strip().isalpha():
        heading = ""

    found = read_split(in_text(tmp_path, (heading + PAIRS).replace(",", mark)))

    assert [row_E.tolist() for row_E in found.sequences] == [[1, 2, 3], [2, 1]]


def test_further_columns_are_not_looked_at(tmp_path: Path) -> None:
    lines = "".join(f"{line}::5::\n" for line in PAIRS.replace(",", "::").splitlines())

    found = read_split(in_text(tmp_path, "UserID::MovieID::Rating::Note\n" + lines))

    assert found.fingerprint()[:3] == (2, 3, 5)


def test_users_whose_names_are_not_numbers_are_no_heading(tmp_path: Path) -> None:
    found = read_split(in_text(tmp_path, "user,x\nyou,x\nuser,y\nuser,z\nuser,x\n"))

    assert found.fingerprint()[:3] == (2, 3, 5)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "is empty"),
        ("user,item\n", "is empty"),
        ("1\n2\n", "one column"),
        ("1,2\n1,\n1,3\n1,4\n", "no item in row 2"),
        ("1,2\n1,3\n,3\n1,4\n", "no user in row 3"),
        ("1,2\n1,3\n2,3\n", "3 items"),
        ("1,2\n1,3\n1,4\n", "4 items"),
    ],
)
def test_what_cannot_be_split_is_refused_with_advice(text: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=advice) as refused:
        read_split(in_text(tmp_path, text))

    assert "clicks.csv" in str(refused.value)


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_an_empty_cell_of_a_table_is_refused(missing: object, tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    kind = "x" if missing == "" else 2.0
    pq.write_table(pa.table({"user": [1, 1, 1, 1], "item": [kind, missing, kind, kind]}), path)

    with pytest.raises(ValueError, match="no item in row 2"):
        read_split(path)


def test_where_nobody_lacks_a_hundred_items_only_the_whole_catalogue_is_ranked() -> None:
    small = Split([np.arange(1, 5), np.arange(2, 9)], 50)
    network = knowing({3: 4, 7: 8})

    judged = judge(network, small, "test", candidate_BC=small.candidates())

    assert small.candidates() is None
    assert judged == (Figures(1.0, 1.0), None)
