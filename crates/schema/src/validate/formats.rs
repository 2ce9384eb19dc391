//! The string formats that custom resource schemas may name. Others are ignored, as upstream ignores them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine;
use regex::Regex;

type Check = fn(&str) -> bool;

/// Formats by name without dashes, and their check.
const FORMATS: &[(&str, Check)] = &[
    ("bsonobjectid", |text| text.len() == 24 && is_hex(text)),
    ("byte", is_base64),
    ("cidr", is_cidr),
    ("creditcard", |text| {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        (13..=16).contains(&digits.len()) && passes_luhn(&digits)
    }),
    ("date", |text| matches_regex(&DATE, text)),
    ("datetime", |text| matches_regex(&DATE_TIME, text) && meta::time::parse(&text.to_uppercase()).is_ok()),
    ("duration", |text| meta::time::parse_duration(text).is_ok() || matches_regex(&SCALA_DURATION, text)),
    ("email", |text| matches_regex(&EMAIL, text)),
    ("hexcolor", |text| {
        let digits = text.strip_prefix('#').unwrap_or(text);
        matches!(digits.len(), 3 | 6) && is_hex(digits)
    }),
    ("hostname", |text| text.len() <= 255 && matches_regex(&HOSTNAME, text)),
    ("ipv4", |text| text.parse::<Ipv4Addr>().is_ok()),
    ("ipv6", |text| text.parse::<Ipv6Addr>().is_ok()),
    ("isbn", |text| is_isbn10(text) || is_isbn13(text)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("k8slongname", |text| meta::content::dns1123_subdomain(text).is_empty()),
    ("k8sshortname", |text| meta::content::dns1123_label(text).is_empty()),
    ("mac", |text| matches_regex(&MAC, text)),
    ("password", |_| true),
    ("rgbcolor", |text| matches_regex(&RGB, text)),
    ("ssn", |text| matches_regex(&SSN, text)),
    ("uri", is_uri),
    ("uuid", |text| is_uuid(text, "", "")),
    ("uuid3", |text| is_uuid(text, "3", "")),
    ("uuid4", |text| is_uuid(text, "4", "89ab")),
    ("uuid5", |text| is_uuid(text, "5", "89ab")),
];

static DATE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$").ok());
static DATE_TIME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$").ok()
});
static SCALA_DURATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let units = "ns|nano|nanos|nanosecond|nanoseconds|us|µs|micro|micros|microsecond|microseconds|ms|milli|millis|\
                 millisecond|milliseconds|s|sec|secs|second|seconds|m|min|mins|minute|minutes|h|hr|hour|hours|d|day|\
                 days|w|wk|week|weeks";
    Regex::new(&format!(r"^(\d+\s*({units})\s*)+$")).ok()
});
static EMAIL: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^([^<>]*<)?[^\s@<>,;]+@[^\s@<>,;]+>?$").ok());
static HOSTNAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$",
    )
    .ok()
});
static MAC: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pair = "[0-9a-fA-F]{2}";
    let quad = "[0-9a-fA-F]{4}";
    let lengths = ["5", "7", "19"];
    let long = lengths.map(|n| format!("{pair}(:{pair}){{{n}}}|{pair}(-{pair}){{{n}}}")).join("|");
    let dotted = ["2", "3", "9"].map(|n| format!(r"{quad}(\.{quad}){{{n}}}")).join("|");
    Regex::new(&format!("^({long}|{dotted})$")).ok()
});
static RGB: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let part = r"\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*";
    Regex::new(&format!(r"^rgb\({part},{part},{part}\)$")).ok()
});
static SSN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\d{3}[- ]?\d{2}[- ]?\d{4}$").ok());

/// True when upstream knows the format for strings.
pub fn is_supported_format(format: &str) -> bool {
    find(format).is_some()
}

/// True when the text has the format, or nobody knows the format.
pub(super) fn matches(format: &str, text: &str) -> bool {
    find(format).is_none_or(|check| check(text))
}

fn find(format: &str) -> Option<Check> {
    let name = format.replace('-', "");
    FORMATS.iter().find(|(known, _)| *known == name).map(|(_, check)| *check)
}

fn matches_regex(regex: &Option<Regex>, text: &str) -> bool {
    regex.as_ref().is_some_and(|regex| regex.is_match(text))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_base64(text: &str) -> bool {
    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let plain = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    match (address.parse::<IpAddr>(), prefix.parse::<u8>()) {
        (Ok(IpAddr::V4(_)), Ok(prefix)) => plain && prefix <= 32,
        (Ok(IpAddr::V6(_)), Ok(prefix)) => plain && prefix <= 128,
        _ => false,
    }
}

/// What Go's `url.ParseRequestURI` takes: a scheme and something after it, or an absolute path.
fn is_uri(text: &str) -> bool {
    let clean = !text.bytes().any(|b| b < 0x21 || b == 0x7f);
    if text.starts_with('/') {
        return clean;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    clean
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        && !rest.is_empty()
}

fn is_uuid(text: &str, version: &str, variants: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let digits: String = lower.chars().filter(|c| *c != '-').collect();
    let dashes: Vec<usize> = lower.match_indices('-').map(|(at, _)| at).collect();
    let placed = dashes.iter().enumerate().all(|(nth, at)| [8, 12, 16, 20].contains(&(at - nth)));
    digits.len() == 32
        && is_hex(&digits)
        && placed
        && digits[12..].starts_with(version)
        && (variants.is_empty() || digits[16..17].contains(|c: char| variants.contains(c)))
}

fn isbn_digits(text: &str) -> Vec<u32> {
    text.chars()
        .filter(|c| !matches!(c, '-' | ' '))
        .map(|c| match c {
            'X' | 'x' => 10,
            c => c.to_digit(10).unwrap_or(99),
        })
        .collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = isbn_digits(text);
    let sum: u32 = digits.iter().zip(1..).map(|(digit, weight)| digit * weight).sum();
    digits.len() == 10
        && digits[..9].iter().all(|digit| *digit < 10)
        && digits[9] < 11
        && sum.is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = isbn_digits(text);
    let sum: u32 = digits.iter().zip([1, 3].into_iter().cycle()).map(|(digit, weight)| digit * weight).sum();
    digits.len() == 13 && digits.iter().all(|digit| *digit < 10) && sum.is_multiple_of(10)
}

fn passes_luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(nth, byte)| {
            let digit = u32::from(byte - b'0') * if nth % 2 == 1 { 2 } else { 1 };
            digit / 10 + digit % 10
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_accept_and_refuse() {
        for (format, good, bad) in [
            ("date-time", "2024-01-02T03:04:05.5+01:00", "2024-13-02T03:04:05Z"),
            ("date", "2024-01-31", "2024-1-1"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "fe80::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:aa:bb:cc", "00:11:22"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("byte", "YQ==", "Y"),
            ("uri", "https://example.com/a", "example"),
            ("email", "a@example.com", "a.example.com"),
            ("hostname", "a.example.com", "-a"),
            ("duration", "1h30m", "1 parsec"),
            ("duration", "22 ns", ""),
            ("hexcolor", "#ffF", "#ffff"),
            ("rgbcolor", "rgb(1, 2,255)", "rgb(1,2,256)"),
            ("ssn", "111-11-1111", "1111"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "A.b"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
        ] {
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("nobody-knows", "x") && !is_supported_format("nobody-knows"));
    }
}
