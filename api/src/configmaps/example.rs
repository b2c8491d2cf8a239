//! The `_example` block of a shipped ConfigMap, and the checksum that tells when someone edited it by mistake.

/// The key that holds the example; parsers ignore it.
pub const KEY: &str = "_example";

/// The annotation with the checksum of the example as it was shipped.
pub const CHECKSUM_ANNOTATION: &str = "knative.dev/example-checksum";

/// The checksum of an example: CRC-32 (IEEE) over the trimmed text with every run of line breaks replaced by
/// the two characters `\n`, in eight hexadecimal digits.
#[must_use]
pub fn checksum(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut breaking = false;
    let mut rest = value.trim().chars();
    while let Some(c) = rest.next() {
        if c == '\n' || (c == '\r' && rest.as_str().starts_with('\n')) {
            if !breaking {
                text.push_str("\\n");
            }
            breaking = true;
        } else {
            text.push(c);
            breaking = false;
        }
    }
    format!("{:08x}", crc32(text.as_bytes()))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_count_once() {
        assert_eq!(checksum("a\r\n\nb"), checksum("a\nb"));
        assert_eq!(checksum(" a\n"), checksum("a"));
        assert_ne!(checksum("a\rb"), checksum("a\nb"));
    }
}
