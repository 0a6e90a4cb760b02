//! The balancers that people really have on their nodes: nginx as kubespray sets it up, and haproxy. Each has two
//! upstreams, of which one is dead: a balancer tries it, and gets no answer.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common;
use crate::common::netns::{CP, Namespace};
use crate::testbed::{BALANCER, DEAD, PORT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Nginx,
    Haproxy,
}

/// Debian puts dynamic modules here (`libnginx-mod-stream`).
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

impl Program {
    /// Its processes' name.
    pub fn comm(self) -> &'static str {
        match self {
            Program::Nginx => "nginx",
            Program::Haproxy => "haproxy",
        }
    }

    /// What must be installed for it, and is not.
    pub fn lacking(self) -> Option<&'static str> {
        match self {
            Program::Nginx if !common::has("nginx") => Some("nginx (Debian package nginx-light)"),
            Program::Nginx if !Path::new(STREAM).exists() => {
                Some("stream module of nginx (Debian package libnginx-mod-stream)")
            }
            Program::Haproxy if !common::has("haproxy") => Some("haproxy"),
            _ => None,
        }
    }

    fn configuration(self, directory: &Path) -> String {
        let (listen, upstreams) =
            (SocketAddr::from(BALANCER), [CP, DEAD].map(|address| SocketAddr::new(address, PORT)));
        let [alive, dead] = upstreams;
        match self {
            Program::Nginx => format!(
                "load_module {STREAM};\ndaemon off;\nworker_processes 1;\nerror_log stderr;\npid {}/nginx.pid;\n\
                 events {{ worker_connections 256; }}\n\
                 stream {{\n  upstream apiserver {{\n    least_conn;\n    server {alive};\n    server {dead};\n  }}\n  \
                 server {{\n    listen {listen};\n    proxy_pass apiserver;\n    proxy_timeout 10m;\n    \
                 proxy_connect_timeout 1s;\n  }}\n}}\n",
                directory.display()
            ),
            Program::Haproxy => format!(
                "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 10m\n  timeout server 10m\n  \
                 option redispatch 1\n\
                 listen apiserver\n  bind {listen}\n  balance roundrobin\n  default-server inter 1s fall 1\n  \
                 server alive {alive} check\n  server dead {dead} check\n"
            ),
        }
    }
}

/// One that runs.
pub struct Balancer {
    child: Child,
    program: Program,
}

impl Balancer {
    /// At [`BALANCER`] in this namespace.
    ///
    /// # Panics
    /// If it does not listen soon.
    pub fn start(namespace: &Namespace, directory: &Path, program: Program) -> Self {
        let path = directory.join(format!("{}.conf", program.comm()));
        std::fs::write(&path, program.configuration(directory)).unwrap();
        let log = std::fs::File::create(directory.join(format!("{}.log", program.comm()))).unwrap();
        let mut command = namespace.command(program.comm());
        match program {
            Program::Nginx => command.args(["-e", "stderr", "-p"]).arg(directory).arg("-c").arg(&path),
            // A master and a worker, as it is run in containers.
            Program::Haproxy => command.args(["-W", "-db", "-f"]).arg(&path),
        };
        let child = namespace.spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log)).unwrap();
        common::eventually("the balancer listens", || {
            namespace.run("ss -tlnH").contains(&SocketAddr::from(BALANCER).to_string())
        });
        Balancer { child, program }
    }

    pub fn comm(&self) -> &'static str {
        self.program.comm()
    }

    /// Its worker hangs until this is dropped: the kernel goes on to take what comes, and nobody reads it.
    pub fn hang(&self) -> Hung {
        let master = self.child.id();
        let workers = std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
        let worker = workers.trim().parse().ok().and_then(Pid::from_raw);
        let worker = worker.unwrap_or_else(|| panic!("not one worker: {workers:?}"));
        kill_process(worker, Signal::STOP).unwrap();
        Hung(worker)
    }
}

#[must_use = "it goes on when this is dropped"]
pub struct Hung(Pid);

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // The master takes its workers with it, which SIGKILL would leave behind.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
