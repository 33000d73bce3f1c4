//! The processors that workers run on.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cli::Failure;
use crate::config::NodeConfig;

/// Checks that there is a processor for every worker, and that the ones that are named may be used.
///
/// # Errors
/// Exit code 2, with what there is.
pub(super) fn check(config: &NodeConfig) -> Result<(), Failure> {
    // Of the calling thread: what a container or taskset leaves.
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(Failure::environment)?;
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect();
    match wrong(config, &allowed) {
        lines if lines.is_empty() => Ok(()),
        lines => Err(Failure::bad_input(lines.join("\n"))),
    }
}

fn wrong(config: &NodeConfig, allowed: &[usize]) -> Vec<String> {
    let workers = config.worker_count();
    let few = (workers > allowed.len()).then(|| {
        format!("workers {workers} is more than the {} processors that this process may use", allowed.len())
    });
    let foreign = config.cores.iter().filter(|core| !allowed.contains(&usize::from(**core)));
    let foreign = foreign.map(|core| {
        format!("cores: {core} is none of the processors that this process may use ({})", ranges(allowed))
    });
    foreign.chain(few).collect()
}

/// As in `/sys/devices/system/cpu/online`: `0-3,6`.
fn ranges(numbers: &[usize]) -> String {
    let mut text = Vec::new();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        match run {
            [only] => text.push(only.to_string()),
            [first, .., last] => text.push(format!("{first}-{last}")),
            [] => {}
        }
    }
    text.join(",")
}

/// Lets the calling thread run on this processor only.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn pin(core: u16) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    set.set(usize::from(core))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_cores_must_be_there() {
        let config =
            |workers, cores: &[u16]| NodeConfig { workers, cores: cores.to_vec(), ..NodeConfig::default() };
        let allowed = [0, 1, 2, 5];
        assert_eq!(wrong(&config(None, &[]), &allowed), [""; 0]);
        assert_eq!(wrong(&config(Some(4), &[5, 0, 1, 2]), &allowed), [""; 0]);
        assert_eq!(
            wrong(&config(Some(5), &[]), &allowed),
            ["workers 5 is more than the 4 processors that this process may use"]
        );
        assert_eq!(
            wrong(&config(None, &[1, 3]), &allowed),
            ["cores: 3 is none of the processors that this process may use (0-2,5)"]
        );
    }

    #[test]
    fn a_pinned_thread_runs_where_it_shall() {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let last = (0..CpuSet::count()).rfind(|core| allowed.is_set(*core).unwrap()).unwrap();
        let seen = std::thread::spawn(move || {
            pin(last as u16).unwrap();
            sched_getaffinity(Pid::from_raw(0)).unwrap()
        });
        let mut expected = CpuSet::new();
        expected.set(last).unwrap();
        assert_eq!(seen.join().unwrap(), expected);
    }
}
