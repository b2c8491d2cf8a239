//! Texts as Go's standard library writes them: quoted, escaped, and of floats.

use std::fmt::Write as _;

/// A string in double quotes as Go's `%q` writes it.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        // Writing to a string does not fail.
        let _ = match c {
            '"' => out.write_str("\\\""),
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\x07' => out.write_str("\\a"),
            '\x08' => out.write_str("\\b"),
            '\x0c' => out.write_str("\\f"),
            '\x0b' => out.write_str("\\v"),
            c if is_printable(c) => out.write_char(c),
            c if c.is_ascii() => write!(out, "\\x{:02x}", c as u32),
            c if c as u32 > 0xffff => write!(out, "\\U{:08x}", c as u32),
            c => write!(out, "\\u{:04x}", c as u32),
        };
    }
    out.push('"');
    out
}

/// Whether Go prints `c` as it is.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return matches!(c, ' '..='~');
    }
    // The standard library knows, but tells only of a character inside a text.
    let mut buffer = *b"a\0\0\0\0";
    let length = c.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..=length]).unwrap_or_default();
    text.escape_debug().nth(1) == Some(c)
}

/// `c` as the function `js` writes it; `None`: as it is.
pub(crate) fn js(c: char) -> Option<String> {
    match c {
        '\\' | '\'' | '"' => Some(format!("\\{c}")),
        '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", c as u32)),
        // Not so DEL, in spite of its being a control character.
        c if c < ' ' || (!c.is_ascii() && !is_printable(c)) => Some(format!("\\u{:04X}", c as u32)),
        _ => None,
    }
}

/// `c` as the function `html` writes it; `None`: as it is.
pub(crate) fn html(c: char) -> Option<String> {
    let escaped = match c {
        '\0' => "\u{fffd}",
        '<' => "&lt;",
        '>' => "&gt;",
        '&' => "&amp;",
        '"' => "&#34;",
        '\'' => "&#39;",
        _ => return None,
    };
    Some(escaped.to_owned())
}

/// `c` as the function `urlquery` writes it; `None`: as it is.
pub(crate) fn urlquery(c: char) -> Option<String> {
    if c == ' ' {
        return Some("+".to_owned());
    }
    if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~') {
        return None;
    }
    let mut out = String::new();
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        let _ = write!(out, "%{byte:02X}");
    }
    Some(out)
}

/// How Go prints a float with `%v`: the shortest digits that read back, with an exponent below 1e-4 and from 1e6.
#[must_use]
pub fn format_float(value: f64) -> String {
    format_general(value, None)
}

/// How Go prints a float with `%f`: six decimals.
#[must_use]
pub fn format_fixed(value: f64) -> String {
    not_finite(value).map_or_else(|| format!("{value:.6}"), str::to_owned)
}

pub(crate) fn not_finite(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value.is_infinite() {
        Some(if value > 0.0 { "+Inf" } else { "-Inf" })
    } else {
        None
    }
}

/// `%e`: `precision` decimals, or as many as it takes; at least two digits of exponent.
pub(crate) fn format_exponent(value: f64, precision: Option<usize>) -> String {
    if let Some(text) = not_finite(value) {
        return text.to_owned();
    }
    let text = precision.map_or_else(|| format!("{value:e}"), |decimals| format!("{value:.decimals$e}"));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// `%g`: `precision` significant digits, or as many as it takes; with an exponent where the number is small or has
/// more digits than that before its point. The shortest form decides as if it had six digits.
pub(crate) fn format_general(value: f64, precision: Option<usize>) -> String {
    if let Some(text) = not_finite(value) {
        return text.to_owned();
    }
    let precision = precision.map(|digits| digits.max(1));
    let text = precision.map_or_else(|| format!("{value:e}"), |digits| format!("{value:.*e}", digits - 1));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let trailing = mantissa.bytes().filter(u8::is_ascii_digit).rev().take_while(|b| *b == b'0').count();
    let significant = (digits - trailing).max(1);
    let limit = match precision {
        None => 6,
        Some(limit) if limit > significant && significant as i64 > exponent => significant,
        Some(limit) => limit,
    };
    if exponent < -4 || exponent >= limit as i64 {
        return format_exponent(value, Some(significant - 1));
    }
    let decimals = usize::try_from(significant as i64 - 1 - exponent).unwrap_or(0);
    // Rounded as often as the digits were: what is beyond them must not come back.
    let rounded: f64 = text.parse().unwrap_or(value);
    format!("{rounded:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_go() {
        for (value, text) in [
            (0.01, "0.01"),
            (100.0, "100"),
            (0.0, "0"),
            (-0.0, "-0"),
            (1e-5, "1e-05"),
            (5.4e-5, "5.4e-05"),
            (0.0001, "0.0001"),
            (123_456.0, "123456"),
            (1e6, "1e+06"),
            (1_234_567.8, "1.2345678e+06"),
            (1.234_567_89e20, "1.23456789e+20"),
            (1e21, "1e+21"),
            (1.5e-300, "1.5e-300"),
            (f64::INFINITY, "+Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(format_float(value), text);
        }
        for (value, precision, text) in [
            (100_000.0, 4, "1e+05"),
            (1234.0, 4, "1234"),
            (0.1234, 2, "0.12"),
            (9.99, 2, "10"),
            (400.0, 2, "4e+02"),
            (100.0, 3, "100"),
            (1.0, 0, "1"),
        ] {
            assert_eq!(format_general(value, Some(precision)), text);
        }
        assert_eq!(format_exponent(1.0, Some(6)), "1.000000e+00");
        assert_eq!(format_exponent(-1234.5678, Some(3)), "-1.235e+03");
        assert_eq!(format_fixed(1.5), "1.500000");
    }

    #[test]
    fn only_what_is_printable_is_quoted_as_it_is() {
        assert_eq!(quote("a\"\\\n\x01\x7f"), r#""a\"\\\n\x01\x7f""#);
        assert_eq!(quote("é\u{301}日"), "\"é\u{301}日\"");
        assert_eq!(quote("\u{a0}\u{200b}\u{e0001}"), r#""\u00a0\u200b\U000e0001""#);
    }
}
