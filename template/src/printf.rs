//! `printf`, with the verbs that the values of templates have.

use crate::budget::Out;
use crate::text::{format_exponent, format_general, not_finite, quote};
use crate::value::Value;

/// Widest field and highest precision; Go's limit is a million.
const MAX_WIDTH: usize = 10_000;
/// Most decimals of a float: beyond them there are zeros.
const MAX_DECIMALS: usize = 1100;

#[derive(Clone, Copy, Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

pub(crate) fn printf(format: &str, arguments: &[Value<'_>], out: &mut Out<'_>) -> Result<(), String> {
    let mut arguments = arguments.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        let (spec, after) = spec(&rest[at + 1..]);
        let mut chars = after.chars();
        let verb = chars.next();
        rest = chars.as_str();
        match (spec, verb) {
            (_, None) => out.push("%!(NOVERB)")?,
            (_, Some('%')) => out.push("%")?,
            (None, Some(verb)) => {
                arguments.next();
                out.push(&format!("%!{verb}(BADWIDTH)"))?;
            }
            (Some(spec), Some(verb)) => match arguments.next() {
                Some(value) => spec.write(verb, value, out)?,
                None => out.push(&format!("%!{verb}(MISSING)"))?,
            },
        }
    }
    out.push(rest)?;
    if arguments.len() > 0 {
        out.push("%!(EXTRA ")?;
        for (i, value) in arguments.enumerate() {
            out.push(if i > 0 { ", " } else { "" })?;
            out.push(&typed(value))?;
        }
        out.push(")")?;
    }
    Ok(())
}

/// Flags, width and precision, unless they are beyond the limit, and what comes after them.
fn spec(text: &str) -> (Option<Spec>, &str) {
    let mut spec = Spec::default();
    let mut rest = text;
    while let Some(flag) = rest.chars().next() {
        match flag {
            '-' => spec.minus = true,
            '+' => spec.plus = true,
            '#' => spec.sharp = true,
            ' ' => spec.space = true,
            '0' => spec.zero = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let value = if digits == 0 { Some(0) } else { text[..digits].parse().ok() };
        (value.filter(|value: &usize| *value <= MAX_WIDTH), digits)
    };
    let (width, digits) = number(rest);
    rest = &rest[digits..];
    let mut precision = Some(None);
    if let Some(after) = rest.strip_prefix('.') {
        let (value, digits) = number(after);
        rest = &after[digits..];
        precision = value.map(Some);
    }
    match (width, precision) {
        (Some(width), Some(precision)) => (Some(Spec { width, precision, ..spec }), rest),
        _ => (None, rest),
    }
}

fn typed(value: &Value<'_>) -> String {
    match value {
        Value::Nothing => "<nil>".to_owned(),
        value => format!("{}={}", value.kind(), value.print().unwrap_or_default()),
    }
}

impl Spec {
    fn write(&self, verb: char, value: &Value<'_>, out: &mut Out<'_>) -> Result<(), String> {
        match (value, verb) {
            (Value::Text(text), _) => self.text(verb, text, out),
            (Value::Bool(_), 'v' | 't') => self.pad(&value.print()?, out),
            (Value::Int(value), 'v' | 'd') => {
                self.integer(*value, "", &value.unsigned_abs().to_string(), out)
            }
            (Value::Int(value), 'x') => {
                self.integer(*value, "0x", &format!("{:x}", value.unsigned_abs()), out)
            }
            (Value::Int(value), 'X') => {
                self.integer(*value, "0X", &format!("{:X}", value.unsigned_abs()), out)
            }
            (Value::Int(value), 'o') => {
                self.integer(*value, "0", &format!("{:o}", value.unsigned_abs()), out)
            }
            (Value::Int(value), 'b') => {
                self.integer(*value, "0b", &format!("{:b}", value.unsigned_abs()), out)
            }
            (Value::Int(value), 'c') => {
                let c = u32::try_from(*value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
                self.pad(c.encode_utf8(&mut [0; 4]), out)
            }
            (Value::Float(value), _) => self.float(verb, *value, out),
            (Value::List(list), _) => {
                out.push("[")?;
                for (i, text) in list.iter().enumerate() {
                    out.push(if i > 0 { " " } else { "" })?;
                    self.text(verb, text, out)?;
                }
                out.push("]")
            }
            (Value::Nothing, 'v') => self.pad("<nil>", out),
            (Value::Map(_) | Value::Object(_), 'v' | 's' | 'q') => self.text(verb, &value.print()?, out),
            _ => out.push(&format!("%!{verb}({})", typed(value))),
        }
    }

    fn text(&self, verb: char, text: &str, out: &mut Out<'_>) -> Result<(), String> {
        let end =
            self.precision.and_then(|chars| text.char_indices().nth(chars)).map_or(text.len(), |(at, _)| at);
        match verb {
            'v' | 's' => self.pad(&text[..end], out),
            'q' => self.pad(&quote(&text[..end]), out),
            'x' | 'X' => {
                let bytes = &text.as_bytes()[..self.precision.unwrap_or(text.len()).min(text.len())];
                let hex: String = bytes
                    .iter()
                    .map(|byte| if verb == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") })
                    .collect();
                self.pad(&hex, out)
            }
            _ => out.push(&format!("%!{verb}(string={text})")),
        }
    }

    fn integer(&self, value: i64, prefix: &str, digits: &str, out: &mut Out<'_>) -> Result<(), String> {
        let mut digits = if self.precision == Some(0) && value == 0 { "" } else { digits }.to_owned();
        let sign = self.sign(value < 0);
        let prefix = if self.sharp && !(prefix == "0" && digits.starts_with('0')) { prefix } else { "" };
        let wanted = match self.precision {
            Some(precision) => precision,
            None if self.zero && !self.minus => self.width.saturating_sub(sign.len() + prefix.len()),
            None => 0,
        };
        digits.insert_str(0, &"0".repeat(wanted.saturating_sub(digits.len())));
        self.pad(&format!("{sign}{prefix}{digits}"), out)
    }

    fn float(&self, verb: char, value: f64, out: &mut Out<'_>) -> Result<(), String> {
        let precision = self.precision.map(|precision| precision.min(MAX_DECIMALS));
        let magnitude = value.abs();
        let digits = match verb {
            'v' | 'g' => format_general(magnitude, precision),
            'G' => format_general(magnitude, precision).to_uppercase(),
            'e' => format_exponent(magnitude, Some(precision.unwrap_or(6))),
            'E' => format_exponent(magnitude, Some(precision.unwrap_or(6))).to_uppercase(),
            'f' | 'F' => format!("{magnitude:.*}", precision.unwrap_or(6)),
            _ => return out.push(&format!("%!{verb}({})", typed(&Value::Float(value)))),
        };
        if not_finite(value).is_some() {
            let sign = match self.sign(value.is_sign_negative() && !value.is_nan()) {
                // Infinity always has one.
                "" if !value.is_nan() => "+",
                sign => sign,
            };
            return self.pad(&format!("{sign}{}", if value.is_nan() { "NaN" } else { "Inf" }), out);
        }
        let sign = self.sign(value.is_sign_negative());
        let zeros =
            if self.zero && !self.minus { self.width.saturating_sub(sign.len() + digits.len()) } else { 0 };
        self.pad(&format!("{sign}{}{digits}", "0".repeat(zeros)), out)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            (false, false, false) => "",
        }
    }

    fn pad(&self, text: &str, out: &mut Out<'_>) -> Result<(), String> {
        let padding = self.width.saturating_sub(text.chars().count());
        if !self.minus {
            out.push_many(' ', padding)?;
        }
        out.push(text)?;
        if self.minus {
            out.push_many(' ', padding)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn print(format: &str, arguments: &[Value<'_>]) -> String {
        let budget = Budget::new();
        let mut out = Out::new(&budget);
        printf(format, arguments, &mut out).unwrap();
        out.into_text()
    }

    #[test]
    fn verbs_are_gos() {
        let text = |text: &'static str| Value::Text(text.into());
        let list = ["a".to_owned(), "b c".to_owned()];
        for (format, argument, printed) in [
            ("%.3q", text("日本語日本語"), "\"日本語\""),
            ("%10.1q", text("日本語日本語"), "       \"日\""),
            ("%.1x", text("日本語"), "e6"),
            ("%20.5s|", text("qwertyuiop"), "               qwert|"),
            ("%-20.5s|", text("qwertyuiop"), "qwert               |"),
            ("%10v", Value::Nothing, "     <nil>"),
            ("%d", Value::Int(i64::MIN), "-9223372036854775808"),
            ("%.d", Value::Int(0), ""),
            ("%06.0d", Value::Int(0), "      "),
            ("% d", Value::Int(12345), " 12345"),
            ("%+d", Value::Int(12345), "+12345"),
            ("%#b", Value::Int(-6), "-0b110"),
            ("%#o", Value::Int(0o1234), "01234"),
            ("%#X", Value::Int(0), "0X0"),
            ("%010d", Value::Int(-12345), "-000012345"),
            ("%020.8d", Value::Int(-1234), "           -00001234"),
            ("%-#20.8x|", Value::Int(0x1234abc), "0x01234abc          |"),
            ("%20c", Value::Int(120), "                   x"),
            ("%+.3e", Value::Float(0.0), "+0.000e+00"),
            ("%+07.2f", Value::Float(-1.0), "-001.00"),
            ("%-07.2f|", Value::Float(1.0), "1.00   |"),
            ("% .3E", Value::Float(-1.0), "-1.000E+00"),
            ("%+.3g", Value::Float(0.0), "+0"),
            ("%f", Value::Float(f64::INFINITY), "+Inf"),
            ("% f", Value::Float(f64::NAN), " NaN"),
            ("% 20F", Value::Float(f64::INFINITY), "                 Inf"),
            ("%+020e", Value::Float(f64::INFINITY), "                +Inf"),
            ("%e", Value::Float(1234.5678e-8), "1.234568e-05"),
            ("%f", Value::Float(1234.5678e3), "1234567.800000"),
            ("%f", Value::Float(-1e-9), "-0.000000"),
            ("%G", Value::Float(1234.5678e-8), "1.2345678E-05"),
            ("%20.8e", Value::Float(1.2345e3), "      1.23450000e+03"),
            ("%20f", Value::Float(12_345_678_901.234_568), "  12345678901.234568"),
            ("%t", Value::Bool(true), "true"),
            ("%v %%", Value::List(&list), "[a b c] %"),
            ("%q", Value::List(&list), r#"["a" "b c"]"#),
            ("%d", text("hi"), "%!d(string=hi)"),
            ("%s", Value::Int(5), "%!s(int=5)"),
            ("%d", Value::Float(0.5), "%!d(float64=0.5)"),
            ("%s", Value::Nothing, "%!s(<nil>)"),
            ("%z", Value::Bool(false), "%!z(bool=false)"),
            ("%", text("x"), "%!(NOVERB)%!(EXTRA string=x)"),
            ("%99999999999d", Value::Int(1), "%!d(BADWIDTH)"),
        ] {
            assert_eq!(print(format, &[argument]), printed, "{format}");
        }
        assert_eq!(print("%s", &[]), "%!s(MISSING)");
        assert_eq!(print("a", &[text("x"), Value::Int(5)]), "a%!(EXTRA string=x, int=5)");
    }
}
