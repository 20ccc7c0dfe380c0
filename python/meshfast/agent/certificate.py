"""The few facts of an X.509 certificate that the agent decides on: its time, and the name in it.

A strict reader of the DER (X.690) around them, so that no certificate library is loaded: validity
(RFC 5280 4.1.2.5) and the URI names of the subject alternative name (4.2.1.6).

Does not do: signatures, chains, extensions other than that one. rustls verifies the control plane,
workers verify their peers; here a certificate is looked at that the control plane has just issued.

Tests: tests/agent/test_certificate.py.
"""

from __future__ import annotations

__all__ = ["Certificate", "CertificateError", "parse"]

SEQUENCE, INTEGER, BOOLEAN, OBJECT_ID, OCTETS = 0x30, 0x02, 0x01, 0x06, 0x04
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
VERSION_TAG, EXTENSIONS_TAG = 0xA0, 0xA3
URI_TAG = 0x86  # GeneralName, [6] IMPLICIT IA5String
SUBJECT_ALTERNATIVE_NAME = bytes((0x55, 0x1D, 0x11))  # 2.5.29.17


class CertificateError(Exception):
    """The bytes are not a certificate that this reader takes."""


class Certificate:
    """`not_before` and `not_after` in seconds since 1970, the URI names in order."""

    __slots__ = ("not_after", "not_before", "uris")

    def __init__(self, not_before: int, not_after: int, uris: list[str]) -> None:
        """Keep the three."""
        self.not_before = not_before
        self.not_after = not_after
        self.uris = uris


def parse(der: bytes) -> Certificate:
    """Read a certificate; raises CertificateError."""
    try:
        return _parse(der)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise CertificateError(f"not a certificate: {error}") from None


def _parse(der: bytes) -> Certificate:
    reader = _Reader(_Reader(_Reader(der).take(SEQUENCE)).take(SEQUENCE))
    reader.skip_if(VERSION_TAG)
    reader.take(INTEGER)  # serial number
    reader.take(SEQUENCE)  # signature algorithm
    reader.take(SEQUENCE)  # issuer
    validity = _Reader(reader.take(SEQUENCE))
    not_before, not_after = _time(*validity.next()), _time(*validity.next())
    reader.take(SEQUENCE)  # subject
    reader.take(SEQUENCE)  # public key
    uris: list[str] = []
    while not reader.at_end:
        tag, content = reader.next()
        if tag == EXTENSIONS_TAG:
            uris = _uris(_Reader(_Reader(content).take(SEQUENCE)))
    return Certificate(not_before, not_after, uris)


def _uris(extensions: _Reader) -> list[str]:
    while not extensions.at_end:
        extension = _Reader(extensions.take(SEQUENCE))
        name = extension.take(OBJECT_ID)
        extension.skip_if(BOOLEAN)
        value = extension.take(OCTETS)
        if name == SUBJECT_ALTERNATIVE_NAME:
            names = _Reader(_Reader(value).take(SEQUENCE))
            found = []
            while not names.at_end:
                tag, content = names.next()
                if tag == URI_TAG:
                    found.append(content.decode("ascii"))
            return found
    return []


def _time(tag: int, content: bytes) -> int:
    """Read a time; RFC 5280 allows these two forms only, both in UTC and with seconds."""
    text = content.decode("ascii")
    if tag == UTC_TIME and len(text) == 13:
        century = "19" if int(text[:2]) >= 50 else "20"
        text = century + text
    elif tag != GENERALIZED_TIME or len(text) != 15:
        raise ValueError("a time in another form")
    if not text[:14].isdigit() or text[14] != "Z":
        raise ValueError("a time that is not in UTC")
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    hour, minute, second = int(text[8:10]), int(text[10:12]), int(text[12:14])
    return ((_days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second


def _days(year: int, month: int, day: int) -> int:
    """Count the days from 1970-01-01; years begin in March, so that a leap day comes last."""
    year, month = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days_of_years = 365 * year + year // 4 - year // 100 + year // 400
    return days_of_years + (153 * month + 2) // 5 + day - 1 - 719468


class _Reader:
    """The elements of one constructed value, in order; lengths are definite and shortest."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def next(self) -> tuple[int, bytes]:
        tag = self._data[self._at]
        length = self._data[self._at + 1]
        start = self._at + 2
        if length >= 0x80:
            count = length & 0x7F
            length = int.from_bytes(self._data[start : start + count], "big")
            start += count
            if not 1 <= count <= 4 or length < 0x80:
                raise ValueError("a length that is not DER")
        end = start + length
        if end > len(self._data):
            raise ValueError("cut off")
        self._at = end
        return tag, self._data[start:end]

    def take(self, tag: int) -> bytes:
        found, content = self.next()
        if found != tag:
            raise ValueError(f"element {found:#x} in the place of {tag:#x}")
        return content

    def skip_if(self, tag: int) -> None:
        if self._data[self._at] == tag:
            self.next()
