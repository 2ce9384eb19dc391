//! Times and durations as Go prints and parses them.

use std::fmt;

use jiff::Timestamp;

const SECOND_LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// A text that is no RFC 3339 time; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimeError(String);

/// A text that is no Go duration; `Display` is upstream's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DurationError(String);

/// Go's zero time, which prints as null.
pub fn is_zero(time: Timestamp) -> bool {
    time.as_nanosecond() == -62_135_596_800 * 1_000_000_000
}

/// Parses a `Time`: RFC 3339, any fraction, any offset.
pub fn parse(text: &str) -> Result<Timestamp, TimeError> {
    Parser { text, rest: text, layout: SECOND_LAYOUT }.time(false)
}

/// Parses a `MicroTime`: RFC 3339 with exactly six digits of fraction.
pub fn parse_micro(text: &str) -> Result<Timestamp, TimeError> {
    Parser { text, rest: text, layout: MICRO_LAYOUT }.time(true)
}

/// UTC to the second: `2024-01-02T03:04:05Z`.
pub fn format(time: Timestamp) -> String {
    civil(time, false)
}

/// UTC with six digits: `2024-01-02T03:04:05.000000Z`.
pub fn format_micro(time: Timestamp) -> String {
    civil(time, true)
}

fn civil(time: Timestamp, micro: bool) -> String {
    let at = jiff::tz::Offset::UTC.to_datetime(time);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        at.year(),
        at.month(),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    );
    if micro {
        text.push_str(&format!(".{:06}", at.subsec_nanosecond() / 1000));
    }
    text.push('Z');
    text
}

/// True when the text is already the canonical form of a `Time` (`micro` false) or `MicroTime`.
pub fn is_canonical(text: &str, micro: bool) -> bool {
    let bytes = text.as_bytes();
    let shape: &[u8] = if micro { b"dddd-dd-ddTdd:dd:dd.ddddddZ" } else { b"dddd-dd-ddTdd:dd:ddZ" };
    bytes.len() == shape.len()
        && bytes.iter().zip(shape).all(|(b, s)| if *s == b'd' { b.is_ascii_digit() } else { b == s })
        && (if micro { parse_micro(text) } else { parse(text) }).is_ok_and(|time| !is_zero(time))
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Parser<'_> {
    fn time(mut self, micro: bool) -> Result<Timestamp, TimeError> {
        let year = self.number(4, "2006")?;
        self.literal("-")?;
        let month = self.number(2, "01")?;
        self.check(month, 1, 12, "month")?;
        self.literal("-")?;
        let day = self.number(2, "02")?;
        self.literal("T")?;
        let hour = self.number(2, "15")?;
        self.check(hour, 0, 23, "hour")?;
        self.literal(":")?;
        let minute = self.number(2, "04")?;
        self.check(minute, 0, 59, "minute")?;
        self.literal(":")?;
        let second = self.number(2, "05")?;
        self.check(second, 0, 59, "second")?;
        let nanosecond = self.fraction(micro)?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            return Err(self.refuse(&format!(": extra text: {}", crate::field::go_quote(self.rest))));
        }
        let in_range = (1..=31).contains(&day);
        let date = in_range.then(|| civil_date(year, month, day)).flatten();
        let Some(date) = date else { return Err(self.refuse(": day out of range")) };
        let clock = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        jiff::civil::DateTime::from_parts(date, jiff::civil::Time::midnight())
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .and_then(|zoned| {
                let seconds = zoned.timestamp().as_second() + clock - i64::from(offset);
                Timestamp::new(seconds, nanosecond).ok()
            })
            .ok_or_else(|| self.refuse(": year out of range"))
    }

    fn refuse(&self, why: &str) -> TimeError {
        TimeError(format!("parsing time {}{why}", crate::field::go_quote(self.text)))
    }

    /// The form of an error at an element of the layout.
    fn cannot(&self, element: &str) -> TimeError {
        TimeError(format!(
            "parsing time {} as \"{}\": cannot parse {} as \"{element}\"",
            crate::field::go_quote(self.text),
            self.layout,
            crate::field::go_quote(self.rest)
        ))
    }

    fn check(&self, value: i32, low: i32, high: i32, what: &str) -> Result<(), TimeError> {
        if (low..=high).contains(&value) {
            Ok(())
        } else {
            Err(self.refuse(&format!(": {what} out of range")))
        }
    }

    fn number(&mut self, digits: usize, element: &str) -> Result<i32, TimeError> {
        let found = self.rest.get(..digits).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = found.and_then(|text| text.parse().ok()) else { return Err(self.cannot(element)) };
        self.rest = &self.rest[digits..];
        Ok(number)
    }

    fn literal(&mut self, literal: &str) -> Result<(), TimeError> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.cannot(literal)),
        }
    }

    /// Nanoseconds. A `Time` may carry any fraction; a `MicroTime` carries six digits.
    fn fraction(&mut self, micro: bool) -> Result<i32, TimeError> {
        let Some(rest) = self.rest.strip_prefix(['.', ',']) else {
            return if micro { Err(self.cannot(".000000")) } else { Ok(0) };
        };
        let mut length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if micro {
            if length < 6 {
                return Err(self.cannot(".000000"));
            }
            length = 6;
        } else if length == 0 {
            return Err(self.cannot("Z07:00"));
        }
        let mut nanosecond = 0;
        for index in 0..9 {
            let digit = rest.as_bytes().get(index).filter(|_| index < length).map_or(0, |b| b - b'0');
            nanosecond = nanosecond * 10 + i32::from(digit);
        }
        self.rest = &rest[length..];
        Ok(nanosecond)
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i32, TimeError> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let bytes = self.rest.as_bytes();
        let sign = match bytes.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(self.cannot("Z07:00")),
        };
        let field = |at: usize| -> Option<i32> {
            let text = self.rest.get(at..at + 2)?;
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (Some(hours), Some(b':'), Some(minutes)) = (field(1), bytes.get(3), field(4)) else {
            return Err(self.cannot("Z07:00"));
        };
        self.check(hours, 0, 24, "time zone offset hour")?;
        self.check(minutes, 0, 60, "time zone offset minute")?;
        self.rest = &self.rest[6..];
        Ok(sign * (hours * 3600 + minutes * 60))
    }
}

fn civil_date(year: i32, month: i32, day: i32) -> Option<jiff::civil::Date> {
    jiff::civil::Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()
}

/// A Go duration: nanoseconds, printed `1h2m3.5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(pub i64);

/// Parses a Go duration.
pub fn parse_duration(text: &str) -> Result<GoDuration, DurationError> {
    let quoted = || crate::field::go_quote(text);
    let invalid = || DurationError(format!("time: invalid duration {}", quoted()));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(GoDuration(0));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() || whole.len() > 19 {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "" => return Err(DurationError(format!("time: missing unit in duration {}", quoted()))),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                let unit = crate::field::go_quote(unit);
                return Err(DurationError(format!("time: unknown unit {unit} in duration {}", quoted())));
            }
        };
        total += whole.bytes().fold(0_i128, |n, b| n * 10 + i128::from(b - b'0')) * scale;
        let (mut part, mut divisor) = (0_i128, 1_i128);
        for byte in fraction.bytes().take(18) {
            part = part * 10 + i128::from(byte - b'0');
            divisor *= 10;
        }
        total += part * scale / divisor;
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).map(GoDuration).map_err(|_| invalid())
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write_fraction(f, nanos, 1_000, "µs"),
            1_000_000..1_000_000_000 => write_fraction(f, nanos, 1_000_000, "ms"),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if seconds >= 60 {
                    write!(f, "{minutes}m")?;
                }
                write_fraction(f, nanos - (hours * 3600 + minutes * 60) * 1_000_000_000, 1_000_000_000, "s")
            }
        }
    }
}

/// `number / scale` with as many digits as it needs.
fn write_fraction(f: &mut fmt::Formatter<'_>, number: u64, scale: u64, unit: &str) -> fmt::Result {
    write!(f, "{}", number / scale)?;
    let width = scale.ilog10() as usize;
    let fraction = format!("{:0width$}", number % scale);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        write!(f, ".{fraction}")?;
    }
    f.write_str(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_in_utc() {
        for (input, seconds, micros) in [
            ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z", "2024-01-02T03:04:05.000000Z"),
            ("2024-01-02T03:04:05.1234567Z", "2024-01-02T03:04:05Z", "2024-01-02T03:04:05.123456Z"),
            ("2024-01-02T01:04:05+02:00", "2024-01-01T23:04:05Z", "2024-01-01T23:04:05.000000Z"),
            ("1969-12-31T23:59:59-00:30", "1970-01-01T00:29:59Z", "1970-01-01T00:29:59.000000Z"),
        ] {
            let time = parse(input).unwrap();
            assert_eq!((format(time).as_str(), format_micro(time).as_str()), (seconds, micros));
        }
        assert!(is_zero(parse("0001-01-01T00:00:00Z").unwrap()));
        assert!(is_canonical("2024-01-02T03:04:05Z", false));
        assert!(!is_canonical("2024-01-02T03:04:05+00:00", false));
        assert!(is_canonical("2024-01-02T03:04:05.000001Z", true));
    }

    #[test]
    fn bad_times_get_upstreams_errors() {
        for (input, error) in [
            ("abc", r#"parsing time "abc" as "2006-01-02T15:04:05Z07:00": cannot parse "abc" as "2006""#),
            ("2024-13-01T00:00:00Z", r#"parsing time "2024-13-01T00:00:00Z": month out of range"#),
            ("2024-02-30T00:00:00Z", r#"parsing time "2024-02-30T00:00:00Z": day out of range"#),
            (
                "2024-02-03",
                r#"parsing time "2024-02-03" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#,
            ),
            ("2024-01-02T03:04:05Zx", r#"parsing time "2024-01-02T03:04:05Zx": extra text: "x""#),
            (
                "\u{e9}",
                "parsing time \"\u{e9}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\u{e9}\" as \"2006\"",
            ),
        ] {
            assert_eq!(parse(input).map_err(|error| error.to_string()), Err(error.to_owned()));
        }
        assert!(parse_micro("2024-01-02T03:04:05Z").is_err());
    }

    #[test]
    fn durations_print_as_go_prints_them() {
        for (input, expected) in [
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("1.5s", "1.5s"),
            ("0", "0s"),
            ("100ms", "100ms"),
            ("1500us", "1.5ms"),
            ("-2m", "-2m0s"),
            ("1h1ns", "1h0m0.000000001s"),
        ] {
            assert_eq!(parse_duration(input).unwrap().to_string(), expected);
        }
        for (input, error) in [
            ("", r#"time: invalid duration """#),
            ("3", r#"time: missing unit in duration "3""#),
            ("3x", r#"time: unknown unit "x" in duration "3x""#),
            ("x", r#"time: invalid duration "x""#),
            ("99999999999h", r#"time: invalid duration "99999999999h""#),
        ] {
            assert_eq!(parse_duration(input).map_err(|error| error.to_string()), Err(error.to_owned()));
        }
    }
}
