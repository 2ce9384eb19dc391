//! `IntOrString`: a port number or name, a count or percentage.

use serde_json::Value;

/// A number or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntOrString {
    Int(i32),
    String(String),
}

impl IntOrString {
    /// The value of a canonical field.
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_i64().and_then(|n| i32::try_from(n).ok()).map(Self::Int),
            Value::String(text) => Some(Self::String(text.clone())),
            _ => None,
        }
    }

    /// A count, or a percentage of `total` rounded up or down. The error is upstream's text.
    pub fn scaled(&self, total: i32, round_up: bool) -> Result<i32, String> {
        let text = match self {
            Self::Int(number) => return Ok(*number),
            Self::String(text) => text,
        };
        let Some(percent) = text.strip_suffix('%') else {
            return Err("invalid value for IntOrString: invalid type: string is not a percentage".to_owned());
        };
        let percent: i64 = percent
            .parse()
            .map_err(|_| format!("invalid value for IntOrString: invalid value {text:?}: invalid syntax"))?;
        let product = percent.saturating_mul(i64::from(total));
        let scaled =
            if round_up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) };
        Ok(i32::try_from(scaled).unwrap_or(if scaled < 0 { i32::MIN } else { i32::MAX }))
    }
}

impl From<IntOrString> for Value {
    fn from(value: IntOrString) -> Self {
        match value {
            IntOrString::Int(number) => Self::from(number),
            IntOrString::String(text) => Self::String(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_scale_and_round() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(quarter.scaled(10, true), Ok(3));
        assert_eq!(quarter.scaled(10, false), Ok(2));
        assert_eq!(IntOrString::Int(7).scaled(10, false), Ok(7));
        assert!(IntOrString::String("http".into()).scaled(10, true).is_err());
        assert!(IntOrString::String("x%".into()).scaled(10, true).is_err());
    }
}
