//! Content digests: `sha256:` and 64 hexadecimal digits.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

/// The digest a hasher arrived at.
pub(super) fn hex_digest(hasher: Sha256) -> String {
    format!("sha256:{}", hex::encode(hasher.finalize()))
}

/// The digest of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex_digest(Sha256::new().chain_update(bytes))
}

/// The hexadecimal part of a well-formed digest; anything else could name a file elsewhere.
pub(super) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let fits = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    fits.then_some(hex)
}

/// Copies and computes the digest on the way. Answers it and the length.
pub(super) fn copy_digest(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((hex_digest(hasher), length)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
        length += count as u64;
    }
}

/// The digest of a chain of layers, from their own digests, lowest first.
pub(super) fn chain_id(below: Option<&str>, diff_id: &str) -> String {
    match below {
        None => diff_id.to_owned(),
        Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_digests_name_files() {
        let good = digest_of(b"");
        assert_eq!(good, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(digest_hex(&good).is_some());
        for bad in ["sha256:../../x", "sha512:00", "", "sha256:E3B0", &good[..70]] {
            assert_eq!(digest_hex(bad), None, "{bad}");
        }
    }
}
