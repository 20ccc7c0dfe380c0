//! Moments as text: RFC 3339 for logs, IMF-fixdate for HTTP headers. Both in UTC, from microseconds
//! since 1970; leap seconds are not told apart. Tests: below.

use crate::text;

/// Appends a moment as RFC 3339 writes it, in UTC with milliseconds.
pub(crate) fn rfc_3339(out: &mut Vec<u8>, wall_us: u64) {
    let (days, rest) = (wall_us / DAY_US, wall_us % DAY_US);
    let (year, month, day) = civil(days as i64);
    let seconds = rest / 1_000_000;
    text::two_digits(out, year as u64 / 100);
    text::two_digits(out, year as u64);
    for (before, number) in [
        (b'-', month as u64),
        (b'-', day as u64),
        (b'T', seconds / 3_600),
        (b':', seconds / 60 % 60),
        (b':', seconds % 60),
    ] {
        out.push(before);
        text::two_digits(out, number);
    }
    out.push(b'.');
    text::three_digits(out, rest / 1_000 % 1_000);
    out.push(b'Z');
}

/// Appends a moment as HTTP headers write it (IMF-fixdate, RFC 9110 5.6.7).
pub(crate) fn imf_fixdate(out: &mut Vec<u8>, wall_us: u64) {
    let (days, seconds) = (wall_us / DAY_US, wall_us % DAY_US / 1_000_000);
    let (year, month, day) = civil(days as i64);
    // 1970-01-01 was a Thursday.
    out.extend_from_slice(WEEKDAYS[(days % 7) as usize]);
    out.extend_from_slice(b", ");
    text::two_digits(out, day as u64);
    out.extend_from_slice(MONTHS[month as usize - 1]);
    text::two_digits(out, year as u64 / 100);
    text::two_digits(out, year as u64);
    for (before, number) in [
        (b' ', seconds / 3_600),
        (b':', seconds / 60 % 60),
        (b':', seconds % 60),
    ] {
        out.push(before);
        text::two_digits(out, number);
    }
    out.extend_from_slice(b" GMT");
}

const WEEKDAYS: [&[u8]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];

const MONTHS: [&[u8]; 12] = [
    b" Jan ", b" Feb ", b" Mar ", b" Apr ", b" May ", b" Jun ", b" Jul ", b" Aug ", b" Sep ",
    b" Oct ", b" Nov ", b" Dec ",
];

const DAY_US: u64 = 86_400_000_000;

/// The proleptic Gregorian date of a day counted from 1970-01-01, with years that begin in March so
/// that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_1970: i64 = 719_468;
    const ERA_DAYS: i64 = 146_097;
    let shifted = days + DAYS_TO_1970;
    let era = shifted.div_euclid(ERA_DAYS);
    let day_of_era = shifted.rem_euclid(ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn writes_dates_of_leap_years_and_centuries() {
        let days = [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (20_781, (2026, 11, 24)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ];
        for (day, date) in days {
            assert_eq!(civil(day), date);
        }
    }

    #[test]
    fn writes_times_as_rfc_3339() {
        let moments = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_789_999, "2000-02-29T12:34:56.789Z"),
            (4_107_542_399_999_000, "2100-02-28T23:59:59.999Z"),
        ];
        for (wall_us, expected) in moments {
            let mut out = Vec::new();
            rfc_3339(&mut out, wall_us);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn writes_times_as_http_does() {
        // The first is the example of RFC 9110.
        let moments = [
            (784_111_777_000_000, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_827_696_789_999, "Tue, 29 Feb 2000 12:34:56 GMT"),
            (1_798_761_599_999_999, "Thu, 31 Dec 2026 23:59:59 GMT"),
        ];
        for (wall_us, expected) in moments {
            let mut out = Vec::new();
            imf_fixdate(&mut out, wall_us);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
