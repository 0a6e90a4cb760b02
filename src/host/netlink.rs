//! A dump by netlink, of sockets (`sock_diag`) or of network interfaces (`rtnetlink`): one request, then messages until
//! the kernel says that there are no more. Sockets that are known can be asked for one by one as well.
//!
//! The socket is opened for one request and closed after it: two cheap system calls, and in return nothing is shared
//! between scrapes and no late reply to an abandoned dump can be taken for one of the next. It does not block; what
//! waits is `poll(2)`, until the deadline.
//!
//! The kernel makes a dump while we receive it, one datagram per call. A dump in which nothing matches is one call that
//! walks the whole table and cannot be interrupted; how long that takes is in the documentation of [`super::sockets`].

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NlasIterator};
use netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::error::{Error, Reason, Result};
use crate::host::Deadline;

/// The kernel makes datagrams of at most 32 KiB (`netlink_recvmsg` in net/netlink/af_netlink.c), so none is ever cut.
const LARGEST_DATAGRAM: usize = 32 << 10;

/// `MSG_TRUNC` as a flag of `recvmsg`: tell the true length of a datagram that does not fit.
const MSG_TRUNC: i32 = 0x20;

const HEADER: usize = 16;

/// What is dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Sockets, of a family that the request names.
    Sockets,
    /// TCP sockets of both families, by the request of before `SOCK_DIAG_BY_FAMILY`, which names none.
    TcpSockets,
    /// Network interfaces.
    Links,
    /// The addresses that interfaces take, and those that bridges have learned.
    Addresses,
    /// The IP addresses of interfaces.
    IpAddresses,
}

impl Table {
    fn protocol(self) -> isize {
        match self {
            Table::Sockets | Table::TcpSockets => NETLINK_SOCK_DIAG,
            Table::Links | Table::Addresses | Table::IpAddresses => NETLINK_ROUTE,
        }
    }

    /// The types of a request and of its replies (`include/uapi/linux/rtnetlink.h`).
    fn message_types(self) -> (u16, u16) {
        const TCPDIAG_GETSOCK: u16 = 18;
        const RTM_NEWLINK: u16 = 16;
        const RTM_GETLINK: u16 = 18;
        const RTM_NEWADDR: u16 = 20;
        const RTM_GETADDR: u16 = 22;
        const RTM_NEWNEIGH: u16 = 28;
        const RTM_GETNEIGH: u16 = 30;
        match self {
            Table::Sockets => (SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY),
            // Of include/uapi/linux/inet_diag.h; a reply has the type of its request.
            Table::TcpSockets => (TCPDIAG_GETSOCK, TCPDIAG_GETSOCK),
            Table::Links => (RTM_GETLINK, RTM_NEWLINK),
            Table::Addresses => (RTM_GETNEIGH, RTM_NEWNEIGH),
            Table::IpAddresses => (RTM_GETADDR, RTM_NEWADDR),
        }
    }
}

/// How far a dump has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More datagrams follow.
    More,
    /// That was all.
    Done,
    /// That was all, and the kernel says that it may be inconsistent, because the table changed under it.
    Interrupted,
}

/// What is shown the payload of each reply; its error ends the dump.
type Visit<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Asks for a dump of a table of sockets and reads at most `most` replies with `parse`, which may pass over one. A dump
/// that the kernel calls interrupted is asked for once more.
pub(super) fn sockets<T>(
    table: Table,
    what: &str,
    request: &[u8],
    deadline: Deadline,
    most: usize,
    parse: impl Fn(&[u8]) -> Result<Option<T>>,
) -> Result<Vec<T>> {
    collect(what, most, parse, |visit| Dump::new(table, what).run(request, deadline, visit))
}

/// Asks for single sockets, one after the other, and reads each reply with `parse`. `None` for one that is not there.
pub(super) fn single_sockets<T>(
    what: &str,
    requests: impl IntoIterator<Item = Vec<u8>>,
    deadline: Deadline,
    parse: impl Fn(&[u8]) -> Result<Option<T>>,
) -> Result<Vec<Option<T>>> {
    let (socket, mut datagram) = (open(Table::Sockets, what)?, Vec::with_capacity(LARGEST_DATAGRAM));
    let one = |request: Vec<u8>| {
        let mut dump = Dump::new(Table::Sockets, what);
        dump.ask(&socket, &request, NLM_F_REQUEST, deadline)?;
        dump.receive(&socket, &mut datagram, deadline)?;
        let mut found = None;
        match dump.take(&datagram, &mut |payload| parse(payload).map(|parsed| found = parsed)) {
            Ok(_) => Ok(found),
            // Not there, or another one with its addresses (ESTALE). Without tcp_diag none is there, either.
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    };
    requests.into_iter().map(one).collect()
}

/// The replies of the first dump of two that was not interrupted.
fn collect<T>(
    what: &str,
    most: usize,
    parse: impl Fn(&[u8]) -> Result<Option<T>>,
    mut dump: impl FnMut(Visit<'_>) -> Result<Progress>,
) -> Result<Vec<T>> {
    for _ in 0..2 {
        let mut replies = Vec::new();
        let progress = dump(&mut |payload| {
            if replies.len() == most {
                return Err(Error::malformed(format!("{what}: the kernel lists more than {most}")));
            }
            replies.extend(parse(payload)?);
            Ok(())
        })?;
        if progress == Progress::Done {
            return Ok(replies);
        }
    }
    Err(Error::new(Reason::Busy, format!("{what}: the kernel's table changed during the dump, twice")))
}

/// One dump.
#[derive(Debug)]
pub(super) struct Dump<'a> {
    table: Table,
    /// For errors.
    what: &'a str,
    /// The kernel marks only the first message after a change, which may be in any datagram.
    interrupted: bool,
}

impl<'a> Dump<'a> {
    pub(super) fn new(table: Table, what: &'a str) -> Self {
        Dump { table, what, interrupted: false }
    }

    /// Asks for it, and shows its replies to `visit`, until the kernel says that there are no more.
    pub(super) fn run(mut self, request: &[u8], deadline: Deadline, visit: Visit<'_>) -> Result<Progress> {
        let socket = open(self.table, self.what)?;
        self.ask(&socket, request, NLM_F_REQUEST | NLM_F_DUMP, deadline)?;
        let mut datagram = Vec::with_capacity(LARGEST_DATAGRAM);
        loop {
            self.receive(&socket, &mut datagram, deadline)?;
            match self.take(&datagram, visit)? {
                Progress::More => {}
                end => return Ok(end),
            }
        }
    }

    fn ask(&self, socket: &Socket, request: &[u8], flags: u16, deadline: Deadline) -> Result<()> {
        let message = self.message(request, flags);
        while let Err(error) = socket.send_to(&message, &SocketAddr::new(0, 0), 0) {
            if error.kind() != io::ErrorKind::Interrupted || deadline.expired() {
                return Err(self.kernels(&error));
            }
        }
        Ok(())
    }

    /// The kernel's next datagram.
    fn receive(&self, socket: &Socket, datagram: &mut Vec<u8>, deadline: Deadline) -> Result<()> {
        loop {
            wait(self.what, socket, deadline)?;
            datagram.clear();
            let (length, sender) = match socket.recv_from(datagram, MSG_TRUNC) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue;
                }
                result => result.map_err(|error| self.kernels(&error))?,
            };
            // Another privileged process could write to us, too.
            if sender.port_number() != 0 {
                continue;
            }
            if length > datagram.len() {
                let what = self.what;
                return Err(Error::malformed(format!(
                    "{what}: the kernel's answer of {length} bytes arrived cut short"
                )));
            }
            return Ok(());
        }
    }

    /// The request with its `nlmsghdr`.
    fn message(&self, request: &[u8], flags: u16) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + request.len()];
        let length = bytes.len() as u32;
        bytes[HEADER..].copy_from_slice(request);
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(length);
        header.set_message_type(self.table.message_types().0);
        header.set_flags(flags);
        header.set_sequence_number(1);
        bytes
    }

    /// Shows the payloads of the messages of one datagram to `visit`.
    pub(super) fn take(&mut self, datagram: &[u8], visit: Visit<'_>) -> Result<Progress> {
        const NLMSG_NOOP: u16 = 1;
        const NLMSG_ERROR: u16 = 2;
        const NLMSG_DONE: u16 = 3;
        const NLMSG_OVERRUN: u16 = 4;
        let what = self.what;
        let (_, reply) = self.table.message_types();
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| Error::malformed(format!("{what}: malformed message: {error}")))?;
            let (length, payload) = (message.length() as usize, message.payload());
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => self.interrupted = true,
                // The end has an error number, too: what a handler returned after the dump had begun.
                kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                    let code = number(payload, 0).map(u32::cast_signed);
                    match (code, kind) {
                        (Some(0) | None, NLMSG_DONE) if self.interrupted => return Ok(Progress::Interrupted),
                        (Some(0) | None, NLMSG_DONE) => return Ok(Progress::Done),
                        (Some(code @ ..0), _) => {
                            let error = io::Error::from_raw_os_error(code.saturating_neg());
                            // EINTR is how some handlers say that the table changed.
                            if error.kind() == io::ErrorKind::Interrupted {
                                return Ok(Progress::Interrupted);
                            }
                            return Err(self.kernels(&error));
                        }
                        _ => {
                            return Err(Error::malformed(format!("{what}: malformed error message: {code:?}")));
                        }
                    }
                }
                kind if kind == reply => visit(payload)?,
                other => return Err(Error::malformed(format!("{what}: unexpected message of type {other}"))),
            }
            // Each begins at a multiple of four; the last may end before one.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Progress::More)
    }

    /// An error of the kernel's, with what it means of a request for sockets.
    fn kernels(&self, error: &io::Error) -> Error {
        let what = self.what;
        match Errno::from_io_error(error) {
            Some(Errno::NOENT) if self.table.protocol() == NETLINK_SOCK_DIAG => {
                Error::absent(format!("{what}: this kernel has no such dump (tcp_diag, unix_diag): {error}"))
            }
            Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) if self.table.protocol() == NETLINK_SOCK_DIAG => {
                Error::absent(format!("{what}: this kernel has no sock_diag: {error}"))
            }
            _ => Error::os(what, error),
        }
    }
}

fn open(table: Table, what: &str) -> Result<Socket> {
    let kernels = |error: io::Error| Dump::new(table, what).kernels(&error);
    let socket = Socket::new(table.protocol()).map_err(kernels)?;
    socket.set_non_blocking(true).map_err(kernels)?;
    Ok(socket)
}

/// Until there is something to receive.
fn wait(what: &str, socket: &Socket, deadline: Deadline) -> Result<()> {
    loop {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(Error::new(
                Reason::Timeout,
                format!("{what}: the kernel's answer did not end before the deadline"),
            ));
        }
        let timeout = Timespec::try_from(left).map_err(|_| Error::malformed(format!("{what}: deadline too far")))?;
        match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(Error::os(what, &errno.into())),
        }
    }
}

/// The attributes behind a header: kind and bytes. What is cut off ends them.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let attribute = NlasIterator::new(rest).next()?.ok()?;
        let (kind, length) = (attribute.kind(), attribute.length() as usize);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number of the kernel's byte order at this offset; `None` beyond the end.
pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..)?.first_chunk().copied()?))
}

/// As [`number`], with 64 bits.
pub(super) fn long(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..)?.first_chunk().copied()?))
}

/// Two words, the low one first, each in the kernel's byte order (`sock_diag_save_cookie`).
pub(super) fn cookie(bytes: [u8; 8]) -> u64 {
    let word = |at| u64::from(number(&bytes, at).unwrap_or(0));
    word(4) << 32 | word(0)
}

/// The words of [`cookie`].
pub(super) fn cookie_bytes(cookie: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(cookie as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn read(datagram: &[u8]) -> Result<(Progress, Vec<Vec<u8>>)> {
        let mut seen = Vec::new();
        let progress = Dump::new(Table::Sockets, "dump").take(datagram, &mut |payload| {
            seen.push(payload.to_vec());
            Ok(())
        })?;
        Ok((progress, seen))
    }

    #[test]
    fn messages_until_the_end() {
        let two = [reply(20, 2, b"seven b"), reply(20, 2, b"four")].concat();
        assert_eq!(read(&two).unwrap(), (Progress::More, vec![b"seven b".to_vec(), b"four".to_vec()]));
        let end = [two, reply(3, 2, &[0; 4]), reply(20, 2, b"never")].concat();
        assert_eq!(read(&end).unwrap().0, Progress::Done);
        assert_eq!(read(&end).unwrap().1.len(), 2);
        assert_eq!(read(&reply(3, 2, b"")).unwrap().0, Progress::Done, "of an old kernel");
        assert_eq!(read(&reply(1, 0, b"")).unwrap().0, Progress::More);
    }

    #[test]
    fn a_cookie_comes_back_as_it_went() {
        assert_eq!(cookie(cookie_bytes(0x0123_4567_89ab_cdef)), 0x0123_4567_89ab_cdef);
    }

    #[test]
    fn errors_have_their_reason() {
        let reason = |kind, errno: i32| read(&reply(kind, 0, &(-errno).to_ne_bytes())).unwrap_err().reason();
        // As NLMSG_ERROR, and as the end of a dump that could not be made.
        for kind in [2, 3] {
            assert_eq!(reason(kind, 1), Reason::Denied);
            assert_eq!(reason(kind, 2), Reason::Absent);
            assert_eq!(reason(kind, 12), Reason::Busy);
            assert_eq!(reason(kind, 22), Reason::Io);
        }
        let absent = read(&reply(2, 0, &(-2i32).to_ne_bytes())).unwrap_err();
        assert!(absent.to_string().contains("this kernel has no such dump"), "{absent}");
        for odd in [&[0; 4][..], &7i32.to_ne_bytes(), b"", b"xx", &i32::MIN.to_ne_bytes()] {
            assert!(read(&reply(2, 0, odd)).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn an_interrupted_dump_is_known() {
        let marked = [reply(20, 0x12, b"four"), reply(3, 2, &[0; 4])].concat();
        assert_eq!(read(&marked).unwrap().0, Progress::Interrupted);
        assert_eq!(read(&reply(3, 0x12, &[0; 4])).unwrap().0, Progress::Interrupted);
        assert_eq!(read(&reply(2, 0, &(-4i32).to_ne_bytes())).unwrap().0, Progress::Interrupted);
    }

    #[test]
    fn a_mark_is_known_in_later_datagrams() {
        let mut dump = Dump::new(Table::Sockets, "dump");
        let datagrams = [reply(20, 0x12, b"four"), reply(20, 2, b"four"), reply(3, 2, &[0; 4])];
        let progress = datagrams.map(|datagram| dump.take(&datagram, &mut |_| Ok(())).unwrap());
        assert_eq!(progress, [Progress::More, Progress::More, Progress::Interrupted]);
    }

    #[test]
    fn an_interrupted_dump_is_asked_for_once_more() {
        let first = [reply(20, 0x12, b"old"), reply(3, 2, &[0; 4])].concat();
        let second = [reply(20, 2, b"new"), reply(20, 2, b"odd"), reply(20, 2, b"two"), reply(3, 2, &[0; 4])].concat();
        let of = |most: usize, dumps: [&[u8]; 2]| {
            let mut dumps = dumps.into_iter();
            let parse = |payload: &[u8]| Ok(Some(payload.to_vec()).filter(|payload| payload != b"odd"));
            collect("dump", most, parse, |visit| Dump::new(Table::Sockets, "dump").take(dumps.next().unwrap(), visit))
        };
        assert_eq!(of(9, [&first, &second]).unwrap(), [b"new", b"two"], "nothing of the first");
        assert_eq!(of(9, [&first, &first]).unwrap_err().reason(), Reason::Busy);
        let cut = of(1, [&first, &second]).unwrap_err();
        assert_eq!(
            (cut.reason(), cut.to_string()),
            (Reason::Malformed, "dump: the kernel lists more than 1".to_owned())
        );
        assert_eq!(of(2, [&first, &second]).unwrap().len(), 2);
    }

    #[test]
    fn garbage_is_malformed_and_never_a_panic() {
        let whole = [reply(20, 2, b"seven b"), reply(3, 2, &[0; 4])].concat();
        for cut in 1..whole.len() {
            match read(&whole[..cut]) {
                Ok((progress, seen)) => assert_eq!((progress, seen.len()), (Progress::More, 1), "{cut}"),
                Err(error) => assert_eq!(error.reason(), Reason::Malformed, "{cut}"),
            }
        }
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            (0..4).for_each(|_| bytes[random.usize(..whole.len())] = random.u8(..));
            let _ = read(&bytes);
            attributes(&bytes).for_each(drop);
        }
        assert_eq!(read(&reply(77, 0, b"")).unwrap_err().reason(), Reason::Malformed);
    }

    #[test]
    fn attributes_that_are_cut_off_end_the_list() {
        let mut bytes = vec![];
        for (kind, value) in [(2u16, &b"abcde"[..]), (9, b"")] {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(2, &b"abcde"[..]), (9, b"")]);
        assert_eq!(attributes(&bytes[..8]).count(), 0);
        assert_eq!(attributes(&[0; 8]).count(), 0, "a length of nothing is no attribute");
    }

    #[test]
    fn a_deadline_that_has_passed_waits_for_nothing() {
        let request = super::super::sockets::tcp::request(
            netlink_packet_sock_diag::AF_INET,
            super::super::sockets::tcp::Ports::Peer(1),
            super::super::sockets::TcpState::Established,
        );
        let passed = Deadline::after(std::time::Duration::ZERO);
        assert_eq!(
            sockets(Table::Sockets, "dump", &request, passed, 9, |_| Ok(Some(()))).unwrap_err().reason(),
            Reason::Timeout
        );
    }

    #[test]
    fn a_family_that_nobody_dumps_is_absent() {
        // AF_UNSPEC has no handler in any kernel.
        let request = [0; 56];
        let deadline = Deadline::after(std::time::Duration::from_secs(10));
        assert_eq!(
            sockets(Table::Sockets, "dump", &request, deadline, 9, |_| Ok(Some(()))).unwrap_err().reason(),
            Reason::Absent
        );
    }
}
