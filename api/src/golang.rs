//! The value grammars of Go's standard library that Knative's contract exposes to users: booleans, integers,
//! floats and durations in ConfigMaps and annotations, with the same texts for errors and for printing.

use std::fmt;
use std::time::Duration;

pub use ember_template::text::{format_fixed, format_float, quote};

/// Why a text is not a value; prints as Go's standard library does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ParseError {
    text: String,
    out_of_range: bool,
}

impl ParseError {
    fn syntax(function: &str, text: &str) -> Self {
        Self {
            text: format!("strconv.{function}: parsing {}: invalid syntax", quote(text)),
            out_of_range: false,
        }
    }

    fn duration(text: String) -> Self {
        Self { text, out_of_range: false }
    }

    /// Whether the text is a value, but one that its type does not hold.
    #[must_use]
    pub fn is_out_of_range(&self) -> bool {
        self.out_of_range
    }

    fn range(function: &str, text: &str) -> Self {
        Self {
            text: format!("strconv.{function}: parsing {}: value out of range", quote(text)),
            out_of_range: true,
        }
    }
}

/// `strconv.ParseBool`: `1 t T TRUE true True 0 f F FALSE false False`.
///
/// # Errors
/// Any other text.
pub fn parse_bool(text: &str) -> Result<bool, ParseError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(ParseError::syntax("ParseBool", text)),
    }
}

/// `strconv.ParseInt(text, 10, 64)`: an optional sign and decimal digits.
///
/// # Errors
/// Not an integer, or outside the 64-bit range.
pub fn parse_int(text: &str) -> Result<i64, ParseError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError::syntax("ParseInt", text));
    }
    let signed = if negative { format!("-{digits}") } else { digits.to_owned() };
    signed.parse().map_err(|_| ParseError::range("ParseInt", text))
}

/// `strconv.ParseInt(text, 10, 32)`.
///
/// # Errors
/// Not an integer, or outside the 32-bit range.
pub fn parse_int32(text: &str) -> Result<i32, ParseError> {
    let wide = parse_int(text)?;
    i32::try_from(wide).map_err(|_| ParseError::range("ParseInt", text))
}

/// `strconv.ParseUint(text, 10, 64)`: decimal digits without a sign.
///
/// # Errors
/// Not an unsigned integer, or above the 64-bit range.
pub fn parse_uint(text: &str) -> Result<u64, ParseError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError::syntax("ParseUint", text));
    }
    text.parse().map_err(|_| ParseError::range("ParseUint", text))
}

/// `strconv.ParseFloat(text, 64)`: decimal and hexadecimal floats, underscores between digits, `inf`, `nan`.
///
/// # Errors
/// Not a float, or one whose magnitude is above the 64-bit range.
pub fn parse_float(text: &str) -> Result<f64, ParseError> {
    let syntax = || ParseError::syntax("ParseFloat", text);
    if text.eq_ignore_ascii_case("nan") {
        return Ok(f64::NAN);
    }
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let sign = if negative { -1.0 } else { 1.0 };
    if unsigned.eq_ignore_ascii_case("inf") || unsigned.eq_ignore_ascii_case("infinity") {
        return Ok(sign * f64::INFINITY);
    }
    let hex = unsigned.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("0x"));
    if !underscores_separate_digits(unsigned, hex) {
        return Err(syntax());
    }
    let plain: String = unsigned.chars().filter(|c| *c != '_').collect();
    let magnitude = if hex { hex_float(&plain[2..]) } else { decimal_float(&plain) };
    match magnitude {
        None => Err(syntax()),
        Some(value) if value.is_infinite() => Err(ParseError::range("ParseFloat", text)),
        Some(value) => Ok(sign * value),
    }
}

fn underscores_separate_digits(text: &str, hex: bool) -> bool {
    let digit = |b: u8| if hex { b.is_ascii_hexdigit() } else { b.is_ascii_digit() };
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(i, b)| {
        let after = bytes.get(i + 1).is_some_and(|b| digit(*b));
        // An underscore may also stand right behind the base prefix.
        let before = i > 0 && (digit(bytes[i - 1]) || (hex && i == 2));
        *b != b'_' || (before && after)
    })
}

fn decimal_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let dots = mantissa.bytes().filter(|b| *b == b'.').count();
    if digits == 0 || dots > 1 || digits + dots != mantissa.len() {
        return None;
    }
    if let Some(exponent) = exponent {
        let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
    }
    text.parse().ok()
}

fn hex_float(text: &str) -> Option<f64> {
    let at = text.find(['p', 'P'])?;
    let (mantissa, exponent) = (&text[..at], &text[at + 1..]);
    let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    if unsigned.is_empty() || !unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut exponent: i64 =
        exponent.strip_prefix('+').unwrap_or(exponent).parse().unwrap_or(i64::from(i32::MAX));
    let (mut bits, mut digits, mut fraction) = (0_u64, 0, false);
    for c in mantissa.chars() {
        match c.to_digit(16) {
            Some(digit) => {
                digits += 1;
                if bits >> 60 == 0 {
                    bits = bits << 4 | u64::from(digit);
                    exponent -= if fraction { 4 } else { 0 };
                } else {
                    // Beyond what rounding can see; only the scale still matters.
                    bits |= u64::from(digit != 0);
                    exponent += if fraction { 0 } else { 4 };
                }
            }
            None if c == '.' && !fraction => fraction = true,
            None => return None,
        }
    }
    if digits == 0 {
        return None;
    }
    let exponent = i32::try_from(exponent.clamp(-5000, 5000)).unwrap_or(0);
    // In two steps, so that neither factor overflows where the product does not.
    Some(bits as f64 * 2_f64.powi(exponent / 2) * 2_f64.powi(exponent - exponent / 2))
}

/// A Go `time.Duration`: signed nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    /// Whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * 1_000_000_000)
    }

    /// Whether there is no part of a second.
    #[must_use]
    pub const fn is_whole_seconds(self) -> bool {
        self.0 % 1_000_000_000 == 0
    }

    /// The same as a standard duration; negative ones are zero.
    #[must_use]
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for GoDuration {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if nanos == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let decimal = |f: &mut fmt::Formatter<'_>, scale: u64, unit: &str, value: u64| {
            let (whole, rest) = (value / scale, value % scale);
            if rest == 0 {
                return write!(f, "{whole}{unit}");
            }
            let width = scale.ilog10() as usize;
            let fraction = format!("{rest:0width$}");
            write!(f, "{whole}.{}{unit}", fraction.trim_end_matches('0'))
        };
        if nanos < 1_000 {
            return write!(f, "{nanos}ns");
        } else if nanos < 1_000_000 {
            return decimal(f, 1_000, "µs", nanos);
        } else if nanos < 1_000_000_000 {
            return decimal(f, 1_000_000, "ms", nanos);
        }
        let minutes = nanos / 60_000_000_000;
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        decimal(f, 1_000_000_000, "s", nanos % 60_000_000_000)
    }
}

/// `time.ParseDuration`: an optional sign, then `0` or decimals with the units `ns us µs ms s m h`.
///
/// # Errors
/// Not a duration, or beyond 64 bits of nanoseconds.
pub fn parse_duration(text: &str) -> Result<GoDuration, ParseError> {
    let invalid = || ParseError::duration(format!("time: invalid duration {}", quote_bytes(text)));
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
    // One more than i64::MAX is reachable, as the most negative duration.
    const LIMIT: u64 = 1 << 63;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, tail) = rest.split_at(whole_len);
        let (fraction, tail) = match tail.strip_prefix('.') {
            Some(tail) => tail.split_at(tail.bytes().take_while(u8::is_ascii_digit).count()),
            None => ("", tail),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_len = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        if unit.is_empty() {
            return Err(ParseError::duration(format!(
                "time: missing unit in duration {}",
                quote_bytes(text)
            )));
        }
        let scale: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(ParseError::duration(format!(
                    "time: unknown unit {} in duration {}",
                    quote_bytes(unit),
                    quote_bytes(text)
                )));
            }
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let mut value = whole.checked_mul(scale).filter(|v| *v <= LIMIT).ok_or_else(invalid)?;
        if !fraction.is_empty() {
            // Digits beyond what 64 bits hold are dropped, not rounded.
            let (mut numerator, mut denominator) = (0_u64, 1_f64);
            for digit in fraction.bytes().map(|b| u64::from(b - b'0')) {
                match numerator.checked_mul(10).and_then(|n| n.checked_add(digit)).filter(|n| *n < LIMIT) {
                    Some(next) => (numerator, denominator) = (next, denominator * 10.0),
                    None => break,
                }
            }
            value += (numerator as f64 * (scale as f64 / denominator)) as u64;
        }
        total = total.checked_add(value).filter(|t| *t <= LIMIT).ok_or_else(invalid)?;
        rest = tail;
    }
    if negative {
        return Ok(GoDuration((total as i64).wrapping_neg()));
    }
    i64::try_from(total).map(GoDuration).map_err(|_| invalid())
}

/// Duration errors quote differently: every byte outside printable ASCII in hex.
fn quote_bytes(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' | 0x7f => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "[-+0-9._xpe]*[a-zµ]*|\\PC*") {
            let _ = (parse_bool(&text), parse_int(&text), parse_uint(&text), parse_float(&text));
            if let Ok(duration) = parse_duration(&text) {
                assert_eq!(parse_duration(&duration.to_string()), Ok(duration));
            }
            let _ = crate::quantity::value(&text);
            let _ = crate::images::Reference::parse(&text);
        }
    }

    #[test]
    fn durations_read_and_print_as_in_go() {
        for (text, printed) in [
            ("6s", "6s"),
            ("60s", "1m0s"),
            ("1h", "1h0m0s"),
            ("500ms", "500ms"),
            ("61.984s", "1m1.984s"),
            ("0", "0s"),
            ("-1.5h", "-1h30m0s"),
            ("+.5s", "500ms"),
            ("1h1.s", "1h0m1s"),
            ("1us", "1µs"),
            ("15ns", "15ns"),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.to_string()), Ok(printed.to_owned()), "{text}");
        }
        for (text, error) in [
            ("", r#"time: invalid duration """#),
            ("x", r#"time: invalid duration "x""#),
            (".s", r#"time: invalid duration ".s""#),
            ("10", r#"time: missing unit in duration "10""#),
            ("1d", r#"time: unknown unit "d" in duration "1d""#),
            ("9223372036854775808ns", r#"time: invalid duration "9223372036854775808ns""#),
        ] {
            assert_eq!(parse_duration(text).map_err(|e| e.to_string()), Err(error.to_owned()), "{text}");
        }
        assert_eq!(parse_duration("-9223372036854775808ns"), Ok(GoDuration(i64::MIN)));
    }

    #[test]
    fn floats_follow_gos_grammar() {
        for (text, value) in [
            ("1e3", 1000.0),
            ("0x1p-2", 0.25),
            ("1_000", 1000.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("+1", 1.0),
            ("-0x1.8p1", -3.0),
        ] {
            assert_eq!(parse_float(text), Ok(value), "{text}");
        }
        assert_eq!(parse_float("-INF"), Ok(f64::NEG_INFINITY));
        assert!(parse_float("nan").is_ok_and(f64::is_nan));
        for text in ["", " 1", "1 ", "_1", "1_", "1__0", "e1", ".", "0x1", "1e", "+nan", "infin"] {
            assert!(parse_float(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_float("1e400").map_err(|e| e.to_string()),
            Err(r#"strconv.ParseFloat: parsing "1e400": value out of range"#.to_owned())
        );
    }

    #[test]
    fn integers_allow_a_sign_and_nothing_else() {
        assert_eq!(parse_int("+5"), Ok(5));
        assert_eq!(parse_int32("-2147483648"), Ok(i32::MIN));
        assert!(parse_int32("2147483648").is_err());
        for text in ["", "-", "1_0", "0x1", " 1", "1.0"] {
            assert!(parse_int(text).is_err(), "{text}");
        }
    }
}
