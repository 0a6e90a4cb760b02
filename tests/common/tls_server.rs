//! A kubelet's API as far as `/configz`, with certificates of its own, that misbehaves on demand and remembers what it was sent.

#![allow(unreachable_pub, reason = "a module of one test")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What it does with the next connections.
#[derive(Clone)]
pub enum Act {
    /// These bytes, whatever is asked.
    Say(Vec<u8>),
    /// A head that promises a body, and this many bytes of it without their number being said.
    Pour(usize),
    /// Reads the request and never answers.
    Listen,
    /// Takes the connection and never answers the TLS hello.
    Ignore,
    /// Speaks plain HTTP.
    Plain,
    /// Closes once it has read the request.
    Close,
}

impl Act {
    pub fn answer(status: &str, body: &str) -> Self {
        let length = body.len();
        Act::Say(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes())
    }

    pub fn configz(body: &str) -> Self {
        Self::answer("200 OK", body)
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Identity {
        let (params, key) = leaf(names);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }
}

pub struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    pub fn self_signed(names: &[&str]) -> Self {
        let (params, key) = leaf(names);
        let certificate = params.self_signed(&key).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key);
        Arc::new(config.unwrap())
    }
}

fn leaf(names: &[&str]) -> (CertificateParams, KeyPair) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "system:node:test");
    (params, KeyPair::generate().unwrap())
}

/// The server. Gone, with its port, when dropped.
pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct State {
    act: Mutex<Act>,
    heads: Mutex<Vec<String>>,
    connections: AtomicUsize,
    stop: AtomicBool,
}

impl Server {
    pub fn start(identity: &Identity, act: Act) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), identity, act)
    }

    pub fn start_at(address: SocketAddr, identity: &Identity, act: Act) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            act: Mutex::new(act),
            heads: Mutex::default(),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let (config, shared) = (identity.config(), Arc::clone(&state));
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let (config, shared) = (Arc::clone(&config), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream.unwrap(), config, &shared));
            }
        });
        Server { address, state, accepting: Some(accepting) }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn act(&self, act: Act) {
        *self.state.act.lock().unwrap() = act;
    }

    /// The request heads that arrived, decrypted.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().unwrap().join();
    }
}

fn serve(mut stream: TcpStream, config: Arc<ServerConfig>, state: &State) {
    let act = state.act.lock().unwrap().clone();
    let until_closed = |stream: &mut TcpStream| while matches!(stream.read(&mut [0; 512]), Ok(1..)) {};
    match act {
        Act::Ignore => return until_closed(&mut stream),
        Act::Plain => {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            return until_closed(&mut stream);
        }
        _ => {}
    }
    let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match tls.read(&mut buffer) {
            Ok(length @ 1..) => head.extend_from_slice(&buffer[..length]),
            // What came before the end counts as well: not a byte of a token may be in it.
            _ => break,
        }
    }
    if !head.is_empty() {
        state.heads.lock().unwrap().push(String::from_utf8(head).unwrap());
    }
    match act {
        Act::Say(bytes) => {
            let _ = tls.write_all(&bytes);
        }
        Act::Pour(size) => {
            let _ = tls.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            let chunk = vec![b' '; 1 << 16];
            let mut poured = 0;
            while poured < size && tls.write_all(&chunk).is_ok() {
                poured += chunk.len();
            }
        }
        Act::Listen => while matches!(tls.read(&mut buffer), Ok(1..)) {},
        Act::Close | Act::Ignore | Act::Plain => return,
    }
    tls.conn.send_close_notify();
    let _ = tls.flush();
}
