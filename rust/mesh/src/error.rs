//! What can be wrong with a snapshot document or a snapshot blob.
//!
//! A document's problems are collected, each with the JSON path of the value it is about, so that
//! the author sees all of them at once. Tests: with the modules that report.

use std::fmt;

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, as `listeners[0].virtual_hosts[1].domains[2]`; empty for the document itself.
    pub path: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() {
            "document"
        } else {
            &self.path
        };
        write!(formatter, "{path}: {}", self.text)
    }
}

/// Why a blob was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobError {
    /// The bytes are not the ones that were written.
    Checksum,
    /// The length in the header is not the length of what follows.
    Length,
    /// It does not start as a snapshot blob does.
    Magic,
    /// The payload is not a document although its checksum is right: another build wrote it.
    Payload,
    /// Shorter than a header.
    Truncated,
    /// Written in a layout this build does not read.
    Version(u32),
}

impl fmt::Display for BlobError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum => {
                formatter.write_str("checksum does not match: the bytes were altered")
            }
            Self::Length => formatter.write_str("length in the header differs from the payload's"),
            Self::Magic => formatter.write_str("not a snapshot blob"),
            Self::Payload => {
                formatter.write_str("payload is not a document: another build of meshfast wrote it")
            }
            Self::Truncated => formatter.write_str("shorter than its header"),
            Self::Version(found) => write!(
                formatter,
                "layout version {found} is not {}: another version of meshfast wrote it",
                crate::blob::LAYOUT_VERSION
            ),
        }
    }
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The blob is damaged or foreign.
    Blob(BlobError),
    /// The document is JSON but not a valid snapshot document; at least one problem.
    Document(Vec<Problem>),
    /// The document is not JSON.
    Json {
        /// Line of the first byte that cannot be read, from 1.
        line: usize,
        /// Column of that byte, from 1.
        column: usize,
        /// What the reader found.
        text: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(error) => write!(formatter, "snapshot blob: {error}"),
            Self::Document(problems) => {
                for (position, problem) in problems.iter().enumerate() {
                    let separator = if position == 0 { "" } else { "\n" };
                    write!(formatter, "{separator}{problem}")?;
                }
                Ok(())
            }
            Self::Json { line, column, text } => write!(formatter, "{line}:{column}: {text}"),
        }
    }
}

impl std::error::Error for Error {}

/// Collects problems while a document is walked; knows the path of the value being looked at.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    path: String,
    found: Vec<Problem>,
}

impl Problems {
    /// Walks into the member `name` of the current object.
    pub(crate) fn enter_member(&mut self, name: &str) -> Mark {
        let mark = Mark(self.path.len());
        if !self.path.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(name);
        mark
    }

    /// Walks into an item of the current list.
    pub(crate) fn enter_item(&mut self, index: usize) -> Mark {
        use fmt::Write;
        let mark = Mark(self.path.len());
        write!(self.path, "[{index}]").expect("a String takes every write");
        mark
    }

    /// Walks back to where `mark` was taken.
    pub(crate) fn leave(&mut self, mark: Mark) {
        self.path.truncate(mark.0);
    }

    /// Notes a problem with the current value.
    pub(crate) fn report(&mut self, text: impl Into<String>) {
        self.found.push(Problem {
            path: self.path.clone(),
            text: text.into(),
        });
    }

    /// Notes a problem with the member `name` of the current object.
    pub(crate) fn report_member(&mut self, name: &str, text: impl Into<String>) {
        let mark = self.enter_member(name);
        self.report(text);
        self.leave(mark);
    }

    /// The value, or every problem there was.
    pub(crate) fn settle<T>(self, value: Option<T>) -> Result<T, Error> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                debug_assert!(!self.found.is_empty(), "a missing value is always reported");
                Err(Error::Document(self.found))
            }
        }
    }
}

/// A place to return to on the way through a document.
#[must_use]
pub(crate) struct Mark(usize);
