//! Whoever is paged: takes what Alertmanager posts and remembers it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// One alert of one notification.
#[derive(Clone, Debug)]
pub struct Notice {
    pub at: Instant,
    pub firing: bool,
    pub alert: Value,
}

impl Notice {
    pub fn label(&self, name: &str) -> &str {
        self.alert["labels"][name].as_str().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.label("alertname")
    }

    pub fn text(&self, annotation: &str) -> &str {
        self.alert["annotations"][annotation].as_str().unwrap_or_default()
    }

    /// # Panics
    /// If one of these words is not in it.
    pub fn says(&self, annotation: &str, words: &[&str]) {
        let text = self.text(annotation);
        words.iter().for_each(|words| assert!(text.contains(words), "{annotation} does not say {words:?}: {text}"));
    }
}

pub struct Webhook {
    received: Arc<Mutex<Vec<Notice>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    pub fn listen(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let (received, stop) = (Arc::<Mutex<Vec<Notice>>>::default(), Arc::new(AtomicBool::new(false)));
        let (ours, ended) = (Arc::clone(&received), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => take(stream, &ours),
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Webhook { received, stop, thread: Some(thread) }
    }

    pub fn received(&self) -> Vec<Notice> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One request a connection. What is not a notification is not answered, which shows in Alertmanager's log.
fn take(stream: TcpStream, received: &Mutex<Vec<Notice>>) {
    let body = read(&stream).and_then(|body| serde_json::from_slice::<Value>(&body).ok());
    let Some(body) = body else { return };
    let at = Instant::now();
    let alerts = body["alerts"].as_array().into_iter().flatten();
    let notices = alerts.map(|alert| Notice { at, firing: alert["status"] == "firing", alert: alert.clone() });
    received.lock().unwrap().extend(notices);
    let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

fn read(stream: &TcpStream) -> Option<Vec<u8>> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}
