//! Errors as people and scripts meet them: what happened, what to do next, and an exit code.

use std::{fmt, process::ExitCode};

use serde::{Deserialize, Serialize};
use zumastor_core::StoreError;

/// Kind of a failure; as a number it is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Exit {
    /// It was tried and failed.
    Failed = 1,
    /// The command or request makes no sense as written.
    Usage = 2,
    /// A safety rule forbids it.
    Refused = 3,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> u8 {
        exit as u8
    }
}

impl TryFrom<u8> for Exit {
    type Error = String;
    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(Self::Failed),
            2 => Ok(Self::Usage),
            3 => Ok(Self::Refused),
            _ => Err(format!("{code} is not an exit code of a failure")),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What went wrong, and what to do about it. Also the body of every error of the control API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// What happened, to what.
    pub error: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What to ask a person, who may have it done all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The exit code it deserves.
    pub exit: Exit,
}

impl Failure {
    /// Something failed.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { error: error.into(), remedy: None, question: None, exit: Exit::Failed }
    }

    /// What was asked makes no sense.
    pub fn usage(error: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(error) }
    }

    /// A safety rule forbids it.
    pub fn refused(error: impl Into<String>) -> Self {
        Self { exit: Exit::Refused, ..Self::failed(error) }
    }

    /// Says what to do next.
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Lets a person have it done all the same, if they say yes to this.
    pub fn asks(self, question: impl Into<String>) -> Self {
        Self { question: Some(question.into()), ..self }
    }

    /// Wraps an error with what was being done, for `map_err`.
    pub fn doing<E: std::error::Error>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::failed(format!("{what}: {}", chain(&error)))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = chain(&error);
        match error {
            StoreError::NotFound { .. } => {
                Self::failed(text).remedy("`zumastor status VOLUME` lists the snapshots")
            }
            StoreError::Damaged { .. } | StoreError::Unsupported(_) => Self::refused(text),
            _ => Self::failed(text),
        }
    }
}

/// An error with its causes, leaving out those that the message before repeats.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_travel_as_json() {
        let failure = Failure::refused("no").remedy("ask");
        let json = serde_json::to_string(&failure).unwrap();
        assert_eq!(json, r#"{"error":"no","remedy":"ask","exit":3}"#);
        assert_eq!(serde_json::from_str::<Failure>(&json).unwrap(), failure);
    }

    #[test]
    fn causes_are_told_once() {
        let error = StoreError::io("could not open x")(std::io::Error::other("broken"));
        assert_eq!(chain(&error), "could not open x: broken");
    }
}
