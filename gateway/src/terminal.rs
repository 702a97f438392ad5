//! What devices say, on a person's terminal: control characters would move its cursor, change its title, or hide what stands there.
//!
//! Invariant: what is shown are characters that a terminal prints, line feeds and tabs; to a file or a pipe everything goes as it is.
//! Must not know: what is shown.

use std::{
    borrow::Cow,
    fmt::{Display, Write},
    io::{self, IsTerminal},
};

/// Of the other direction, and marks that turn it: they show text in another order than it has.
fn turns(c: char) -> bool {
    matches!(c, '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// The same with everything escaped that a terminal does not print.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let _never_fails = match c {
                '\n' | '\t' => text.write_char(c),
                c if c.is_control() && c.is_ascii() => write!(text, "\\x{:02x}", u32::from(c)),
                c if c.is_control() || turns(c) => write!(text, "\\u{{{:x}}}", u32::from(c)),
                c => text.write_char(c),
            };
        }
        for b in chunk.invalid() {
            let _never_fails = write!(text, "\\x{b:02x}");
        }
    }
    text
}

/// For standard output, if that is a terminal.
#[must_use]
pub fn shown(bytes: &[u8]) -> Cow<'_, [u8]> {
    if io::stdout().is_terminal() { Cow::Owned(escaped(bytes).into_bytes()) } else { Cow::Borrowed(bytes) }
}

/// A line on standard error; escaped where that is a terminal.
pub fn say(line: impl Display) {
    let line = line.to_string();
    if io::stderr().is_terminal() {
        eprintln!("{}", escaped(line.as_bytes()));
    } else {
        eprintln!("{line}");
    }
}

/// Are lines to be coloured? `terminal`: they are read on one. See no-color.org and bixense.com/clicolors.
#[must_use]
pub fn is_coloured(terminal: bool) -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    terminal && !no_colour && !is("CLICOLOR", "0") && !is("TERM", "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_does_not_print_is_escaped() {
        for (bytes, text) in [
            (&b"21.5 \xC2\xB0C\n\tok"[..], "21.5 °C\n\tok"),
            (b"\x1b]0;title\x07\x1b[2J\r\0\x7f", "\\x1b]0;title\\x07\\x1b[2J\\x0d\\x00\\x7f"),
            ("\u{9b}2J \u{202e}txt".as_bytes(), "\\u{9b}2J \\u{202e}txt"),
            (b"\xff\xfe", "\\xff\\xfe"),
        ] {
            assert_eq!(escaped(bytes), text);
        }
    }
}
