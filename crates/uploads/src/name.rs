//! What a file is called and said to be.

use thiserror::Error;
use unicode_normalization::UnicodeNormalization as _;

/// The most bytes of a file's name.
pub const NAME_BYTES_MAX: usize = 255;

/// Makes the name under which a file is kept and given back of the name that a client told.
///
/// Path parts, control characters and characters that change the direction of text are removed, the rest is brought into
/// Unicode's form NFC and cut to [`NAME_BYTES_MAX`] bytes. Of a name of which nothing is left, `file` remains. The name
/// is told to people and programs; it never becomes a part of a path here.
///
/// ```
/// use driftline_uploads::file_name;
///
/// assert_eq!(file_name("../../etc/passwd"), "passwd");
/// assert_eq!(file_name("C:\\photos\\Stra\u{df}e.jpg"), "Stra\u{df}e.jpg");
/// assert_eq!(file_name("gpj.\u{202e}exe"), "gpj.exe");
/// assert_eq!(file_name(".."), "file");
/// ```
#[must_use]
pub fn file_name(told: &str) -> String {
    let last = told.rsplit(['/', '\\']).find(|part| !part.trim().is_empty()).unwrap_or_default();
    let mut name = String::new();
    for letter in last.chars().filter(|letter| !is_hidden(*letter)).nfc() {
        if name.len() + letter.len_utf8() > NAME_BYTES_MAX {
            break;
        }
        name.push(letter);
    }
    let kept = name.trim();
    let says_nothing = kept.chars().all(|letter| letter == '.' || letter.is_whitespace());
    if says_nothing { "file".into() } else { kept.into() }
}

/// Control characters, separators of lines, and what steers or hides text: direction marks, joiners, byte order marks,
/// tags and characters without a meaning of their own.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(letter,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Why a text is not a content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a content type is type/subtype, with at most 127 letters, digits and !#$&^_.+- in each part")]
pub struct ContentTypeError;

/// A content type without parameters, in lower case, such as `image/png`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Box<str>);

impl ContentType {
    /// Reads a content type (RFC 6838 §4.2); parameters are left out.
    ///
    /// # Errors
    /// [`ContentTypeError`] when it is none.
    pub fn new(text: &str) -> Result<Self, ContentTypeError> {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let (of, sub) = essence.split_once('/').ok_or(ContentTypeError)?;
        if is_restricted(of) && is_restricted(sub) { Ok(Self(essence.into())) } else { Err(ContentTypeError) }
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What may be told of files that nothing is told of.
impl Default for ContentType {
    fn default() -> Self {
        Self("application/octet-stream".into())
    }
}

fn is_restricted(part: &str) -> bool {
    let mut letters = part.bytes();
    letters.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && part.len() <= 127
        && letters.all(|letter| letter.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&letter))
}

/// The content types that are taken. An empty list takes all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowList(Vec<Box<str>>);

impl AllowList {
    /// Makes a list of content types and of whole classes such as `image/*`.
    ///
    /// # Errors
    /// [`ContentTypeError`] for an entry that is neither.
    pub fn new<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Result<Self, ContentTypeError> {
        let entry = |entry: T| {
            let text = entry.as_ref().trim().to_ascii_lowercase();
            match text.strip_suffix("/*") {
                Some(class) if is_restricted(class) => Ok(text.into()),
                Some(_) => Err(ContentTypeError),
                None => ContentType::new(&text).map(|content_type| content_type.0),
            }
        };
        entries.into_iter().map(entry).collect::<Result<_, _>>().map(Self)
    }

    /// Tells whether a content type is on the list.
    #[must_use]
    pub fn admits(&self, content_type: &ContentType) -> bool {
        let own = content_type.as_str();
        let is_of = |entry: &str| match entry.strip_suffix('*') {
            Some(class) => own.starts_with(class),
            None => own == entry,
        };
        self.0.is_empty() || self.0.iter().any(|entry| is_of(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path_and_shows_what_it_is() {
        let table = [
            ("report.pdf", "report.pdf"),
            ("/a/b/", "b"),
            ("a\u{0}b\nc\u{7f}", "abc"),
            ("..\\..\\x", "x"),
            ("\u{200f}a\u{2066}b\u{feff}", "ab"),
            ("e\u{301}", "\u{e9}"),
            ("", "file"),
            ("...", "file"),
            (". .", "file"),
            (" / ", "file"),
            ("  a b  ", "a b"),
            (".profile", ".profile"),
        ];
        for (told, wanted) in table {
            assert_eq!(file_name(told), wanted, "{told:?}");
        }
        let long = file_name(&"\u{e9}".repeat(200));
        assert_eq!((long.len(), long.chars().count()), (254, 127), "cut between two characters");
    }

    #[test]
    fn content_types_are_read_and_allowed() {
        assert_eq!(ContentType::new("Image/PNG; q=1").unwrap().as_str(), "image/png");
        for bad in ["", "image", "/png", "image/", "im age/png", "a/b/c", "text/\u{e9}", "\r\nx/y z"] {
            assert_eq!(ContentType::new(bad), Err(ContentTypeError), "{bad:?}");
        }
        let list = AllowList::new(["image/*", "Application/PDF"]).unwrap();
        let admits = |text: &str| list.admits(&ContentType::new(text).unwrap());
        assert!(admits("image/png") && admits("application/pdf"));
        assert!(!admits("text/html") && !admits("imagery/png") && !admits("application/pdfx"));
        assert!(AllowList::default().admits(&ContentType::default()));
        assert!(AllowList::new(["*/*"]).is_err() && AllowList::new(["png"]).is_err());
    }
}
