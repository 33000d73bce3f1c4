//! Every case file: the tables compiled from its objects decide each of its flows as expected.

use std::path::{Path, PathBuf};

use pollux_control::verify::cases::{self, Case};
use pollux_control::verify::check::check;

#[test]
fn every_flow_of_every_case_gets_its_verdict() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases");
    let files = cases::find(&[folder]).unwrap();
    assert_eq!(files.len(), 130);
    let cases: Vec<_> = files.iter().map(|file| Case::load(file).unwrap()).collect();
    let flows: usize = cases.iter().map(|case| case.flows.len()).sum();
    assert_eq!(flows, 5048);
    let warned: Vec<_> = cases.iter().flat_map(|case| &case.warnings).map(ToString::to_string).collect();
    assert_eq!(warned, [""; 0]);
    let mismatches: Vec<_> = cases.iter().flat_map(check).collect();
    assert!(mismatches.is_empty(), "{} of {flows}: {:#?}", mismatches.len(), mismatches.first());
}
