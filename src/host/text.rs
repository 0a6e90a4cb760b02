//! Texts that the kernel prints in one form for many files.

/// A value of `/proc/meminfo` in bytes: `MemTotal:       24684092 kB`. `None` if there is no such line or it is no
/// amount of memory.
pub fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// A number in a file of keys and values, as a cgroup's `memory.stat`: `inactive_file 463081472`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_lines() {
        let meminfo =
            "MemTotal:       24684092 kB\nMemFree:  1 kB\nMemAvailable:   23864596 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo_bytes(meminfo, "MemTotal"), Some(25_276_510_208));
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable"), Some(23_864_596 * 1024));
        assert_eq!(meminfo_bytes(meminfo, "Mem"), None);
        assert_eq!(meminfo_bytes("MemTotal: x kB", "MemTotal"), None);
    }

    #[test]
    fn keys_are_whole_words() {
        let stat = "total_inactive_file 449298432\ninactive_file 12288\nkernel many\n";
        assert_eq!(keyed(stat, "inactive_file"), Some(12_288));
        assert_eq!(keyed(stat, "inactive"), None);
        assert_eq!(keyed(stat, "kernel"), None);
    }
}
