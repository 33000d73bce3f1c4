//! Files into documents: YAML (several documents in a file), JSON (one value after another), and either of
//! them compressed with gzip. Where an object or a configuration enters, before anything is known about it.
//!
//! A path that names a file is read whatever its name is: `.json` as JSON, anything else as YAML, `.gz`
//! unpacked first. A path that names a directory means its files `.yaml .yml .json` and those with `.gz`
//! behind, in the order of their names, without its subdirectories: the habit of `kubectl -f`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::{Findings, Problem, Problems};

/// Unpacked size up to which a file is read, bytes: an object file of a million endpoints is a tenth of it.
const MAX_BYTES: u64 = 2 << 30;

/// One document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Where it was read from.
    pub file: Arc<Path>,
    /// Its content.
    pub value: Value,
}

/// Reads all documents of `paths`, in their order. What cannot be read is an error in `findings`; the rest
/// is still read.
pub fn read(paths: &[PathBuf], findings: &mut Findings) -> Vec<Document> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files(path, findings) {
            let file: Arc<Path> = file.into();
            findings.enter_file(Some(file.clone()));
            match read_file(&file) {
                Ok(values) => {
                    documents.extend(values.into_iter().map(|value| Document { file: file.clone(), value }));
                }
                Err(text) => findings.error(text),
            }
        }
    }
    findings.enter_file(None);
    documents
}

/// Reads a typed value out of a document. The message of an error names the field by its path.
///
/// # Errors
/// The field, its value as far as serde knows it, and what was expected.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let text = error.into_inner().to_string();
        // The list of all known fields is no help in one line.
        let text = text
            .split_once(", expected one of ")
            .filter(|(head, _)| head.starts_with("unknown field"))
            .map_or(text.as_str(), |(head, _)| head);
        match path.as_str() {
            "." => text.to_string(),
            path => format!("{path}: {text}"),
        }
    })
}

/// For fields that Go programs print as null when they are empty: null is the default.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn files(path: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_path_buf()];
    }
    findings.enter_file(Some(path.into()));
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            findings.error(error.to_string());
            return Vec::new();
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if is_document(&entry.path()) && !entry.path().is_dir() => files.push(entry.path()),
            Ok(_) => {}
            Err(error) => findings.error(error.to_string()),
        }
    }
    files.sort();
    if files.is_empty() {
        findings.error("holds no .yaml, .yml or .json file (.gz behind them allowed)");
    }
    files
}

fn is_document(path: &Path) -> bool {
    let (stem, _) = unpacked_name(path);
    [".yaml", ".yml", ".json"].iter().any(|end| stem.ends_with(end))
}

/// The file's name without `.gz`, and whether it had it.
fn unpacked_name(path: &Path) -> (&str, Packing) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    match name.strip_suffix(".gz") {
        Some(stem) => (stem, Packing::Gzip),
        None => (name, Packing::Plain),
    }
}

#[derive(PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
}

fn read_file(path: &Path) -> Result<Vec<Value>, String> {
    let text = unpacked(path)?;
    if unpacked_name(path).0.ends_with(".json") { parse_json(&text) } else { parse_yaml(&text) }
}

/// The text of a file, unpacked if its name ends with `.gz`.
///
/// # Errors
/// A file that cannot be read, or is not UTF-8 text.
pub fn read_text(path: &Path) -> Result<String, Problems> {
    unpacked(path)
        .map_err(|text| Problems(vec![Problem { file: Some(path.into()), object: String::new(), text }]))
}

fn unpacked(path: &Path) -> Result<String, String> {
    let (_, packing) = unpacked_name(path);
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut reader: Box<dyn Read> = match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(MultiGzDecoder::new(file)),
    };
    let mut bytes = Vec::new();
    reader.by_ref().take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("is larger than {} GiB", MAX_BYTES >> 30));
    }
    String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 text (byte {})", error.utf8_error().valid_up_to()))
}

/// The values of a JSON text, one after another.
///
/// # Errors
/// What is wrong and in which line and column.
pub fn parse_json(text: &str) -> Result<Vec<Value>, String> {
    serde_json::Deserializer::from_str(text)
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// The documents of a YAML text; empty ones are left out.
///
/// # Errors
/// What is wrong and in which line and column.
pub fn parse_yaml(text: &str) -> Result<Vec<Value>, String> {
    // The limits against blown-up aliases stay; those on plain size would refuse a large cluster, whose text
    // is in memory already and bounds the result.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 50_000,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        // An unquoted `!docker0` is a tag on nothing, not a negated name.
        reject_unsupported_tags: true,
        with_snippet: false,
        emit_comments: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| error.to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_directory_means_its_own_documents_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.yml"), "n: 2\n---\nn: 3\n").unwrap();
        fs::write(dir.path().join("c.json"), "{\"n\": 4} {\"n\": 5}").unwrap();
        fs::write(dir.path().join("notes.txt"), "n: 9\n").unwrap();
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        fs::write(dir.path().join("sub.yaml/d.yaml"), "n: 9\n").unwrap();
        let file = fs::File::create(dir.path().join("a.yaml.gz")).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(b"n: 1\n").unwrap();
        gzip.finish().unwrap();

        let mut findings = Findings::default();
        let documents = read(&[dir.path().to_path_buf()], &mut findings);
        findings.finish().unwrap();
        let numbers: Vec<_> = documents.iter().map(|d| d.value["n"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn every_unreadable_file_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let bad = dir.path().join("bad.yaml");
        fs::write(&bad, "a: [1\nb: 2\n").unwrap();
        let mut findings = Findings::default();
        read(&[dir.path().join("missing.yaml"), bad], &mut findings);
        let problems = findings.finish().unwrap_err().to_string();
        let lines: Vec<_> = problems.lines().collect();
        assert_eq!(lines.len(), 2, "{problems}");
        assert!(lines[0].ends_with("missing.yaml: No such file or directory (os error 2)"));
        assert!(lines[1].contains("bad.yaml: "), "{problems}");
        assert!(lines[1].contains("line 2"), "{problems}");
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let refs = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
        }
        assert!(parse_yaml(&text).is_err());
    }
}
