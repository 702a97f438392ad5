//! How much memory the process has, as Linux counts it (proc(5), `/proc/self/status`).

/// Resident bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub now: u64,
    /// The most since the start.
    pub most: u64,
}

/// Reads both; 0 where they cannot be read.
pub(crate) fn read() -> Memory {
    parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse(status: &str) -> Memory {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1_024
    };
    Memory { now: bytes("VmRSS:"), most: bytes("VmHWM:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        assert_eq!(parse("Name:\tx\nVmHWM:\t   12 kB\nVmRSS:\t   3 kB\n"), Memory { now: 3_072, most: 12_288 });
        let memory = read();
        assert!(memory.now > 1 << 20 && memory.most >= memory.now, "{memory:?}");
    }
}
