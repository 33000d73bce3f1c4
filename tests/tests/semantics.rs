//! docs/semantics.md says where each rule of the Service semantics is implemented and what proves it. What it says
//! is true: every ID has a line, every file and every test that a line names exists.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// IDs with how many of them there are. HZ comes with the node's health, TN-02 (VXLAN) later.
const IDS: [(&str, u32); 14] = [
    ("OBJ", 8),
    ("FE", 8),
    ("EP", 6),
    ("WK", 9),
    ("NO", 7),
    ("MQ", 9),
    ("AF", 5),
    ("UP", 5),
    ("CT", 13),
    ("NAT", 9),
    ("FW", 6),
    ("RT", 6),
    ("NB", 3),
    ("TN", 1),
];

/// The lines of the tables that begin with an ID.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>())
        .filter(|row| IDS.iter().any(|(kind, _)| row[0].starts_with(&format!("{kind}-"))))
        .collect()
}

/// The IDs of a cell: `FE-01 to FE-04`, `NO-02, NO-03`.
fn ids(cell: &str) -> Vec<String> {
    let split = |id: &str| {
        let (kind, number) = id.trim().split_once('-').expect("an ID");
        (kind.to_string(), number.parse::<u32>().expect("its number"))
    };
    if let Some((first, last)) = cell.split_once(" to ") {
        let ((kind, first), (_, last)) = (split(first), split(last));
        return (first..=last).map(|number| format!("{kind}-{number:02}")).collect();
    }
    cell.split(", ").map(|id| id.trim().to_string()).collect()
}

fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != ".git") {
                sources(&path, text);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_rule_has_its_place_and_its_proof() {
    let text = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let rows = rows(&text);
    let named: Vec<String> = rows.iter().flat_map(|row| ids(row[0])).collect();
    for (kind, count) in IDS {
        for number in 1..=count {
            let id = format!("{kind}-{number:02}");
            assert!(named.contains(&id), "{id} has no line");
        }
    }
    let mut code = String::new();
    for folder in ["bench", "control", "dataplane", "tests"] {
        sources(&root().join(folder), &mut code);
    }
    // Walks are data, played under their names.
    let walks = pollux_tests::walks::all();
    for row in &rows {
        let [id, places, tests, _] = row.as_slice() else { panic!("four cells: {row:?}") };
        for place in quoted(places) {
            assert!(root().join(place).is_file(), "{id}: {place} is no file");
        }
        assert!(!quoted(tests).is_empty(), "{id}: no test");
        for test in quoted(tests) {
            let exists = code.contains(&format!("fn {test}(")) || walks.iter().any(|walk| walk.name == test);
            assert!(exists, "{id}: no test is called {test}");
        }
    }
}
