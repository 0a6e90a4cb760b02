//! A balancer, or a proxy, of the tests' own: a process of its own, so that what it accepts and what it makes onward
//! are its sockets and nobody else's. It can be told to misbehave as no real one lets itself be told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::common::netns::Namespace;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arguments {
    /// Its name as a process.
    pub comm: String,
    pub listen: SocketAddr,
    pub onward: Onward,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Onward {
    To(SocketAddr),
    /// A proxy: wherever `CONNECT` asks for.
    AsAsked,
}

/// How it behaves from now on, on connections there are and on new ones.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Manners {
    /// `false`: it goes on to accept, and reads nothing any more: what comes waits in its receive queues.
    pub reads: bool,
    /// `false`: it closes its connections onward and makes none. Those it accepted stay; what comes is read and lost.
    pub onward: bool,
}

impl Default for Manners {
    fn default() -> Self {
        Manners { reads: true, onward: true }
    }
}

/// Until standard input ends, where its manners come from.
pub fn run(arguments: &Arguments) {
    std::fs::write("/proc/self/comm", &arguments.comm).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let manners = watch::channel(Manners::default()).0;
    let listener = runtime.block_on(TcpListener::bind(arguments.listen)).unwrap();
    runtime.spawn(serve(listener, arguments.onward, manners.subscribe()));
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut answers = control.try_clone().unwrap();
    for line in BufReader::new(control).lines() {
        manners.send_replace(serde_json::from_str(&line.unwrap()).unwrap());
        answers.write_all(b"so be it\n").unwrap();
    }
    runtime.shutdown_background();
}

/// For ever, as long as somebody holds the other end of the manners.
pub async fn serve(listener: TcpListener, onward: Onward, manners: watch::Receiver<Manners>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let manners = manners.clone();
        tokio::spawn(async move {
            if let Err(error) = forward(stream, onward, manners).await {
                eprintln!("forwarder: {error}");
            }
        });
    }
}

async fn forward(mut near: TcpStream, onward: Onward, mut manners: watch::Receiver<Manners>) -> std::io::Result<()> {
    let held = manners.clone();
    tokio::select! {
        ended = relay(&mut near, onward, &held) => return ended,
        _ = manners.wait_for(|manners| !manners.onward) => {}
    }
    while near.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

async fn relay(near: &mut TcpStream, onward: Onward, manners: &watch::Receiver<Manners>) -> std::io::Result<()> {
    let _ = manners.clone().wait_for(|manners| manners.reads && manners.onward).await;
    near.set_nodelay(true)?;
    let mut far = match onward {
        Onward::To(address) => TcpStream::connect(address).await?,
        Onward::AsAsked => {
            let far = TcpStream::connect(asked(near).await?).await?;
            near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            far
        }
    };
    far.set_nodelay(true)?;
    let ((near_reads, near_writes), (far_reads, far_writes)) = (near.split(), far.split());
    // When one direction ends both connections do.
    tokio::select! {
        ended = copy(near_reads, far_writes, manners.clone()) => ended,
        ended = copy(far_reads, near_writes, manners.clone()) => ended,
    }
}

/// `HOST:PORT` of the `CONNECT`. A client sends nothing behind its head before it has the answer.
async fn asked(near: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    target.map(str::to_owned).ok_or_else(|| std::io::Error::other(format!("no CONNECT: {head}")))
}

async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut manners: watch::Receiver<Manners>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 14];
    loop {
        let _ = manners.wait_for(|manners| manners.reads).await;
        let length = tokio::select! {
            biased;
            _ = manners.wait_for(|manners| !manners.reads) => continue,
            length = from.read(&mut buffer) => length?,
        };
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// One, from outside. Its connections are closed by the kernel when dropped.
pub struct Forwarder {
    child: Child,
    control: Mutex<BufReader<UnixStream>>,
    pub address: SocketAddr,
}

impl Forwarder {
    /// In this namespace, listening.
    pub fn start(namespace: &Namespace, directory: &Path, comm: &str, listen: SocketAddr, onward: Onward) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let argument = serde_json::to_string(&Arguments { comm: comm.to_owned(), listen, onward }).unwrap();
        let input = Stdio::from(OwnedFd::from(theirs));
        let child = super::start(namespace, "forwarder", &argument, directory, &[], input);
        let forwarder = Forwarder { child, control: Mutex::new(BufReader::new(ours)), address: listen };
        forwarder.tell(Manners::default());
        forwarder
    }

    /// It behaves so when this returns.
    pub fn tell(&self, manners: Manners) {
        let mut control = self.control.lock().unwrap();
        let mut line = serde_json::to_vec(&manners).unwrap();
        line.push(b'\n');
        control.get_mut().write_all(&line).expect("the forwarder ended");
        assert_ne!(control.read_line(&mut String::new()).unwrap(), 0, "the forwarder ended");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
