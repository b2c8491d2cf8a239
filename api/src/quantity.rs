//! Kubernetes resource quantities: what is one, and how it compares.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Why a text is no quantity; prints as Kubernetes does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number followed by letters.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that is no unit.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Reads a quantity; the text is kept as it was written.
///
/// # Errors
/// The text is no quantity.
pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
    value(text).map(|_| Quantity(text.to_owned()))
}

/// The amount in base units (bytes, cores). Precise enough for comparisons, not for arithmetic.
///
/// # Errors
/// The text is no quantity.
pub fn value(text: &str) -> Result<f64, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let (sign, unsigned) = match text.as_bytes()[0] {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    let whole = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    let dot = usize::from(unsigned[whole..].starts_with('.'));
    let fraction =
        if dot == 1 { unsigned[whole + 1..].bytes().take_while(u8::is_ascii_digit).count() } else { 0 };
    let (number, suffix) = unsigned.split_at(whole + dot + fraction);
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let exponent = &suffix[letters..];
    let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        _ if letters == 1 && suffix.starts_with(['e', 'E']) => {
            let power: i32 = suffix[1..].parse().map_err(|_| QuantityError::Suffix)?;
            10_f64.powi(power)
        }
        _ => return Err(QuantityError::Suffix),
    };
    let number = if number.is_empty() || number == "." { 0.0 } else { number.parse().unwrap_or(0.0) };
    Ok(sign * number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_scale() {
        for (text, amount) in
            [("250m", 0.25), ("1Gi", 1_073_741_824.0), ("1e3", 1000.0), ("-1", -1.0), ("1.5k", 1500.0)]
        {
            assert_eq!(value(text), Ok(amount), "{text}");
        }
        for text in ["", "x", "10q", "1.2.3", "1 Gi"] {
            assert_eq!(value(text), Err(QuantityError::Format), "{text}");
        }
        assert_eq!(value("1Mk"), Err(QuantityError::Suffix));
    }
}
