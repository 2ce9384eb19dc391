//! Resource quantities of API objects as numbers: what cgroups, limits and the downward API need of them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn parsed(quantity: &Quantity) -> Option<meta::quantity::Quantity> {
    quantity.0.parse().ok()
}

/// Whole units, rounded up: bytes, counts. Zero for what is no quantity: the API server let none in.
pub(crate) fn value(quantity: &Quantity) -> i64 {
    parsed(quantity).map_or(0, |q| q.value())
}

/// Thousandths, rounded up: CPU.
pub(crate) fn milli_value(quantity: &Quantity) -> i64 {
    parsed(quantity).map_or(0, |q| q.milli_value())
}

/// `value` in units of `divisor`, rounded up, as the downward API prints it.
pub(crate) fn divided(quantity: &Quantity, divisor: &Quantity) -> i64 {
    let (milli, divisor) = (milli_value(quantity), milli_value(divisor).max(1));
    milli / divisor + i64::from(milli % divisor > 0)
}

pub(crate) fn from_milli(milli: i64) -> Quantity {
    let format = meta::quantity::Format::DecimalSi;
    Quantity(meta::quantity::Quantity::from_milli(milli, format).to_string())
}

pub(crate) fn from_bytes(bytes: i64) -> Quantity {
    Quantity(meta::quantity::Quantity::new(bytes, meta::quantity::Format::BinarySi).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downward_divisors_round_up() {
        for (text, divisor, expected) in [
            ("250m", "1", 1),
            ("1500m", "1", 2),
            ("250m", "1m", 250),
            ("64Mi", "1Mi", 64),
            ("65Mi", "32Mi", 3),
        ] {
            assert_eq!(
                divided(&Quantity(text.into()), &Quantity(divisor.into())),
                expected,
                "{text}/{divisor}"
            );
        }
    }
}
