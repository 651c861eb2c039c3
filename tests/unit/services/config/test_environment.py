"""Options in environment variables: how they are written, and what is said of those that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config.environment import read_environment
from services.config.load import ConfigurationError, load_settings
from services.config.option_tree import Kind, find, kind_of, suggestions
from services.config.settings import Settings


def told(**variables: str) -> str:
    """What is said of options that cannot be used."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings(None, None, {f"SLOS_SERVE_{name}": value for name, value in variables.items()})
    return str(raised.value)


@pytest.mark.parametrize("text", ["a:1,b:2", " a:1 , b:2, ", '["a:1", "b:2"]'])
def test_a_list_is_written_with_commas_or_as_json(text: str) -> None:
    settings = load_settings(None, None, {"SLOS_SERVE_GATEWAY__ROUTERS": text})
    assert settings.gateway.routers == ("a:1", "b:2")


def test_numbers_in_lists_and_empty_lists() -> None:
    environment = {"SLOS_SERVE_ENGINE__VLLM__CPU_CORES": "3,5", "SLOS_SERVE_GATEWAY__ROUTERS": ""}
    settings = load_settings(None, None, environment)
    assert (settings.engine.vllm.cpu_cores, settings.gateway.routers) == ((3, 5), ())


def test_a_table_is_json_and_single_options_win_over_it() -> None:
    environment = {"SLOS_SERVE_ROUTER": '{"port": 1001, "id": "r"}', "slos_serve_router__port": "1002"}
    router = load_settings(None, None, environment).router
    assert (router.port, router.id) == (1002, "r")


def test_a_profile_of_ones_own() -> None:
    environment = {
        "SLOS_SERVE_PROFILES__AGENT__DECODE": '[{"tpot_s": 0.3}]',
        "SLOS_SERVE_PROFILES__AGENT__PREFILL": '{"ttft_s": 2}',
    }
    profile = load_settings(None, None, environment).profiles["agent"]
    assert profile.prefill is not None
    assert (profile.prefill.ttft_s, profile.decode[0].tpot_s) == (2.0, 0.3)


@pytest.mark.parametrize("nothing", ["", "none", "None"])
def test_an_option_that_may_be_unset_is_unset(nothing: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[router]\nrecord = 'recordings'\n")
    assert load_settings(file, None, {}).router.record == Path("recordings")
    assert load_settings(file, None, {"SLOS_SERVE_ROUTER__RECORD": nothing}).router.record is None


def test_the_kinds_of_all_options_are_understood() -> None:
    assert find(Settings, ("router", "port")) == Kind(int, optional=False)
    assert find(Settings, ("router", "record")) == Kind(Path, optional=True)
    assert kind_of(int | str | None) == Kind(int | str | None, optional=True)
    assert suggestions(Settings, ("xyzzy", "xyzzy")) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ROUTR__PORT", "SLOS_SERVE_ROUTER__PORT?"),
        ("ROUTER__PROT", "SLOS_SERVE_ROUTER__PORT?"),
        ("ROUTER_PORT", "SLOS_SERVE_ROUTER__PORT?"),
        ("ENGIN__EMULATED__KV_BLOCKS", "SLOS_SERVE_ENGINE__EMULATED__KV_BLOCKS?"),
        ("ENGINE__EMULATD__KV_BLOCKS", "SLOS_SERVE_ENGINE__EMULATED__KV_BLOCKS?"),
        ("REDIS_URL", "SLOS_SERVE_REDIS__URL?"),
        ("ROUTER__KV_BLOCKS", "SLOS_SERVE_ENGINE__EMULATED__KV_BLOCKS?"),
        ("ROUTER__PORT__NUMBER", "SLOS_SERVE_ROUTER__PORT?"),
        ("XYZZY", "`slos-serve config` lists all options"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    line = told(**{name: "1"})
    assert line.startswith(f"SLOS_SERVE_{name}: there is no such option; ")
    assert line.endswith(meant)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ROUTER__PORT", "many", "router.port (SLOS_SERVE_ROUTER__PORT): Input should be a valid integer"),
        ("ROUTER__PORT", "[1]", "router.port (SLOS_SERVE_ROUTER__PORT): "),
        ("ROUTER__REFLECTION", "maybe", "router.reflection (SLOS_SERVE_ROUTER__REFLECTION): "),
        ("GATEWAY__ROUTERS", "[a:1", "SLOS_SERVE_GATEWAY__ROUTERS: takes a list, with commas or as JSON: "),
        ("GATEWAY__ROUTERS", "[5]", "gateway.routers.0 (SLOS_SERVE_GATEWAY__ROUTERS): "),
        ("ENGINE__VLLM__CPU_CORES", "0,x", "engine.vllm.cpu_cores.1 (SLOS_SERVE_ENGINE__VLLM__CPU_CORES): "),
        ("ROUTER", "50051", "SLOS_SERVE_ROUTER: takes a table as JSON"),
        ("ROUTER", '{"prot": 1}', "router.prot: there is no such option; did you mean router.port?"),
        ("PROFILES__X__DECODE", "0.1", "SLOS_SERVE_PROFILES__X__DECODE: takes a list of tables as JSON"),
        ("PROFILES__X__DECODE", '[{"tpot": 1}]', "profiles.x.decode.0.tpot"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_variable(name: str, value: str, said: str) -> None:
    assert told(**{name: value}).splitlines()[0].startswith(said)


def test_every_variable_at_fault_is_named() -> None:
    assert len(told(ROUTR__PORT="1", GATEWAY__PROT="2").splitlines()) == 2


def test_what_others_put_into_an_environment_is_left_alone() -> None:
    kubernetes = {
        "SLOS_SERVE_ROUTER_SERVICE_HOST": "10.0.0.7",
        "SLOS_SERVE_ROUTER_SERVICE_PORT": "50051",
        "SLOS_SERVE_ROUTER_SERVICE_PORT_GRPC": "50051",
        "SLOS_SERVE_ROUTER_PORT": "tcp://10.0.0.7:50051",
        "SLOS_SERVE_ROUTER_PORT_50051_TCP": "tcp://10.0.0.7:50051",
        "SLOS_SERVE_ROUTER_PORT_50051_TCP_ADDR": "10.0.0.7",
    }
    read = read_environment({**kubernetes, "SLOS_OTHER": "1", "PATH": "/bin"})
    assert (read.values, read.faults) == ({}, [])
