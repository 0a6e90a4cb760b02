//! The verdict: has data of this connection waited for an acknowledgement for too long, or to be read?
//!
//! No field of `struct tcp_info` says how long the oldest unacknowledged byte has waited. `last_ack_received` alone
//! would cry wolf: on a connection that was quiet for a minute it says one minute in the moment in which a request goes
//! out. Two lower bounds are to be had, and the larger one counts.
//!
//! **From one look.** A segment that is not acknowledged is sent again after the retransmission timeout, each time
//! twice as long after the last. At the n-th doubling the first transmission is at least `rto·(1 − 2⁻ⁿ)` before the
//! last one, whatever the first timeout was (`tcp_retransmit_timer` in net/ipv4/tcp_timer.c: rto is doubled with
//! `icsk_backoff`). The last one was `last_data_sent` ago. Of the kubelet's connection that was cut off on a real node
//! this says 6.9 s where 7.1 s was true.
//!
//! **From several looks.** If data was outstanding at each and the peer acknowledged nothing between them
//! (`bytes_acked`), the oldest byte is at least as old as the first of them.
//!
//! Data that the peer's closed window holds back is never sent, so never unacknowledged; the peer lives and
//! acknowledges the probes. There the age of the last acknowledgement counts as well: it must be too old, too. The same
//! fields show a packet filter on this machine's own way out (OUTPUT), where TCP takes a refused segment for one that
//! was not sent: it is found by several looks, and, while the peer still repeats data of its own, later than others.
//!
//! **Unread.** The kernel acknowledges what a process never reads, so that its peer sees nothing wrong. What waits in a
//! receive queue came at the latest when data last came in; and if between two looks nothing was taken out of it
//! (`bytes_received` less the queue), it is at least as old as the first of them. On the kubelet's way that is as bad
//! as a dead path, be it a balancer that does not read or the kubelet itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::host::sockets::{TcpConnection, TcpInfo};

/// What is known of one connection, by its cookie, from looks before this one.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    connections: HashMap<u64, Track>,
}

#[derive(Clone, Copy, Debug)]
struct Track {
    /// Acknowledged when data was first seen outstanding, and when that was.
    waiting: Option<(u64, Instant)>,
    /// Read by its process when data was first seen waiting for that, and when that was.
    unread: Option<(u64, Instant)>,
    stalled: bool,
}

/// The verdict on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// For how long, at least, data has waited for an acknowledgement; `None` if none is outstanding.
    pub(super) waiting: Option<Duration>,
    /// For how long, at least, data has waited to be read by the process on this machine; `None` if none is there.
    pub(super) unread: Option<Duration>,
    /// Longer than the threshold.
    pub(super) stalled: bool,
    /// It was not stalled at the last look.
    pub(super) begins: bool,
}

impl Verdict {
    /// This one's, and that of the other end of the same connection.
    pub(super) fn and(self, other: Verdict) -> Verdict {
        let goes_on = |end: Verdict| end.stalled && !end.begins;
        Verdict {
            waiting: self.waiting,
            unread: self.unread.max(other.unread),
            stalled: self.stalled || other.stalled,
            begins: (self.begins || other.begins) && !goes_on(self) && !goes_on(other),
        }
    }
}

/// One connection to judge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged<'a> {
    pub(super) connection: &'a TcpConnection,
    /// It is a link on the kubelet's way: if its process does not read from it, the way is stalled.
    pub(super) is_link: bool,
}

impl Tracker {
    /// Judges every connection, in their order, and forgets those that are not among them.
    pub(super) fn judge<'a>(
        &mut self,
        connections: impl IntoIterator<Item = Judged<'a>>,
        threshold: Duration,
        now: Instant,
    ) -> Vec<Verdict> {
        let mut before = std::mem::take(&mut self.connections);
        let judge = |judged: Judged<'a>| {
            let Some(info) = &judged.connection.info else { return Verdict::default() };
            let last = before.remove(&judged.connection.cookie);
            let (verdict, track) = one(judged, info, last, threshold, now);
            self.connections.insert(judged.connection.cookie, track);
            verdict
        };
        connections.into_iter().map(judge).collect()
    }
}

fn one(
    Judged { connection, is_link }: Judged<'_>,
    info: &TcpInfo,
    last: Option<Track>,
    threshold: Duration,
    now: Instant,
) -> (Verdict, Track) {
    let outstanding = connection.send_queue_bytes > 0 || info.unacked_segments > 0;
    let since = match (outstanding, info.bytes_acked) {
        (true, Some(acked)) => {
            let same = last.and_then(|last| last.waiting).filter(|(before, _)| *before == acked);
            Some(same.unwrap_or((acked, now)))
        }
        _ => None,
    };
    let seen = since.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
    let waiting = outstanding.then(|| seen.max(waited_at_least(info)));
    let silent = info.unacked_segments > 0 || info.last_ack_received > threshold;
    let queued = u64::from(connection.receive_queue_bytes);
    let unread_since = match (queued, info.bytes_received) {
        (1.., Some(received)) => {
            let taken = received.saturating_sub(queued);
            let same = last.and_then(|last| last.unread).filter(|(before, _)| *before == taken);
            Some(same.unwrap_or((taken, now)))
        }
        _ => None,
    };
    let seen = unread_since.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
    let unread = (queued > 0).then(|| seen.max(info.last_data_received));
    let stalled = silent && waiting.is_some_and(|waiting| waiting > threshold)
        || is_link && unread.is_some_and(|unread| unread > threshold);
    let begins = stalled && !last.is_some_and(|last| last.stalled);
    (Verdict { waiting, unread, stalled, begins }, Track { waiting: since, unread: unread_since, stalled })
}

/// From this one look alone.
fn waited_at_least(info: &TcpInfo) -> Duration {
    if info.unacked_segments == 0 {
        return Duration::ZERO;
    }
    // Beyond some doublings the rest is less than a millisecond.
    let before_last = info.rto.mul_f64(1.0 - 0.5_f64.powi(info.backoff.into()));
    before_last + info.last_data_sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::ss;

    const BLACKHOLED: &str = include_str!("../../../tests/fixtures/apiserver_connection/blackholed-v1.txt");
    const INBOUND_ONLY: &str = include_str!("../../../tests/fixtures/apiserver_connection/inbound-only-v1.txt");
    const V2: &str = include_str!("../../../tests/fixtures/apiserver_connection/blackholed-v2.txt");
    const THRESHOLD: Duration = Duration::from_secs(10);

    /// The verdicts on connections, none of which is a link.
    fn judge(tracker: &mut Tracker, connections: &[TcpConnection], now: Instant) -> Vec<Verdict> {
        let judged = |connection| Judged { connection, is_link: false };
        tracker.judge(connections.iter().map(judged), THRESHOLD, now)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A connection on which all is well and nothing outstanding.
    fn quiet() -> TcpConnection {
        let info = TcpInfo {
            rtt: Some(millis(4)),
            rtt_variance: Some(millis(7)),
            min_rtt: None,
            rto: millis(208),
            retransmitted_segments: 0,
            unacked_segments: 0,
            retransmits: 0,
            backoff: 0,
            probes: 0,
            last_ack_received: millis(60_000),
            last_data_sent: millis(60_000),
            last_data_received: millis(60_000),
            bytes_acked: Some(1_000),
            bytes_received: Some(1_000),
            unsent_bytes: Some(0),
            busy: None,
        };
        TcpConnection {
            state: crate::host::sockets::TcpState::Established,
            local: "10.250.0.1:52678".parse().unwrap(),
            peer: "10.250.0.1:6443".parse().unwrap(),
            inode: 7,
            cookie: 130,
            uid: 0,
            send_queue_bytes: 0,
            receive_queue_bytes: 0,
            info: Some(info),
        }
    }

    fn with(change: impl FnOnce(&mut TcpConnection, &mut TcpInfo)) -> TcpConnection {
        let mut connection = quiet();
        let mut info = connection.info.take().unwrap();
        change(&mut connection, &mut info);
        connection.info = Some(info);
        connection
    }

    /// A line of `ss -tinepmo`, and the second of the experiment that it belongs to. Lines of states other than ESTAB
    /// are not what we ask for.
    fn looks(recorded: &str) -> Vec<(f64, TcpConnection)> {
        let mut at = 0.0;
        let mut looks = Vec::new();
        for line in recorded.lines() {
            if let Some(rest) = line.strip_prefix("--- t=") {
                at = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(rest) = line.strip_prefix("ESTAB ") {
                looks.push((at, ss::connection(rest)));
            }
        }
        assert!(looks.len() > 10, "the recording is gone");
        looks
    }

    /// The second of the experiment in which the verdict falls, judged at each look as a first one, and as one of all.
    fn falls_at(recorded: &str) -> (f64, f64) {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let (mut alone, mut together) = (None, None);
        for (at, connection) in looks(recorded) {
            let now = start + Duration::from_secs_f64(at.max(0.0));
            let connection = std::slice::from_ref(&connection);
            if judge(&mut Tracker::default(), connection, now)[0].stalled {
                alone.get_or_insert(at);
            }
            if judge(&mut tracker, connection, now)[0].stalled {
                together.get_or_insert(at);
            }
        }
        (alone.unwrap(), together.unwrap())
    }

    #[test]
    fn a_real_kubelets_connection_is_judged_ten_seconds_after_its_first_lost_write() {
        // The path died at 0; the first write on it came between 2.3 and 3.4 s, and the kubelet gave up at 37.5 s.
        let (alone, together) = falls_at(BLACKHOLED);
        assert!((12.3..=14.6).contains(&together), "{together}");
        assert!((together..=18.0).contains(&alone), "{alone}");
    }

    #[test]
    fn of_a_path_that_only_loses_replies_the_same_is_said() {
        for recorded in [INBOUND_ONLY, V2] {
            let (alone, together) = falls_at(recorded);
            assert!(together < 25.0 && alone < 30.0, "{together} {alone}");
        }
    }

    #[test]
    fn before_the_fault_nothing_is_said() {
        for recorded in [BLACKHOLED, INBOUND_ONLY, V2] {
            for (at, connection) in looks(recorded).into_iter().filter(|(at, _)| *at < 10.0) {
                let verdict = judge(&mut Tracker::default(), &[connection], Instant::now())[0];
                assert!(!verdict.stalled, "at {at}");
            }
        }
    }

    #[test]
    fn a_request_after_a_long_silence_is_no_stall() {
        let fresh = with(|connection, info| {
            connection.send_queue_bytes = 543;
            info.unacked_segments = 1;
            info.last_data_sent = millis(0);
        });
        let verdict = judge(&mut Tracker::default(), &[quiet(), fresh], Instant::now());
        assert_eq!(verdict[0], Verdict::default());
        assert_eq!(verdict[1], Verdict { waiting: Some(Duration::ZERO), ..Verdict::default() });
    }

    #[test]
    fn acknowledgements_in_between_start_the_clock_anew() {
        let start = Instant::now();
        let look = |acked| {
            with(|connection, info| {
                connection.send_queue_bytes = 10;
                info.unacked_segments = 1;
                info.last_data_sent = millis(5);
                info.bytes_acked = Some(acked);
            })
        };
        let mut tracker = Tracker::default();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            assert!(!judge(&mut tracker, &[look(second)], now)[0].stalled, "a busy connection, at {second}");
        }
        let begins: Vec<bool> = (60..75)
            .map(|second| judge(&mut tracker, &[look(0)], start + Duration::from_secs(second))[0].begins)
            .collect();
        assert_eq!(begins.iter().filter(|begins| **begins).count(), 1, "a stall is counted once: {begins:?}");
        assert!(begins[11], "more than ten seconds after the first look: {begins:?}");
    }

    #[test]
    fn a_closed_window_is_no_stall_while_the_peer_answers_its_probes() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let look = |last_ack| {
            with(|connection, info| {
                connection.send_queue_bytes = 100_000;
                info.unsent_bytes = Some(100_000);
                info.last_ack_received = last_ack;
            })
        };
        assert!(!judge(&mut tracker, &[look(millis(100))], start)[0].stalled);
        let later = start + Duration::from_secs(60);
        assert!(!judge(&mut tracker, &[look(millis(100))], later)[0].stalled);
        assert!(judge(&mut tracker, &[look(millis(11_000))], later)[0].stalled, "nor does it answer those");
    }

    #[test]
    fn what_a_balancer_does_not_read_stalls_the_way() {
        let start = Instant::now();
        let look = |received: u64, queued: u32, last_data_received| {
            with(|connection, info| {
                connection.receive_queue_bytes = queued;
                info.bytes_received = Some(received);
                info.last_data_received = last_data_received;
            })
        };
        let mut tracker = Tracker::default();
        let mut at = |second, connection: &TcpConnection, is_link| {
            let judged = [Judged { connection, is_link }];
            tracker.judge(judged, THRESHOLD, start + Duration::from_secs(second))[0]
        };
        // The kubelet goes on writing: something came in just now, and none of it is ever taken out.
        assert_eq!(at(0, &look(1_000, 100, millis(0)), true).unread, Some(Duration::ZERO));
        assert_eq!(at(9, &look(1_500, 600, millis(5)), true).unread, Some(Duration::from_secs(9)));
        let verdict = at(11, &look(1_600, 700, millis(5)), true);
        assert!(verdict.stalled && verdict.begins && verdict.unread == Some(Duration::from_secs(11)), "{verdict:?}");
        assert!(!at(12, &look(1_700, 800, millis(5)), true).begins, "it is one stall");
        // A byte was taken out: what is there now came later.
        let verdict = at(13, &look(1_700, 799, millis(5)), true);
        assert!(!verdict.stalled && verdict.unread < Some(Duration::from_secs(1)), "{verdict:?}");
        assert_eq!(at(14, &look(1_700, 0, millis(900)), true), Verdict { ..Verdict::default() });
        // One look is enough if nothing came in since.
        assert!(at(15, &look(1_800, 1, millis(11_000)), true).stalled);
        assert!(!at(16, &look(1_800, 1, millis(12_000)), false).stalled, "a client that does not read harms itself");
    }

    #[test]
    fn two_ends_are_one_connection() {
        let well = Verdict::default();
        let begins = Verdict { unread: Some(millis(9)), stalled: true, begins: true, ..well };
        let lasts = Verdict { begins: false, ..begins };
        assert_eq!(well.and(begins), begins);
        assert_eq!(begins.and(well), begins);
        assert!(!lasts.and(begins).begins && !begins.and(lasts).begins, "the second end of a stall is no second stall");
        assert!(begins.and(begins).begins);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut tracker = Tracker::default();
        judge(&mut tracker, &[quiet()], Instant::now());
        assert_eq!(tracker.connections.len(), 1);
        judge(&mut tracker, &[], Instant::now());
        assert!(tracker.connections.is_empty());
    }
}
