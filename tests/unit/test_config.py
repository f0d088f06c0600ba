"""The table of options: keywords, variables, flags, and what is said about wrong ones.

``python tests/unit/test_config.py`` writes the table in ``docs/options.md`` anew.
"""

from __future__ import annotations

import signal
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from concagent.config import (
    FAMILIES,
    MAX_SECONDS,
    OPTIONS,
    Address,
    Choice,
    Choices,
    Config,
    Duration,
    Integer,
    Option,
    PathName,
    SignalName,
    Switch,
    Urls,
    format_text,
    option_named,
    options_table,
    parse_text,
)
from concagent.errors import ConfigError
from concagent.model import KINDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"
IDS = [option.name for option in OPTIONS]


def values_of(option: Option) -> st.SearchStrategy[object]:
    """Return allowed keyword values of an option, in canonical form."""
    kind = option.type
    if isinstance(kind, Switch):
        return st.booleans()
    if isinstance(kind, Integer):
        numbers = st.integers(kind.low, kind.high)
        return st.none() | numbers if kind.optional else numbers
    if isinstance(kind, Duration):
        return st.floats(0, MAX_SECONDS, exclude_min=kind.positive).map(abs)
    if isinstance(kind, Choice):
        return st.sampled_from(kind.words)
    if isinstance(kind, Choices):
        return st.sets(st.sampled_from(kind.words)).map(lambda some: kind.convert(some))
    if isinstance(kind, Urls):
        url = st.sampled_from(["http://a", "https://b.example:8443/x?y=1", "http://[::1]:9093", "http://u:p@h/t%2C"])
        return st.sets(url).map(lambda some: tuple(sorted(some)))
    if isinstance(kind, SignalName):
        return st.sampled_from(["off", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGHUP"])
    if isinstance(kind, Address):
        return st.sampled_from(["127.0.0.1", "::1", "localhost", "0.0.0.0", "fe80::1%eth0"])
    assert isinstance(kind, PathName)
    visible = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
    return st.none() | visible.filter(lambda text: text == text.strip() and text != "none")


def outcome(option: Option, text: str) -> tuple[object, ConfigError | None]:
    try:
        return parse_text(option, text), None
    except ConfigError as error:
        return None, error


def test_each_option_has_a_field_of_the_same_name_in_the_same_order() -> None:
    assert list(Config._fields) == IDS


def test_each_default_is_allowed_and_of_the_type_of_its_field() -> None:
    hints = typing.get_type_hints(Config)

    for option in OPTIONS:
        assert option.type.convert(option.default) == option.default
        assert type(option.type.convert(option.default)) is type(option.default)
        assert hints[option.name] is not typing.Any


def test_without_sources_there_are_the_defaults() -> None:
    assert Config.from_sources({}, {"PATH": "/bin"}) == Config()


def test_keywords_win_over_variables_and_variables_over_defaults() -> None:
    config = Config.from_sources(
        {"long_wait": 3}, {"CONCAGENT_LONG_WAIT": "7", "CONCAGENT_LONG_HOLD": "8", "CONCAGENT_LEAK_AGE": " "}
    )

    assert (config.long_wait, config.long_hold, config.leak_age) == (3.0, 8.0, 300.0)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Config().log = False  # type: ignore[misc]


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
def test_flag_and_variable_are_made_of_the_name(option: Option) -> None:
    assert option.flag == "--" + option.name.replace("_", "-")
    assert option.variable == "CONCAGENT_" + option.name.upper()
    assert option_named(option.name) is option


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
@given(data=st.data())
def test_an_allowed_value_survives_its_text_and_its_variable(option: Option, data: st.DataObject) -> None:
    value = data.draw(values_of(option))

    config = Config.from_sources({option.name: value}, {})

    assert getattr(config, option.name) == value
    assert parse_text(option, format_text(option, value)) == value
    assert Config.from_sources({}, config.to_environ()) == config


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
@given(text=st.text(max_size=12) | st.from_regex(r"[0-9.e+-]{1,6}(ms|s|m)?", fullmatch=True))
def test_any_text_is_either_an_allowed_value_or_a_config_error(option: Option, text: str) -> None:
    value, error = outcome(option, text)

    assert error.option == option.name if error else option.type.convert(value) == value


@pytest.mark.parametrize("option", OPTIONS, ids=IDS)
@pytest.mark.parametrize("value", [object(), b"bytes", [1], 2.5j, -1, float("nan"), float("inf"), 10**400, "\0"])
def test_a_wrong_keyword_names_the_option_the_value_and_what_is_allowed(option: Option, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_sources({option.name: value}, {})

    error = caught.value
    assert (error.option, error.allowed) == (option.name, option.allowed)
    assert str(error) == f"{option.name}: {error.value} is not allowed; allowed: {option.allowed}"
    assert len(error.value) <= 200


def test_a_wrong_variable_is_named_as_the_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_sources({}, {"CONCAGENT_METRICS_PORT": "65536"})

    assert str(caught.value) == (
        "CONCAGENT_METRICS_PORT: '65536' is not allowed; allowed: a whole number from 0 to 65535, or None; as text \"none\""
    )
    assert caught.value.option == "metrics_port"


def test_a_wrong_variable_is_an_error_even_if_a_keyword_overrides_it() -> None:
    with pytest.raises(ConfigError):
        Config.from_sources({"log": True}, {"CONCAGENT_LOG": "perhaps"})


def test_a_wrong_flag_is_named_as_the_flag() -> None:
    option = option_named("log")

    with pytest.raises(ConfigError, match=r"^--log: 'perhaps' is not allowed"):
        parse_text(option, "perhaps", source=option.flag)


def test_a_value_whose_repr_fails_is_named_by_its_type() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(ConfigError, match="log: <Shy> is not allowed"):
        Config.from_sources({"log": Shy()}, {})


def test_an_unknown_keyword_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown option metric_port; did you mean metrics_port\b") as caught:
        Config.from_sources({"metric_port": 0}, {})

    assert caught.value.option == "metric_port"


def test_an_unknown_variable_is_an_error_that_names_the_nearest() -> None:
    message = r"unknown environment variable CONCAGENT_WEBHOK; did you mean CONCAGENT_WEBHOOK"
    with pytest.raises(ConfigError, match=message):
        Config.from_sources({}, {"CONCAGENT_WEBHOK": "http://a"})


def test_a_name_like_no_other_is_answered_with_all_that_are_known() -> None:
    with pytest.raises(ConfigError, match="unknown option zzz; known: core, findings, "):
        option_named("zzz")


def test_variables_of_our_own_are_not_taken_for_options() -> None:
    assert Config.from_sources({}, {"_CONCAGENT_CHILD": "1", "XCONCAGENT_LOG": "x"}) == Config()


@pytest.mark.parametrize("text", ["1", "true", "Yes", "ON", " on "])
def test_words_for_true(text: str) -> None:
    assert parse_text(option_named("stderr"), text) is True


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_words_for_false(text: str) -> None:
    assert parse_text(option_named("log"), text) is False


@pytest.mark.parametrize("value", [0, 1, "on", None])
def test_a_keyword_for_a_switch_is_a_bool(value: object) -> None:
    with pytest.raises(ConfigError):
        Config.from_sources({"log": value}, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1 h", 3600.0),
        ("1d", 86400.0),
        (".5S", 0.5),
        ("0", 0),
    ],
)
def test_durations_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert parse_text(option_named("long_wait"), text) == seconds


@pytest.mark.parametrize("text", ["-1", "1w", "", "ms", "1,5", "inf", "nan", "9" * 400, "1e999"])
def test_other_durations_are_errors(text: str) -> None:
    with pytest.raises(ConfigError, match="CONCAGENT_LONG_WAIT"):
        parse_text(option_named("long_wait"), text)


def test_a_bool_is_neither_a_number_nor_a_duration() -> None:
    for name in ("metrics_port", "leak_growth", "long_wait"):
        with pytest.raises(ConfigError):
            Config.from_sources({name: True}, {})


def test_an_alert_needs_some_time() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Config.from_sources({"alert_timeout": 0}, {})


@pytest.mark.parametrize("text", ["", "none", "None"])
def test_no_port_is_given_by_nothing_or_none(text: str) -> None:
    assert parse_text(option_named("metrics_port"), text) is None


@pytest.mark.parametrize("text", ["", "none", "1_0", "٣", "0x10", "+1", "1.0"])
def test_a_number_is_decimal_digits(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_text(option_named("leak_growth"), text)


@pytest.mark.parametrize("given_name", ["SIGUSR2", "usr2", "SigUsr2", signal.SIGUSR2])
def test_a_signal_is_given_by_any_of_its_names(given_name: object) -> None:
    assert Config.from_sources({"report_signal": given_name}, {}).report_signal == "SIGUSR2"


def test_the_signal_can_be_off() -> None:
    assert Config.from_sources({"report_signal": "OFF"}, {}).report_signal == "off"


@pytest.mark.parametrize("name", ["SIGKILL", "STOP", "SIGSEGV", "SIGFOO", "12", 12, ""])
def test_signals_that_cannot_be_handled_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="report_signal"):
        Config.from_sources({"report_signal": name}, {})


def test_a_path_can_be_an_object_but_is_kept_as_a_string() -> None:
    assert Config.from_sources({"findings": Path("a") / "b"}, {}).findings == "a/b"


def test_a_path_of_bytes_is_refused() -> None:
    class Bytes:
        def __fspath__(self) -> bytes:
            return b"a"

    with pytest.raises(ConfigError, match="findings"):
        Config.from_sources({"findings": Bytes()}, {})


def test_a_file_called_none_can_be_named() -> None:
    config = Config.from_sources({"findings": "none"}, {})

    assert config.to_environ() == {"CONCAGENT_FINDINGS": "./none"}


@pytest.mark.parametrize("value", ["deadlock, stall", ["stall", "deadlock", "stall"], {"deadlock", "stall"}])
def test_kinds_come_as_a_string_or_a_collection(value: object) -> None:
    assert Config.from_sources({"fail_on": value}, {}).fail_on == ("deadlock", "stall")


def test_every_kind_can_make_a_run_fail() -> None:
    assert Config.from_sources({}, {"CONCAGENT_FAIL_ON": ",".join(KINDS).upper()}).fail_on == KINDS


def test_no_family_can_be_patched() -> None:
    config = Config.from_sources({}, {"CONCAGENT_PATCH": "none"})

    assert config.patch == ()
    assert Config().patch == FAMILIES


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a.example",
        "http://",
        "http:///path",
        "http://a:99999",
        "http://a:0",
        "http://a b",
        "http://a/\r\nX: y",
        "file:///etc",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    for value in (url, [url], ["http://good", url]):
        with pytest.raises(ConfigError, match="webhook: "):
            Config.from_sources({"webhook": value}, {})


def test_a_url_in_a_collection_may_not_have_a_comma() -> None:
    with pytest.raises(ConfigError, match="%2C"):
        Config.from_sources({"webhook": ["http://a/b,c"]}, {})


def test_several_urls_are_separated_by_commas() -> None:
    config = Config.from_sources({}, {"CONCAGENT_ALERTMANAGER": "http://b:9093, http://a:9093/prefix"})

    assert config.alertmanager == ("http://a:9093/prefix", "http://b:9093")


@pytest.mark.parametrize("address", ["127.0.0.1:80", "a b", "", "http://a"])
def test_an_address_has_no_port_and_no_scheme(address: str) -> None:
    with pytest.raises(ConfigError, match="metrics_address"):
        Config.from_sources({"metrics_address": address}, {})


def test_the_core_is_chosen_by_the_variable_that_the_core_reads_too() -> None:
    assert Config.from_sources({}, {"CONCAGENT_CORE": "Python"}).core == "python"


def test_the_document_has_the_table_as_it_is() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert text[text.index("| Keyword |") :] == options_table()


if __name__ == "__main__":
    head, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("| Keyword |")
    DOCUMENT.write_text(head + options_table(), encoding="utf-8")
