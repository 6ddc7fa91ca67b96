//! Texts that peers send, and what several ranks have to say, made fit for an error or a log.

/// `text` on one line, of `most` bytes at most: what would move a terminal's cursor, begin a line, change the direction of
/// writing or cannot be seen stands there as its escape.
pub fn legible(text: &str, most: usize) -> String {
    const CUT: &str = "…";
    let mut legible = String::with_capacity(text.len().min(most));
    for character in text.chars() {
        let escape = character.escape_debug();
        // Quotation marks and backslashes have an escape, but are as visible as letters.
        let visible = escape.len() == 1 || matches!(character, '"' | '\'' | '\\');
        let shown = if visible { character.to_string() } else { escape.to_string() };
        if legible.len() + shown.len() > most {
            legible.truncate(legible.floor_char_boundary(most.saturating_sub(CUT.len())));
            legible.push_str(CUT);
            break;
        }
        legible.push_str(&shown);
    }
    legible
}

/// What each of several ranks has to say, in one text. Only the first are named where a group is larger than any.
pub(crate) fn enumerate(each: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    const NAMED: usize = lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
    let others = each.len().saturating_sub(NAMED);
    let mut named: Vec<String> = each.take(NAMED).collect();
    if others > 0 {
        named.push(format!("and {others} more"));
    }
    named.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_stays_as_it_is() {
        for text in ["", "cuMemAlloc failed: \"no memory\" (it's at 100 %)", r"C:\path", "größer, 更大, Ω"] {
            assert_eq!(legible(text, 480), text);
        }
    }

    #[test]
    fn what_a_terminal_or_a_log_would_obey_is_escaped() {
        let cases = [
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{1b}[31mred\u{7}", r"\u{1b}[31mred\u{7}"),
            ("\0\u{7f}\u{9b}2J", r"\0\u{7f}\u{9b}2J"),
            ("\u{202e}drow\u{2028}\u{200b}\u{feff}", r"\u{202e}drow\u{2028}\u{200b}\u{feff}"),
        ];
        for (text, expected) in cases {
            assert_eq!(legible(text, 480), expected);
        }
    }

    #[test]
    fn a_text_that_grows_by_its_escapes_is_cut_between_characters() {
        for most in 3..40 {
            let text = legible(&"é\u{1b}".repeat(100), most);
            assert!(text.len() <= most && text.ends_with('…'), "{text}");
        }
    }

    #[test]
    fn more_ranks_than_any_group_has_are_counted_and_not_named() {
        let text = enumerate((0..1000).map(|rank| rank.to_string()), ", ");
        assert!(text.starts_with("0, 1, ") && text.ends_with("15, and 984 more"), "{text}");
        assert_eq!(enumerate((0..2).map(|rank| rank.to_string()), "; "), "0; 1");
    }
}
