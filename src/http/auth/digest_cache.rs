//! What was found out a moment ago, by a digest of what was shown: bounded in number and in time, and never the secret
//! itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::crypto::ring;

/// SHA-256 of a secret, with a salt that this process made up: of no use to whoever reads our memory's remains
/// elsewhere.
pub(in crate::http) type Digest = [u8; 32];

/// Makes digests. How long two take to compare tells nothing, since nobody outside can compute one.
pub(in crate::http) struct Salt([u8; 32]);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(…)")
    }
}

impl Salt {
    /// A new one. `None`: the kernel gives no random numbers.
    pub(in crate::http) fn new() -> Option<Self> {
        let mut salt = [0; 32];
        ring::default_provider().secure_random.fill(&mut salt).ok()?;
        Some(Salt(salt))
    }

    /// Of several parts; where one ends and the next begins counts.
    pub(in crate::http) fn digest(&self, parts: &[&[u8]]) -> Digest {
        let mut bytes = self.0.to_vec();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        let mut digest = Digest::default();
        if let rustls::SupportedCipherSuite::Tls13(suite) = ring::cipher_suite::TLS13_AES_128_GCM_SHA256 {
            digest.copy_from_slice(suite.common.hash_provider.hash(&bytes).as_ref());
        }
        digest
    }
}

/// Digests with what is known of them.
#[derive(Debug)]
pub(in crate::http) struct Remembered<T> {
    entries: Mutex<HashMap<Digest, (Instant, T)>>,
    most: usize,
}

impl<T: Clone> Remembered<T> {
    /// At most this many: beyond, the oldest one goes.
    pub(in crate::http) fn new(most: usize) -> Self {
        Remembered { entries: Mutex::default(), most }
    }

    /// What was remembered less than `age` ago, and how long ago.
    pub(in crate::http) fn get(&self, digest: &Digest, age: Duration) -> Option<(Duration, T)> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, value) = entries.get(digest)?;
        let passed = since.elapsed();
        (passed < age).then(|| (passed, value.clone()))
    }

    pub(in crate::http) fn put(&self, digest: Digest, value: T) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most && !entries.contains_key(&digest) {
            let oldest = entries.iter().min_by_key(|(_, (since, _))| *since).map(|(digest, _)| *digest);
            if let Some(oldest) = oldest {
                entries.remove(&oldest);
            }
        }
        entries.insert(digest, (Instant::now(), value));
    }

    pub(in crate::http) fn forget(&self, digest: &Digest) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_parts_and_processes_apart() {
        let (one, other) = (Salt::new().unwrap(), Salt::new().unwrap());
        assert_eq!(one.digest(&[b"a", b"bc"]), one.digest(&[b"a", b"bc"]));
        assert_ne!(one.digest(&[b"a", b"bc"]), one.digest(&[b"ab", b"c"]));
        assert_ne!(one.digest(&[b"a"]), other.digest(&[b"a"]));
        assert_ne!(one.digest(&[b"a"]), Digest::default());
    }

    #[test]
    fn the_oldest_goes_first_and_time_ends_each() {
        let salt = Salt::new().unwrap();
        let remembered = Remembered::new(3);
        let digests: Vec<_> = (0..5u8).map(|number| salt.digest(&[&[number]])).collect();
        for (number, digest) in digests.iter().enumerate() {
            remembered.put(*digest, number);
        }
        let long = Duration::from_secs(3600);
        let known: Vec<_> = digests.iter().filter_map(|digest| remembered.get(digest, long)).map(|(_, n)| n).collect();
        assert_eq!(known, [2, 3, 4]);
        assert!(remembered.get(&digests[4], Duration::ZERO).is_none());
        remembered.forget(&digests[4]);
        assert!(remembered.get(&digests[4], long).is_none());
    }
}
