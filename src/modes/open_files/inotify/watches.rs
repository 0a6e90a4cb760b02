//! Watches of one inotify instance, counted in its fdinfo.

/// Counts the lines of an fdinfo file that are watches, however the file is cut into pieces.
#[derive(Debug, Default)]
pub(super) struct WatchCounter {
    pub(super) watches: u32,
    pub(super) bytes: u64,
    /// Bytes since the last newline, as far as they tell a watch's line from others.
    line: [u8; WATCH.len()],
    len: usize,
}

/// How a watch's line begins. The kernel's other lines are `pos:`, `flags:`, `mnt_id:` and `ino:`.
const WATCH: &[u8] = b"inotify wd:";

impl WatchCounter {
    pub(super) fn feed(&mut self, mut chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        loop {
            let end = memchr::memchr(b'\n', chunk);
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            let wanted = piece.len().min(WATCH.len() - self.len);
            self.line[self.len..self.len + wanted].copy_from_slice(&piece[..wanted]);
            self.len += wanted;
            let Some(end) = end else { return };
            self.watches += u32::from(&self.line[..self.len] == WATCH);
            self.len = 0;
            chunk = &chunk[end + 1..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_count() {
        let recorded = include_bytes!("../../../../tests/fixtures/open_files/v2-kubelet/fdinfo.txt");
        let lines = recorded.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"inotify wd:")).count();
        assert!(lines > 50, "{lines}");
        for size in [1, 2, 7, 11, 64, 1000, recorded.len()] {
            let mut counter = WatchCounter::default();
            recorded.chunks(size).for_each(|chunk| counter.feed(chunk));
            assert_eq!((counter.watches as usize, counter.bytes as usize), (lines, recorded.len()), "pieces of {size}");
        }
    }
}
