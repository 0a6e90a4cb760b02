//! Which process holds a socket: the links in `/proc/PID/fd` are the only place where the kernel tells.
//!
//! On a node with tens of thousands of fds one cannot read every link at each scrape. So what was found is kept, by the
//! cookie of the socket, and while every wanted socket is known nothing is read at all. Each answer is looked at again
//! after a minute: a process can hand its socket to another, or become another program.
//!
//! What is not known is looked for first where sockets were found before, then where the caller thinks, and then in
//! every process in turn, within a budget; the next call goes on where this one stopped. The first two get at most half
//! of the budget, so that a guess with very many fds cannot keep the rest from being reached.
//!
//! A socket that a whole round did not find has no owner that we can see: the kernel's own (NFS), one of a process that
//! we may not look into, one that was not accepted yet. It is not looked for again before a minute has passed.
//!
//! Several processes can hold one socket (a fork, a socket passed on). One of them is told: the first that is met.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::process::Processes;
use crate::host::process::fds::socket_inode;
use crate::host::{Deadline, Host};

/// An answer is looked at again when it is older.
const TRUSTED: Duration = Duration::from_secs(60);

/// So many links are read between two looks at the clock.
const STEP: usize = 512;

/// So many processes are remembered for having held a wanted socket.
const MOST_EARLIER: usize = 16;

/// The process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// In the pid namespace of the procfs that is read.
    pub pid: u32,
    /// What it calls itself.
    pub comm: String,
}

/// What one look found, and why not more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// By socket cookie.
    pub owners: HashMap<u64, Owner>,
    /// Processes whose fds we may not read: one of them may hold what has no owner. 0 if every wanted socket has one.
    pub refused: u64,
    /// The budget or the time ended before everything was looked for. The next call goes on.
    pub cut: bool,
    /// Links that were read by this call; a process without fds counts as one.
    pub looked_at: usize,
}

/// What is known of one wanted socket.
#[derive(Clone, Debug)]
enum Knowledge {
    /// It was fd number `fd` of its owner.
    Owned { owner: Owner, fd: u32, seen: Instant },
    /// A round that began here has not ended yet.
    Sought { since: Place },
    /// A whole round did not find it.
    Nobodys { seen: Instant },
}

/// How far the rounds through all processes have come: later places compare greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    round: u64,
    /// The process to look at next.
    pid: u32,
    /// Where in its fd directory; `None`: at the start.
    within: Option<u64>,
}

impl Place {
    /// True if a search that began at `since` has seen everything once at this place.
    fn completes(self, since: Place) -> bool {
        // What `since` had already seen of its process is to be seen again.
        let again = Place { round: since.round + 1, ..since };
        if since.within.is_some() { (self.round, self.pid) > (again.round, again.pid) } else { self >= again }
    }
}

/// What was found before.
#[derive(Debug, Default)]
pub struct Owners {
    known: HashMap<u64, Knowledge>,
    place: Place,
    /// The last processes that held a wanted socket, the latest first.
    earlier: Vec<u32>,
    /// The processes that refused us when they were last looked at.
    refused: BTreeSet<u32>,
}

impl Owners {
    /// Finds the owners of the wanted sockets (cookie and inode number), reading at most `most_links` links. `first`
    /// are processes in which to look first.
    ///
    /// # Errors
    /// The machine's procfs cannot be read, or we are out of fds. That a process is gone or refuses us is none.
    pub fn find(
        &mut self,
        host: &Host,
        wanted: &[(u64, u32)],
        first: &[u32],
        most_links: usize,
        deadline: Deadline,
    ) -> Result<Found> {
        self.find_at(Instant::now(), host, wanted, first, most_links, deadline)
    }

    fn find_at(
        &mut self,
        now: Instant,
        host: &Host,
        wanted: &[(u64, u32)],
        first: &[u32],
        most_links: usize,
        deadline: Deadline,
    ) -> Result<Found> {
        let cookies: HashSet<u64> = wanted.iter().map(|(cookie, _)| *cookie).collect();
        self.known.retain(|cookie, _| cookies.contains(cookie));
        let mut work = Work { left: most_links, looked_at: 0, deadline };
        if wanted.iter().any(|(cookie, inode)| *inode != 0 && self.is_open(*cookie, now)) {
            let processes = Processes::open(host)?;
            self.look_again(&processes, wanted, now, &mut work);
            self.search(host, &processes, wanted, first, now, &mut work)?;
        }
        let mut found = Found { looked_at: work.looked_at, ..Found::default() };
        let mut unowned = false;
        for &(cookie, _) in wanted {
            match self.known.get(&cookie) {
                Some(Knowledge::Owned { owner, .. }) => drop(found.owners.insert(cookie, owner.clone())),
                Some(Knowledge::Sought { .. }) => found.cut = true,
                Some(Knowledge::Nobodys { .. }) => unowned = true,
                None => {}
            }
        }
        if found.cut || unowned {
            found.refused = self.refused.len() as u64;
        } else {
            self.refused.clear();
        }
        Ok(found)
    }

    /// True if there is something to do for this socket.
    fn is_open(&self, cookie: u64, now: Instant) -> bool {
        match self.known.get(&cookie) {
            Some(Knowledge::Owned { seen, .. } | Knowledge::Nobodys { seen }) => {
                now.saturating_duration_since(*seen) >= TRUSTED
            }
            Some(Knowledge::Sought { .. }) | None => true,
        }
    }

    /// Looks at answers that are too old: a link each. What does not hold any more is sought from here on.
    fn look_again(&mut self, processes: &Processes, wanted: &[(u64, u32)], now: Instant, work: &mut Work) {
        for &(cookie, inode) in wanted.iter().filter(|(_, inode)| *inode != 0) {
            if !self.is_open(cookie, now) {
                continue;
            }
            let knowledge = match self.known.get(&cookie) {
                Some(Knowledge::Sought { .. }) => continue,
                Some(Knowledge::Owned { owner, fd, .. }) => {
                    if work.is_over() {
                        // What was true a minute ago is better than nothing; the next call looks.
                        continue;
                    }
                    work.spend(1);
                    match still_holds(processes, owner.pid, *fd, inode) {
                        Some(comm) => {
                            let owner = Owner { comm, ..*owner };
                            Knowledge::Owned { owner, fd: *fd, seen: now }
                        }
                        None => Knowledge::Sought { since: self.place },
                    }
                }
                Some(Knowledge::Nobodys { .. }) | None => Knowledge::Sought { since: self.place },
            };
            self.known.insert(cookie, knowledge);
        }
    }

    fn search(
        &mut self,
        host: &Host,
        processes: &Processes,
        wanted: &[(u64, u32)],
        first: &[u32],
        now: Instant,
        work: &mut Work,
    ) -> Result<()> {
        let mut sought: HashMap<u32, u64> = wanted
            .iter()
            .filter(|(cookie, _)| matches!(self.known.get(cookie), Some(Knowledge::Sought { .. })))
            .map(|&(cookie, inode)| (inode, cookie))
            .collect();
        if sought.is_empty() {
            return Ok(());
        }
        let mut seen = HashSet::new();
        let mut guesses = Work { left: work.left / 2, looked_at: 0, deadline: work.deadline };
        for pid in self.earlier.clone().into_iter().chain(first.iter().copied()) {
            if sought.is_empty() || guesses.is_over() || seen.contains(&pid) {
                continue;
            }
            if self.look_into(processes, pid, None, &mut sought, now, &mut guesses)?.is_none() {
                seen.insert(pid);
            }
        }
        work.spend(guesses.looked_at);
        self.go_round(host, processes, &mut sought, &seen, now, work)
    }

    /// Goes on through all processes until nothing is sought any more or the budget ends.
    fn go_round(
        &mut self,
        host: &Host,
        processes: &Processes,
        sought: &mut HashMap<u32, u64>,
        seen: &HashSet<u32>,
        now: Instant,
        work: &mut Work,
    ) -> Result<()> {
        let mut pids: Arc<[u32]> = Arc::default();
        let mut nearest = self.give_up(sought, now);
        while !sought.is_empty() && !work.is_over() {
            if pids.is_empty() {
                // Whoever holds a socket that exists by now is in a list that is made from now on.
                pids = host.pids_since(Instant::now(), work.deadline)?;
                self.refused.retain(|pid| pids.binary_search(pid).is_ok());
            }
            let next = pids.get(pids.partition_point(|&pid| pid < self.place.pid)).copied();
            match next {
                // The end of a round; the processes of the next are other ones.
                None => {
                    self.place = Place { round: self.place.round + 1, pid: 0, within: None };
                    pids = Arc::default();
                }
                Some(pid) => {
                    let from = if pid == self.place.pid { self.place.within } else { None };
                    let rest = if seen.contains(&pid) {
                        None
                    } else {
                        self.look_into(processes, pid, from, sought, now, work)?
                    };
                    self.place = match rest {
                        None => Place { pid: pid.saturating_add(1), within: None, ..self.place },
                        within => Place { pid, within, ..self.place },
                    };
                }
            }
            if nearest.is_some_and(|since| self.place.completes(since)) {
                nearest = self.give_up(sought, now);
            }
        }
        Ok(())
    }

    /// Gives up what a whole round did not find. Returns where the oldest search that goes on began.
    fn give_up(&mut self, sought: &mut HashMap<u32, u64>, now: Instant) -> Option<Place> {
        let mut oldest = None;
        sought.retain(|_, cookie| match self.known.get(cookie) {
            Some(Knowledge::Sought { since }) if self.place.completes(*since) => {
                self.known.insert(*cookie, Knowledge::Nobodys { seen: now });
                false
            }
            Some(Knowledge::Sought { since }) => {
                oldest = Some(oldest.map_or(*since, |oldest: Place| oldest.min(*since)));
                true
            }
            _ => false,
        });
        oldest
    }

    /// Looks through the fds of one process. Returns where to go on if the budget ended within.
    fn look_into(
        &mut self,
        processes: &Processes,
        pid: u32,
        mut from: Option<u64>,
        sought: &mut HashMap<u32, u64>,
        now: Instant,
        work: &mut Work,
    ) -> Result<Option<u64>> {
        let fds = match processes.open_fds(pid) {
            Ok(fds) => fds,
            Err(error) => {
                work.spend(1);
                return self.refusal(processes, pid, error).map(|()| None);
            }
        };
        loop {
            let mut met = Vec::new();
            let left = sought.len();
            let examined = fds.links(from, work.left.min(STEP), |fd, link| {
                met.extend(socket_inode(link).and_then(|inode| Some((fd, sought.remove(&inode)?))));
                met.len() < left
            });
            let examined = match examined {
                Ok(examined) => examined,
                Err(errno) => {
                    work.spend(1);
                    let error = Error::os(format_args!("process {pid}: fd"), &errno.into());
                    return self.refusal(processes, pid, error).map(|()| None);
                }
            };
            work.spend(examined.looked_at.max(1));
            if let Some(comm) = if met.is_empty() { None } else { fds.comm().ok() } {
                let owner = Owner { pid, comm: comm.text().into_owned() };
                self.remember(pid);
                for (fd, cookie) in met {
                    self.known.insert(cookie, Knowledge::Owned { owner: owner.clone(), fd, seen: now });
                }
            }
            self.refused.remove(&pid);
            match examined.next {
                Some(next) if !sought.is_empty() && !work.is_over() => from = Some(next),
                next => return Ok(next),
            }
        }
    }

    /// What it means that the fds of a process cannot be read.
    fn refusal(&mut self, processes: &Processes, pid: u32, error: Error) -> Result<()> {
        match error.reason() {
            // A kernel thread has none that we could miss.
            Reason::Denied if processes.size_of_fds(pid) == Some(0) => drop(self.refused.remove(&pid)),
            Reason::Denied => drop(self.refused.insert(pid)),
            _ if error.is_gone() => drop(self.refused.remove(&pid)),
            _ => return Err(error),
        }
        Ok(())
    }

    fn remember(&mut self, pid: u32) {
        self.earlier.retain(|&earlier| earlier != pid);
        self.earlier.insert(0, pid);
        self.earlier.truncate(MOST_EARLIER);
    }
}

/// The name of the process if that fd of it is that socket still.
fn still_holds(processes: &Processes, pid: u32, fd: u32, inode: u32) -> Option<String> {
    let fds = processes.open_fds(pid).ok()?;
    let now = fds.socket(fd).ok()??;
    if now == inode { Some(fds.comm().ok()?.text().into_owned()) } else { None }
}

/// What may still be read.
struct Work {
    left: usize,
    looked_at: usize,
    deadline: Deadline,
}

impl Work {
    fn is_over(&self) -> bool {
        self.left == 0 || self.deadline.expired()
    }

    fn spend(&mut self, links: usize) {
        self.left = self.left.saturating_sub(links);
        self.looked_at += links;
    }
}

#[cfg(test)]
mod tests;
