//! The parsers on what a kernel answered, against what `ss` printed of the same sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::netlink::{Dump, Progress, Table};
use super::*;
use crate::error::Reason;
use crate::host::Roots;

const TCP4: &[u8] = include_bytes!("../../../tests/fixtures/sockets/tcp4.bin");
const TCP6: &[u8] = include_bytes!("../../../tests/fixtures/sockets/tcp6.bin");
const UNIX: &[u8] = include_bytes!("../../../tests/fixtures/sockets/unix.bin");
const SS_TCP: &str = include_str!("../../../tests/fixtures/sockets/ss-tcp.txt");
const SS_UNIX: &str = include_str!("../../../tests/fixtures/sockets/ss-unix.txt");

fn payloads(dump: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    let progress = Dump::new(Table::Sockets, "recorded").take(dump, &mut |payload| {
        payloads.push(payload.to_vec());
        Ok(())
    });
    assert_eq!(progress.unwrap(), Progress::Done);
    payloads
}

fn recorded_tcp() -> Vec<TcpConnection> {
    let payloads = payloads(TCP4).into_iter().chain(payloads(TCP6));
    payloads.map(|payload| tcp::parse(&payload).unwrap().unwrap()).collect()
}

fn recorded_unix() -> Vec<UnixSocket> {
    payloads(UNIX).iter().map(|payload| unix::parse(payload).unwrap()).collect()
}

/// What ss prints of a number, a word and a colon before it.
fn of_ss<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
}

fn millis(line: &str, key: &str) -> Duration {
    let millis: f64 = of_ss(line, key).unwrap_or("0").trim_end_matches("ms").parse().unwrap();
    Duration::from_micros((millis * 1000.0).round() as u64)
}

#[test]
fn recorded_connections_are_what_ss_printed() {
    let lines: BTreeMap<u32, &str> =
        SS_TCP.lines().map(|line| (of_ss(line, "ino").unwrap().parse().unwrap(), line)).collect();
    let connections = recorded_tcp();
    assert_eq!(connections.len(), lines.len());
    for connection in &connections {
        let line = lines[&connection.inode];
        let info = connection.info.as_ref().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |key| of_ss(line, key).unwrap_or("0").parse::<u64>().unwrap();
        assert_eq!([connection.receive_queue_bytes, connection.send_queue_bytes].map(|n| n.to_string()), words[..2]);
        // ss shows v4-mapped addresses as such.
        let plain = |address: &str| address.replace("[::ffff:127.0.0.1]", "127.0.0.1");
        assert_eq!([connection.local, connection.peer].map(|a| a.to_string()), [plain(words[2]), plain(words[3])]);
        assert_eq!(format!("{:x}", connection.cookie), of_ss(line, "sk").unwrap());
        assert_eq!(u64::from(connection.uid), number("uid"));
        let rtt = of_ss(line, "rtt").unwrap().split_once('/').unwrap();
        let micros = |text: &str| Duration::from_micros((text.parse::<f64>().unwrap() * 1000.0).round() as u64);
        assert_eq!((info.rtt, info.rtt_variance), (Some(micros(rtt.0)), Some(micros(rtt.1))));
        assert_eq!(info.min_rtt, Some(millis(line, "minrtt")));
        assert_eq!(info.rto.as_millis(), millis(line, "rto").as_millis());
        assert_eq!(u64::from(info.unacked_segments), number("unacked"));
        let retrans = of_ss(line, "retrans").map_or("0", |both| both.split_once('/').unwrap().1);
        assert_eq!(info.retransmitted_segments.to_string(), retrans);
        assert_eq!(u64::from(info.backoff), number("backoff"));
        assert_eq!(info.bytes_acked, Some(number("bytes_acked")));
        assert_eq!(info.bytes_received, Some(number("bytes_received")));
        assert_eq!(u64::from(info.unsent_bytes.unwrap()), number("notsent"));
        // The two were not asked at the same moment.
        let near = |ours: Duration, key| ours.abs_diff(millis(line, key)) < Duration::from_millis(200);
        assert!(near(info.last_data_sent, "lastsnd"), "{info:?} {line}");
        assert!(near(info.last_data_received, "lastrcv"), "{info:?} {line}");
        assert!(near(info.last_ack_received, "lastack"), "{info:?} {line}");
        assert!(near(info.busy.unwrap(), "busy"), "{info:?} {line}");
    }
}

#[test]
fn a_recorded_dead_connection() {
    let connections = recorded_tcp();
    let to_the_dead = connections.iter().filter(|connection| connection.send_queue_bytes == 543);
    let [lost, kept_back]: [&TcpConnection; 2] = to_the_dead.collect::<Vec<_>>().try_into().unwrap();
    let (lost, kept_back) = if lost.uid == 0 { (lost, kept_back) } else { (kept_back, lost) };
    let info = lost.info.as_ref().unwrap();
    assert!(info.unacked_segments == 1 && info.backoff >= 2 && info.retransmitted_segments >= 2, "{info:?}");
    assert_eq!(info.unsent_bytes, Some(0));
    assert!(info.last_ack_received > Duration::from_secs(2));
    // What a firewall drops in the machine's own output never counts as sent: neither unacked nor retransmitted.
    let info = kept_back.info.as_ref().unwrap();
    assert_eq!((info.unacked_segments, info.retransmitted_segments, info.unsent_bytes), (0, 0, Some(543)));
    assert!(info.backoff >= 1, "{info:?}");
}

#[test]
fn an_older_kernel_tells_less() {
    let payload = &payloads(TCP4)[0];
    let whole = tcp::parse(payload).unwrap().unwrap().info.unwrap();
    let attribute = crate::host::netlink::attributes(&payload[72..]).find(|(kind, _)| *kind == 2).unwrap().1;
    assert_eq!(TcpInfo::parse(attribute), Some(whole.clone()));
    // Linux 3.10: up to tcpi_total_retrans.
    let oldest = TcpInfo {
        min_rtt: None,
        bytes_acked: None,
        bytes_received: None,
        unsent_bytes: None,
        busy: None,
        ..whole.clone()
    };
    assert_eq!(TcpInfo::parse(&attribute[..104]), Some(oldest.clone()));
    // Linux 4.1: up to tcpi_bytes_received; 4.6: up to tcpi_data_segs_out; 4.9: up to tcpi_delivery_rate.
    let bytes = TcpInfo { bytes_acked: whole.bytes_acked, bytes_received: whole.bytes_received, ..oldest };
    assert_eq!(TcpInfo::parse(&attribute[..136]), Some(bytes.clone()));
    let later = TcpInfo { min_rtt: whole.min_rtt, unsent_bytes: whole.unsent_bytes, ..bytes };
    assert_eq!(TcpInfo::parse(&attribute[..160]), Some(later.clone()));
    assert_eq!(TcpInfo::parse(&attribute[..168]), Some(later));
    for cut in 0..104 {
        assert_eq!(TcpInfo::parse(&attribute[..cut]), None, "{cut}");
    }
}

#[test]
fn marks_for_nothing_are_no_numbers() {
    let mut bytes = [0; 200];
    bytes[148..152].fill(0xff);
    let info = TcpInfo::parse(&bytes).unwrap();
    assert_eq!((info.rtt, info.rtt_variance, info.min_rtt), (None, None, None));
}

#[test]
fn no_other_state_is_shown() {
    for number in 1..=12 {
        let mut payload = payloads(TCP4)[0].clone();
        payload[1] = number;
        let expected = match number {
            1 => Some(TcpState::Established),
            2 => Some(TcpState::SynSent),
            8 => Some(TcpState::CloseWait),
            _ => None,
        };
        assert_eq!(tcp::parse(&payload).unwrap().map(|socket| socket.state), expected);
    }
}

#[test]
fn requests_are_what_the_kernel_reads() {
    // struct inet_diag_req_v2 and struct unix_diag_req, field by field.
    let mut expected = vec![2, 6, 1 << 1, 0];
    expected.extend((1u32 << 1).to_ne_bytes());
    expected.extend([0, 0, 0x19, 0x2b]);
    expected.extend([0; 36]);
    expected.extend([0xff; 8]);
    assert_eq!(tcp::request(2, tcp::Ports::Peer(6443), TcpState::Established), expected);
    expected[0] = 10;
    assert_eq!(tcp::request(10, tcp::Ports::Peer(6443), TcpState::Established), expected);
    expected[8..12].copy_from_slice(&[0x19, 0x2b, 0, 0]);
    assert_eq!(tcp::request(10, tcp::Ports::Local(6443), TcpState::Established), expected);
    // TCP_CLOSE_WAIT is 8. Of any port, and without information.
    expected[2] = 0;
    expected[4..8].copy_from_slice(&(1u32 << 8).to_ne_bytes());
    expected[8..12].fill(0);
    assert_eq!(tcp::request(10, tcp::Ports::Any, TcpState::CloseWait), expected);
    // struct inet_diag_req: the same fields in another order.
    let mut expected = vec![2, 0, 0, 1 << 1];
    expected.extend([0, 0, 0x19, 0x2b]);
    expected.extend([0; 36]);
    expected.extend([0xff; 8]);
    expected.extend((1u32 << 1).to_ne_bytes());
    expected.extend([0; 4]);
    assert_eq!(tcp::of_both(tcp::Ports::Peer(6443), TcpState::Established), expected);
    let mut expected = vec![1, 0, 0, 0];
    expected.extend(u32::MAX.to_ne_bytes());
    expected.extend(0u32.to_ne_bytes());
    expected.extend((1u32 | 2 | 4 | 16).to_ne_bytes());
    expected.extend([0xff; 8]);
    assert_eq!(unix::request(unix::EVERY_STATE), expected);
}

#[test]
fn recorded_unix_sockets_are_what_ss_printed() {
    let sockets = recorded_unix();
    assert_eq!(sockets.len(), SS_UNIX.lines().count());
    for line in SS_UNIX.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // A name may have a space: count from the end of it.
        let at = words.iter().position(|&word| word == "<->" || word == "---").unwrap();
        let inode: u32 = words[at - 3].parse().unwrap();
        let socket = sockets.iter().find(|socket| socket.inode == inode).unwrap();
        let kind = match socket.kind {
            UnixKind::Stream => "u_str",
            UnixKind::Datagram => "u_dgr",
            UnixKind::SequentialPackets => "u_seq",
            UnixKind::Other => "?",
        };
        assert_eq!(kind, words[0]);
        assert_eq!(socket.listening, words[1] == "LISTEN");
        let queues = [socket.receive_queue, socket.send_queue].map(|queue| queue.unwrap().to_string());
        assert_eq!(queues, words[2..4], "{line}");
        let name = match &socket.name {
            None => "*".to_owned(),
            Some(UnixName::Path(path)) => path.display().to_string(),
            Some(UnixName::Abstract(name)) => format!("@{}", String::from_utf8_lossy(name)),
        };
        assert_eq!(name, words[4..at - 3].join(" "));
        assert_eq!(socket.peer.unwrap_or(0).to_string(), words[at - 1]);
        assert_eq!(socket.shut, words[at] == "---");
        let file = of_ss(line, "ino").map(|inode| {
            let device = of_ss(line, "dev").unwrap().split_once('/').unwrap();
            UnixFile { device: (device.0.parse().unwrap(), device.1.parse().unwrap()), inode: inode.parse().unwrap() }
        });
        // ss takes the kernel's number of a device for the C library's, which has the bits elsewhere: 254:0 becomes
        // 0:65024.
        let as_ss = |UnixFile { device: (major, minor), inode }| {
            let number = major << 20 | minor;
            UnixFile { device: (number >> 8 & 0xfff, number & 0xff | number >> 12 & !0xff), inode }
        };
        assert_eq!(socket.file.map(as_ss), file);
    }
}

#[test]
fn who_talks_to_a_recorded_listener() {
    let sockets = recorded_unix();
    let named = |name: &str| -> Vec<&UnixSocket> {
        let name = UnixName::Path(name.into());
        sockets.iter().filter(|socket| socket.name.as_ref() == Some(&name)).collect()
    };
    let [served]: [&UnixSocket; 1] =
        named("record.sock").into_iter().filter(|socket| !socket.listening).collect::<Vec<_>>().try_into().unwrap();
    let client = sockets.iter().find(|socket| Some(socket.inode) == served.peer).unwrap();
    assert_eq!((client.peer, &client.name), (Some(served.inode), &None));
    let [listener]: [&UnixSocket; 1] =
        named("record.sock").into_iter().filter(|socket| socket.listening).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((listener.receive_queue, listener.send_queue), (Some(1), Some(7)), "one waits, seven may");
    assert_eq!(listener.file, served.file);
    let [left]: [&UnixSocket; 1] = named("record-gone.sock")
        .into_iter()
        .filter(|socket| !socket.listening)
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    assert!(left.peer.is_none() && left.shut);
}

#[test]
fn odd_names() {
    let with = |name: &[u8]| {
        let mut payload = vec![1, 1, 1, 0];
        payload.extend([0; 12]);
        payload.extend((4 + name.len() as u16).to_ne_bytes());
        payload.extend(0u16.to_ne_bytes());
        payload.extend(name);
        payload.resize(payload.len().next_multiple_of(4), 0);
        unix::parse(&payload).unwrap().name
    };
    assert_eq!(with(b""), None);
    assert_eq!(with(b"/a\0"), Some(UnixName::Path("/a".into())));
    let longest = [b'x'; 108];
    let Some(UnixName::Path(path)) = with(&longest) else { panic!("a path that fills its address") };
    assert_eq!(path.as_os_str().len(), 108);
    assert_eq!(with(b"\0a\0b"), Some(UnixName::Abstract(b"a\0b".to_vec())));
    assert_eq!(with(b"\0"), Some(UnixName::Abstract(Vec::new())));
}

#[test]
fn cut_and_garbled_replies() {
    for cut in 0..72 {
        assert_eq!(tcp::parse(&payloads(TCP4)[0][..cut]).unwrap_err().reason(), Reason::Malformed, "{cut}");
    }
    for cut in 0..16 {
        assert_eq!(unix::parse(&payloads(UNIX)[0][..cut]).unwrap_err().reason(), Reason::Malformed, "{cut}");
    }
    // Behind the header the attributes end where they are cut.
    let no_info = tcp::parse(&payloads(TCP4)[0][..72]).unwrap().unwrap();
    assert_eq!(no_info.info, None);
    let mut random = fastrand::Rng::with_seed(11);
    for dump in [TCP4, TCP6, UNIX] {
        for _ in 0..5_000 {
            let mut bytes = dump.to_vec();
            bytes.truncate(random.usize(1..=dump.len()));
            let length = bytes.len();
            (0..8).for_each(|_| bytes[random.usize(..length)] = random.u8(..));
            let _ = Dump::new(Table::Sockets, "garbled").take(&bytes, &mut |payload| {
                let _ = (tcp::parse(payload), unix::parse(payload));
                Ok(())
            });
        }
    }
}

#[test]
fn a_recorded_machine_never_asks_the_kernel() {
    let deadline = Deadline::after(Duration::from_secs(10));
    let bare = Host::recorded(Roots::default(), Vec::new());
    assert_eq!(bare.tcp_connections(&[6443], deadline).unwrap_err().reason(), Reason::Absent);
    assert_eq!(bare.unix_sockets(deadline).unwrap_err().reason(), Reason::Absent);
    let host = bare.with_sockets(Sockets::recorded(recorded_tcp(), recorded_unix()));
    assert_eq!(host.tcp_connections(&[443, 6443], deadline).unwrap(), recorded_tcp());
    assert_eq!(host.tcp_connections(&[443], deadline).unwrap(), []);
    assert_eq!(host.unix_sockets(deadline).unwrap(), recorded_unix());
    host.in_own_network(None).unwrap();
    let listeners = host.unix_listeners(deadline).unwrap();
    assert_eq!(
        listeners.iter().filter(|one| one.listening).count(),
        recorded_unix().iter().filter(|one| one.listening).count()
    );
    let (served, _) = host.unix_served_by(&listeners, deadline).unwrap();
    assert!(!served.is_empty() && served.len() < recorded_unix().len() && served.iter().all(|one| !one.listening));
    assert!(host.tcp_sockets_in(TcpState::CloseWait, deadline).unwrap().is_empty());
    assert_eq!(host.tcp_sockets_in(TcpState::Established, deadline).unwrap().len(), recorded_tcp().len());
}

#[test]
fn a_machine_that_runs_is_asked() {
    let host = Host::new(Roots::default());
    let deadline = Deadline::after(Duration::from_secs(10));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let sockets = host.unix_sockets(deadline).unwrap();
    let name = UnixName::Path(path);
    assert!(sockets.iter().any(|socket| socket.listening && socket.name.as_ref() == Some(&name)));
    assert_eq!(host.tcp_connections(&[], deadline).unwrap(), []);
    assert_eq!(host.tcp_connections(&[0], deadline).unwrap(), [], "0 is no port, and not every port");
}
