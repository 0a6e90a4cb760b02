//! Whether the kubelet finds out by itself that its HTTP/2 connection is dead: three environment variables.
//!
//! A kubelet has one connection to the apiserver and every request on it. If the path dies without a word, TCP alone
//! takes 13 to 30 minutes to give up. Since 1.20 it pings a connection on which it has read nothing for a while, and
//! closes it if the ping is not answered (`apimachinery/pkg/util/net/http.go:131-193`).

use std::time::Duration;

use super::environ;

const READ_IDLE: Duration = Duration::from_secs(30);
const PING: Duration = Duration::from_secs(15);

/// What a kubelet does about HTTP/2, by its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2 {
    /// False with any value in `DISABLE_HTTP2` that is not empty, `false` and `0` included.
    pub enabled: bool,
    /// After how long without a byte read it pings (`HTTP2_READ_IDLE_TIMEOUT_SECONDS`). `None`: never, the health check
    /// is off.
    pub read_idle_timeout: Option<Duration>,
    /// How long the answer may take (`HTTP2_PING_TIMEOUT_SECONDS`).
    pub ping_timeout: Duration,
}

impl Http2 {
    /// By an environment, `NAME=value` each.
    pub fn of_environ<'a>(environ: impl IntoIterator<Item = &'a str>) -> Self {
        let names = ["DISABLE_HTTP2", "HTTP2_READ_IDLE_TIMEOUT_SECONDS", "HTTP2_PING_TIMEOUT_SECONDS"];
        let [disable, read_idle, ping] = environ::values(environ, names);
        let read_idle = integer(read_idle).map_or(READ_IDLE, seconds);
        Http2 {
            enabled: disable.is_empty(),
            read_idle_timeout: (!read_idle.is_zero()).then_some(read_idle),
            // The HTTP/2 library takes 0 for "not set", and its own default is the same 15 s.
            ping_timeout: integer(ping).map(seconds).filter(|ping| !ping.is_zero()).unwrap_or(PING),
        }
    }

    /// After how long, at the latest, it closes a connection on which nothing comes back, counted from the last byte
    /// read. `None`: it does not look.
    pub fn heals_within(&self) -> Option<Duration> {
        self.read_idle_timeout.filter(|_| self.enabled).map(|read_idle| read_idle + self.ping_timeout)
    }
}

/// As Go's `strconv.Atoi`: a sign and decimal digits, nothing else. What it does not take counts as not set.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A negative idle time lets the timer fire at once, for ever: nobody sets it, and it is no longer than 0.
fn seconds(number: i64) -> Duration {
    number.try_into().map_or(Duration::from_nanos(1), Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environ: &[&str]) -> Http2 {
        Http2::of_environ(environ.iter().copied())
    }

    #[test]
    fn by_default_it_heals_in_45_seconds() {
        let http2 = of(&["HOME=/root", "PATH=/bin"]);
        let expected = Http2 { enabled: true, read_idle_timeout: Some(READ_IDLE), ping_timeout: PING };
        assert_eq!(http2, expected);
        assert_eq!(http2.heals_within(), Some(Duration::from_secs(45)));
    }

    #[test]
    fn any_value_disables_it() {
        for value in ["1", "true", "false", "0", " "] {
            let http2 = of(&[&format!("DISABLE_HTTP2={value}")]);
            assert!(!http2.enabled, "{value:?}");
            assert_eq!(http2.heals_within(), None);
        }
        assert!(of(&["DISABLE_HTTP2="]).enabled);
        assert!(of(&["DISABLE_HTTP2=", "DISABLE_HTTP2=1"]).enabled, "the first counts");
    }

    #[test]
    fn zero_switches_the_check_off() {
        let http2 = of(&["HTTP2_READ_IDLE_TIMEOUT_SECONDS=0"]);
        assert_eq!((http2.enabled, http2.read_idle_timeout, http2.heals_within()), (true, None, None));
        assert_eq!(of(&["HTTP2_PING_TIMEOUT_SECONDS=0"]).ping_timeout, PING, "0 is not set, to the library");
    }

    #[test]
    fn what_is_no_number_counts_as_not_set() {
        for value in ["", "x", "5s", "1.5", " 7", "0x10", "1_000", "99999999999999999999"] {
            let http2 = of(&[
                &format!("HTTP2_READ_IDLE_TIMEOUT_SECONDS={value}"),
                &format!("HTTP2_PING_TIMEOUT_SECONDS={value}"),
            ]);
            assert_eq!((http2.read_idle_timeout, http2.ping_timeout), (Some(READ_IDLE), PING), "{value:?}");
        }
        let http2 = of(&["HTTP2_READ_IDLE_TIMEOUT_SECONDS=+5", "HTTP2_PING_TIMEOUT_SECONDS=007"]);
        assert_eq!(http2.heals_within(), Some(Duration::from_secs(12)));
        assert!(of(&["HTTP2_READ_IDLE_TIMEOUT_SECONDS=-1"]).heals_within().is_some_and(|time| time < PING * 2));
    }
}
