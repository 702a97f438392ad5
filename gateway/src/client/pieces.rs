//! The grammar of `-F`: text, fields with a width and a precision, dates, and escapes.

use super::Failure;
use jiff::{Timestamp, tz::TimeZone};
use std::{borrow::Cow, iter::Peekable, str::Chars};

/// One part of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    Field(char, Spec),
    /// A conversion of strftime(3).
    Date(char),
    /// Nanoseconds of the second.
    Nanoseconds,
}

/// How a field is set: `%-010.3t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    left: bool,
    zeros: bool,
    width: usize,
    precision: Option<usize>,
}

/// A wider field would only fill memory.
const WIDTH_MAX: usize = 1_000;

/// Letters whose fields are numbers.
const NUMBERS: &str = "AEFlmqr";
const LETTERS: &str = "ACDEFIJPRSUXjlmpqrtx";

impl Spec {
    /// Cuts `text` at the precision and fills it to the width, in bytes as printf(3) does. What a letter says is a number or it is not, whatever it looks like.
    pub fn field(self, letter: char, text: &str) -> String {
        let is_number = NUMBERS.contains(letter) && !text.is_empty();
        let most = self.precision.filter(|_| !is_number).unwrap_or(usize::MAX);
        let text = &text[..text.floor_char_boundary(most)];
        let fill = |with: &str| with.repeat(self.width.saturating_sub(text.len()));
        match (self.left, self.zeros && is_number) {
            (true, _) => format!("{text}{}", fill(" ")),
            (false, true) => format!("{}{text}", fill("0")),
            (false, false) => format!("{}{text}", fill(" ")),
        }
    }

    /// A payload is also cut at its width, as mosquitto_sub does it.
    pub fn payload(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        let most = self.precision.or((self.width > 0).then_some(self.width)).unwrap_or(usize::MAX);
        let cut = bytes.get(..most).unwrap_or(bytes);
        let fill = vec![b' '; self.width.saturating_sub(cut.len())];
        match (fill.is_empty(), self.left) {
            (true, _) => Cow::Borrowed(cut),
            (false, true) => Cow::Owned([cut, &fill].concat()),
            (false, false) => Cow::Owned([&fill, cut].concat()),
        }
    }
}

/// Splits a format into its pieces.
///
/// # Errors
/// Names what does not exist, and what does.
pub fn parse(text: &str) -> Result<Vec<Piece>, Failure> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let piece = match c {
            '%' => percent(&mut chars)?,
            '@' => at(&mut chars)?,
            '\\' => Piece::Text(escape(chars.next())?.into()),
            other => Piece::Text(other.into()),
        };
        if let Piece::Text(text) = &piece {
            plain.push_str(text);
        } else {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(piece);
        }
    }
    pieces.push(Piece::Text(plain));
    Ok(pieces)
}

fn percent(chars: &mut Peekable<Chars<'_>>) -> Result<Piece, Failure> {
    if chars.next_if_eq(&'%').is_some() {
        return Ok(Piece::Text("%".into()));
    }
    let mut spec = Spec::default();
    while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0')) {
        spec.left |= flag == '-';
        spec.zeros |= flag == '0';
    }
    spec.width = number(chars)?.unwrap_or(0);
    if chars.next_if_eq(&'.').is_some() {
        spec.precision = Some(number(chars)?.unwrap_or(0));
    }
    match chars.next() {
        Some(letter) if LETTERS.contains(letter) => Ok(Piece::Field(letter, spec)),
        letter => {
            let letter = letter.map_or_else(String::new, String::from);
            let all: Vec<String> = LETTERS.chars().map(|l| format!("%{l}")).collect();
            Err(Failure::new(format!("-F: no %{letter}; there are {} and %%", all.join(" "))))
        }
    }
}

fn number(chars: &mut Peekable<Chars<'_>>) -> Result<Option<usize>, Failure> {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    let number = digits.parse().ok().filter(|n| *n <= WIDTH_MAX);
    let wide = || Failure::new(format!("-F: a field is at most {WIDTH_MAX} wide, not {digits}"));
    number.map(Some).ok_or_else(wide)
}

fn at(chars: &mut Peekable<Chars<'_>>) -> Result<Piece, Failure> {
    match chars.next() {
        Some('@') => Ok(Piece::Text("@".into())),
        Some('N') => Ok(Piece::Nanoseconds),
        Some(letter) if is_conversion(letter) => Ok(Piece::Date(letter)),
        letter => {
            let letter = letter.map_or_else(String::new, String::from);
            let words = "@@, @N for nanoseconds, and the letters of strftime(3), as in @Y-@m-@d";
            Err(Failure::new(format!("-F: no @{letter}; there are {words}")))
        }
    }
}

fn is_conversion(letter: char) -> bool {
    let zoned = Timestamp::UNIX_EPOCH.to_zoned_datetime(TimeZone::UTC);
    letter.is_ascii_alphabetic() && jiff::fmt::strtime::format(format!("%{letter}"), &zoned).is_ok()
}

fn escape(letter: Option<char>) -> Result<char, Failure> {
    Ok(match letter {
        Some('\\') => '\\',
        Some('0') => '\0',
        Some('a') => '\x07',
        Some('e') => '\x1B',
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some('v') => '\x0B',
        other => {
            let other = other.map_or_else(String::new, String::from);
            let all = r"\\ \0 \a \e \n \r \t \v";
            return Err(Failure::new(format!(r"-F: no \{other}; there are {all}")));
        }
    })
}
