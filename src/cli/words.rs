//! How numbers and lists become words: ages, round-trip times, folded names, plain tables.

use comfy_table::{Table, presets};

use crate::proto::name::natural_cmp;

/// Says a duration in at most two units, such as `2d4h`, `4m12s` or `0s`.
pub(super) fn age(ms: u64) -> String {
    const UNITS: [(u64, &str); 5] = [(604_800, "w"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let seconds = ms / 1_000;
    let first = UNITS.iter().position(|(size, _)| seconds >= *size).unwrap_or(UNITS.len() - 1);
    let (size, unit) = UNITS[first];
    let rest = UNITS.get(first + 1).map(|(next, unit)| (seconds % size / next, unit)).filter(|(count, _)| *count > 0);
    let tail = rest.map(|(count, unit)| format!("{count}{unit}")).unwrap_or_default();
    format!("{}{unit}{tail}", seconds / size)
}

/// Says an age that may be unknown.
pub(super) fn maybe_age(ms: Option<u64>) -> String {
    ms.map_or_else(|| "-".to_owned(), age)
}

/// Says a round-trip time.
pub(super) fn rtt(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..100_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}ms", us / 1_000),
    }
}

/// Says yes or no.
pub(super) const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Counts things: `1 node`, `2 nodes`.
pub(super) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Folds names into one noderange, in natural order: `mgt[1-2],x`.
pub(super) fn fold<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by(|left, right| natural_cmp(left, right));
    names.dedup();
    let mut parts: Vec<String> = Vec::new();
    let mut rest = names.as_slice();
    while let [first, tail @ ..] = rest {
        let Some((stem, start)) = numbered(first) else {
            parts.push((*first).to_owned());
            rest = tail;
            continue;
        };
        let run = (0u64..).zip(rest).take_while(|(offset, name)| {
            numbered(name).is_some_and(|(other, number)| other == stem && Some(number) == start.checked_add(*offset))
        });
        let length = run.count().max(1);
        let digits = &first[stem.len()..];
        // A run may not cross a change of width: n[08-10] and n8 n9 n10 are different names.
        let length = rest[..length].iter().take_while(|name| same_padding(digits, &name[stem.len()..])).count();
        let end = &rest[length - 1][stem.len()..];
        parts.push(if length > 1 { format!("{stem}[{digits}-{end}]") } else { (*first).to_owned() });
        rest = &rest[length..];
    }
    parts.join(",")
}

/// Splits a name into its stem and the number at its end.
fn numbered(name: &str) -> Option<(&str, u64)> {
    let stem = name.trim_end_matches(|last: char| last.is_ascii_digit());
    name[stem.len()..].parse().ok().map(|number| (stem, number))
}

/// Returns whether two numbers are padded alike.
fn same_padding(left: &str, right: &str) -> bool {
    left.len() == right.len() || !(left.starts_with('0') || right.starts_with('0'))
}

/// Lays rows out in columns, without borders or trailing blanks.
pub(super) fn table(header: Option<&[&str]>, rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() && header.is_none() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(header) = header {
        table.set_header(header.iter().copied());
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Colours the words for states, and lines that warn; the words stay as they are.
pub(super) fn paint(text: &str) -> String {
    text.split_inclusive('\n').map(paint_line).collect()
}

fn paint_line(line: &str) -> String {
    let (body, end) = line.strip_suffix('\n').map_or((line, ""), |body| (body, "\n"));
    if body.starts_with("! ") {
        return format!("\u{1b}[31m{body}\u{1b}[0m{end}");
    }
    let words = body.split_inclusive(' ').map(|piece| {
        let word = piece.trim_end_matches(' ');
        match word {
            "alive" | "YES" => format!("\u{1b}[32m{word}\u{1b}[0m{}", &piece[word.len()..]),
            "suspect" => format!("\u{1b}[33m{word}\u{1b}[0m{}", &piece[word.len()..]),
            "down" | "NO" => format!("\u{1b}[31m{word}\u{1b}[0m{}", &piece[word.len()..]),
            _ => piece.to_owned(),
        }
    });
    words.chain([end.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (ms, text) in [
            (0, "0s"),
            (999, "0s"),
            (38_000, "38s"),
            (252_000, "4m12s"),
            (3_600_000, "1h"),
            (187_200_000, "2d4h"),
            (u64::MAX, "30500568904w6d"),
        ] {
            assert_eq!(age(ms), text);
        }
    }

    #[test]
    fn times_of_a_round_trip_keep_their_precision() {
        assert_eq!([rtt(412), rtt(1_250), rtt(250_000)], ["412us", "1.2ms", "250ms"]);
    }

    #[test]
    fn names_fold_by_runs_of_numbers() {
        for (names, folded) in [
            (vec!["mgt2", "mgt1"], "mgt[1-2]"),
            (vec!["n1", "n2", "n3", "n5", "x"], "n[1-3],n5,x"),
            (vec!["n08", "n09", "n10"], "n[08-10]"),
            (vec!["n9", "n10"], "n[9-10]"),
            (vec!["n9", "n010"], "n9,n010"),
            (vec!["n1", "n1"], "n1"),
            (vec!["n99999999999999999999", "a"], "a,n99999999999999999999"),
            (vec![], ""),
        ] {
            assert_eq!(fold(names), folded);
        }
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let rows = vec![vec!["n1".to_owned(), String::new()], vec!["n10".to_owned(), "x".to_owned()]];
        assert_eq!(table(Some(&["NODE", "WHO"]), rows), "NODE  WHO\nn1\nn10   x\n");
    }

    #[test]
    fn paint_adds_colour_and_changes_no_word() {
        let text = "mgt1  alive  downtown\n! mgt3 down\n";
        let painted = paint(text);
        assert!(painted.contains("\u{1b}[32malive\u{1b}[0m") && painted.contains("downtown"));
        let mut plain = painted.replace("\u{1b}[0m", "");
        for code in ["31", "32", "33"] {
            plain = plain.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(plain, text);
    }
}
