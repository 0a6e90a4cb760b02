//! Which process holds a socket: the links in `/proc/PID/fd` are the only place where the kernel tells.
//!
//! On a node with tens of thousands of fds one cannot read every link at each scrape. So what was found is kept, by the
//! cookie of the socket, and while every wanted socket is known nothing is read at all. Each answer is looked at again
//! after a minute: a process can hand its socket to another, or become another program.
//!
//! What is not known is looked for first where sockets were found before, then where the caller thinks, and then in
//! every process in turn, within a budget; the next call goes on where this one stopped. The first two get at most half
//! of the budget, in equal shares, so that a guess with very many fds cannot keep the rest from being reached.
//!
//! Nor can a process that is no guess: of each only a few fds are looked at before the next one's turn, more when it
//! comes round again. Processes of one share (the caller's word for what somebody may have made without end) take their
//! turns one by one with those of other shares.
//!
//! A socket that a whole round did not find has no owner that we can see: the kernel's own (NFS), one of a process that
//! we may not look into, one that was not accepted yet. It is not looked for again before a minute has passed.
//!
//! Several processes can hold one socket (a fork, a socket passed on). One of them is told: the first that is met.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::process::Processes;
use crate::host::process::fds::socket_inode;
use crate::host::{Deadline, Host};

/// An answer is looked at again when it is older.
const TRUSTED: Duration = Duration::from_secs(60);

/// So many links are read between two looks at the clock.
const STEP: usize = 512;

/// So many links of a process are read at its first turn, and while they are what is sought. Eight times as many at the
/// next, and so on...
const FIRST_TURN: usize = 64;
/// ...until this power of two more.
const MOST_DOUBLED: u32 = 6;

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

/// The sockets of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Their inode numbers.
    pub inodes: HashSet<u32>,
    /// All its fds were looked at: neither the budget nor the time ended before.
    pub whole: bool,
}

/// What sockets a process holds, reading at most `most_links` links: for who wants to know all about one process.
///
/// # Errors
/// Denied if we may not look; gone if it exited.
pub fn held_by(host: &Host, pid: u32, most_links: usize, deadline: Deadline) -> Result<Held> {
    let fds = Processes::open(host)?.open_fds(pid)?;
    let mut held = Held::default();
    let (mut from, mut left) = (None, most_links);
    while left > 0 && !deadline.expired() {
        let examined = fds.links(from, left.min(STEP), |_, link| {
            held.inodes.extend(socket_inode(link));
            true
        });
        let examined = examined.map_err(|errno| Error::os(format_args!("process {pid}: fd"), &errno.into()))?;
        left = left.saturating_sub(examined.looked_at.max(1));
        match examined.next {
            Some(next) => from = Some(next),
            None => return Ok(Held { whole: true, ..held }),
        }
    }
    Ok(held)
}

/// What is known of one wanted socket.
#[derive(Clone, Debug)]
enum Knowledge {
    /// It was fd number `fd` of its owner.
    Owned { owner: Owner, fd: u32, seen: Instant },
    /// It is nobody's if it was not found when this round has ended.
    Sought { until: u64 },
    /// A whole round did not find it.
    Nobodys { seen: Instant },
}

/// A process to look into.
#[derive(Clone, Copy, Debug)]
struct Visit {
    pid: u32,
    /// Where in its fd directory; `None`: at the start.
    within: Option<u64>,
    /// How many turns it has had.
    turns: u32,
    /// How many links this turn has left.
    left: usize,
}

impl Visit {
    fn turn(pid: u32, within: Option<u64>, turns: u32) -> Self {
        Visit { pid, within, turns, left: FIRST_TURN << (3 * turns).min(MOST_DOUBLED) }
    }
}

/// Where the caller thinks that sockets are, and whose a process is.
#[derive(Clone, Copy, Default)]
pub struct Hints<'a> {
    /// Processes in which to look first.
    pub first: &'a [u32],
    /// The share that a process takes its turn with. `None`: one of the machine's own, which have more turns.
    pub share: Option<&'a dyn Fn(u32) -> Option<u64>>,
}

/// What was found before.
#[derive(Debug, Default)]
pub struct Owners {
    known: HashMap<u64, Knowledge>,
    /// The round that goes on, or is to begin.
    round: u64,
    begun: bool,
    /// Whom it has still to look into, in turn.
    todo: VecDeque<Visit>,
    /// The last processes that held a wanted socket, the latest first.
    earlier: Vec<u32>,
    /// The processes that refused us when they were last looked at.
    refused: BTreeSet<u32>,
}

impl Owners {
    /// Finds the owners of the wanted sockets (cookie and inode number), reading at most `most_links` links.
    ///
    /// # Errors
    /// The machine's procfs cannot be read, or we are out of fds. That a process is gone or refuses us is none.
    pub fn find(
        &mut self,
        host: &Host,
        wanted: &[(u64, u32)],
        hints: Hints<'_>,
        most_links: usize,
        deadline: Deadline,
    ) -> Result<Found> {
        self.find_at(Instant::now(), host, wanted, hints, most_links, deadline)
    }

    fn find_at(
        &mut self,
        now: Instant,
        host: &Host,
        wanted: &[(u64, u32)],
        hints: Hints<'_>,
        most_links: usize,
        deadline: Deadline,
    ) -> Result<Found> {
        let cookies: HashSet<u64> = wanted.iter().map(|(cookie, _)| *cookie).collect();
        self.known.retain(|cookie, _| cookies.contains(cookie));
        if self.begun && !self.is_searching() {
            // Nobody waits for the end of that round: the next one is all that a new search takes.
            self.end_round();
        }
        let mut work = Work { left: most_links, looked_at: 0, deadline };
        if wanted.iter().any(|(cookie, inode)| *inode != 0 && self.is_open(*cookie, now)) {
            let processes = Processes::open(host)?;
            self.look_again(&processes, wanted, now, &mut work);
            self.search(host, &processes, wanted, hints, now, &mut work)?;
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

    /// True while something is sought.
    pub fn is_searching(&self) -> bool {
        self.known.values().any(|knowledge| matches!(knowledge, Knowledge::Sought { .. }))
    }

    fn end_round(&mut self) {
        (self.round, self.begun) = (self.round + 1, false);
        self.todo.clear();
    }

    /// What is sought from here on: this round will do if it has not looked at anything yet.
    fn sought(&self) -> Knowledge {
        Knowledge::Sought { until: self.round + u64::from(self.begun) }
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
                        None => self.sought(),
                    }
                }
                Some(Knowledge::Nobodys { .. }) | None => self.sought(),
            };
            self.known.insert(cookie, knowledge);
        }
    }

    fn search(
        &mut self,
        host: &Host,
        processes: &Processes,
        wanted: &[(u64, u32)],
        hints: Hints<'_>,
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
        let mut guesses: Vec<u32> = self.earlier.iter().chain(hints.first).copied().collect();
        let mut known = HashSet::new();
        guesses.retain(|pid| known.insert(*pid));
        let mut left = work.left / 2;
        let many = guesses.len();
        for (done, pid) in guesses.into_iter().enumerate() {
            let mut unlimited = usize::MAX;
            let mut part = Work { left: left / (many - done), looked_at: 0, deadline: work.deadline };
            if sought.is_empty() || part.is_over() {
                continue;
            }
            if self.look_into(processes, pid, None, &mut unlimited, &mut sought, now, &mut part)?.is_none() {
                seen.insert(pid);
            }
            left = left.saturating_sub(part.looked_at);
            work.spend(part.looked_at);
        }
        self.order(hints);
        self.go_round(host, processes, &mut sought, hints, &seen, now, work)
    }

    /// Puts those that wait in the order of their turns: of each share one, then of each the second. The machine's own
    /// have eight for one.
    fn order(&mut self, hints: Hints<'_>) {
        const OWN: usize = 8;
        let Some(share) = hints.share else { return };
        let (mut of_share, mut own) = (HashMap::<(u32, u64), usize>::new(), HashMap::<u32, usize>::new());
        let mut ranked: Vec<(u32, usize, Visit)> = self
            .todo
            .drain(..)
            .map(|visit| {
                let (rank, turns) = match share(visit.pid) {
                    Some(share) => (of_share.entry((visit.turns, share)).or_default(), 1),
                    None => (own.entry(visit.turns).or_default(), OWN),
                };
                *rank += 1;
                (visit.turns, (*rank - 1) / turns, visit)
            })
            .collect();
        ranked.sort_by_key(|(turns, rank, _)| (*turns, *rank));
        self.todo.extend(ranked.into_iter().map(|(.., visit)| visit));
    }

    /// Goes on through all processes until nothing is sought any more or the budget ends.
    #[allow(clippy::too_many_arguments, reason = "one search, taken apart")]
    fn go_round(
        &mut self,
        host: &Host,
        processes: &Processes,
        sought: &mut HashMap<u32, u64>,
        hints: Hints<'_>,
        seen: &HashSet<u32>,
        now: Instant,
        work: &mut Work,
    ) -> Result<()> {
        while !sought.is_empty() && !work.is_over() {
            if !self.begun {
                // Whoever holds a socket that exists by now is in a list that is made from now on.
                let pids = host.pids_since(Instant::now(), work.deadline)?;
                self.refused.retain(|pid| pids.binary_search(pid).is_ok());
                self.todo = pids.iter().map(|&pid| Visit::turn(pid, None, 0)).collect();
                self.begun = true;
                self.order(hints);
            }
            if let Some(visit) = self.todo.pop_front() {
                let Visit { pid, within, turns, mut left } = visit;
                if !(seen.contains(&pid) && within.is_none()) {
                    match self.look_into(processes, pid, within, &mut left, sought, now, work) {
                        Ok(None) => {}
                        // The budget ended, not its turn.
                        Ok(within) if left > 0 => self.todo.push_front(Visit { within, left, ..visit }),
                        Ok(within) => self.todo.push_back(Visit::turn(pid, within, turns + 1)),
                        Err(error) => {
                            self.todo.push_front(visit);
                            return Err(error);
                        }
                    }
                }
            }
            if self.todo.is_empty() {
                self.end_round();
                self.give_up(sought, now);
            }
        }
        Ok(())
    }

    /// Gives up what a whole round did not find.
    fn give_up(&mut self, sought: &mut HashMap<u32, u64>, now: Instant) {
        sought.retain(|_, cookie| match self.known.get(cookie) {
            Some(Knowledge::Sought { until }) if *until < self.round => {
                self.known.insert(*cookie, Knowledge::Nobodys { seen: now });
                false
            }
            Some(Knowledge::Sought { .. }) => true,
            _ => false,
        });
    }

    /// Looks through so many fds of one process. Returns where to go on if these or the budget ended within.
    #[allow(clippy::too_many_arguments, reason = "one search, taken apart")]
    fn look_into(
        &mut self,
        processes: &Processes,
        pid: u32,
        mut from: Option<u64>,
        most: &mut usize,
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
            let examined = fds.links(from, work.left.min(STEP).min(*most), |fd, link| {
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
            // Whoever has one of them has most of them.
            *most = if met.is_empty() { most.saturating_sub(examined.looked_at.max(1)) } else { FIRST_TURN.max(*most) };
            if let Some(comm) = if met.is_empty() { None } else { fds.comm().ok() } {
                let owner = Owner { pid, comm: comm.text().into_owned() };
                self.remember(pid);
                for (fd, cookie) in met {
                    self.known.insert(cookie, Knowledge::Owned { owner: owner.clone(), fd, seen: now });
                }
            }
            self.refused.remove(&pid);
            match examined.next {
                Some(next) if !sought.is_empty() && *most > 0 && !work.is_over() => from = Some(next),
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
