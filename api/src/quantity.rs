//! Kubernetes resource quantities: what is one, and how it compares.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

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

/// Reads a quantity into its canonical form.
///
/// # Errors
/// The text is no quantity.
pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
    canonical(text).map(Quantity)
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// The quantity as Kubernetes writes it: the largest unit that leaves no fraction, in the same kind of units.
///
/// # Errors
/// The text is no quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    value(text)?;
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let length = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = unsigned.split_at(length);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok("0".to_owned());
    }
    let (form, exponent) = if let Some(power) = BINARY.iter().skip(1).position(|unit| *unit == suffix) {
        (Form::Binary, (power + 1) as i32)
    } else if let Some(power) = DECIMAL.iter().position(|unit| *unit == suffix) {
        (Form::Decimal, 3 * power as i32 - 9)
    } else {
        (Form::Exponent, suffix[1..].parse().unwrap_or(0))
    };
    // Beyond what is exact here the text stands as it is; no cluster has that much of anything.
    let Some(amount) = nanos(digits, fraction.len(), form, exponent) else { return Ok(text.to_owned()) };
    let sign = if negative { "-" } else { "" };
    let billion = 1_000_000_000;
    if form == Form::Binary && amount >= 1024 * billion {
        // Binary units have no fractions of one.
        let mut amount = amount.div_ceil(billion);
        let mut unit = 0;
        while amount % 1024 == 0 && unit + 1 < BINARY.len() {
            amount /= 1024;
            unit += 1;
        }
        return Ok(format!("{sign}{amount}{}", BINARY[unit]));
    }
    let (mut amount, mut power) = (amount, -9);
    while amount % 1000 == 0 && power < 18 {
        amount /= 1000;
        power += 3;
    }
    Ok(match (form, power) {
        (Form::Exponent, 0) => format!("{sign}{amount}"),
        (Form::Exponent, power) => format!("{sign}{amount}e{power}"),
        (_, power) => format!("{sign}{amount}{}", DECIMAL[((power + 9) / 3) as usize]),
    })
}

/// Billionths, rounded up; `None` beyond what is exact.
fn nanos(digits: &str, decimals: usize, form: Form, exponent: i32) -> Option<u128> {
    let digits: u128 = digits.parse().ok()?;
    let decimals = i32::try_from(decimals).ok()?;
    let (digits, power) = if form == Form::Binary {
        (digits.checked_mul(1024_u128.checked_pow(exponent.try_into().ok()?)?)?, 9 - decimals)
    } else {
        (digits, exponent.checked_add(9)?.checked_sub(decimals)?)
    };
    let scale = 10_u128.checked_pow(power.unsigned_abs())?;
    if power >= 0 { digits.checked_mul(scale) } else { Some(digits.div_ceil(scale)) }
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

/// Visits what stands where a pod's spec has quantities, however deep in `value`; metadata and status have none.
///
/// # Errors
/// The first that `visit` answers with.
pub(crate) fn visit<E>(
    value: &mut Value,
    visit: &mut impl FnMut(&mut Value) -> Result<(), E>,
) -> Result<(), E> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| self::visit(item, visit)),
        Value::Object(fields) => {
            fields.iter_mut().try_for_each(|(key, value)| match (key.as_str(), &mut *value) {
                ("metadata" | "status", _) => Ok(()),
                ("sizeLimit" | "divisor", amount) => visit(amount),
                ("limits" | "requests", Value::Object(amounts)) => {
                    amounts.values_mut().try_for_each(&mut *visit)
                }
                (_, value) => self::visit(value, visit),
            })
        }
        _ => Ok(()),
    }
}

/// Turns quantities that are given as numbers into texts; YAML without quotes gives numbers.
pub(crate) fn spell_out(value: &mut Value) {
    let spelled: Result<(), std::convert::Infallible> = visit(value, &mut |amount| {
        if let Value::Number(number) = amount {
            *amount = Value::String(number.to_string());
        }
        Ok(())
    });
    match spelled {
        Ok(()) => {}
    }
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

    #[test]
    fn the_canonical_form_has_no_fractions() {
        for (text, form) in [
            ("250m", "250m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("0Gi", "0"),
            ("-1Gi", "-1Gi"),
            ("+2", "2"),
            ("1500k", "1500k"),
            ("2000k", "2M"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(form), "{text}");
        }
    }
}
