//! The drill `open-files --runtime-socket`: connections to the runtime's socket that nobody closes.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cli::OpenFiles;
use super::connections::{FIRST_WORD, State};
use super::paths::real;
use super::{Result, Run, children, failed, refused, tried};

/// Never more connections to a socket that others need.
const MOST: u64 = 2000;
/// Descriptors of the process that are no connections.
const SPARE: u64 = 16;
/// So long a part of the connections may be missing and their number stand still: a daemon that is started again.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many connections.
pub(super) fn count(options: &OpenFiles) -> Result<u64> {
    let count = options.count.unwrap_or(100);
    if count > MOST {
        return refused(format_args!("at most {MOST} connections"));
    }
    if count + SPARE > options.limit {
        return refused(format_args!(
            "a process with a limit of {} open files holds {} connections at most: raise --limit",
            options.limit,
            options.limit - SPARE
        ));
    }
    Ok(count)
}

pub(super) fn make(options: &OpenFiles, socket: &Path, run: &mut Run) -> Result<()> {
    let wanted = count(options)?;
    let socket = real(socket)?;
    // Else it would be told by a process of ours only.
    tried(socket.display(), std::os::unix::net::UnixStream::connect(&socket))?;
    let (count, limit) = (wanted.to_string(), options.limit.to_string());
    let every = options.every.as_millis().to_string();
    let mut child =
        children::spawn_with(&["connections", &count, &limit, &socket.to_string_lossy(), &every], Stdio::piped())?;
    let last = Arc::new(Mutex::new(State::default()));
    if let Some(output) = child.stdout.take() {
        let last = Arc::clone(&last);
        std::thread::spawn(move || {
            for line in io::BufRead::lines(io::BufReader::new(output)).map_while(io::Result::ok) {
                if let Some(state) = State::parse(&line) {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = state;
                }
            }
        });
    }
    children::go(&mut child)?;
    let pid = run.journal.adopt(child)?;
    let due = Instant::now() + FIRST_WORD + options.every * u32::try_from(wanted).unwrap_or(u32::MAX);
    let mut shortfall = Shortfall::new(wanted, due);
    run.every_second(|_, _| {
        let state = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lost = match state.lost {
            0 => String::new(),
            lost => format!("; {lost} were lost, the last because {}", state.why),
        };
        let at = socket.display();
        if shortfall.lasts(state.open, Instant::now()) {
            return failed(format_args!(
                "process {pid} holds only {} of {wanted} connections to {at}, and no more than that for {} s{lost}",
                state.open,
                PATIENCE.as_secs()
            ));
        }
        Ok(format!("pid {pid} holds {} of {wanted} connections to {at} ({}){lost}", state.open, state.protocol))
    })
}

/// Whether connections are missing for good.
struct Shortfall {
    wanted: u64,
    /// When all should be there.
    due: Instant,
    /// Since they are too few: the most that there were, and when that was reached.
    most: Option<(u64, Instant)>,
}

impl Shortfall {
    fn new(wanted: u64, due: Instant) -> Self {
        Shortfall { wanted, due, most: None }
    }

    /// Takes in how many are open; true once a tenth is missing, and their number has not grown for long.
    fn lasts(&mut self, open: u64, now: Instant) -> bool {
        if now < self.due || open * 10 >= self.wanted * 9 {
            self.most = None;
            return false;
        }
        let (most, since) = *self.most.get_or_insert((open, now));
        if open > most {
            self.most = Some((open, now));
        }
        open <= most && now.duration_since(since) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_for_long_and_does_not_come_back() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut shortfall = Shortfall::new(100, at(100));
        assert!((0..100).all(|second| !shortfall.lasts(second, at(second))), "they are still being made");
        assert!(!shortfall.lasts(90, at(100)) && !shortfall.lasts(90, at(500)), "a tenth may be on its way");
        // A daemon was started again: they come back one a second.
        assert!((0..100).all(|second| !shortfall.lasts(second, at(600 + second))));
        // A server that closes as many as are made.
        assert!((0..30).all(|second| !shortfall.lasts(50 + second % 2, at(800 + second))));
        assert!(shortfall.lasts(51, at(831)));
        assert!(!shortfall.lasts(95, at(832)) && !shortfall.lasts(0, at(833)) && shortfall.lasts(0, at(863)));
    }
}
