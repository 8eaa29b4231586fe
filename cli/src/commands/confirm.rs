//! Asking before something is done that cannot be taken back. Without a terminal nobody is asked, and it is refused.

use std::io::{self, IsTerminal, Write};

use crate::exit::Failure;

/// Tries something; if it is refused for want of a yes, asks for one and tries again with it.
pub async fn confirmed<T>(
    yes: bool,
    attempt: impl AsyncFn(bool) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failure = match attempt(yes).await {
        Err(failure) if failure.question.is_some() => failure,
        other => return other,
    };
    let question = failure.question.as_deref().unwrap_or_default();
    if io::stdin().is_terminal() && ask(&format!("{}. {question}", failure.error))? {
        return attempt(true).await;
    }
    Err(failure.remedy("`--yes` does it without asking"))
}

fn ask(question: &str) -> Result<bool, Failure> {
    let mut terminal = io::stderr().lock();
    let _ = write!(terminal, "{question} [y/N] ");
    let _ = terminal.flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(Failure::doing("reading the answer"))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
