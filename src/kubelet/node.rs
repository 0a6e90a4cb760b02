//! The name of this node, as the apiserver knows it.

use std::sync::Arc;
use std::time::Duration;

use super::process::Finder;
use super::sources::{Overrides, Sources};
use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};

/// How long it may take to find the kubelet.
const LOOK: Duration = Duration::from_secs(5);

/// Who this node is: by `--node-name`, else as its kubelet would name it.
#[derive(Clone, Debug, Default)]
pub struct Node {
    given: Option<String>,
    overrides: Overrides,
    finder: Finder,
}

impl Node {
    /// `given`: what `--node-name` says.
    pub fn new(given: Option<String>, overrides: Overrides, finder: Finder) -> Self {
        Node { given, overrides, finder }
    }

    /// Its name. What is not given is looked up each time: a kubelet may come back under another.
    ///
    /// # Errors
    /// If neither the kubelet's command line nor the machine's name can be read; malformed if no node can be called so.
    pub async fn name(&self, host: &Arc<Host>) -> Result<String> {
        let (node, host) = (self.clone(), Arc::clone(host));
        // It reads procfs, which has no place on a thread that others wait for.
        let name = tokio::task::spawn_blocking(move || node.look_up(&host)).await;
        name.unwrap_or_else(|error| Err(Error::new(Reason::Panic, error.to_string())))
    }

    fn look_up(&self, host: &Host) -> Result<String> {
        let name = match &self.given {
            Some(name) => name.clone(),
            None => {
                let found = self.finder.find(host, Deadline::after(LOOK))?;
                Sources::of(host, found.kubelet.as_ref(), &self.overrides).node_name()?
            }
        };
        // It becomes part of a path: an object's name, RFC 1123.
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) || name.starts_with('.') {
            return Err(Error::malformed(format!("no node can be called {name:?}: --node-name gives its name")));
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    async fn name(given: Option<&str>, hostname: &str) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sys/kernel")).unwrap();
        std::fs::write(dir.path().join("sys/kernel/hostname"), hostname).unwrap();
        let host = Arc::new(Host::new(Roots { proc: dir.path().into(), ..Roots::default() }));
        Node::new(given.map(str::to_owned), Overrides::default(), Finder::default()).name(&host).await
    }

    #[tokio::test]
    async fn given_or_the_machines() {
        assert_eq!(name(Some("ip-10-0-0-1.ec2.internal"), "x").await.unwrap(), "ip-10-0-0-1.ec2.internal");
        assert_eq!(name(None, "Worker-7\n").await.unwrap(), "worker-7");
    }

    #[tokio::test]
    async fn nothing_that_is_no_name_gets_into_a_path() {
        for odd in ["", "a/b", "../secrets", "..", "a?b", "A", "a b", "é"] {
            let error = name(Some(odd), "x").await.unwrap_err();
            assert!(error.to_string().contains("--node-name"), "{odd}: {error}");
        }
    }
}
