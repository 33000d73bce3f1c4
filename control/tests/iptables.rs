//! The model of iptables against files: every dump of the corpus and of the cases is read, and printing what
//! was read gives it again.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use pollux_control::iptables::parse::parse;
use pollux_control::iptables::{Ruleset, Target};
use pollux_dataplane::packet::{Family, V4, V6};

/// The files below `folder` that hold rules, in name order.
fn dumps(folder: &str) -> Vec<PathBuf> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().contains("tables-save")) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let mut text = String::new();
    match path.extension().is_some_and(|extension| extension == "gz") {
        true => GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap(),
        false => (&bytes[..]).read_to_string(&mut text).unwrap(),
    };
    text
}

/// Whether a dump is of IPv6: it says so, or, in a case, its objects do.
fn is_v6(path: &Path, text: &str) -> bool {
    let case = path.with_file_name("case.json");
    match case.exists() {
        true => fs::read_to_string(case).unwrap().contains("\"ipFamily\": \"IPv6\""),
        false => text.contains("ip6tables-save"),
    }
}

/// The same rules as if they had been written without a file.
fn without_lines<A: Family>(mut rules: Ruleset<A>) -> Ruleset<A> {
    for chain in rules.tables.iter_mut().flat_map(|table| &mut table.chains) {
        chain.line = 0;
        chain.rules.iter_mut().for_each(|rule| rule.line = 0);
    }
    rules
}

/// Reads a dump, prints it, reads that again; the number of its rules.
fn out_and_back<A: Family>(path: &Path, text: &str) -> usize {
    let rules = parse::<A>(Some(path.into()), text).unwrap_or_else(|problems| panic!("{problems}"));
    let printed = rules.to_string();
    let again =
        parse::<A>(None, &printed).unwrap_or_else(|problems| panic!("{}: {problems}", path.display()));
    let count = rules.rule_count();
    assert_eq!(count, text.lines().filter(|line| line.contains("-A ")).count(), "{}", path.display());
    assert!(without_lines(again) == without_lines(rules), "{}", path.display());
    count
}

fn all_out_and_back(folder: &str, files: usize, rules: usize) {
    let dumps = dumps(folder);
    assert_eq!(dumps.len(), files);
    let counts = dumps.iter().map(|path| {
        let text = read(path);
        if is_v6(path, &text) { out_and_back::<V6>(path, &text) } else { out_and_back::<V4>(path, &text) }
    });
    assert_eq!(counts.sum::<usize>(), rules);
}

#[test]
fn every_dump_of_the_corpus_is_read_and_printed_again() {
    all_out_and_back("tests/corpus", 125, 25_905);
}

#[test]
fn every_dump_of_the_cases_is_read_and_printed_again() {
    all_out_and_back("tests/cases", 130, 9_802);
}
