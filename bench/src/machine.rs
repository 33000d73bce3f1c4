//! The machine that is measured: its name in words, this process's memory, this thread's time.

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Processor, processors and kernel, in one line.
pub fn name() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model.trim());
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {processors} processors, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// Bytes of memory that this process has in use, huge pages included.
///
/// # Errors
/// When the kernel does not say.
pub fn memory_in_use() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(1024 * (kibibytes(&status, "VmRSS:")? + kibibytes(&status, "HugetlbPages:").unwrap_or(0)))
}

/// Bytes of memory that the machine could give away.
///
/// # Errors
/// When the kernel does not say.
pub fn memory_available() -> io::Result<u64> {
    Ok(1024 * kibibytes(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")?)
}

/// The number behind `name` in a file of `/proc` with lines such as `VmRSS:  1234 kB`.
///
/// # Errors
/// When there is none.
pub fn kibibytes(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("the kernel does not say {name}")))
}

/// Time that this thread has had a processor. Others on the machine do not count, interruptions do.
///
/// # Panics
/// Never on Linux, which always has this clock.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_name_and_memory() {
        assert!(name().contains("Linux"));
        assert!(memory_in_use().unwrap() > 1 << 20);
        assert!(memory_available().unwrap() > 1 << 20);
        assert_eq!(kibibytes("VmRSS:\t  12 kB\n", "VmRSS:").unwrap(), 12);
        assert!(kibibytes("VmRSS:\t x kB\n", "VmRSS:").is_err());
    }
}
