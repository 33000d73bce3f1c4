//! What is wrong with the input, in one line each: file, object, field and value.
//!
//! `objects.yaml: services/default/myapp port http: nodePort 70000 is not a port (1-65535)`
//!
//! A [`Problem`] that stops the work is an error (exit code 2, nothing was changed); the same type in a list
//! of warnings is only said. Readers go on after an error, so that one run reports all of them.

use std::fmt::{self, Display};
use std::path::Path;
use std::sync::Arc;

/// One thing that is wrong with the input, or worth saying about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file it was read from, if any.
    pub file: Option<Arc<Path>>,
    /// The object and the part of it: `services/default/myapp port http`. May be empty.
    pub object: String,
    /// Field, value and what is wrong with it.
    pub text: String,
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with some input: at least one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects errors and warnings while input is read, under the file and object being read.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    file: Option<Arc<Path>>,
    object: String,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings {
    /// What is found from now on belongs to `file`, and to no object yet.
    pub fn enter_file(&mut self, file: Option<Arc<Path>>) {
        self.file = file;
        self.object.clear();
    }

    /// What is found from now on belongs to `object` of the same file.
    pub fn enter_object(&mut self, object: impl Into<String>) {
        self.object = object.into();
    }

    /// An error in the object.
    pub fn error(&mut self, text: impl Into<String>) {
        let problem = self.problem("", text.into());
        self.errors.push(problem);
    }

    /// An error in a part of the object, such as `port http`.
    pub fn error_in(&mut self, part: &str, text: impl Into<String>) {
        let problem = self.problem(part, text.into());
        self.errors.push(problem);
    }

    /// A warning about the object.
    pub fn warn(&mut self, text: impl Into<String>) {
        let problem = self.problem("", text.into());
        self.warnings.push(problem);
    }

    /// The file that is being read.
    pub fn file(&self) -> Option<&Arc<Path>> {
        self.file.as_ref()
    }

    /// Number of errors so far.
    pub fn error_count(&self) -> usize {
        self.errors.len()
    }

    /// The warnings, or, if there was an error, all errors.
    ///
    /// # Errors
    /// If there was an error.
    pub fn finish(self) -> Result<Vec<Problem>, Problems> {
        if self.errors.is_empty() { Ok(self.warnings) } else { Err(Problems(self.errors)) }
    }

    fn problem(&self, part: &str, text: String) -> Problem {
        let object = match (self.object.is_empty(), part.is_empty()) {
            (_, true) => self.object.clone(),
            (true, false) => part.to_string(),
            (false, false) => format!("{} {part}", self.object),
        };
        Problem { file: self.file.clone(), object, text }
    }
}
