//! A DNS server of one name, on the loopback of a namespace.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::netns::Namespace;

/// It answers until it is dropped.
pub(crate) struct NameServer {
    knows: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// As long as nobody tells it to [know](NameServer::know) the name, it denies that too.
    pub(crate) fn start(namespace: &Namespace, name: &'static str) -> Self {
        let socket = namespace.inside(|| UdpSocket::bind("127.0.0.1:53").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (knows, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (knows, over) = (Arc::clone(&knows), Arc::clone(&over));
            move || {
                let mut query = [0; 512];
                while !over.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut query) {
                        let known = knows.load(Ordering::Relaxed).then_some(name);
                        let _ = socket.send_to(&answer(&query[..length], known), from);
                    }
                }
            }
        });
        NameServer { knows, over, thread: Some(thread) }
    }

    pub(crate) fn know(&self) {
        self.knows.store(true, Ordering::Relaxed);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// RFC 1035: the question back, and 127.0.0.1 if it was for an A record of the known name; NXDOMAIN for any other name.
fn answer(query: &[u8], known: Option<&str>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let question = &query[12..at + 5];
    let asks_for_a = query[at + 1..at + 3] == [0, 1];
    let found = known == Some(labels.join(".").as_str());
    let answers = u8::from(found && asks_for_a);
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, if found { 0x80 } else { 0x83 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question);
    if answers == 1 {
        // The name of the question; A, IN, a lifetime of 1 s, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    reply
}
