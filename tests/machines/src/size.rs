//! Sizes and rates on the command line.

/// A number of bytes as it is said, such as 4096, 0x1000, 64K, 64M, 2G or 1T (powers of 1,024):
/// nothing is rounded.
///
/// # Errors
///
/// What was asked for and what is allowed, if it is no number of this form, zero, or too large.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().last() {
        Some((end, 'K' | 'k')) => (&text[..end], 10),
        Some((end, 'M' | 'm')) => (&text[..end], 20),
        Some((end, 'G' | 'g')) => (&text[..end], 30),
        Some((end, 'T' | 't')) => (&text[..end], 40),
        _ => (text, 0),
    };
    let parsed = match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => number.parse(),
    };
    // The standard library takes a sign, too.
    let is_number = number.chars().all(|c| c.is_ascii_alphanumeric());
    let parsed = parsed.ok().filter(|_| is_number).and_then(|n| n.checked_mul(1 << shift));
    match parsed {
        Some(0) => Err("zero bytes are asked for, at least 1 is needed".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err(format!(
            "\"{text}\" is no number of bytes below 16 EiB, such as 1048576, 0x100000, 1024K or \
             1M; K, M, G and T are understood"
        )),
    }
}

/// As [`bytes`], of something that is made of whole units of `unit` bytes.
///
/// # Errors
///
/// As [`bytes`], and if it is no multiple of `unit`.
pub fn multiple(text: &str, unit: u64) -> Result<u64, String> {
    let asked = bytes(text)?;
    if asked % unit == 0 {
        return Ok(asked);
    }
    let below = asked / unit * unit;
    let near = match (below, below.checked_add(unit)) {
        (0, _) => format!("{unit} is the least"),
        (_, Some(above)) => format!("{below} and {above} are the nearest"),
        (_, None) => format!("{below} is the nearest"),
    };
    Err(format!("{asked} bytes are asked for, which is no multiple of {unit}: {near}"))
}

/// Memory: as [`multiple`] of pages of 4 KiB.
///
/// # Errors
///
/// As [`multiple`].
pub fn pages(text: &str) -> Result<u64, String> {
    multiple(text, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_got() {
        for (text, expected) in [
            ("1", 1),
            ("100", 100),
            ("5000", 5000),
            ("0x1000", 4096),
            ("3k", 3072),
            ("64M", 64 << 20),
            ("7G", 7 << 30),
            ("2t", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "K",
            "0",
            "0M",
            "-1",
            "+1",
            "1.5G",
            "1 M",
            "1MB",
            "1MiB",
            "M1",
            "0x",
            "0x+5",
            "x",
            "1é",
            "18446744073709551616",
            "16777216T",
            "16777217T",
            "0x10000000000000000",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_made_of_whole_pages() {
        assert_eq!(pages("8K"), Ok(8192));
        assert_eq!(
            pages("100").unwrap_err(),
            "100 bytes are asked for, which is no multiple of 4096: 4096 is the least"
        );
        assert_eq!(
            pages("5000").unwrap_err(),
            "5000 bytes are asked for, which is no multiple of 4096: 4096 and 8192 are the nearest"
        );
        assert!(pages("18446744073709551615").is_err());
        assert!(pages("ten").unwrap_err().starts_with("\"ten\" is no number of bytes"));
    }
}
