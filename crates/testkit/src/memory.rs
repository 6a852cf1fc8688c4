//! The memory of another process, as Linux tells it in `/proc`.

use std::fs;

/// What a process holds of the machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub resident: u64,
    /// The most that was resident at any time since the process began, or since [`forget_peak`] (`VmHWM`).
    pub peak: u64,
    /// What of that which is resident now is mapped from files, above all the program itself (`RssFile`).
    pub mapped: u64,
}

impl Memory {
    /// Asks for the memory of a process.
    ///
    /// # Panics
    /// When there is no such process, or the system is no Linux.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let file = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let bytes =
            |name: &str| kibibytes(&status, name).unwrap_or_else(|| panic!("no {name} in {file}")) << 10;
        Self { resident: bytes("VmRSS:"), peak: bytes("VmHWM:"), mapped: bytes("RssFile:") }
    }
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Makes [`Memory::peak`] of a process of the same user begin again from what is resident now.
///
/// Where the system does not allow it the peak stays that of the whole life, which is only ever more.
pub fn forget_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_at_least_what_is_resident() {
        let own = Memory::of(std::process::id());
        assert!(own.mapped > 0 && own.resident > own.mapped && own.peak >= own.resident, "{own:?}");
    }

    #[test]
    fn a_line_is_found_by_its_whole_name() {
        let status = "VmHWM:\t    2048 kB\nVmRSS:\t      12 kB\n";
        assert_eq!((kibibytes(status, "VmRSS:"), kibibytes(status, "VmHWM:")), (Some(12), Some(2048)));
        assert_eq!(kibibytes(status, "VmSwap:"), None);
    }
}
