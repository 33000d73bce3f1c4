//! What the commands print when all is well, and where.

use std::collections::BTreeSet;

use pollux_tests::binary::{outcome, pollux};
use pollux_tests::frame::{Frame, flag};
use pollux_tests::seed::{Cluster, NODE, OUTSIDE, POD_8, link, repository};
use serde_json::Value;

use super::{DIFFERENCE, DONE, assert_refused, with_files};

/// A capture file of frames, each with its second.
pub(super) fn capture(frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend([2, 0, 4, 0]);
    file.extend([0; 8]);
    file.extend(65_535_u32.to_le_bytes());
    file.extend(1_u32.to_le_bytes()); // Ethernet
    for (second, frame) in frames {
        file.extend(second.to_le_bytes());
        file.extend([0; 4]);
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
    }
    file
}

/// The frames of a little-endian capture file.
fn frames_of(capture: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &capture[24..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..][..len].to_vec());
        rest = &rest[16 + len..];
    }
    frames
}

fn json(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "one object on one line: {text}");
    serde_json::from_str(text).expect("JSON")
}

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let top = pollux(["--help"]);
    assert_eq!((top.code, top.stderr.as_str()), (DONE, ""));
    let listed = top.stdout.split("Commands:").nth(1).expect("a list of commands");
    let commands: Vec<_> = listed
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.starts_with("     ")) // a description's second line
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for command in ["compile", "trace", "check", "verify", "replay", "completions", "man"] {
        assert!(commands.contains(&command), "{command} is not in {commands:?}");
    }
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = pollux([command, "--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (DONE, ""), "{command}");
        assert!(help.stdout.contains("Example"), "{command}: {}", help.stdout);
        assert!(help.stdout.contains(&format!("pollux {command}")), "{command}: {}", help.stdout);
    }
}

#[test]
fn the_version_is_printed() {
    let version = pollux(["--version"]);
    assert_eq!((version.code, version.stderr.as_str()), (DONE, ""));
    assert_eq!(version.stdout, format!("pollux {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn all_cases_of_the_corpus_pass() {
    let outcome = pollux(["check".as_ref(), repository("tests/cases").as_os_str()]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""), "{}", outcome.stdout);
    assert_eq!(outcome.stdout, "130 cases, 5048 flows, 0 mismatches\n");
}

#[test]
fn the_clusterip_general_case_passes_by_its_file() {
    let folder = repository("tests/cases/unit/clusteripgeneral-1");
    let files: Vec<_> = walk(&folder).into_iter().filter(|path| path.ends_with("case.json")).collect();
    assert!(!files.is_empty(), "no case in {}", folder.display());
    let outcome = pollux(["check", "--json"].iter().map(Into::into).chain(files.iter().cloned()));
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""), "{}", outcome.stdout);
    let report = json(&outcome.stdout);
    assert_eq!(fields(&report), BTreeSet::from(["cases", "flows", "mismatches"]));
    assert_eq!(report["cases"], files.len());
    assert!(report["flows"].as_u64().unwrap() > 0);
    assert_eq!(report["mismatches"], Value::Array(vec![]));
}

/// Every file below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// A case whose every flow is expected to be rejected, which none is.
fn wrong_case(directory: &std::path::Path) -> usize {
    let right = walk(&repository("tests/cases/unit/clusteripgeneral-1"));
    let right = right.into_iter().find(|path| path.ends_with("case.json")).expect("a case");
    let mut case: Value = serde_json::from_str(&std::fs::read_to_string(right).unwrap()).unwrap();
    let mut wrong = 0;
    for flow in case["flows"].as_array_mut().expect("flows") {
        let expected = &mut flow["expect"]["verdict"];
        wrong += usize::from(*expected != "reject");
        *expected = "reject".into();
    }
    std::fs::create_dir(directory.join("deep")).unwrap();
    std::fs::write(directory.join("deep/case.json"), case.to_string()).unwrap();
    wrong
}

#[test]
fn mismatches_are_listed_and_the_exit_code_is_1() {
    let directory = tempfile::tempdir().unwrap();
    let wrong = wrong_case(directory.path());
    assert!(wrong > 0);
    let path = directory.path().to_str().unwrap();

    let outcome = pollux(["check", path]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DIFFERENCE, ""));
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), wrong + 1);
    assert!(
        lines[wrong].starts_with("1 cases, ") && lines[wrong].ends_with(&format!(", {wrong} mismatches"))
    );

    let outcome = pollux(["check", "--json", path]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DIFFERENCE, ""));
    let report = json(&outcome.stdout);
    let mismatches = report["mismatches"].as_array().unwrap();
    assert_eq!(mismatches.len(), wrong);
    assert_eq!(fields(&mismatches[0]), BTreeSet::from(["case", "flow", "expected", "got"]));
}

#[test]
fn no_case_found_is_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    assert_refused(&pollux(["check", path]), &[path]);
}

#[test]
fn compile_prints_a_table_or_an_object() {
    let files = Cluster::seed().files();
    let table = with_files(&files, ["compile"]);
    assert_eq!((table.code, table.stderr.as_str()), (DONE, ""));
    assert!(table.stdout.contains("10.150.18.86:80/tcp"), "{}", table.stdout);

    let object = with_files(&files, ["compile", "--json"]);
    assert_eq!((object.code, object.stderr.as_str()), (DONE, ""));
    let object = json(&object.stdout);
    assert_eq!(object["node"], "slave1", "hostnameOverride");
    let frontend = &object["frontends"][0];
    assert_eq!(
        (&frontend["service"], &frontend["address"]),
        (&"default/myapp".into(), &"10.150.18.86".into())
    );
    assert_eq!(frontend["port"], 80);
    assert_eq!(frontend["backends"].as_array().unwrap().len(), 3);
}

#[test]
fn the_nodes_name_is_given_or_configured_or_the_systems() {
    let objects = repository("docs/examples/objects.yaml");
    let objects = objects.to_str().unwrap();
    let proxy = repository("docs/examples/proxy-config.yaml");
    let named = |arguments: &[&str]| {
        let outcome = pollux(["compile", "--json", "--objects", objects].iter().chain(arguments));
        assert_eq!(outcome.code, DONE, "{outcome:?}");
        json(&outcome.stdout)["node"].as_str().unwrap().to_string()
    };
    let config = ["--config", proxy.to_str().unwrap()];
    assert_eq!(named(&[&config[..], &["--node", "slave2"]].concat()), "slave2");
    assert_eq!(named(&config), "slave1");
    let system = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(named(&[]), system.trim());
}

#[test]
fn objects_come_from_directories_and_json_and_several_documents() {
    let whole = with_files(&Cluster::seed().files(), ["compile", "--json"]);
    let files = Cluster::seed().with_empty_service().files();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&files.objects, folder.path().join("a.yml")).unwrap();
    std::fs::write(folder.path().join("README"), "not an object").unwrap();
    std::fs::write(
        folder.path().join("b.json"),
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "default"}}"#,
    )
    .unwrap();
    let [proxy, node] = files.config.each_ref().map(|path| path.to_str().unwrap());
    let folder = folder.path().to_str().unwrap();
    let outcome = pollux(["compile", "--json", "--objects", folder, "--config", proxy, "--config", node]);
    assert_eq!(outcome.code, DONE, "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "one summary line: {}", outcome.stderr);
    assert!(outcome.stderr.contains("ConfigMap"), "{}", outcome.stderr);
    let services = |text: &str| {
        let object = json(text);
        let frontends = object["frontends"].as_array().unwrap();
        frontends.iter().map(|one| one["service"].as_str().unwrap().to_string()).collect::<BTreeSet<_>>()
    };
    assert_eq!(services(&whole.stdout), BTreeSet::from(["default/myapp".into()]));
    let expected = ["default/myapp", "default/none", "default/none:dns"].map(String::from);
    assert_eq!(services(&outcome.stdout), BTreeSet::from(expected));
}

#[test]
fn modes_and_fields_without_meaning_are_reported_and_no_error() {
    let cluster = Cluster::seed().edit_proxy("mode: iptables\n", "mode: ipvs\nportRange: 0-0\n");
    let outcome = with_files(&cluster.files(), ["compile", "--json"]);
    assert_eq!(outcome.code, DONE, "{outcome:?}");
    assert!(outcome.stderr.contains("ipvs") && outcome.stderr.contains("portRange"), "{}", outcome.stderr);
    json(&outcome.stdout);
}

#[test]
fn trace_says_it_in_the_words_of_iptables() {
    let files = Cluster::seed().files();
    let packet = "tcp 172.16.1.50:56060 > 10.150.18.86:80";
    let arguments = ["trace", "--in", "host", "--packet", packet, "--backend", "10.151.51.8:80"];
    let outcome = with_files(&files, arguments);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""));
    // The seed's own rules for this packet.
    for words in [
        "! -s 10.151.0.0/16 -d 10.150.18.86/32",
        "-j KUBE-MARK-MASQ",
        "-j KUBE-SVC-XJWXQFJLXSXKRMSG",
        "-j KUBE-SEP-Y6Q4QAGGLGL6PUEO",
        "10.151.51.8:80",
        "MASQUERADE",
        "caliee93b0bdd66: 172.16.1.50:56060 > 10.151.51.8:80, ttl 64, ee:ee:ee:ee:ee:ee > 2e:d6:68:68:23:60",
    ] {
        assert!(outcome.stdout.contains(words), "{words:?} is not in:\n{}", outcome.stdout);
    }
}

#[test]
fn trace_without_a_choice_lists_the_backends_and_follows_none() {
    let files = Cluster::seed().files();
    let packet = "tcp 172.16.1.50:56060 > 10.150.18.86:80";
    let outcome = with_files(&files, ["trace", "--json", "--in", "host", "--packet", packet]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""));
    let trace = json(&outcome.stdout);
    assert_eq!(trace["verdict"], "forward");
    assert_eq!(trace.get("out_port"), None, "it is not known which of the three");
    let backends = trace["backends"].as_array().unwrap();
    assert_eq!(backends.len(), 3);
    for backend in backends {
        assert_eq!(fields(backend), BTreeSet::from(["address", "masquerade", "port", "probability"]));
        assert_eq!((&backend["probability"], &backend["masquerade"]), (&"1/3".into(), &true.into()));
    }
    for step in trace["steps"].as_array().unwrap() {
        assert_eq!(fields(step), BTreeSet::from(["chain", "effect", "rule", "table"]));
    }
}

#[test]
fn replay_forwards_a_capture() {
    // W9: one backend, so the frame that leaves is known.
    let files = Cluster::seed().with_node_port("Local").files();
    let path = |name: &str| files.directory().join(name).to_str().unwrap().to_string();
    let (input, out) = (path("in.pcap"), path("out.pcap"));
    let syn = Frame::tcp((OUTSIDE, 50000), (NODE, 30080), flag::SYN).link(link::OUTSIDE, link::ENS3);
    let expected = syn.clone().to(POD_8, 80).link(link::CALI, link::POD_8).ttl(63);
    let other_host = syn.clone().link(link::OUTSIDE, link::SLAVE2);
    let frames = [(1_700_000_000, syn.bytes()), (1_700_000_001, other_host.bytes())];
    std::fs::write(&input, capture(&frames)).unwrap();

    let outcome = with_files(&files, ["replay", &input, "-o", &out, "--json"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""));
    let counters = json(&outcome.stdout);
    assert_eq!((&counters["received"], &counters["transmitted"]), (&2.into(), &1.into()), "{counters}");
    assert_eq!(frames_of(&std::fs::read(&out).unwrap()), [expected.bytes()]);

    // The same for people, and over its own input.
    let outcome = with_files(&files, ["replay", &input, "-o", &input]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""));
    assert!(outcome.stdout.contains("transmitted"), "{}", outcome.stdout);
    assert_eq!(frames_of(&std::fs::read(&input).unwrap()), [expected.bytes()]);
    let left: BTreeSet<_> =
        walk(files.directory()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    let known = ["in.pcap", "node.yaml", "objects.yaml", "out.pcap", "proxy-config.yaml"];
    assert_eq!(left, known.map(Into::into).into(), "nothing else is left behind");
}

#[test]
fn an_interrupted_replay_leaves_nothing_behind() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let files = Cluster::seed().files();
    let out = files.directory().join("out.pcap");
    let mut command = pollux_tests::binary::command();
    command.args(["replay", "/dev/stdin", "-o"]).arg(&out).arg("--objects").arg(&files.objects);
    for config in &files.config {
        command.arg("--config").arg(config);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut replay = command.spawn().unwrap();
    let mut frames = replay.stdin.take().unwrap();
    let (start, record) = (capture(&[]), capture(&[(1, vec![0xff; 60])]));
    frames.write_all(&start).unwrap();
    // Frames without end, until the command goes; it is interrupted when the output is open.
    let feed = std::thread::spawn(move || while frames.write_all(&record[24..]).is_ok() {});
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while walk(files.directory()).len() < 4 {
        assert!(std::time::Instant::now() < deadline, "no output is opened");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &replay.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = replay.wait_with_output().unwrap();
    feed.join().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(130), &b""[..]));
    assert_eq!(walk(files.directory()).len(), 3, "the files that were there before");
}

#[test]
fn the_page_about_connection_tracking_is_the_one_that_the_code_prints() {
    let printed = pollux(["conntrack", "docs"]);
    assert_eq!((printed.code, printed.stderr.as_str()), (DONE, ""));
    let page = std::fs::read_to_string(repository("docs/conntrack.md")).unwrap();
    assert!(printed.stdout == page, "stale: pollux conntrack docs > docs/conntrack.md");
    // CT-05 to CT-07: every setting, every state, the differences.
    for part in ["| `nf_conntrack_udp_timeout` | 30 |", "| SYN-ACK |", "| COOKIE_ECHOED |", "| CT-07 |"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let outcome = pollux(["completions", shell]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""), "{shell}");
        for command in ["compile", "trace", "check", "verify", "replay"] {
            assert!(outcome.stdout.contains(command), "{shell}: {command}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let outcome = pollux(["man".as_ref(), directory.path().as_os_str()]);
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (DONE, "", ""));
    for page in ["pollux.1", "pollux-trace.1", "pollux-check.1"] {
        let text = std::fs::read_to_string(directory.path().join(page)).expect(page);
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error_that_is_told() {
    // `pollux check … | head`: the closed pipe ends the command by its signal, without a word.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$0\" completions bash | head -1"]);
    command.arg(pollux_tests::binary::command().get_program());
    let outcome = outcome(&mut command);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (DONE, ""));
}
