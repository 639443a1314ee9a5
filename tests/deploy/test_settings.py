from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli.settings import settings_document
from deploy.local.demo import DEFAULTS, demo_environment
from deploy.settings import FILE_VARIABLE, Settings, dotted_keys, load_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_in_the_working_folder_is_read_without_being_named(empty_folder: Path) -> None:
    write(empty_folder / "sasrec-stream.toml", "[trainer]\nnegatives = 7\n")

    assert load_settings().trainer.negatives == 7


def test_the_variable_names_another_file_and_the_command_line_yet_another(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(empty_folder / "sasrec-stream.toml", "[trainer]\nnegatives = 7\n")
    monkeypatch.setenv(FILE_VARIABLE, str(write(empty_folder / "other.toml", "[trainer]\nnegatives = 8\n")))
    third = write(empty_folder / "third.toml", "[trainer]\nnegatives = 9\n")

    assert load_settings().trainer.negatives == 8
    assert load_settings(third).trainer.negatives == 9


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(empty_folder / "own.toml", "[kafka]\npartitions = 2\ntopic_prefix = 'file.'\nretention_hours = 5\n")
    monkeypatch.setenv("SASREC__KAFKA__PARTITIONS", "3")
    monkeypatch.setenv("SASREC__KAFKA__TOPIC_PREFIX", "environment.")

    kafka = load_settings(file, kafka={"partitions": 4}).kafka

    assert (kafka.partitions, kafka.topic_prefix, kafka.retention_hours) == (4, "environment.", 5)


def test_an_unset_value_is_told_from_one_that_was_set_to_its_default() -> None:
    assert "bootstrap_servers" not in load_settings().kafka.model_fields_set
    servers = Settings().kafka.bootstrap_servers

    assert "bootstrap_servers" in load_settings(kafka={"bootstrap_servers": servers}).kafka.model_fields_set


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[trainer]\nlss = 'bce'\n", "trainer.lss: no such setting; did you mean trainer.loss?"),
        ("[traier]\nloss = 'bce'\n", "traier: no such setting; did you mean trainer.loss?"),
        ("[trainer]\nloss = 'bcee'\n", "trainer.loss: "),
        ("trainer = 3\n", "trainer: "),
        ("[trainer\n", "own.toml is not TOML"),
    ],
)
def test_a_wrong_key_in_a_file_is_refused_by_its_dotted_name(empty_folder: Path, text: str, named: str) -> None:
    file = write(empty_folder / "own.toml", text)

    with pytest.raises(ValueError, match="settings: ") as refused:
        load_settings(file)

    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "named"),
    [
        ("SASREC__TRAIER__LOSS", "traier (set by SASREC__TRAIER__LOSS): no such setting; did you mean trainer.loss?"),
        ("SASREC__TRAINER__LSS", "trainer.lss (set by SASREC__TRAINER__LSS): no such setting; did you mean"),
        ("SASREC__KAFKA__PARTITIONS", "kafka.partitions (set by SASREC__KAFKA__PARTITIONS): "),
        ("SASREC__ZZZ", "zzz (set by SASREC__ZZZ): no such setting; `sasrec-stream settings` lists them all"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, named: str
) -> None:
    monkeypatch.setenv(variable, "x")

    with pytest.raises(ValueError, match="settings: ") as refused:
        load_settings()

    assert named in str(refused.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(empty_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.toml: No such file"):
        load_settings(empty_folder / "gone.toml")


def test_every_setting_has_a_docstring() -> None:
    fields = {
        f"{section}.{key}": field
        for section, table in Settings.model_fields.items()
        for key, field in type(table.default).model_fields.items()
    }

    assert list(fields) == dotted_keys()
    assert [key for key, field in fields.items() if not (field.description or "").strip()] == []


def uncommented(document: str) -> str:
    """Takes the # from every default that has a value, as a person would who edits the file."""
    lines = document.splitlines()
    return "\n".join(
        line[1:] if line.startswith("#") and line[1] != " " and not line.endswith("=") else line for line in lines
    )


def test_the_printed_settings_load_back_to_themselves(empty_folder: Path) -> None:
    settings = load_settings(
        kafka={"bootstrap_servers": "kafka.example:9092", "topic_prefix": "shop."}, state={"directory": "schön"}
    )

    printed = write(empty_folder / "own.toml", settings_document(settings))

    assert load_settings(printed) == settings
    assert load_settings(printed).kafka.model_fields_set == {"bootstrap_servers", "topic_prefix"}


def test_the_printed_defaults_load_back_to_the_defaults(empty_folder: Path) -> None:
    printed = write(empty_folder / "own.toml", uncommented(settings_document(Settings())))

    assert load_settings(printed) == Settings()


def test_the_demo_learns_faster_unless_somebody_has_said_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in demo_environment(load_settings(trainer={"min_batch": 99})).items():
        monkeypatch.setenv(name, value)

    trainer = load_settings(trainer={"min_batch": 99}).trainer

    assert (trainer.min_batch, trainer.replay_share, trainer.metric_window) == (99, 5.0, 1_000)


def test_every_default_of_the_demo_is_a_setting() -> None:
    assert set(DEFAULTS) <= set(dotted_keys())


def test_a_mapping_survives_being_printed_and_read_again(tmp_path: Path) -> None:
    source = {
        "topic": "shop.events",
        "record": "clicks",
        "only_if": "type == 'a \"click\"'",
        "fields": {"user_id": "user-id", "item_id": "sku", "timestamp_ms": "at"},
        "constants": {"position": 3},
    }
    settings = Settings.model_validate({"mapping": {"sources": [source]}})
    (tmp_path / "printed.toml").write_text(settings_document(settings))

    assert load_settings(tmp_path / "printed.toml") == settings


def test_recommenders_that_share_the_surface_stand_in_the_document_and_lead_back(tmp_path: Path) -> None:
    arms = {"sasrec": {"share": 0.75}, "hits of the week": {"share": 0.25, "ranker": "popular", "temperature": 0.0}}
    first = load_settings(policy={"arms": arms})
    file = tmp_path / "settings.toml"

    file.write_text(settings_document(first))

    assert load_settings(file).policy == first.policy
