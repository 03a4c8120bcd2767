"""Which of PostgreSQL's errors mean wait, and which mean never."""

import pytest

from db.postgres.faults import store_error
from db.store import RecordRejected, StoreUnavailable


@pytest.mark.parametrize("sqlstate", ["22001", "22021", "22P05", "23505", "23514", "54000"])
def test_faults_of_the_data_are_final(sqlstate: str) -> None:
    """Data that PostgreSQL refuses today it will refuse tomorrow; it is never quoted."""
    error = store_error(sqlstate, "DETAIL: secret text", where="db", constraint="a_check")
    assert isinstance(error, RecordRejected)
    assert f"PostgreSQL refuses the data: SQLSTATE {sqlstate} (a_check)" == str(error)


@pytest.mark.parametrize(
    "sqlstate",
    [
        *("08006", "25006", "28000", "28P01", "3D000", "3F000", "40001", "40P01", "42501"),
        *("42703", "42883", "42P01", "53100", "53200", "53300", "55P03", "57014", "57P01"),
        *("57P03", "58030", "XX000", "XX001", "0A000", "99999"),
    ],
)
def test_faults_of_the_server_pass(sqlstate: str) -> None:
    """Whatever isn't the data's fault may pass: nothing is thrown away for it."""
    error = store_error(sqlstate, "secret text", where="db:5432/chat")
    assert isinstance(error, StoreUnavailable)
    assert "db:5432/chat" in str(error)
    assert sqlstate in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ('FATAL:  password authentication failed for user "u"', "refuses the password"),
        ("fe_sendauth: no password supplied", "refuses the password"),
        ('FATAL:  database "x" does not exist', "create it"),
        ('FATAL:  role "x" does not exist', "check user"),
        ("FATAL:  no pg_hba.conf entry for host", "check user"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ('could not translate host name "db" to address', "name server"),
        ("connection to server failed: Connection refused", "nothing listens there"),
        ("Connection timed out", "firewall"),
        ("FATAL:  the database system is starting up", "wait"),
        ("SSL error: certificate verify failed", "sslmode"),
        ("server closed the connection unexpectedly\n\tThis probably means", "closed the conn"),
        ("", "the connection was lost"),
    ],
)
def test_broken_connections_say_what_to_do(message: str, advice: str) -> None:
    """libpq's errors have no code; their text is turned into advice, in one line."""
    error = store_error(None, message, where="db:5432/chat")
    assert isinstance(error, StoreUnavailable)
    assert advice in str(error)
    assert "\n" not in str(error)
