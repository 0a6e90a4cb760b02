//! Network namespaces that were made for pods and that no sandbox has any more.
//!
//! Which there are, the machine's mount table says: a namespace has a name for as long as it is mounted somewhere, and
//! the row has its number. Which of them sandboxes have, the runtime says ([`crate::runtime::SandboxNetwork`]).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::mounts::Table;
use crate::error::Result;
use crate::modes::Context;
use crate::modes::unknown_to_runtime::{Span, UnknownToRuntime};
use crate::runtime::{Poll, Sandbox, SandboxNetwork};

/// How long a look at all processes holds, unless there is one more namespace to be looked for.
const LOOK_HOLDS: Duration = Duration::from_secs(60);

/// The names of those that sandboxes have. `None` if the runtime has not said it of each.
fn known(sandboxes: &[Sandbox]) -> Result<Option<HashSet<&str>>> {
    let mut names = HashSet::new();
    let mut all = true;
    for sandbox in sandboxes {
        match &sandbox.network {
            SandboxNetwork::Named(path) => _ = names.insert(path.rsplit('/').next().unwrap_or(path)),
            SandboxNetwork::Unnamed => {}
            SandboxNetwork::Unasked | SandboxNetwork::Untold => all = false,
            SandboxNetwork::Failed(error) => {
                return Err(error.clone().context("which network namespaces sandboxes have"));
            }
        }
    }
    Ok(all.then_some(names))
}

/// A name of which somebody made another namespace is another one.
type Key = (String, u64);

/// What is remembered between scrapes.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    pub(super) strangers: UnknownToRuntime<Key>,
    inhabited: Inhabited,
}

impl Namespaces {
    /// Takes in which of these the runtime does not know; true if that can be said.
    pub(super) fn update(&mut self, table: &Table, poll: Option<&Poll>, walk: Span) -> Result<bool> {
        let all = || table.namespaces.iter().map(|(name, number)| (name.clone(), *number));
        let names = match poll {
            // Nothing that could be anybody's.
            Some(_) if table.namespaces.is_empty() => Ok(Some(HashSet::new())),
            Some(poll) => known(&poll.inventory.sandboxes),
            None => Ok(None),
        };
        let complete = table.left_out == 0;
        if let (Ok(Some(names)), Some(poll)) = (&names, poll) {
            let unknown = all().filter(|(name, _)| !names.contains(name.as_str()));
            self.strangers.update(unknown, Span { began: poll.began, ended: poll.ended }, walk, complete);
        } else if !self.strangers.is_empty() {
            self.strangers.pause(&all().collect(), complete);
        }
        names.map(|names| names.is_some())
    }

    /// How many of these nobody has had for the grace period, and no process lives in.
    pub(super) fn orphaned(&mut self, table: &Table, grace: Duration, context: Context<'_>) -> Result<usize> {
        let old = |(name, number): (&String, &u64)| {
            let key = (name.clone(), *number);
            self.strangers.reached(&key, grace).then_some(*number)
        };
        let old: Vec<u64> = table.namespaces.iter().filter_map(old).collect();
        if old.is_empty() {
            return Ok(0);
        }
        let inhabited = self.inhabited.look(&old, context)?;
        Ok(old.iter().filter(|number| !inhabited.contains(number)).count())
    }
}

/// In which of the namespaces that are in question a process lives: another runtime's pods may be on this machine.
#[derive(Debug, Default)]
struct Inhabited {
    /// When that was found out.
    at: Option<Instant>,
    /// What was in question, and whether a process was in it.
    of: HashMap<u64, bool>,
}

impl Inhabited {
    fn look(&mut self, numbers: &[u64], context: Context<'_>) -> Result<HashSet<u64>> {
        let holds = self.at.is_some_and(|at| at.elapsed() < LOOK_HOLDS);
        if !holds || numbers.iter().any(|number| !self.of.contains_key(number)) {
            let Context { host, deadline, began } = context;
            let pids = host.pids_since(began, deadline)?;
            let inhabited = host.inhabited_network_namespaces(&pids, deadline)?;
            self.of = numbers.iter().map(|number| (*number, inhabited.contains(number))).collect();
            self.at = Some(Instant::now());
        }
        Ok(self.of.iter().filter(|(_, inhabited)| **inhabited).map(|(number, _)| *number).collect())
    }
}
