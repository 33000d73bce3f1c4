//! `pollux-lab` as its users run it: exit codes, table, JUnit's file, and that it can be interrupted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-lab"));
    command.stdin(Stdio::null());
    command
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name)
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn said(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert_eq!(status.signal(), None);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// A copy of a corpus folder whose rules have gone through `tamper`.
fn copy(name: &str, tamper: impl Fn(String) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["objects.yaml", "proxy-config.yaml", "sysctl.txt"] {
        fs::copy(corpus(name).join(file), folder.path().join(file)).unwrap();
    }
    let rules = fs::read_to_string(corpus(name).join("iptables-save.txt")).unwrap();
    fs::write(folder.path().join("iptables-save.txt"), tamper(rules)).unwrap();
    folder
}

#[test]
fn equal_scenarios_are_a_table_and_exit_0() {
    let folder = copy("udp", |rules| rules);
    let junit = folder.path().join("lab.xml");
    let Said { code, out, err } = said(lab().args(["run", "--junit"]).arg(&junit).arg(folder.path()));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("SCENARIO"), "{out}");
    assert!(lines[1].contains("ipv4") && lines[1].ends_with("equal"), "{out}");
    assert_eq!(lines.last(), Some(&"1 scenarios, 1 equal, 0 different"));
    let xml = fs::read_to_string(junit).unwrap();
    assert!(xml.contains("tests=\"1\" failures=\"0\""), "{xml}");
}

#[test]
fn a_difference_is_exit_1_and_names_the_flow() {
    let folder = copy("target-port", |rules| {
        rules.replace("--to-destination 10.151.51.7:18080", "--to-destination 10.151.51.7:18081")
    });
    let junit = folder.path().join("lab.xml");
    let Said { code, out, .. } = said(lab().arg("run").arg(folder.path()).arg("--junit").arg(&junit));
    assert_eq!(code, Some(1), "{out}");
    let flow = out.lines().position(|line| line.starts_with("pod: tcp 10.151.51.200 > 10.150.")).unwrap();
    let lines: Vec<&str> = out.lines().skip(flow).take(3).collect();
    assert!(lines[0].ends_with("first packet"), "{lines:?}");
    assert!(lines[1].starts_with("  kernel: ") && lines[1].contains("10.151.51.7:18081"), "{lines:?}");
    assert!(lines[2].starts_with("  pollux: "), "{lines:?}");
    assert!(out.ends_with("1 scenarios, 0 equal, 1 different\n"), "{out}");
    let xml = fs::read_to_string(junit).unwrap();
    assert!(xml.contains("failures=\"1\"") && xml.contains("pod: tcp 10.151.51.200 &gt; 10.150."), "{xml}");
}

#[test]
fn bad_input_is_exit_2_and_says_where() {
    let empty = tempfile::tempdir().unwrap();
    let of = |folder: &Path| {
        let Said { code, out, err } = said(lab().arg("run").arg(folder));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
        err
    };
    assert!(of(empty.path()).contains("nothing to compare"));
    assert!(of(&empty.path().join("absent")).contains("absent"));
    let folder = copy("udp", |rules| rules);
    fs::write(folder.path().join("objects.yaml"), "kind: Servise\napiVersion: v1\n").unwrap();
    assert!(of(folder.path()).contains("Servise"));
    let Said { code, err, .. } = said(lab().args(["run", "--junit", "/nowhere/lab.xml"]).arg(corpus("udp")));
    assert_eq!(code, Some(2));
    assert!(err.contains("--junit /nowhere/lab.xml"), "{err}");
    assert_eq!(said(lab().arg("run")).code, Some(2));
    // Rules are the kernel's to judge.
    let folder = copy("udp", |rules| rules.replace("-j KUBE-FORWARD", "-j KUBE-FORWORD"));
    let Said { code, err, .. } = said(lab().arg("run").arg(folder.path()));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("the rules do not load"), "{err}");
}

#[test]
fn a_machine_that_allows_no_namespaces_is_exit_4_and_says_what_to_do() {
    let script = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$0\" run \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script]);
    let Said { code, err, .. } = said(command.arg(env!("CARGO_BIN_EXE_pollux-lab")).arg(corpus("udp")));
    assert_eq!(code, Some(4), "{err}");
    assert!(err.contains("user.max_net_namespaces"), "{err}");
}

#[test]
fn help_has_examples() {
    let Said { code, out, .. } = said(lab().args(["run", "--help"]));
    assert_eq!(code, Some(0));
    assert!(out.contains("Examples:\n  pollux-lab run "), "{out}");
}

#[test]
fn an_interrupted_run_ends_with_130_and_leaves_nothing() {
    let mut child =
        lab().arg("run").arg(corpus("")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("equal") && !line.contains("difference") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "ended by itself");
    }
    let begun = Instant::now();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("interrupted; everything is cleaned up"), "{err}");
    // The names were in a /run of its own.
    let names = fs::read_dir("/run/netns")
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>());
    assert!(!names.unwrap_or_default().iter().any(|name| name.to_string_lossy().starts_with("lab-")));
}
