//! Whose question to the apiserver is next: fair by address, and those who were let in before do not wait behind those
//! who never were.
//!
//! Three kinds of places, two of each. **Known** tokens, which were admitted within a day: nobody who invents tokens
//! gets one of these. **Clean** addresses, which showed no wrong token lately. **Suspect** ones, which did: there a
//! place stays taken for 400 ms after a no, so that a flood costs the apiserver five questions a second. At the latter
//! two an address has at most two in the queue, so who floods waits behind himself, and a clean newcomer behind one
//! question or two of each other address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of each kind.
pub(super) const PLACES: usize = 2;
/// How long an address is suspect after a wrong token.
const SUSPECT_FOR: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(400);
/// After the first no from an address.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Suspects that are remembered; more than the pods of a node.
const MOST_SUSPECTS: usize = 1024;

/// The network that an address stands for: who has one IPv6 address has all of its /64.
pub(in crate::http) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

#[derive(Debug)]
pub(super) struct Places {
    known: Arc<Semaphore>,
    clean: Arc<Semaphore>,
    suspect: Arc<Semaphore>,
    /// Who is at a queue or has a place.
    turns: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    suspects: Mutex<HashMap<IpAddr, Instant>>,
}

/// A place, and the address's own turn.
#[derive(Debug)]
pub(super) struct Place {
    of: IpAddr,
    suspect: bool,
    known: bool,
    _place: Option<OwnedSemaphorePermit>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new() -> Self {
        let two = || Arc::new(Semaphore::new(PLACES));
        Places { known: two(), clean: two(), suspect: two(), turns: Mutex::default(), suspects: Mutex::default() }
    }

    /// Waits for a place. `known`: its token was admitted before.
    pub(super) async fn take(&self, address: IpAddr, known: bool) -> Place {
        let of = network(address);
        if known {
            let place = Arc::clone(&self.known).acquire_owned().await.ok();
            return Place { of, suspect: false, known, _place: place, _turn: None };
        }
        let turn = self.turn(of).acquire_owned().await.ok();
        // Now, not when it came: the one before it may have been wrong.
        let suspect = self.is_suspect(of);
        let places = if suspect { &self.suspect } else { &self.clean };
        let place = Arc::clone(places).acquire_owned().await.ok();
        Place { of, suspect, known, _place: place, _turn: turn }
    }

    fn turn(&self, of: IpAddr) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded by the requests under way: of others nothing is kept.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(of).or_insert_with(|| Arc::new(Semaphore::new(PLACES))))
    }

    /// Its token was wrong: the place stays taken for a while, also if the client has gone.
    pub(super) fn was_wrong(&self, place: Option<Place>) {
        let Some(place) = place else { return };
        self.note_suspect(place.of);
        let pause = if place.suspect || place.known { PAUSE } else { FIRST_PAUSE };
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop(place);
        });
    }

    fn is_suspect(&self, address: IpAddr) -> bool {
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.get(&address).is_some_and(|since| since.elapsed() < SUSPECT_FOR)
    }

    fn note_suspect(&self, address: IpAddr) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() >= MOST_SUSPECTS && !suspects.contains_key(&address) {
            suspects.retain(|_, since| since.elapsed() < SUSPECT_FOR);
            let oldest = suspects.iter().min_by_key(|(_, since)| **since).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| suspects.len() >= MOST_SUSPECTS) {
                suspects.remove(&oldest);
            }
        }
        suspects.insert(address, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_is_one_client() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn suspects_are_bounded_and_the_latest_stay() {
        let places = Places::new();
        let address = |number: u32| IpAddr::V4(number.into());
        for number in 0..MOST_SUSPECTS as u32 + 100 {
            places.note_suspect(address(number));
        }
        assert_eq!(places.suspects.lock().unwrap().len(), MOST_SUSPECTS);
        assert!(places.is_suspect(address(MOST_SUSPECTS as u32 + 99)) && !places.is_suspect(address(0)));
    }

    #[tokio::test]
    async fn nothing_is_left_of_an_address_that_has_gone() {
        let places = Places::new();
        for number in 0..100u32 {
            drop(places.take(IpAddr::V4(number.into()), false).await);
        }
        assert!(places.turns.lock().unwrap().len() <= 1);
    }
}
