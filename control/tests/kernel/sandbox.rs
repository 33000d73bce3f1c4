//! The sandbox and its network namespaces.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use pollux_control::kernel::Error;
use pollux_control::kernel::netns::Netns;
use pollux_control::kernel::sandbox::{Privilege, Sandbox, find_program};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial!(the_sandbox_has_only_loopback_and_an_empty_run),
        trial!(the_sandbox_cannot_be_entered_by_a_process_with_threads),
        trial!(a_closure_and_a_thread_run_inside_and_the_caller_stays_outside),
        trial!(sysctls_are_those_of_the_namespace_of_the_thread),
        trial!(a_namespace_starts_from_the_kernels_defaults),
        trial!(ip_netns_sees_the_names_and_a_deleted_name_is_gone),
        trial!(a_name_is_refused_when_taken_or_not_a_file_name),
        trial!(the_failing_line_of_a_batch_is_named),
        trial!(a_child_dies_with_the_thread_that_started_it),
        trial!(a_killed_sandbox_takes_its_namespaces_and_links_along),
    ]
}

fn the_sandbox_has_only_loopback_and_an_empty_run() {
    // Other tests add to /run/netns at the same time, so only what else lies in /run is looked at.
    let names: Vec<_> = fs::read_dir("/run")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "netns")
        .collect();
    assert!(names.is_empty(), "{names:?}");
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let devices: Vec<_> = devices.lines().filter_map(|line| line.split_once(':')).collect();
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!(devices[0].0.trim(), "lo");
    assert_ne!(Privilege::of_this_process().unwrap(), Privilege::Ordinary);
}

fn the_sandbox_cannot_be_entered_by_a_process_with_threads() {
    let refused = Sandbox::enter().unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    assert!(refused.to_string().contains("before threads are started"), "{refused}");
}

fn a_closure_and_a_thread_run_inside_and_the_caller_stays_outside() {
    let here = Netns::current().unwrap().id().unwrap();
    let netns = Netns::add("inside").unwrap();
    assert_ne!(netns.id().unwrap(), here);
    let id = || Netns::current().unwrap().id().unwrap();
    assert_eq!(netns.run(id).unwrap(), netns.id().unwrap());
    let thread = netns.start_thread("inside", id).unwrap();
    assert_eq!(thread.join().unwrap(), netns.id().unwrap());
    assert_eq!(id(), here);
    let listed = netns.output(Command::new(find_program("ip").unwrap()).args(["netns", "identify"])).unwrap();
    assert_eq!(listed.trim(), "inside");
}

fn sysctls_are_those_of_the_namespace_of_the_thread() {
    let netns = Netns::add("sysctls").unwrap();
    netns.ip("link add eth0.5 type bridge").unwrap();
    netns.set_sysctl("net/ipv4/conf/eth0.5/rp_filter", "2").unwrap();
    assert_eq!(netns.sysctl("net/ipv4/conf/eth0.5/rp_filter").unwrap(), "2");
    assert!(!Path::new("/proc/sys/net/ipv4/conf/eth0.5").exists());
    netns.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(netns.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
    let missing = netns.set_sysctl("net/ipv4/no_such_thing", "1").unwrap_err();
    assert!(missing.to_string().contains("/proc/sys/net/ipv4/no_such_thing"), "{missing}");
}

fn a_namespace_starts_from_the_kernels_defaults() {
    let netns = Netns::add("defaults").unwrap();
    assert_eq!(netns.sysctl("net/ipv4/conf/default/rp_filter").unwrap(), "0");
    assert_eq!(netns.sysctl("net/ipv4/conf/all/rp_filter").unwrap(), "0");
    assert_eq!(netns.sysctl("net/ipv4/ip_forward").unwrap(), "0");
    let lo =
        netns.output(Command::new(find_program("ip").unwrap()).args(["-o", "link", "show", "lo"])).unwrap();
    assert!(lo.contains(",UP"), "{lo}");
}

fn ip_netns_sees_the_names_and_a_deleted_name_is_gone() {
    let ip = find_program("ip").unwrap();
    let netns = Netns::add("named").unwrap();
    let status =
        Command::new(&ip).args(["-n", "named", "link", "add", "b0", "type", "bridge"]).status().unwrap();
    assert!(status.success());
    netns.ip("link set b0 up").unwrap();
    netns.delete().unwrap();
    assert!(!Path::new("/run/netns/named").exists());
    let gone = Netns::open("named").unwrap_err();
    assert!(gone.to_string().contains("/run/netns/named"), "{gone}");
}

fn a_name_is_refused_when_taken_or_not_a_file_name() {
    let _netns = Netns::add("taken").unwrap();
    let taken = Netns::add("taken").unwrap_err();
    assert!(taken.to_string().contains("network namespace taken"), "{taken}");
    for name in ["", ".", "..", "a/b"] {
        assert!(matches!(Netns::add(name), Err(Error::Invalid(_))), "{name:?}");
    }
}

fn the_failing_line_of_a_batch_is_named() {
    let netns = Netns::add("batch").unwrap();
    let failed = netns.ip("link add b0 type bridge\nlink set b1 up\nlink set b0 up").unwrap_err();
    let Error::Command { command, output } = &failed else {
        panic!("{failed}");
    };
    assert_eq!(command, "ip link set b1 up");
    assert!(output.contains("b1"), "{output}");
}

fn a_child_dies_with_the_thread_that_started_it() {
    let netns = Netns::add("orphan").unwrap();
    let mut child = std::thread::scope(|scope| {
        scope
            .spawn(|| netns.spawn(Command::new("sleep").arg("600").stdin(Stdio::null())).unwrap())
            .join()
            .unwrap()
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the child lives on");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

/// Set in the environment of a copy of this program that shall enter a sandbox of its own.
pub(crate) const INNER: &str = "POLLUX_TEST_INNER_SANDBOX";

/// Makes a namespace inside a sandbox, with a link whose other end is outside, and waits to be killed.
pub(crate) fn live_inside() -> ! {
    let outside = fs::File::open("/proc/self/ns/net").unwrap();
    Sandbox::enter().unwrap();
    let netns = Netns::add("inner").unwrap();
    let (process, descriptor) = (std::process::id(), outside.as_raw_fd());
    netns.ip(&format!("link add in type veth peer name out netns /proc/{process}/fd/{descriptor}")).unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn a_killed_sandbox_takes_its_namespaces_and_links_along() {
    let netns = Netns::add("outer").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(INNER, "1").stdout(Stdio::piped());
    let mut child = netns.spawn(&mut command).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(!Path::new("/run/netns/inner").exists(), "its names are its own");
    let has_link =
        || netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap().contains("out:");
    assert!(has_link());
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel takes a namespace apart in the background.
    let deadline = Instant::now() + Duration::from_secs(5);
    while has_link() {
        assert!(Instant::now() < deadline, "the namespace lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
