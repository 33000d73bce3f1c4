//! The model of iptables against files: every dump of the corpus and of the cases is read, and printing what
//! was read gives it again.

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use pollux_control::iptables::Ruleset;
use pollux_control::iptables::parse::parse;
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

/// A nat table as kube-proxy writes it for 40,000 Services of one endpoint: 20 MB and more.
fn large() -> String {
    let mut text =
        "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SERVICES - [0:0]\n".to_string();
    for at in 0..40_000 {
        write!(text, ":KUBE-SEP-{at:016} - [0:0]\n:KUBE-SVC-{at:016} - [0:0]\n").unwrap();
    }
    text += "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n";
    for at in 0..40_000 {
        let (high, low) = (at / 250, at % 250);
        let comment = format!("-m comment --comment \"default/service-{at}\"");
        write!(
            text,
            "-A KUBE-SEP-{at:016} -s 10.151.{high}.{low}/32 {comment} -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{at:016} -p tcp {comment} -m tcp -j DNAT --to-destination 10.151.{high}.{low}:80\n\
             -A KUBE-SERVICES -d 10.150.{high}.{low}/32 -p tcp {comment} -m tcp --dport 80 -j KUBE-SVC-{at:016}\n\
             -A KUBE-SVC-{at:016} ! -s 10.151.0.0/16 -p tcp {comment} -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{at:016} {comment} -m statistic --mode random --probability 0.33333333349 \
             -j KUBE-SEP-{at:016}\n"
        )
        .unwrap();
    }
    text + "COMMIT\n"
}

/// Half a second where this was written, without the optimisation of a release; what is not linear takes
/// minutes.
#[test]
fn a_file_of_200_000_rules_is_read_in_seconds() {
    let text = large();
    assert!(text.len() > 20_000_000, "{}", text.len());
    let start = Instant::now();
    let rules = parse::<V4>(None, &text).unwrap();
    let taken = start.elapsed();
    assert_eq!(rules.rule_count(), 200_001);
    assert!(taken < Duration::from_secs(20), "{taken:?}");
    println!("{} bytes in {taken:?}", text.len());
}
