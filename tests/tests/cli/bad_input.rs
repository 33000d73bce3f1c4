//! Bad input: one clear line that names object, field and value; exit code 2; nothing written.

use pollux_tests::binary::{outcome, pollux};
use pollux_tests::seed::{Cluster, repository};

use super::{BAD_INPUT, ENVIRONMENT, assert_refused, with_files};

const TRACE: [&str; 5] = ["trace", "--in", "host", "--packet", "tcp 172.16.1.50:1 > 10.150.18.86:80"];

/// What every command that reads a cluster says about `cluster`.
#[track_caller]
fn assert_cluster_refused(cluster: &Cluster, words: &[&str]) {
    let files = cluster.files();
    let capture = files.directory().join("in.pcap");
    std::fs::write(&capture, super::output::capture(&[])).unwrap();
    let out = files.directory().join("out.pcap");
    let (capture, out_name) = (capture.to_str().unwrap(), out.to_str().unwrap());
    assert_refused(&with_files(&files, ["compile"]), words);
    assert_refused(&with_files(&files, TRACE), words);
    assert_refused(&with_files(&files, ["replay", capture, "-o", out_name]), words);
    assert!(!out.exists(), "nothing may be changed");
}

#[test]
fn a_file_that_is_not_there() {
    let files = Cluster::seed().files();
    let missing = files.directory().join("missing.yaml");
    let missing = missing.to_str().unwrap();
    let objects = files.objects.to_str().unwrap();
    let config = files.config[0].to_str().unwrap();
    assert_refused(&pollux(["compile", "--objects", missing]), &[missing, "No such file"]);
    assert_refused(
        &pollux(["compile", "--objects", objects, "--config", missing]),
        &[missing, "No such file"],
    );
    assert_refused(&pollux(["check", missing]), &[missing, "No such file"]);
    let replay = ["replay", missing, "-o", "/dev/null", "--objects", objects, "--config", config, "--config"];
    let node = files.config[1].to_str().unwrap();
    assert_refused(&pollux(replay.into_iter().chain([node])), &[missing, "No such file"]);
}

#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let files = Cluster::seed().files();
    std::fs::set_permissions(&files.objects, PermissionsExt::from_mode(0o000)).unwrap();
    if std::fs::read(&files.objects).is_ok() {
        // Root reads everything, but no directory as a file.
        let folder = files.directory().to_str().unwrap();
        let objects = repository("docs/examples/objects.yaml");
        let outcome = pollux(["compile", "--objects", objects.to_str().unwrap(), "--config", folder]);
        assert_eq!(outcome.code, BAD_INPUT, "{outcome:?}");
        assert!(outcome.stderr.contains(folder), "{outcome:?}");
        return;
    }
    let name = files.objects.to_str().unwrap();
    assert_refused(&pollux(["compile", "--objects", name]), &[name, "Permission denied"]);
}

#[test]
fn text_that_is_no_yaml() {
    let cluster = Cluster::seed().with_objects("kind: [Service\n");
    assert_cluster_refused(&cluster, &["objects.yaml"]);
}

#[test]
fn an_unknown_kind() {
    let cluster = Cluster::seed().with_objects("apiVersion: v1\nkind: Servise\nmetadata: {name: web}\n");
    assert_cluster_refused(&cluster, &["objects.yaml", "Servise", "v1"]);
}

#[test]
fn an_unknown_kind_of_configuration() {
    let cluster = Cluster::seed().edit_node("kind: Node\n", "kind: Nodes\n");
    assert_cluster_refused(&cluster, &["node.yaml", "Nodes", "pollux.dev/v1alpha1"]);
}

#[test]
fn a_port_out_of_range() {
    let cluster = Cluster::seed().edit_objects("    - port: 80\n", "    - port: 70000\n");
    assert_cluster_refused(&cluster, &["objects.yaml", "default/myapp", "port", "70000"]);
}

#[test]
fn a_field_that_does_not_exist() {
    let cluster = Cluster::seed().edit_node("- name: ens3\n", "- name: ens3\n  speed: 10\n");
    assert_cluster_refused(&cluster, &["node.yaml", "speed"]);
}

#[test]
fn ct_05_a_sysctl_that_is_not_known_and_timeouts_out_of_range() {
    let node = |sysctl: &str| {
        Cluster::seed().edit_node("kind: Node\n", &format!("kind: Node\nsysctl: {{{sysctl}}}\n"))
    };
    let refused = |sysctl: &str, words: &[&str]| assert_cluster_refused(&node(sysctl), words);
    refused(
        "nf_conntrack_tcp_timeout_open: 5",
        &["node.yaml", "sysctl.nf_conntrack_tcp_timeout_open is not known"],
    );
    refused(
        "nf_conntrack_udp_timeout: -1",
        &["node.yaml", "sysctl.nf_conntrack_udp_timeout -1 is not in 1-1728000"],
    );
    refused("nf_conntrack_udp_timeout: 0", &["sysctl.nf_conntrack_udp_timeout 0"]);
    refused("nf_conntrack_udp_timeout: 1728001", &["sysctl.nf_conntrack_udp_timeout 1728001"]);
    refused("nf_conntrack_acct: 2", &["sysctl.nf_conntrack_acct 2 is not in 0-1"]);
    let proxy = |fields: &str| {
        let cluster = Cluster::seed().edit_proxy("conntrack:\n", &format!("conntrack:\n  {fields}\n"));
        assert_refused(&with_files(&cluster.files(), ["compile"]), &["proxy-config.yaml", "conntrack."]);
    };
    proxy("udpTimeout: -1s");
    proxy("udpStreamTimeout: 5");
    proxy("maxPerCore: -1");
}

#[test]
fn two_ports_with_one_name() {
    let cluster = Cluster::seed()
        .edit_node("- name: caliee93b0bdd66 #", "- name: ens3 #")
        .edit_node("- {to: 10.151.51.8, dev: caliee93b0bdd66}\n", "");
    let cluster = cluster
        .edit_node("- {address: 10.151.51.8, linkAddress: 2e:d6:68:68:23:60, dev: caliee93b0bdd66}\n", "");
    assert_cluster_refused(&cluster, &["node.yaml", "port ens3", "name ens3"]);
}

#[test]
fn a_route_to_an_unknown_port() {
    let cluster =
        Cluster::seed().edit_node("{to: 10.151.51.8, dev: caliee93b0bdd66}", "{to: 10.151.51.8, dev: cali8}");
    assert_cluster_refused(&cluster, &["node.yaml", "route 10.151.51.8", "dev", "cali8"]);
}

#[test]
fn several_things_that_are_wrong_are_all_said() {
    let cluster = Cluster::seed()
        .edit_objects("    - port: 80\n", "    - port: 70000\n")
        .edit_objects("    - 10.150.18.86\n", "    - 10.150.18\n");
    let outcome = with_files(&cluster.files(), ["compile"]);
    assert_eq!(outcome.code, BAD_INPUT, "{outcome:?}");
    assert!(outcome.stderr.contains("70000") && outcome.stderr.contains("10.150.18"), "{outcome:?}");
}

#[test]
fn no_objects_and_no_configuration() {
    assert_refused(&pollux(["compile"]), &["--objects"]);
    let objects = repository("docs/examples/objects.yaml");
    let mut arguments = TRACE.to_vec();
    arguments.extend(["--objects", objects.to_str().unwrap(), "--node", "slave1"]);
    assert_refused(&pollux(arguments), &["--config", "Node", "pollux.dev/v1alpha1"]);
}

#[test]
fn a_port_and_a_backend_that_are_not_there() {
    let files = Cluster::seed().files();
    let packet = "tcp 172.16.1.50:1 > 10.150.18.86:80";
    let outcome = with_files(&files, ["trace", "--in", "eth7", "--packet", packet]);
    assert_refused(&outcome, &["--in eth7", "ens3, cali566211caf94"]);
    let outcome =
        with_files(&files, ["trace", "--in", "host", "--packet", packet, "--backend", "10.151.51.9:80"]);
    assert_refused(&outcome, &["10.151.51.9:80", "3 backends"]);
    let outcome = with_files(&files, ["trace", "--in", "host", "--packet", "tcp [fd00::1]:1 > [fd00::2]:2"]);
    assert_refused(&outcome, &["fd00::1", "family"]);
}

#[test]
fn arguments_that_are_not_understood() {
    for arguments in [
        &["trace", "--in", "host", "--packet", "tcp 172.16.1.50 > 10.150.18.86:80"][..],
        &["frobnicate"],
        &["compile", "--frobnicate"],
        &["check"],
        &["completions", "tcsh"],
        &[],
    ] {
        let outcome = pollux(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (BAD_INPUT, ""), "{arguments:?}: {outcome:?}");
        assert_ne!(outcome.stderr, "", "{arguments:?}");
    }
}

#[test]
fn captures_that_are_none() {
    let files = Cluster::seed().files();
    let path = |name: &str| files.directory().join(name).to_str().unwrap().to_string();
    let (input, out) = (path("in.pcap"), path("out.pcap"));
    let run = |input: &str| with_files(&files, ["replay", input, "-o", &out]);

    std::fs::write(&input, "not a capture, but long enough for a header").unwrap();
    assert_refused(&run(&input), &[&input]);
    // Ends within a frame.
    let whole = super::output::capture(&[(1, vec![0xff; 60])]);
    std::fs::write(&input, &whole[..whole.len() - 1]).unwrap();
    assert_refused(&run(&input), &[&input]);
    assert!(!files.directory().join("out.pcap").exists(), "nothing may be changed");

    std::fs::write(&out, "precious").unwrap();
    assert_refused(&run(&input), &[&input]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");

    std::fs::write(&input, &whole).unwrap();
    let nowhere = path("no/such/folder/out.pcap");
    assert_refused(&with_files(&files, ["replay", &input, "-o", &nowhere]), &[&nowhere, "No such file"]);
    let outcome = with_files(&files, ["replay", &input, "-o", &out, "--in", "eth7"]);
    assert_refused(&outcome, &["--in eth7"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "precious");
}

#[test]
fn manual_pages_need_a_directory() {
    assert_refused(&pollux(["man", "/nowhere/at/all"]), &["/nowhere/at/all"]);
}

#[test]
fn output_that_cannot_be_written_is_the_environments_fault() {
    let mut command = pollux_tests::binary::command();
    command.args(["check", repository("tests/cases/unit").to_str().unwrap()]);
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let outcome = outcome(&mut command);
    assert_eq!(outcome.code, ENVIRONMENT, "{outcome:?}");
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
}
