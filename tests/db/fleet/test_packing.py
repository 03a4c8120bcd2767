"""Commands are written as a Redis reads them."""

from db.fleet.packing import packed


def test_words_are_counted_in_bytes() -> None:
    """Text is UTF-8, numbers are decimal, bytes stay as they are."""
    commands = [("SET", "kö", 12), ("GET", b"\r\n\x00")]
    first = b"*3\r\n$3\r\nSET\r\n$3\r\nk\xc3\xb6\r\n$2\r\n12\r\n"
    assert first + b"*2\r\n$3\r\nGET\r\n$3\r\n\r\n\x00\r\n" == packed(commands)


def test_a_name_of_two_words_is_two() -> None:
    """The server takes a subcommand as a word of its own."""
    assert b"*2\r\n$6\r\nCONFIG\r\n$3\r\nGET\r\n" == packed([("CONFIG GET",)])
