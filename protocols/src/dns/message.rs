//! DNS messages as far as load and a fixed answer need them (RFC 1035 §4): names to bytes, headers
//! and questions back.
//!
//! Nothing here allocates but [`Name::parse`], which runs before a load does. What arrives is any
//! bytes: every reader here answers `None` for what is not whole, and never reads beyond.

/// Bytes of a header: id, flags, four counts (§4.1.1).
pub const HEADER_LEN: usize = 12;
/// The type of an IPv4 address record (§3.2.2).
pub const TYPE_A: u16 = 1;
/// The type of an IPv6 address record (RFC 3596 §2.1).
pub const TYPE_AAAA: u16 = 28;
/// The Internet class (§3.2.4).
pub const CLASS_IN: u16 = 1;

/// Bytes of a name in a message, at most (§2.3.4).
const NAME_LEN_MAX: usize = 255;
/// Bytes of one label, at most (§2.3.4); the two bits above mark pointers.
const LABEL_LEN_MAX: usize = 63;
/// Flags of the first byte after the id.
const QR: u8 = 0x80;
const OPCODE: u8 = 0x78;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RCODE: u8 = 0x0f;

/// Why a text is no domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing between two dots, or at the beginning.
    #[error("the name {0:?} has an empty label; write two labels with one dot between them")]
    Empty(String),
    /// A label of too many bytes.
    #[error("the name {0:?} has a label of more than 63 bytes")]
    Label(String),
    /// Too many bytes altogether.
    #[error("the name {0:?} is longer than 255 bytes")]
    Length(String),
    /// A backslash that says nothing.
    #[error(
        "the name {0:?} has a backslash without a character or three digits up to 255 after it"
    )]
    Escape(String),
}

/// A domain name in the form that it has in a message, without compression.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads a name as people write it: labels between dots, one at the end or not, `.` for the
    /// root. `\.` is a dot within a label and `\DDD` the byte of that number (§5.1).
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let mut wire = vec![0];
        if text == "." {
            return Ok(Self(wire));
        }
        let mut label = 0;
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let literal = match byte {
                b'.' => {
                    if wire[label] == 0 {
                        return Err(NameError::Empty(text.to_owned()));
                    }
                    label = wire.len();
                    wire.push(0);
                    continue;
                }
                b'\\' => escaped(&mut bytes).ok_or_else(|| NameError::Escape(text.to_owned()))?,
                other => other,
            };
            if usize::from(wire[label]) == LABEL_LEN_MAX {
                return Err(NameError::Label(text.to_owned()));
            }
            wire[label] += 1;
            wire.push(literal);
        }
        if wire.len() == 1 {
            return Err(NameError::Empty(text.to_owned()));
        }
        // A dot at the end has begun the root already.
        if wire[label] != 0 {
            wire.push(0);
        }
        if wire.len() > NAME_LEN_MAX {
            return Err(NameError::Length(text.to_owned()));
        }
        Ok(Self(wire))
    }

    /// Its bytes in a message.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.0
    }
}

fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let digits = [first, bytes.next()?, bytes.next()?];
    let number = digits.iter().try_fold(0_u16, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u16::from(digit - b'0'))
    })?;
    u8::try_from(number).ok()
}

/// Appends a standard query with one question and recursion desired (§4.1), id 0.
pub fn write_query(out: &mut Vec<u8>, name: &Name, kind: u16) {
    out.extend_from_slice(&[0, 0, RD, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(name.wire());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
}

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which query it is, or answers.
    pub id: u16,
    first: u8,
    second: u8,
    /// Questions that follow.
    pub questions: u16,
}

impl Header {
    /// Reads it; `None` when the message is shorter.
    #[inline]
    #[must_use]
    pub fn read(message: &[u8]) -> Option<Self> {
        let header = message.first_chunk::<HEADER_LEN>()?;
        Some(Self {
            id: u16::from_be_bytes([header[0], header[1]]),
            first: header[2],
            second: header[3],
            questions: u16::from_be_bytes([header[4], header[5]]),
        })
    }

    /// Whether it is an answer and no query.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.first & QR != 0
    }

    /// The kind of query; 0 is the standard one.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        (self.first & OPCODE) >> 3
    }

    /// Whether the answer was cut because it was too long for the transport.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.first & TC != 0
    }

    /// Whether the server is asked to ask others.
    #[must_use]
    pub fn wants_recursion(&self) -> bool {
        self.first & RD != 0
    }

    /// What the server says about the query: 0 no error, 2 server failure, 3 no such name, …
    #[must_use]
    pub fn response_code(&self) -> u8 {
        self.second & RCODE
    }
}

/// The first question of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question<'a> {
    /// Name, type and class as they are in the message.
    pub bytes: &'a [u8],
    /// The type that is asked for.
    pub kind: u16,
    /// The class that is asked for.
    pub class: u16,
}

/// Reads the first question; `None` when it is not whole, or its name too long or a pointer:
/// there is nothing before it that one could point to.
#[inline]
#[must_use]
pub fn question(message: &[u8]) -> Option<Question<'_>> {
    let rest = message.get(HEADER_LEN..)?;
    let mut at = 0;
    loop {
        let len = usize::from(*rest.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        if len > LABEL_LEN_MAX {
            return None;
        }
        at += len;
    }
    if at > NAME_LEN_MAX {
        return None;
    }
    let &[a, b, c, d] = rest.get(at..)?.first_chunk::<4>()?;
    Some(Question {
        bytes: &rest[..at + 4],
        kind: u16::from_be_bytes([a, b]),
        class: u16::from_be_bytes([c, d]),
    })
}

/// Whether a message is about the question of a query: the same bytes, upper and lower case the
/// same (RFC 4343). An error may come without any question.
#[inline]
#[must_use]
pub fn is_about(message: &[u8], header: &Header, asked: &[u8]) -> bool {
    match header.questions {
        0 => header.is_answer() && header.response_code() != 0,
        // Length bytes are below 64 and so have no case.
        1 => message
            .get(HEADER_LEN..HEADER_LEN + asked.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(asked)),
        _ => false,
    }
}

/// The number of a record type by its word, or as `TYPE65` (RFC 3597 §5).
#[must_use]
pub fn parse_type(text: &str) -> Option<u16> {
    const WORDS: [(&str, u16); 16] = [
        ("A", TYPE_A),
        ("NS", 2),
        ("CNAME", 5),
        ("SOA", 6),
        ("PTR", 12),
        ("HINFO", 13),
        ("MX", 15),
        ("TXT", 16),
        ("AAAA", TYPE_AAAA),
        ("SRV", 33),
        ("NAPTR", 35),
        ("DS", 43),
        ("DNSKEY", 48),
        ("SVCB", 64),
        ("HTTPS", 65),
        ("ANY", 255),
    ];
    let word = WORDS
        .iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(text));
    let number = || match text.get(..4) {
        Some(head) if head.eq_ignore_ascii_case("TYPE") => text[4..].parse().ok(),
        _ => None,
    };
    word.map(|(_, number)| *number).or_else(number)
}

/// The usual word for a response code (RFC 6895 §2.3).
#[must_use]
pub fn response_code_name(code: u8) -> &'static str {
    match code {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        _ => "other code",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        let long = |labels: usize| vec!["a".repeat(63); labels].join(".");
        for (text, wire) in [
            (".", &b"\0"[..]),
            ("com", b"\x03com\0"),
            ("example.com", b"\x07example\x03com\0"),
            ("example.com.", b"\x07example\x03com\0"),
            (r"a\.b.c\255\\", b"\x03a.b\x03c\xff\\\0"),
        ] {
            assert_eq!(
                Name::parse(text).map(|name| name.0),
                Ok(wire.to_vec()),
                "{text}"
            );
        }
        assert_eq!(Name::parse(&long(3)).unwrap().wire().len(), 193);
        let owned = str::to_owned;
        for (text, error) in [
            (owned(""), NameError::Empty(owned(""))),
            (owned("a..b"), NameError::Empty(owned("a..b"))),
            (owned(".a"), NameError::Empty(owned(".a"))),
            (owned(".."), NameError::Empty(owned(".."))),
            ("a".repeat(64), NameError::Label("a".repeat(64))),
            (long(4), NameError::Length(long(4))),
            (owned("a\\"), NameError::Escape(owned("a\\"))),
            (owned(r"\256"), NameError::Escape(owned(r"\256"))),
            (owned(r"\2x1"), NameError::Escape(owned(r"\2x1"))),
        ] {
            assert_eq!(Name::parse(&text), Err(error));
        }
    }

    #[test]
    fn types_have_words_and_numbers() {
        for (text, kind) in [
            ("A", Some(1)),
            ("aaaa", Some(28)),
            ("Https", Some(65)),
            ("type65535", Some(65_535)),
            ("TYPE65536", None),
            ("TYPE", None),
            ("", None),
            ("É", None),
        ] {
            assert_eq!(parse_type(text), kind, "{text}");
        }
    }

    #[test]
    fn a_query_is_the_one_of_tcpscaler() {
        let mut query = Vec::new();
        write_query(&mut query, &Name::parse("example.com").unwrap(), TYPE_A);
        let expected = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
        assert_eq!(query, expected);
        let header = Header::read(&query).unwrap();
        assert!(!header.is_answer() && header.wants_recursion() && !header.is_truncated());
        assert_eq!((header.id, header.opcode(), header.questions), (0, 0, 1));
        let asked = question(&query).unwrap();
        assert_eq!((asked.kind, asked.class), (TYPE_A, CLASS_IN));
        assert_eq!(asked.bytes, &query[HEADER_LEN..]);
    }

    #[test]
    fn what_is_cut_anywhere_is_no_question() {
        let mut query = Vec::new();
        write_query(&mut query, &Name::parse("example.com").unwrap(), TYPE_A);
        for len in 0..query.len() {
            assert_eq!(question(&query[..len]), None, "{len} bytes");
            assert_eq!(Header::read(&query[..len]).is_some(), len >= HEADER_LEN);
        }
        let with = |name: &[u8]| [&query[..HEADER_LEN], name, &[0, 1, 0, 1]].concat();
        assert_eq!(question(&with(b"\xc0\x0c")), None, "a pointer");
        assert_eq!(question(&with(&[0x40; 65])), None, "a label of 64 bytes");
        let long = [[&[63][..], &[b'a'; 63]].concat().repeat(4), vec![0]].concat();
        assert_eq!(question(&with(&long)), None, "257 bytes");
    }

    #[test]
    fn an_answer_is_about_its_question_or_an_error_without_one() {
        let asked = b"\x07example\x03com\0\0\x01\0\x01";
        let message = |flags: [u8; 2], questions: u8, question: &[u8]| {
            let header = [0, 7, flags[0], flags[1], 0, questions, 0, 0, 0, 0, 0, 0];
            [&header[..], question].concat()
        };
        for (message, about, why) in [
            (message([0x81, 0x80], 1, asked), true, "the same"),
            (
                message([0x81, 0x80], 1, b"\x07eXample\x03COM\0\0\x01\0\x01"),
                true,
                "in capitals",
            ),
            (message([0x01, 0x00], 1, asked), true, "an echo"),
            (
                message([0x81, 0x80], 1, b"\x07exbmple\x03com\0\0\x01\0\x01"),
                false,
                "another name",
            ),
            (
                message([0x81, 0x80], 1, b"\x07example\x03com\0\0\x1c\0\x01"),
                false,
                "another type",
            ),
            (message([0x81, 0x80], 1, b"\x07example"), false, "cut"),
            (message([0x81, 0x80], 2, asked), false, "two questions"),
            (
                message([0x81, 0x80], 0, b""),
                false,
                "no question, no error",
            ),
            (message([0x81, 0x85], 0, b""), true, "refused"),
            (
                message([0x01, 0x05], 0, b""),
                false,
                "a query without a question",
            ),
        ] {
            let header = Header::read(&message).unwrap();
            assert_eq!(is_about(&message, &header, asked), about, "{why}");
        }
    }
}
