//! Kernel keys by user: `/proc/key-users`, a row for each user who has a key.
//!
//! `uid: keyrings and references  keys/instantiated  keys/most  bytes/most`, the last two as they count against the
//! quota (`proc_key_users_show` in security/keys/proc.c). The quota is that of root or that of everybody else, by the
//! uid on the machine.

use std::cmp::Reverse;

use super::{KEY_BYTES, KEY_LIMIT_BYTES, KEYS, KEYS_LIMIT};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::metric::Samples;

/// What one user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    keys: u64,
    keys_limit: u64,
    bytes: u64,
    bytes_limit: u64,
}

impl User {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let uid = fields.next()?.strip_suffix(':')?.parse().ok()?;
        let mut pairs = fields.skip(2).map(|pair| {
            let (used, limit) = pair.split_once('/')?;
            Some((used.parse().ok()?, limit.parse().ok()?))
        });
        let ((keys, keys_limit), (bytes, bytes_limit)) = (pairs.next()??, pairs.next()??);
        Some(User { uid, keys, keys_limit, bytes, bytes_limit })
    }

    /// Used of the nearer quota, in units of 2^-32.
    fn near(&self) -> u64 {
        let share = |used: u64, limit: u64| (used.min(u32::MAX.into()) << 32) / limit.max(1);
        share(self.keys, self.keys_limit).max(share(self.bytes, self.bytes_limit))
    }
}

/// Every user; `None` on a kernel without keys.
///
/// # Errors
/// The operating system's; malformed if a row is not one, or they are more than 4 MiB.
pub(super) fn read(host: &Host) -> Result<Option<Vec<User>>> {
    let path = host.proc("key-users");
    let Some(text) = host.read_some(&path)? else { return Ok(None) };
    let malformed = |line: &str| Error::malformed(format!("{}: {line:?}", path.display()));
    text.lines().map(|line| User::parse(line).ok_or_else(|| malformed(line))).collect::<Result<_>>().map(Some)
}

/// Root, the users nearest to a quota, and the sum of the others.
pub(super) fn assess(users: &[User], most: usize, samples: &mut Samples) {
    let mut users = users.to_vec();
    users.sort_unstable_by_key(|user| (user.uid != 0, Reverse(user.near()), user.uid));
    let root = usize::from(users.first().is_some_and(|user| user.uid == 0));
    let shown = (root + most).min(users.len());
    for user in &users[..shown] {
        let uid = user.uid.to_string();
        samples.push(&KEYS, &[&uid], user.keys as f64);
        samples.push(&KEYS_LIMIT, &[&uid], user.keys_limit as f64);
        samples.push(&KEY_BYTES, &[&uid], user.bytes as f64);
        samples.push(&KEY_LIMIT_BYTES, &[&uid], user.bytes_limit as f64);
    }
    if shown < users.len() {
        let sum = |of: fn(&User) -> u64| users[shown..].iter().map(of).sum::<u64>() as f64;
        samples.push(&KEYS, &["other"], sum(|user| user.keys));
        samples.push(&KEY_BYTES, &["other"], sum(|user| user.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let user = |line| User::parse(line);
        let some = |uid, keys, keys_limit, bytes, bytes_limit| Some(User { uid, keys, keys_limit, bytes, bytes_limit });
        assert_eq!(user("    0:    23 22/22 10/1000000 187/25000000"), some(0, 10, 1_000_000, 187, 25_000_000));
        assert_eq!(user("  997:     1 1/1 1/200 9/20000"), some(997, 1, 200, 9, 20_000));
        for garbage in ["", "0: 1", "x: 1 1/1 1/2 1/2", "0: 1 1/1 1/2 1", "0: 1 1/1 -1/2 1/2", "0 1 1/1 1/2 1/2"] {
            assert_eq!(user(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_nearest_are_shown_and_the_others_add_up() {
        let user = |uid, keys, bytes| User { uid, keys, keys_limit: 200, bytes, bytes_limit: 20_000 };
        let users = [user(0, 1, 9), user(5, 10, 90), user(6, 190, 90), user(7, 10, 19_990), user(8, 11, 90)];
        let mut samples = Samples::new();
        assess(&users, 2, &mut samples);
        samples.refuse_duplicates();
        let keys = ["0", "5", "6", "7", "8", "other"].map(|uid| samples.value(&KEYS, &[uid]));
        assert_eq!(keys, [Some(1.0), None, Some(190.0), Some(10.0), None, Some(21.0)]);
        assert_eq!(samples.value(&KEY_BYTES, &["other"]), Some(180.0));
        assert_eq!(samples.value(&KEYS_LIMIT, &["other"]), None);
        let mut samples = Samples::new();
        assess(&users[1..], 10, &mut samples);
        assert_eq!(samples.value(&KEYS, &["0"]), None, "in a user namespace of our own");
        assert_eq!(samples.value(&KEYS, &["other"]), None, "there are none");
    }
}
