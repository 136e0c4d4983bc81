"""Laws of settings: who wins, what is refused, and that secrets stay secret."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import faust
import pytest
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Fatal
from streams import clients
from streams.faust_credentials import faust_credentials
from streams.settings import Settings, load_settings

SECRET = "hunter2-zqxjkvb"


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    """No settings but the test's own."""
    for name in list(os.environ):
        if name.startswith("MANYRAY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    """Write the settings file of the working folder."""
    return (tmp_path / "manyray.toml").write_text


def test_without_anything_the_defaults_hold():
    """No file, no environment and no flags are what `Settings()` is."""
    assert load_settings() == Settings()


def test_the_environment_wins_over_the_file_and_flags_over_both(write, monkeypatch):
    """Each source gives what stronger ones do not."""
    write('partitions = 5\nray = "fromfile"\nmodel = "hash"')
    monkeypatch.setenv("MANYRAY_PARTITIONS", "6")
    monkeypatch.setenv("MANYRAY_RAY", "fromenv")
    found = load_settings(partitions=7)
    assert (found.partitions, found.ray, found.model) == (7, "fromenv", "hash")


def test_a_flag_that_is_none_is_not_given(write):
    """What the command line leaves open is for the others to say."""
    write("partitions = 5")
    assert load_settings(partitions=None).partitions == 5


def test_kafka_properties_are_merged_by_name(write, monkeypatch):
    """Environment and flags replace single properties, not the whole table."""
    write('[kafka]\n"linger.ms" = 7\nsasl.username = "file"')
    monkeypatch.setenv("MANYRAY_KAFKA__SASL_USERNAME", "env")
    monkeypatch.setenv("MANYRAY_KAFKA__SASL_PASSWORD", SECRET)
    assert load_settings().kafka == {"linger.ms": "7", "sasl.username": "env", "sasl.password": SECRET}
    assert load_settings(kafka={"linger.ms": 9}).kafka == {
        "linger.ms": "9",
        "sasl.username": "env",
        "sasl.password": SECRET,
    }


def test_every_spelling_of_a_property_is_the_same_one(write):
    """Dotted keys, quoted keys and nested tables of TOML are one librdkafka property; values are spelt its way."""
    spellings = (
        'kafka.sasl.username = "me"\nkafka.sasl.oauthbearer.client.id = 5\nkafka.enable.ssl = true',
        '[kafka]\nsasl.username = "me"\nsasl.oauthbearer.client.id = 5\nenable.ssl = true',
        '[kafka]\n"sasl.username" = "me"\n"sasl.oauthbearer.client.id" = "5"\n"enable.ssl" = "true"',
        '[kafka.sasl]\nusername = "me"\noauthbearer.client.id = 5\n[kafka.enable]\nssl = true',
    )
    for text in spellings:
        write(text)
        assert load_settings().kafka == {
            "sasl.username": "me",
            "sasl.oauthbearer.client.id": "5",
            "enable.ssl": "true",
        }


def test_a_named_file_is_read_instead(write, tmp_path, monkeypatch):
    """`--config` before MANYRAY_CONFIG before manyray.toml; the latter alone need not be there."""
    write("partitions = 5")
    for number in (6, 7):
        (tmp_path / f"{number}.toml").write_text(f"partitions = {number}")
    monkeypatch.setenv("MANYRAY_CONFIG", str(tmp_path / "6.toml"))
    assert load_settings().partitions == 6
    assert load_settings(tmp_path / "7.toml").partitions == 7
    with pytest.raises(Fatal, match=r"settings file .*nowhere\.toml cannot be read: No such file"):
        load_settings(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("partitons", "partitions"), ("bootstrap_server", "bootstrap_servers"), ("table_disk", "table_disk_mib")],
)
def test_an_unknown_key_names_the_nearest(write, monkeypatch, tmp_path, written, nearest):
    """In the file, the environment and the flags alike, in one line that says where it stands."""
    expected = f"unknown setting {written} .*did you mean {nearest}\\?"
    with pytest.raises(Fatal, match=expected.replace(".*", "in the flags: ")):
        load_settings(**{written: 1})
    with monkeypatch.context() as patch:
        patch.setenv(f"MANYRAY_{written.upper()}", "1")
        with pytest.raises(Fatal, match=expected.replace(".*", rf".*MANYRAY_{written.upper()}.*")):
            load_settings()
    write(f"{written} = 1")
    with pytest.raises(Fatal, match=expected.replace(".*", r"in manyray\.toml: ")):
        load_settings()


def test_a_key_near_none_lists_what_there_is():
    """So a user sees what could have been meant."""
    with pytest.raises(Fatal, match="known ones are bootstrap_servers, data_dir, ray"):
        load_settings(zzzzzz=1)


def test_variables_for_others_are_no_settings(monkeypatch):
    """What `manyray up` tells its children, with two underscores, is not taken for a setting."""
    monkeypatch.setenv("MANYRAY__RESTARTS", "3")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"partitions": 0}, "partitions = 0"),
        ({"partitions": "many"}, "partitions = 'many'"),
        ({"ray": "Text Ray"}, "ray = 'Text Ray'"),
        ({"posts_topics": ()}, r"posts_topics = \(\): name at least one topic"),
        ({"posts_topics": " , "}, "name at least one topic"),
        ({"backfill_topics": "old,posts"}, "posts is one of posts_topics too: name it in one of them"),
        ({"dtype": "int4"}, "dtype = 'int4'"),
        ({"metrics_port": 70_000}, "metrics_port = 70000"),
        ({"log_level": "loud"}, "log_level = 'loud'"),
    ],
)
def test_a_bad_value_is_one_line_with_setting_value_and_help(flags, says):
    """A person can mend it without looking anything up."""
    with pytest.raises(Fatal, match=says) as caught:
        load_settings(**flags)
    assert "\n" not in str(caught.value)
    assert Settings.model_fields[next(iter(flags))].description in str(caught.value)


@pytest.mark.parametrize("text", ["partitions = ", "\xff\xfe".encode("utf-16").decode("latin-1"), "a = 1\na = 2"])
def test_a_file_that_is_no_toml_is_one_line(write, text):
    """With the place, as the parser gives it."""
    write(text)
    with pytest.raises(Fatal, match=r"manyray\.toml is not TOML") as caught:
        load_settings()
    assert "\n" not in str(caught.value)


def outcome(**flags: object) -> str:
    """What is said to a user of these settings."""
    try:
        load_settings(**flags)
    except Fatal as error:
        return str(error)
    return "fine"


@pytest.mark.parametrize("name", ["MANYRAY_KAFKA", "MANYRAY_POSTS_TOPICS", "MANYRAY_PARTITIONS", "MANYRAY_DATA_DIR"])
@pytest.mark.parametrize("value", ["", "x", ","])
@pytest.mark.parametrize("more", [{}, {"MANYRAY_KAFKA__LINGER_MS": "5"}])
def test_any_environment_is_settings_or_fatal(monkeypatch, name, value, more):
    """A variable of ours can be wrong in only one way."""
    for variable, content in {name: value, **more}.items():
        monkeypatch.setenv(variable, content)
    assert "\n" not in outcome()


@given(
    st.sampled_from(sorted(Settings.model_fields)),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()),
)
def test_any_flag_is_settings_or_fatal(name, value):
    """So can a flag."""
    assert len(outcome(**{name: value}).splitlines()) == 1


def test_settings_cannot_be_changed():
    """They are a value."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().partitions = 3


def test_posts_topics_are_separated_by_commas(monkeypatch):
    """In the environment and in flags, which have no lists."""
    assert load_settings(posts_topics="a, b,,c").posts_topics == ("a", "b", "c")
    monkeypatch.setenv("MANYRAY_POSTS_TOPICS", "a, b,,c")
    assert load_settings(backfill_topics="d").posts_topics == ("a", "b", "c")
    assert load_settings(backfill_topics="d,").backfill_topics == ("d",)
    assert load_settings().backfill_topics == ()


# Every librdkafka property that holds a secret (CONFIGURATION.md of librdkafka 2.11).
SECRETS = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.oauthbearer.assertion.private.key.passphrase",
]


@pytest.mark.parametrize("name", SECRETS)
def test_kafka_secrets_are_not_shown(name):
    """Neither in repr, which tracebacks and logs print, nor in what is made for people."""
    found = load_settings(kafka={name: SECRET, "sasl.username": "me"})
    assert found.kafka[name] == SECRET
    assert SECRET not in f"{found!r} {found} {found.redacted()}"
    assert found.redacted()["kafka"]["sasl.username"] == "me"


def test_the_salt_is_not_shown():
    """It makes a tenant's fingerprints useless to others only while they do not know it."""
    found = load_settings(salt=SECRET)
    assert found.salt.get_secret_value() == SECRET
    assert SECRET not in f"{found!r} {found} {found.redacted()}"


@pytest.mark.parametrize(
    "flags",
    [
        {"salt": [SECRET]},
        {"salt": {"a": SECRET}},
        {"kafka": SECRET},
        {"kafka": [SECRET]},
        {"kafka": {1: SECRET}},
        {"kafka": {"sasl.password": SECRET}, "partitions": 0},
        {"salt": SECRET, "ray": "A"},
    ],
)
def test_an_error_never_tells_a_secret(flags):
    """Also when it is the value that is wrong, or another one is."""
    with pytest.raises(Fatal) as caught:
        load_settings(**flags)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "line", ['salt = "@', 'salt = @"', 'salt = ["@"]', '[kafka]\nsasl.password = "@', "kafka = '@'"]
)
def test_a_broken_file_never_tells_a_secret(write, line):
    """Nor does the parser's own message."""
    write(line.replace("@", SECRET))
    with pytest.raises(Fatal) as caught:
        load_settings()
    assert SECRET not in str(caught.value)


def test_properties_reach_librdkafka():
    """It knows them: one that it does not have, or a bad value, is refused, in one clear line."""
    servers = {"bootstrap_servers": "127.0.0.1:1"}
    assert isinstance(clients.admin_client(load_settings(**servers, kafka={"socket.timeout.ms": "5000"})), AdminClient)
    for bad in ({"socket.timeout": "5000"}, {"security.protocol": "bogus"}):
        with pytest.raises(Fatal, match=r"kafka.*(socket\.timeout|security\.protocol)"):
            clients.admin_client(load_settings(**servers, kafka=bad))


@pytest.mark.parametrize(
    "name",
    [
        "bootstrap.servers",
        "metadata.broker.list",
        "group.id",
        "group.instance.id",
        "transactional.id",
        "enable.idempotence",
        "isolation.level",
        "enable.auto.commit",
        "acks",
        "request.required.acks",
        "partitioner",
        "transaction.timeout.ms",
        "delivery.timeout.ms",
        "message.timeout.ms",
    ],
)
def test_properties_that_exactly_once_needs_are_refused(name):
    """By every client, naming the property, under librdkafka's other name for it too."""
    found = load_settings(bootstrap_servers="127.0.0.1:1", kafka={name: "1"})
    makers = (
        clients.admin_client,
        clients.reader,
        clients.producer,
        lambda settings: clients.producer(settings, "id"),
        lambda settings: clients.consumer(settings, "group"),
    )
    for make in makers:
        with pytest.raises(Fatal, match=f"kafka property {name} is Manyray's own: remove it"):
            make(found)


def test_without_a_broker_there_is_one_line(tmp_path):
    """It names the folder that was looked in, and both remedies."""
    with pytest.raises(Fatal, match=r"no broker runs on data directory .*manyray up.*--bootstrap-servers"):
        clients.bootstrap_servers(load_settings(data_dir=tmp_path))


def test_a_plain_connection_needs_no_credentials():
    """Faust gets none then."""
    assert faust_credentials(Settings()) == {}
    assert faust_credentials(load_settings(kafka={"security.protocol": "PLAINTEXT"})) == {}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "scram-sha-256"])
@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_sasl_reaches_faust(name, mechanism):
    """User, password and mechanism, under either of librdkafka's names."""
    found = faust_credentials(
        load_settings(
            kafka={
                "security.protocol": "sasl_plaintext",
                name: mechanism,
                "sasl.username": "me",
                "sasl.password": SECRET,
            }
        )
    )["broker_credentials"]
    assert isinstance(found, faust.SASLCredentials)
    assert (found.username, found.password) == ("me", SECRET)
    assert str(getattr(found.mechanism, "value", found.mechanism)) == mechanism.upper()
    assert found.ssl_context is None
    assert SECRET not in repr(found)


def test_tls_reaches_faust(certificate):
    """The CA and the client's certificate that librdkafka is given, checked as it does: name and chain."""
    kafka = {
        "security.protocol": "SSL",
        "ssl.ca.location": str(certificate / "cert.pem"),
        "ssl.certificate.location": str(certificate / "cert.pem"),
        "ssl.key.location": str(certificate / "key.pem"),
    }
    found = faust_credentials(load_settings(kafka=kafka))["broker_credentials"]
    assert isinstance(found, faust.SSLCredentials)
    assert found.context.verify_mode == ssl.CERT_REQUIRED
    assert found.context.check_hostname
    assert [one["subject"][0][0][1] for one in found.context.get_ca_certs()] == ["127.0.0.1"]
    pem = {"security.protocol": "SSL", "ssl.ca.pem": (certificate / "cert.pem").read_text()}
    assert len(faust_credentials(load_settings(kafka=pem))["broker_credentials"].context.get_ca_certs()) == 1
    lax = {**kafka, "ssl.endpoint.identification.algorithm": "none"}
    assert not faust_credentials(load_settings(kafka=lax))["broker_credentials"].context.check_hostname
    trusting = load_settings(kafka={**kafka, "enable.ssl.certificate.verification": False})
    assert faust_credentials(trusting)["broker_credentials"].context.verify_mode == ssl.CERT_NONE
    both = {**kafka, "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "me"}
    found = faust_credentials(load_settings(kafka=both))["broker_credentials"]
    assert (found.username, found.ssl_context.verify_mode) == ("me", ssl.CERT_REQUIRED)


def test_certificates_that_cannot_be_read_are_one_line():
    """It says where they are named."""
    with pytest.raises(Fatal, match=r"certificates that \[kafka\] names cannot be read"):
        faust_credentials(load_settings(kafka={"security.protocol": "SSL", "ssl.ca.location": "nowhere.pem"}))


@pytest.mark.parametrize("given", [{"sasl.mechanism": "GSSAPI"}, {}])
def test_a_mechanism_that_faust_has_not_is_refused(given):
    """Before anything starts, and not by a connection that fails for ever; none given is librdkafka's default."""
    with pytest.raises(Fatal, match="GSSAPI is not one that dedup has: set one of PLAIN"):
        faust_credentials(load_settings(kafka={"security.protocol": "SASL_SSL", **given}))


@pytest.mark.parametrize("name", ["ssl.keystore.location", "ssl.crl.location", "ssl.certificate.pem"])
def test_a_tls_property_that_would_not_reach_faust_is_refused(name):
    """Nothing that a user asks of TLS is left out silently."""
    with pytest.raises(Fatal, match=f"{name} is not one that dedup has: use ssl.ca.location"):
        faust_credentials(load_settings(kafka={"security.protocol": "SSL", name: "x"}))


def test_a_field_is_its_own_help():
    """Every setting has a description, which is the help of its flag."""
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_need_no_heavy_import():
    """`manyray --help` must be quick: settings take neither Kafka's nor the encoders' libraries."""
    code = (
        "import sys, streams.settings; print({'torch', 'confluent_kafka', 'faust', 'rocksdict'} & sys.modules.keys())"
    )
    assert _output(code) == "set()\n"


def _output(code: str) -> str:
    """What a fresh interpreter prints, in the project's folder."""
    root = Path(__file__).resolve().parents[1]
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout
