//! Answers, as far as the load generator has to understand them.

/// What has arrived of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not all of it.
    Partial,
    /// All of it.
    Whole {
        /// Its status is 200.
        ok: bool,
        /// The connection ends with it.
        close: bool,
    },
    /// Not an HTTP/1.1 answer that ends where it says.
    Nonsense,
}

/// Looks at all that has arrived since the request was sent.
pub(super) fn progress(bytes: &[u8]) -> Progress {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Progress::Partial };
    let (head, body) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let status = lines.next().unwrap_or_default();
    if !status.starts_with(b"HTTP/1.1 ") {
        return Progress::Nonsense;
    }
    let ok = status[9..].starts_with(b"200");
    let (mut length, mut chunked, mut close) = (None, false, false);
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Progress::Nonsense };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"connection") {
            close = value.eq_ignore_ascii_case(b"close");
        }
    }
    let whole = Progress::Whole { ok, close };
    match (chunked, length) {
        (true, _) => match chunks(body) {
            Some(true) => whole,
            Some(false) => Progress::Partial,
            None => Progress::Nonsense,
        },
        (false, Some(length)) => match body.len().cmp(&length) {
            std::cmp::Ordering::Less => Progress::Partial,
            std::cmp::Ordering::Equal => whole,
            std::cmp::Ordering::Greater => Progress::Nonsense,
        },
        (false, None) => Progress::Nonsense,
    }
}

/// Whether a chunked body is there to its end; `None` if it is none.
fn chunks(mut rest: &[u8]) -> Option<bool> {
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Some(false) };
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            // Trailers, then an empty line.
            while let Some(end) = find(rest, b"\r\n") {
                rest = &rest[end + 2..];
                if end == 0 {
                    return if rest.is_empty() { Some(true) } else { None };
                }
            }
            return Some(false);
        }
        match rest.get(size.checked_add(2)?..) {
            Some(next) => rest = next,
            None => return Some(false),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Progress = Progress::Whole { ok: true, close: false };

    #[test]
    fn every_prefix_of_an_answer_is_partial() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nServer: x\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nTrailer: a\r\n\r\n",
            "HTTP/1.1 200\r\ncontent-length:0\r\n\r\n",
        ] {
            for end in 0..text.len() {
                assert_eq!(progress(&text.as_bytes()[..end]), Progress::Partial, "{:?}", &text[..end]);
            }
            assert_eq!(progress(text.as_bytes()), OK, "{text:?}");
        }
    }

    #[test]
    fn what_answers_say() {
        let of = |text: &str| progress(text.as_bytes());
        assert_eq!(
            of("HTTP/1.1 503 no\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
            Progress::Whole { ok: false, close: true }
        );
        for nonsense in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx",
        ] {
            assert_eq!(of(nonsense), Progress::Nonsense, "{nonsense:?}");
        }
    }
}
