//! The contract of `pollux-bench conntrack` (cli.md): one line, its fields, its exit codes.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pollux-bench")).arg("conntrack").args(arguments).output().unwrap()
}

#[test]
fn one_line_of_json_has_the_figures_and_the_parameters() {
    for family in ["4", "6"] {
        let output = run(&["--connections", "3000", "--family", family, "--quick", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.lines().count(), 1);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&report["connections"], &report["runs"]), (&3000.into(), &1.into()));
        assert_eq!(report["family"].to_string(), family);
        for figure in ["bytes_per_connection", "made_per_second", "expired_per_second", "longest_poll_us"] {
            assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
        }
        assert!(report["expiry_lag_ms"].as_u64().unwrap() <= 1000, "CT-10: {report}");
        assert!(report["machine"].as_str().unwrap().contains("Linux"));
        assert_eq!(report["spread"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn people_get_a_line_for_each_figure() {
    let output = run(&["--connections", "100", "--quick"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("made_per_second")), "{text}");
}

#[test]
fn what_is_no_table_size_is_refused_and_what_fits_no_memory_lacks_it() {
    for wrong in ["0", "-1", "many", "1073741825"] {
        assert_eq!(run(&["--connections", wrong]).status.code(), Some(2), "{wrong}");
    }
    let output = run(&["--connections", "1073741824", "--quick"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert_eq!(error.lines().count(), 1);
    assert!(error.contains("MiB"), "{error}");
}
