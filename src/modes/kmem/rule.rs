//! What this kernel does about kernel memory, told from facts.

use crate::kubelet::kubepods::accounts_by_cgroup;

/// The rule by which this kernel accounts kernel memory to cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Every cgroup.
    On,
    /// None: switched off at boot.
    Off,
    /// Those that asked for it.
    PerCgroup,
    /// None: not built in, or there is no memory controller.
    Unsupported,
}

/// Where the memory controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nowhere.
    None,
    /// On v1, with or without `memory.kmem.usage_in_bytes`.
    V1 { files: bool },
    /// On cgroup2.
    V2,
}

impl Rule {
    /// The rule of a kernel of this version. `None` if the version is needed and not known.
    pub(super) fn of(memory: Memory, version: Option<(u32, u32)>, nokmem: bool) -> Option<Self> {
        let unless_switched_off = if nokmem { Rule::Off } else { Rule::On };
        match memory {
            Memory::None | Memory::V1 { files: false } => Some(Rule::Unsupported),
            Memory::V2 => Some(unless_switched_off),
            Memory::V1 { files: true } if !accounts_by_cgroup(version?) => Some(unless_switched_off),
            // Also with the boot option: the kernels of RHEL 7 know it, others of that age pass over it. The proof
            // decides.
            Memory::V1 { files: true } => Some(Rule::PerCgroup),
        }
    }

    /// The value of the label `kmem`.
    pub(super) fn label(self, nokmem: bool, active: Option<bool>) -> &'static str {
        match self {
            Rule::On => "on",
            Rule::Off => "off",
            Rule::PerCgroup if nokmem && active == Some(false) => "off",
            Rule::PerCgroup => "per_cgroup",
            Rule::Unsupported => "unsupported",
        }
    }
}

/// Whether this kernel leaks with the accounting that is active on it, and the reason why or why not.
pub(super) fn leak_prone(rule: Rule, active: bool, version: (u32, u32)) -> (bool, &'static str) {
    match (rule, active, version < (4, 0)) {
        (Rule::Unsupported, ..) => (false, "unsupported"),
        (_, _, false) => (false, "kernel_4_0_or_newer"),
        (_, false, true) => (false, "accounting_off"),
        (_, true, true) => (true, "kernel_before_4_0"),
    }
}

/// True if the kernel was booted with `cgroup.memory=nokmem`, alone or in a list (`cgroup.memory=nosocket,nokmem`).
/// What follows ` -- ` is for init, not for the kernel.
pub(super) fn nokmem(cmdline: &str) -> bool {
    cmdline
        .split_ascii_whitespace()
        .take_while(|&word| word != "--")
        .filter_map(|word| word.strip_prefix("cgroup.memory="))
        .any(|value| value.split(',').any(|option| option == "nokmem"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: Memory = Memory::V1 { files: true };

    #[test]
    fn rules_by_kernel() {
        let rule = |memory, version, nokmem| Rule::of(memory, Some(version), nokmem);
        assert_eq!(rule(V1, (3, 10), false), Some(Rule::PerCgroup));
        assert_eq!(rule(V1, (3, 10), true), Some(Rule::PerCgroup), "the option may be unknown there");
        assert_eq!(rule(V1, (4, 5), false), Some(Rule::PerCgroup));
        assert_eq!(rule(V1, (4, 6), false), Some(Rule::On));
        assert_eq!(rule(V1, (6, 18), true), Some(Rule::Off));
        assert_eq!(rule(Memory::V1 { files: false }, (4, 19), false), Some(Rule::Unsupported));
        assert_eq!(rule(Memory::V2, (6, 1), false), Some(Rule::On));
        assert_eq!(rule(Memory::V2, (6, 1), true), Some(Rule::Off));
        assert_eq!(rule(Memory::None, (6, 1), false), Some(Rule::Unsupported));
        assert_eq!(Rule::of(V1, None, false), None, "an unknown kernel is not guessed");
        assert_eq!(Rule::of(Memory::V2, None, false), Some(Rule::On));
    }

    #[test]
    fn only_active_accounting_on_an_old_kernel_leaks() {
        assert_eq!(leak_prone(Rule::PerCgroup, true, (3, 10)), (true, "kernel_before_4_0"));
        assert_eq!(leak_prone(Rule::PerCgroup, false, (3, 10)), (false, "accounting_off"));
        assert_eq!(leak_prone(Rule::PerCgroup, true, (4, 0)), (false, "kernel_4_0_or_newer"));
        assert_eq!(leak_prone(Rule::On, true, (6, 18)), (false, "kernel_4_0_or_newer"));
        assert_eq!(leak_prone(Rule::Unsupported, false, (3, 10)), (false, "unsupported"));
    }

    #[test]
    fn the_label() {
        assert_eq!(Rule::PerCgroup.label(true, Some(false)), "off");
        assert_eq!(Rule::PerCgroup.label(true, Some(true)), "per_cgroup", "the option did nothing");
        assert_eq!(Rule::PerCgroup.label(false, Some(false)), "per_cgroup");
        assert_eq!(Rule::PerCgroup.label(true, None), "per_cgroup");
    }

    #[test]
    fn the_boot_option() {
        for with in [
            "ro cgroup.memory=nokmem quiet\n",
            "cgroup.memory=nosocket,nokmem",
            "cgroup.memory=nosocket cgroup.memory=nokmem",
        ] {
            assert!(nokmem(with), "{with}");
        }
        for without in [
            "",
            "quiet",
            "cgroup.memory=nosocket",
            "xcgroup.memory=nokmem",
            "cgroup.memory=nokmemx",
            "ro -- cgroup.memory=nokmem",
        ] {
            assert!(!nokmem(without), "{without}");
        }
    }
}
