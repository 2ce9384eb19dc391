//! Resource quantities: `500m`, `1Gi`, `2e3`.
//!
//! A quantity is a whole number of nano-units and the format it was written in, which decides how it prints.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Nano-units in one unit: the finest part upstream keeps.
const NANOS: i128 = 1_000_000_000;
/// Decimal suffixes by power of a thousand, from nano up.
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// Binary suffixes by power of 1024.
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Longer inputs are refused; no real quantity comes near.
const MAX_LENGTH: usize = 512;

/// A number with one of three ways to print it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How a quantity prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// Why a text is no quantity; `Display` is upstream's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// `value` units.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANOS, format }
    }

    /// `value` thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * (NANOS / 1000), format }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        match self.nanos.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    /// The value, when it is whole and fits.
    pub fn as_i64(&self) -> Option<i64> {
        if self.nanos % NANOS != 0 {
            return None;
        }
        i64::try_from(self.nanos / NANOS).ok()
    }

    /// Whole units, fractions rounded away from zero, saturating.
    pub fn value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANOS))
    }

    /// Thousandths, finer fractions rounded away from zero, saturating.
    pub fn milli_value(&self) -> i64 {
        saturate(divide_up(self.nanos, NANOS / 1000))
    }

    /// The value as floating point, for ratios and metrics.
    #[expect(clippy::cast_precision_loss, reason = "an approximation is what is asked for")]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    /// Adds; a zero takes over the other's format, as upstream has it.
    pub fn add(&mut self, other: &Self) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }

    /// Subtracts; a zero takes over the other's format, as upstream has it.
    pub fn sub(&mut self, other: &Self) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
    }

    pub fn neg(&mut self) {
        self.nanos = self.nanos.saturating_neg();
    }

    /// Multiplies by a whole number, saturating.
    pub fn mul(&mut self, factor: i64) {
        self.nanos = self.nanos.saturating_mul(i128::from(factor));
    }
}

/// The canonical text of a quantity's text, `None` when it is canonical already.
pub fn canonicalize(text: &str) -> Result<Option<String>, QuantityError> {
    if is_plainly_canonical(text.as_bytes()) {
        return Ok(None);
    }
    let canonical = text.parse::<Quantity>()?.to_string();
    Ok((canonical != text).then_some(canonical))
}

/// Common canonical forms, recognised without arithmetic: a short whole number not ending in `000`, alone or
/// with `m`, `k`, `M`, `G`.
fn is_plainly_canonical(text: &[u8]) -> bool {
    let digits = match text {
        [digits @ .., b'm' | b'k' | b'M' | b'G'] => digits,
        digits => digits,
    };
    !digits.is_empty()
        && digits.len() < 10
        && digits.iter().all(u8::is_ascii_digit)
        && digits[0] != b'0'
        && !digits.ends_with(b"000")
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > MAX_LENGTH || !text.is_ascii() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        let (base, exponent, mut format) = interpret_suffix(parts.suffix).ok_or(QuantityError::Suffix)?;
        if parts.whole.is_empty() && parts.fraction.is_empty() && !text.contains('0') {
            return Err(QuantityError::Numeric);
        }
        let digits = parts.whole.bytes().chain(parts.fraction.bytes());
        let scale = i64::try_from(parts.fraction.len()).unwrap_or(i64::MAX);
        let mut nanos = if base == 10 {
            shift_decimal(digits, exponent - scale + 9)
        } else {
            shift_decimal_times(digits, 9 - scale, 1_i128 << exponent)
        };
        if format == Format::BinarySi {
            nanos = nanos.min(i128::from(i64::MAX) * NANOS);
            if nanos > 0 && nanos < NANOS {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { nanos: if parts.negative { -nanos } else { nanos }, format })
    }
}

/// Splits sign, digits, fraction and suffix; leading zeros of the whole part are gone.
fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let rest = rest.trim_start_matches('0');
    let whole_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (whole, rest) = rest.split_at(whole_end);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let tail = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if !tail.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative, whole, fraction, suffix })
}

/// Base, exponent and format of a suffix.
fn interpret_suffix(suffix: &str) -> Option<(u32, i64, Format)> {
    if let Some(power) = DECIMAL.iter().position(|known| *known == suffix) {
        return Some((10, i64::try_from(power).ok()? * 3 - 9, Format::DecimalSi));
    }
    if let Some(power) = BINARY.iter().position(|known| *known == suffix) {
        return Some((2, i64::try_from(power).ok()? * 10, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i64 = exponent.parse().ok()?;
    i32::try_from(exponent).ok()?;
    Some((10, exponent, Format::DecimalExponent))
}

/// `digits * 10^shift`, rounded up when digits are cut, saturating.
fn shift_decimal(digits: impl Iterator<Item = u8>, shift: i64) -> i128 {
    shift_decimal_times(digits, shift, 1)
}

/// `digits * factor * 10^shift`, rounded up when digits are cut, saturating.
fn shift_decimal_times(digits: impl Iterator<Item = u8>, mut shift: i64, factor: i128) -> i128 {
    let mut number: i128 = 0;
    let mut overflow = false;
    let mut cut = 0_i64;
    for digit in digits {
        match number.checked_mul(10).and_then(|n| n.checked_add(i128::from(digit - b'0'))) {
            Some(next) if !overflow => number = next,
            // The number is longer than can be held: later digits only count for its size.
            _ => {
                overflow = true;
                cut += 1;
            }
        }
    }
    shift += cut;
    let mut rounded = overflow;
    match number.checked_mul(factor) {
        Some(product) => number = product,
        None => return i128::MAX,
    }
    while shift > 0 && number != 0 {
        match number.checked_mul(10) {
            Some(next) => number = next,
            None => return i128::MAX,
        }
        shift -= 1;
    }
    while shift < 0 && number != 0 {
        rounded |= number % 10 != 0;
        number /= 10;
        shift += 1;
        if number == 0 {
            return 1;
        }
    }
    number.saturating_add(i128::from(rounded))
}

fn divide_up(number: i128, by: i128) -> i128 {
    let quotient = number / by;
    if number % by == 0 { quotient } else { quotient + number.signum() }
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let kibi = 1024 * NANOS;
        if self.format == Format::BinarySi && self.nanos.abs() >= kibi && self.nanos % NANOS == 0 {
            let (mut number, mut power) = (self.nanos / NANOS, 0);
            while number % 1024 == 0 && power + 1 < BINARY.len() {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", BINARY[power]);
        }
        let (mut number, mut power) = (self.nanos, 0);
        while number % 1000 == 0 && (power + 1 < DECIMAL.len() || self.format == Format::DecimalExponent) {
            number /= 1000;
            power += 1;
        }
        if self.format != Format::DecimalExponent {
            return write!(f, "{number}{}", DECIMAL[power]);
        }
        match i64::try_from(power).unwrap_or(0) * 3 - 9 {
            0 => write!(f, "{number}"),
            exponent => write!(f, "{number}e{exponent}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.trim().parse(),
            serde_json::Value::Number(number) => number.to_string().parse(),
            serde_json::Value::Null => Ok(Self::ZERO),
            _ => Err(QuantityError::Format),
        }
        .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_print_in_canonical_form() {
        for (input, expected) in [
            ("0", "0"),
            ("0.0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e4", "120e3"),
            ("100e-3", "100e-3"),
            ("1E", "1E"),
            ("1000E", "1000E"),
            ("0.1n", "1n"),
            ("1.0000000001", "1000000001n"),
            ("-0.5", "-500m"),
            ("+5", "5"),
            ("007", "7"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.5Mi", "512Ki"),
            ("100Ei", "9223372036854775807"),
            ("1Ki", "1Ki"),
            ("0.3Ki", "307200m"),
            ("1.1Ki", "1126400m"),
            ("1500m", "1500m"),
            ("20000k", "20M"),
            ("-1Ki", "-1Ki"),
        ] {
            assert_eq!(input.parse::<Quantity>().map(|q| q.to_string()), Ok(expected.to_owned()), "{input}");
            let canonical = canonicalize(input).unwrap();
            assert_eq!(canonical.as_deref().unwrap_or(input), expected, "{input}");
        }
    }

    #[test]
    fn bad_quantities_get_upstreams_errors() {
        for (input, error) in [
            ("", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1Ki5", QuantityError::Suffix),
            ("1mm", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
            ("1 Ki", QuantityError::Format),
            ("1e", QuantityError::Suffix),
            ("1ee3", QuantityError::Suffix),
            (".", QuantityError::Numeric),
        ] {
            assert_eq!(input.parse::<Quantity>(), Err(error), "{input}");
        }
    }

    #[test]
    fn values_round_up_and_saturate() {
        let quantity = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(quantity("1.5").value(), 2);
        assert_eq!(quantity("100m").milli_value(), 100);
        assert_eq!(quantity("1n").milli_value(), 1);
        assert_eq!(quantity("1e30").value(), i64::MAX);
        assert_eq!(quantity("1.5").as_i64(), None);
        assert_eq!(quantity("2k").as_i64(), Some(2000));
        let mut sum = Quantity::default();
        sum.add(&quantity("1Gi"));
        sum.add(&quantity("512Mi"));
        assert_eq!(sum.to_string(), "1536Mi");
        sum.sub(&quantity("2Gi"));
        assert_eq!(sum.to_string(), "-512Mi");
        assert!(quantity("1Ki") > quantity("1k"));
        assert_eq!(quantity("1"), quantity("1000m"));
    }
}
