//! Options whose value is behind `=`, because they may stand without one: what is said when somebody leaves out the `=`.

use std::ffi::OsString;

use clap::{
    ArgMatches, Command,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};

/// Reads the command line. What stands behind such an option without `=` is not guessed at: it could be a name as well.
///
/// # Errors
/// Those of clap, with the advice to write `=` where that may be what was meant.
pub fn checked(mut program: Command, line: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Error> {
    let line: Vec<OsString> = line.into_iter().collect();
    let advice = apart(&program, &line);
    match (program.try_get_matches_from_mut(&line), advice) {
        (Ok(_), Some(Apart { option, value, number: true })) => {
            let mut error = Error::new(ErrorKind::UnknownArgument).with_cmd(&program);
            error.insert(ContextKind::InvalidArg, ContextValue::String(value.clone()));
            Err(advised(error, &option, &value))
        }
        (Err(error), Some(Apart { option, value, .. }))
            if matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::ValueValidation) =>
        {
            Err(advised(error, &option, &value))
        }
        (read, _) => read,
    }
}

/// An option, and the word behind it that may have been meant for it.
struct Apart {
    option: String,
    value: String,
    /// Whether it is a number, which no name of a volume is likely to be.
    number: bool,
}

/// Finds an option that takes its value behind `=`, and is followed by a word that stands apart.
fn apart(program: &Command, line: &[OsString]) -> Option<Apart> {
    let words: Vec<&str> = line.iter().skip(1).map(|word| word.to_str().unwrap_or_default()).collect();
    let mut command = program;
    for pair in words.windows(2) {
        let [word, next] = *pair else { continue };
        if let Some(below) = command.find_subcommand(word) {
            command = below;
            continue;
        }
        let means = |arg: &&clap::Arg| {
            let long = arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
            // Also at the end of several short ones.
            let short = word.starts_with('-') && !word.starts_with("--") && !word.contains('=');
            long || (short && arg.get_short().is_some_and(|short| word.ends_with(short)))
        };
        let takes = command.get_arguments().filter(|arg| arg.is_require_equals_set()).any(|arg| means(&arg));
        if takes && !next.starts_with('-') {
            let number = !next.is_empty() && next.bytes().all(|byte| byte.is_ascii_digit());
            return Some(Apart { option: word.to_owned(), value: next.to_owned(), number });
        }
    }
    None
}

fn advised(mut error: Error, option: &str, value: &str) -> Error {
    let tip = format!("a value of '{option}' stands behind '=', without a space: '{option}={value}'");
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    error
}
