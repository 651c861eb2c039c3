"""Options: where their values come from, which of them wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config.load import ConfigurationError, load_settings
from services.config.settings import ProfileSettings, Settings
from services.slo.quotas import Quota, QuotaLimits, Rate


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUTER__PORT", "ROUTER__ID", "ROUTER__LOCAL_PREFILL", "LAUNCHER__PREFILL"):
        monkeypatch.delenv(f"SLOS_SERVE_{name}", raising=False)


def written(directory: Path, text: str) -> Path:
    file = directory / "slos-serve.toml"
    file.write_text(text)
    return file


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, '[router]\nid = "file"\nport = 1001\nmax_restarts = 7\n')
    assert (load_settings(file).router.id, load_settings(file).router.port) == ("file", 1001)
    monkeypatch.setenv("SLOS_SERVE_ROUTER__ID", "environment")
    monkeypatch.setenv("SLOS_SERVE_ROUTER__PORT", "1002")
    assert (load_settings(file).router.id, load_settings(file).router.port) == ("environment", 1002)
    router = load_settings(file, {"router": {"port": 1003}}).router
    assert (router.id, router.port, router.max_restarts, router.drain_grace_s) == ("environment", 1003, 7, 30.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[router]\nprot = 1\n", r"router\.prot: there is no such option; did you mean router\.port\?"),
        ("[routr]\nport = 1\n", r"routr: there is no such section; did you mean router\?"),
        ("[engine.emulatd]\nseed = 1\n", r"engine\.emulatd: there is no such section; did you mean engine\.emulated\?"),
        ("[engine.emulated]\nzeal = 1\n", r"engine\.emulated\.zeal: there is no such option; `slos-serve config`"),
        ("[router]\nkv_blocks = 1\n", r"router\.kv_blocks: .*did you mean engine\.emulated\.kv_blocks\?"),
        ("[telemetry]\nmetric = true\n", r"telemetry\.metric: .*did you mean telemetry\.metrics\?"),
        ("[profiles.x]\ndecod = []\n", r"profiles\.x\.decod: .*did you mean profiles\.x\.decode\?"),
        ("router = 5\n", r"router: a section is wanted here"),
        ("[router]\nport = 65536\n", r"router\.port: .*65535"),
        ("[router]\nmax_hold_s = -1\n", r"router\.max_hold_s: .*greater than or equal to 0"),
        ('[console]\ntrace_url = "jaeger:16686"\n', r"console\.trace_url: begins with http"),
        ('[console]\ntrace_url = "http://jaeger:16686/trace"\n', r"console\.trace_url: .*holds \{trace_id\}"),
        ("[launcher]\nprefill = 0\n", r"launcher\.prefill = 0 needs router\.local_prefill = true"),
        ("[router\n", r"slos-serve\.toml: "),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_settings(written(tmp_path, text))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_settings(written(tmp_path, "[router]\nport = -1\n[gateway]\nport = -1\n"))
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == ["router.port", "gateway.port"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no configuration file .*none\.toml"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# caf\xe9\n[router]\n", r"is not in UTF-8: line 1 has the byte 0xe9"),
        (b"[router]\nid = 'x'\n# \xff\xfe\n", r"is not in UTF-8: line 3 has the byte 0xff"),
        (b"\x00\x01", r"c\.toml: "),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as raised:
        load_settings(file)
    assert "\n" not in str(raised.value)


def test_a_file_with_a_byte_order_mark_and_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbf[router]\nport = 1001\n")
    assert load_settings(file).router.port == 1001
    file.write_bytes(b"")
    assert load_settings(file) == Settings()


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read: Is a directory"):
        load_settings(tmp_path)


def test_a_section_that_the_file_has_as_a_number_is_named_whatever_the_environment_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"router: a section is wanted here"):
        load_settings(written(tmp_path, "router = 5\n"), None, {"SLOS_SERVE_ROUTER__PORT": "1"})


def test_without_prefill_workers_decode_workers_compute_prompts(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, "[launcher]\nprefill = 0\n[router]\nlocal_prefill = true\n"))
    assert settings.launcher.prefill == 0


def test_a_trace_page_is_an_address_with_a_place_for_the_id(tmp_path: Path) -> None:
    url = "https://jaeger/trace/{trace_id}"
    assert load_settings(written(tmp_path, f'[console]\ntrace_url = "{url}"\n')).console.trace_url == url


def test_options_do_not_change_once_they_are_read() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.router.port = 1  # type: ignore[misc]


def test_a_profile_from_a_file_has_all_its_parts(tmp_path: Path) -> None:
    text = """
        [profiles.reader]
        prefill = { ttft_s = 0.5 }
        decode = [{ tpot_s = 0.05, ends_with = "</think>" }, { tpot_s = 0.1 }]
        value = 2.5
        on_overload = "refuse"
    """
    profile = load_settings(written(tmp_path, text)).profiles["reader"]
    assert isinstance(profile, ProfileSettings)
    assert profile.prefill is not None
    assert (profile.prefill.ttft_s, profile.value, profile.on_overload) == (0.5, 2.5, "refuse")
    assert [(stage.tpot_s, stage.ends_with) for stage in profile.decode] == [(0.05, "</think>"), (0.1, "")]


def test_quotas_of_a_tenant_are_read_with_their_bursts(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "[tenants.acme]\nrequests_per_s = 0.01\nprompt_tokens_per_s = 50\noutput_tokens_per_s = 7\n"
        "output_tokens_burst = 9\nconcurrent_requests = 3\nmax_value = 2\n[tenants.default]\n",
    )
    tenants = load_settings(file).tenants
    assert tenants["default"].quotas == QuotaLimits()
    assert tenants["acme"].quotas == QuotaLimits(
        {
            Quota.REQUESTS: Rate(0.01, 1.0),
            Quota.PROMPT_TOKENS: Rate(50.0, 500.0),
            Quota.OUTPUT_TOKENS: Rate(7.0, 9.0),
        },
        {Quota.CONCURRENT_REQUESTS: 3},
        2.0,
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("requests_burst = 3", "requests_burst needs requests_per_s"),
        ("requests_per_s = 0", r"tenants\.acme\.requests_per_s"),
        ("requests_per_s = inf", r"tenants\.acme\.requests_per_s"),
        ("requests_per_s = nan", r"tenants\.acme\.requests_per_s"),
        ("requests_per_s = 1\nrequests_burst = 0.5", r"tenants\.acme\.requests_burst"),
        ("concurrent_requests = 0", r"tenants\.acme\.concurrent_requests"),
        ("max_value = 1e9", r"tenants\.acme\.max_value"),
    ],
)
def test_quotas_that_make_no_sense_are_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_settings(written(tmp_path, f"[tenants.acme]\n{line}\n"))
