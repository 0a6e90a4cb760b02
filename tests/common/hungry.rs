//! A process that is about to run out of file descriptors.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]

use std::process::{Child, Command, Stdio};

/// A process of ours with a limit of 300 and as many files as it takes to be at 98 % of it.
pub struct Hungry(pub Child);

impl Hungry {
    pub fn new() -> Self {
        let script = "import os,sys,time\nwhile True:\n try: os.open('/dev/null', os.O_RDONLY)\n except OSError: break\n\
                      for fd in range(3, 9): os.close(fd)\nprint('full', flush=True)\ntime.sleep(600)";
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n 300; exec python3 -c \"$1\"", "sh", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "full\n");
        Hungry(child)
    }
}

impl Drop for Hungry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
