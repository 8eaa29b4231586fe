//! What is wrong with a file, in the words of who wrote it: the reader of TOML speaks of types and fields of programs.

use std::ops::Range;

use toml_edit::{Document, TableLike};

/// What the reader says of a place in a file, with the key that stands there and what may stand there instead.
pub fn explained(text: &str, at: Option<Range<usize>>, message: &str) -> String {
    let Ok(document) = Document::parse(text) else {
        return format!("this cannot be read as TOML: {message}");
    };
    // What is about all of the file is at none of its keys.
    let at = at.filter(|span| !span.is_empty());
    let keys = at.and_then(|span| keys_at(document.as_table(), span.start)).unwrap_or_default();
    if let Some((field, may_be)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'))
    {
        let parent = &keys[..keys.len().saturating_sub(1)];
        return match quoted(may_be).as_slice() {
            [] => format!("there is no {field:?}{}", within(parent)),
            fields => format!("there is no {field:?}{}: it may have {}", within(parent), fields.join(", ")),
        };
    }
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return format!("{field:?} is missing{}", within(&keys));
    }
    let key = keys.join(".");
    if let Some((variant, may_be)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.split_once('`'))
    {
        let may_be: Vec<_> = quoted(may_be).iter().map(|word| format!("{word:?}")).collect();
        return format!("{key} is {variant:?}, and must be {}", may_be.join(" or "));
    }
    let mismatch =
        ["invalid type: ", "invalid value: "].iter().find_map(|prefix| message.strip_prefix(prefix));
    if let Some((is, must_be)) = mismatch.and_then(|rest| rest.rsplit_once(", expected ")) {
        return format!("{key} is {}, and must be {}", found(is), wanted(must_be));
    }
    if message.starts_with("UUID parsing failed") {
        return format!(
            "{key} is not the identity of a store: leave the line out, and that of the store is written there"
        );
    }
    if message.contains("socket address") {
        return format!("{key} must be an address and a port, such as \"0.0.0.0:11235\" or \"[::]:11235\"");
    }
    if key.is_empty() { message.to_owned() } else { format!("{key}: {message}") }
}

/// The keys that lead to what is written at a byte of the file.
fn keys_at(table: &dyn TableLike, at: usize) -> Option<Vec<String>> {
    let covers = |span: Option<Range<usize>>| span.is_some_and(|span| span.contains(&at));
    for (name, item) in table.iter() {
        let below = item.as_table_like().and_then(|inner| keys_at(inner, at));
        let key = table.key(name).and_then(toml_edit::Key::span);
        if below.is_some() || covers(key) || covers(item.span()) {
            return Some([vec![name.to_owned()], below.unwrap_or_default()].concat());
        }
    }
    None
}

fn within(table: &[String]) -> String {
    if table.is_empty() { String::new() } else { format!(" in [{}]", table.join(".")) }
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What is there.
fn found(text: &str) -> String {
    let value = text.split_once('`').and_then(|(_, rest)| rest.strip_suffix('`'));
    match (text.strip_prefix("string "), value, text) {
        (Some(string), ..) => format!("the text {string}"),
        (_, Some(value), _) => value.to_owned(),
        (_, _, "map") => "a table".to_owned(),
        (_, _, "sequence") => "a list".to_owned(),
        _ => text.to_owned(),
    }
}

/// What may be there.
fn wanted(text: &str) -> &str {
    match text {
        "i64" | "i32" | "u64" | "u32" | "u16" => "a whole number, and not less than 0",
        "a boolean" => "true or false, without quotes",
        "a string" | "string" => "a text in quotes",
        "path string" => "a path in quotes",
        "a sequence" => "a list such as [\"one\", \"two\"]",
        "a map" => "a table",
        text if text.starts_with("struct ") => "a table",
        text => text,
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use zumastor_core::config::{NodeConfig, PeersConfig, VolumeConfig};

    use super::*;

    fn said<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
        let error = toml::from_str::<T>(text).unwrap_err();
        explained(text, error.span(), error.message())
    }

    #[test]
    fn nothing_is_said_in_the_words_of_programs() {
        let volume = |text: &str| said::<VolumeConfig>(&format!("origin = '/o'\nsnapstore = '/s'\n{text}\n"));
        for (text, says) in [
            (
                "[shedule]\nhourly = 3",
                "there is no \"shedule\": it may have origin, snapstore, metadev, store,",
            ),
            (
                "[schedule]\nyearly = 3",
                "there is no \"yearly\" in [schedule]: it may have hourly, daily, weekly, monthly, custom",
            ),
            (
                "[schedule]\nhourly = 'many'",
                "schedule.hourly is the text \"many\", and must be a whole number, and not less than 0",
            ),
            (
                "[schedule]\nhourly = -1",
                "schedule.hourly: \"-1\" is no number of snapshots to keep: write 0 to",
            ),
            ("schedule = 3", "schedule is 3, and must be a table"),
            ("[schedule.custom.x]\nevery = '1h'", "\"keep\" is missing in [schedule.custom.x]"),
            (
                "[target.beta]\nperiods = 3",
                "there is no \"periods\" in [target.beta]: it may have period, name,",
            ),
            (
                "[target.beta]\nperiod = -1",
                "target.beta.period: \"-1\" is no length of time: write seconds, or",
            ),
            ("[target.beta]\nperiod = 'soon'", "target.beta.period: \"soon\" is no length of time"),
            (
                "[target.beta]\nperiod = true",
                "target.beta.period is true, and must be a length of time, such as 90",
            ),
            ("[target.beta]\nall = 1", "target.beta.all is 1, and must be true or false, without quotes"),
            ("target.beta = { all = 1 }", "target.beta.all is 1, and must be true or false, without quotes"),
            ("[target.beta]\nrotations = 'daily'", "and must be a list such as [\"one\", \"two\"]"),
            ("[target.beta]\ntest = 'x'", "target.beta.test is \"x\", and must be \"fullvolume\""),
            ("[target.'b/x']\nperiod = 3", "target.b/x: \"b/x\" cannot be a node name: use 1 to 63 letters"),
            (
                "[space]\nminimum_free = []",
                "space.minimum_free is a list, and must be a size, such as 4096 or \"10G\"",
            ),
            ("store = 'x'", "store is not the identity of a store: leave the line out"),
            ("metadev = 3", "metadev is 3, and must be a path in quotes"),
            ("[source]\nperiod = 3", "\"host\" is missing in [source]"),
            ("hourly", "this cannot be read as TOML: "),
        ] {
            let what = volume(text);
            assert!(
                what.starts_with(says) || (says.starts_with("and ") && what.ends_with(says)),
                "{text}: {what}"
            );
        }
        for text in ["snapstore = '/s'", "\nsnapstore = '/s'\n\n", "[master]\n", "[master]\nepoch = 1\n", ""]
        {
            assert_eq!(said::<VolumeConfig>(text), "\"origin\" is missing", "{text:?}");
        }
        assert_eq!(
            said::<NodeConfig>("listen = 'here'"),
            "listen must be an address and a port, such as \"0.0.0.0:11235\" or \"[::]:11235\""
        );
        assert_eq!(said::<PeersConfig>("[peer.beta]\naddresses = []"), "\"key\" is missing in [peer.beta]");
    }
}
