//! Which datagrams look like DTLS records. Never looks at anything but the first record header.

/// Bytes of a DTLS 1.2 record header (RFC 6347 §4.1), and one of content.
const RECORD_BYTES_MIN: usize = 14;
/// First byte of every DTLS version.
const MAJOR: u8 = 254;
/// Second byte of DTLS 1.2.
const MINOR_1_2: u8 = 253;
/// Second byte of DTLS 1.0, in which a client may begin (RFC 6347 §4.2.1).
const MINOR_1_0: u8 = 255;
/// Content types: change cipher spec, alert, handshake, application data (RFC 5246 §6.2.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// Content type of a record with a connection id (RFC 9146 §4).
const TLS12_CID: u8 = 25;

/// Whether a datagram begins with a DTLS record header of version 1.2, or is a handshake record of
/// version 1.0.
#[must_use]
pub fn is_dtls(datagram: &[u8]) -> bool {
    let [kind, major, minor, ..] = *datagram else {
        return false;
    };
    if datagram.len() < RECORD_BYTES_MIN || major != MAJOR {
        return false;
    }
    match minor {
        MINOR_1_2 => matches!(
            kind,
            CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE | APPLICATION_DATA | TLS12_CID
        ),
        MINOR_1_0 => kind == HANDSHAKE,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_others() {
        for (kind, major, minor, len, want) in [
            (22, 254, 253, 14, true),
            (22, 254, 253, 13, false),
            (22, 254, 255, 14, true),
            (23, 254, 255, 14, false),
            (20, 254, 253, 100, true),
            (21, 254, 253, 100, true),
            (23, 254, 253, 100, true),
            (24, 254, 253, 100, false),
            (25, 254, 253, 100, true),
            (26, 254, 253, 100, false),
            (22, 3, 3, 100, false),
            (22, 254, 252, 100, false),
        ] {
            let mut datagram = vec![0; len];
            datagram[..3].copy_from_slice(&[kind, major, minor]);
            assert_eq!(
                is_dtls(&datagram),
                want,
                "{kind} {major} {minor}, {len} bytes"
            );
        }
        assert!(!is_dtls(&[]));
        assert!(!is_dtls(&[22, 254]));
    }
}
