//! Passwords: bcrypt, so that a stolen file is of little use, and what that costs bounded, so that the node does not
//! pay for it.
//!
//! A check takes some 50 to 100 ms of a core by design. So what was found out is remembered (by digest, see
//! `remembered.rs`): the password of a scrape is checked once. One check runs at a time, on a blocking thread, and
//! after a wrong password the next has to wait three times as long as the check took: whoever tries passwords gets a
//! quarter of one core and no more. Who waits is bounded by the requests that one address may have under way
//! (`limits.rs`), and served in order.
//!
//! A user that does not exist costs what one that exists costs: the same kind of hash is computed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::digest_cache::{Digest, Remembered, Salt};
use crate::http::web_config::User;

/// A user has one right password; a few more that bcrypt, which sees 72 bytes, takes for the same.
const RIGHT: usize = 128;
/// A flood of wrong ones displaces only wrong ones.
const WRONG: usize = 256;
const RIGHT_FOR: Duration = Duration::from_secs(3600);
/// A Prometheus with yesterday's password asks every few seconds for as long as nobody looks.
const WRONG_FOR: Duration = Duration::from_secs(600);

/// Name and password as a client shows them.
pub(in crate::http) struct Shown {
    name: String,
    password: Vec<u8>,
}

impl Shown {
    /// From the value of `Authorization`, less its `Basic`.
    pub(in crate::http) fn parse(value: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.trim()).ok()?;
        let colon = bytes.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8(bytes[..colon].to_vec()).ok()?;
        Some(Shown { name, password: bytes[colon + 1..].to_vec() })
    }
}

/// Checks passwords.
#[derive(Debug)]
pub(in crate::http) struct Passwords {
    salt: Salt,
    right: Remembered<()>,
    wrong: Remembered<()>,
    turn: Arc<Mutex<()>>,
}

impl Passwords {
    pub(in crate::http) fn new(salt: Salt) -> Self {
        let (right, wrong) = (Remembered::new(RIGHT), Remembered::new(WRONG));
        Passwords { salt, right, wrong, turn: Arc::default() }
    }

    /// Whether this is one of these users with the right password.
    pub(in crate::http) async fn admits(&self, users: &[User], shown: Shown) -> bool {
        if users.is_empty() {
            return false;
        }
        let known = users.iter().find(|user| user.name == shown.name);
        // Nobody's hash is somebody's, and always the same one: where costs differ, even they do not tell who exists.
        let stand_in = || {
            let digest = self.salt.digest(&[shown.name.as_bytes()]);
            &users[usize::from(digest[0]) % users.len()]
        };
        let hash = known.unwrap_or_else(stand_in).hash.clone();
        // With the hash: a new one in the file makes everything of before worth nothing.
        let kind: &[u8] = if known.is_some() { b"known" } else { b"unknown" };
        let digest = self.salt.digest(&[kind, shown.name.as_bytes(), hash.as_bytes(), &shown.password]);
        if let Some(answer) = self.remembers(&digest) {
            return answer;
        }
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // Somebody may have checked the same meanwhile.
        if let Some(answer) = self.remembers(&digest) {
            return answer;
        }
        let (is_known, password) = (known.is_some(), shown.password);
        let checked = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let right = bcrypt::verify(&password, &hash).unwrap_or(false);
            pause_unless(right && is_known, turn, started.elapsed());
            right
        });
        let right = checked.await.unwrap_or(false) && is_known;
        let remembered = if right { &self.right } else { &self.wrong };
        remembered.put(digest, ());
        right
    }

    fn remembers(&self, digest: &Digest) -> Option<bool> {
        if self.right.get(digest, RIGHT_FOR).is_some() {
            return Some(true);
        }
        self.wrong.get(digest, WRONG_FOR).map(|_| false)
    }
}

/// Keeps the turn for a while after a wrong password, even if the client has gone away meanwhile.
fn pause_unless(right: bool, turn: OwnedMutexGuard<()>, took: Duration) {
    if !right && let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            tokio::time::sleep(took * 3).await;
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Vec<User> {
        let user = |name: &str| User { name: name.to_owned(), hash: bcrypt::hash(format!("of {name}"), 4).unwrap() };
        vec![user("alice"), user("bob")]
    }

    fn shown(name: &str, password: &str) -> Shown {
        Shown { name: name.to_owned(), password: password.into() }
    }

    #[test]
    fn what_a_client_shows() {
        let parse = |text: &str| {
            let value = base64::engine::general_purpose::STANDARD.encode(text);
            Shown::parse(&value).map(|shown| (shown.name, String::from_utf8(shown.password).unwrap()))
        };
        assert_eq!(parse("alice:a:b"), Some(("alice".to_owned(), "a:b".to_owned())));
        assert_eq!(parse("alice"), None);
        assert!(Shown::parse("not base64!").is_none());
    }

    #[tokio::test]
    async fn only_the_right_one_is_admitted() {
        let passwords = Passwords::new(Salt::new().unwrap());
        let users = users();
        for _ in 0..2 {
            assert!(passwords.admits(&users, shown("alice", "of alice")).await);
            assert!(!passwords.admits(&users, shown("alice", "of bob")).await);
            assert!(!passwords.admits(&users, shown("carol", "of alice")).await);
            assert!(!passwords.admits(&users, shown("carol", "of bob")).await);
        }
        assert!(!passwords.admits(&[], shown("alice", "of alice")).await);
    }

    #[tokio::test]
    async fn a_new_hash_ends_what_was_remembered() {
        let passwords = Passwords::new(Salt::new().unwrap());
        let mut users = users();
        assert!(passwords.admits(&users, shown("alice", "of alice")).await);
        users[0].hash = bcrypt::hash("new", 4).unwrap();
        assert!(!passwords.admits(&users, shown("alice", "of alice")).await);
        assert!(passwords.admits(&users, shown("alice", "new")).await);
    }

    #[tokio::test]
    async fn hashes_of_other_tools_are_understood() {
        // Of the exporter-toolkit's documentation; made with htpasswd, which writes $2y$.
        let hash = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi".to_owned();
        let users = [User { name: "a".to_owned(), hash }];
        let passwords = Passwords::new(Salt::new().unwrap());
        assert!(passwords.admits(&users, shown("a", "fakepassword")).await);
        let begun = Instant::now();
        assert!(passwords.admits(&users, shown("a", "fakepassword")).await);
        assert!(begun.elapsed() < Duration::from_millis(20), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_flood_of_wrong_ones_gets_a_quarter_of_a_core_and_keeps_nobody_out() {
        let passwords = Arc::new(Passwords::new(Salt::new().unwrap()));
        let users = Arc::new(vec![User { name: "a".to_owned(), hash: bcrypt::hash("right", 8).unwrap() }]);
        let once = Instant::now();
        assert!(!bcrypt::verify("wrong", &users[0].hash).unwrap());
        let once = once.elapsed();
        let begun = Instant::now();
        let flood: Vec<_> = (0..8)
            .map(|number| {
                let (passwords, users) = (Arc::clone(&passwords), Arc::clone(&users));
                tokio::spawn(async move { passwords.admits(&users, shown("a", &format!("wrong {number}"))).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(passwords.admits(&users, shown("a", "right")).await, "in its turn");
        for wrong in flood {
            assert!(!wrong.await.unwrap());
        }
        // Eight checks with seven pauses; the least that a check can take is what it takes on a quiet machine.
        assert!(begun.elapsed() > once * 8, "{:?} for one, {:?} for all", once, begun.elapsed());
        let begun = Instant::now();
        assert!(passwords.admits(&users, shown("a", "right")).await);
        assert!(begun.elapsed() < once * 4 + Duration::from_millis(50), "remembered: it waits for nobody");
    }
}
